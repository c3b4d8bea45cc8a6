//! Faults of the broker and of the way to it, hostile messages among them: the end and its receipt are the same, and a
//! request is never lost.

use std::time::Duration;

use lapin::BasicProperties;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::mischief::{Forgery, Mischief, Victim};
use crate::process::Service;
use crate::support::heimdall::Shape;
use crate::support::rabbitmq::{self, RabbitMq};
use crate::support::{SOON, wait_until};
use crate::tcp_proxy::{Direction, End, TcpProxy};
use crate::world::{PURGED, Places, Settings, World};

/// 1,000 objects in batches of 50.
const SHAPE: Shape = Shape { samples: 250, receivers: 4 };
const ROWS: i64 = 1 + 250 + 3;
const SMALL: Shape = Shape { samples: 5, receivers: 4 };
const SMALL_ROWS: i64 = 1 + 5 + 3;

/// So short that a test can wait for them.
const IMPATIENT: &[(&str, &str)] =
    &[("REPRIEVE__BROKER__CONFIRM_TIMEOUT", "2s"), ("REPRIEVE__BROKER__CONNECT_TIMEOUT", "2s")];

const REASON: &str = "x-reprieve-reason";

/// Slices so short that a purge is many deliveries.
fn settings() -> Settings {
    Settings { batch_size: 50, lease: "1s", slice: "1s", redeliver_after: "2s", ..Settings::default() }
}

/// On a broker, directly or by the address of a proxy before it.
async fn on(amqp_url: String, settings: Settings) -> World {
    let world = World::unmigrated(Places { amqp_url, ..Places::shared().await }, settings).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    world
}

/// A world on the shared broker, whose services reach it through a proxy; what else the tests do there does not.
async fn behind_a_proxy(parameters: &str, settings: Settings) -> (World, TcpProxy) {
    let direct = rabbitmq::shared().await.amqp_url();
    let (proxy, through) = TcpProxy::before(&format!("{direct}{parameters}"));
    let world = on(direct, settings).await;
    let text = std::fs::read_to_string(&world.config).expect("our own file");
    std::fs::write(&world.config, text.replace(&world.amqp_url, &through)).expect("our own file");
    (world, proxy)
}

async fn ready(world: &World, env: &[(&str, &str)]) -> Service {
    let service = world.serve_with(&[], env);
    for role in ["intake consumes", "worker consumes", "relay publishes"] {
        service.says(role).await;
    }
    service
}

async fn datasets(world: &World, count: usize, shape: Shape) -> Vec<(Uuid, i64)> {
    let mut made = Vec::new();
    for n in 0..count {
        made.push(world.dataset(&format!("set {n}"), shape).await);
    }
    made
}

async fn request_trash(amqp: &Amqp, id: Uuid) {
    let body = json!({ "v": 1, "op": "trash", "kind": "dataset", "id": id, "actor": "service" }).to_string();
    let properties = BasicProperties::default().with_message_id(id.to_string().into());
    amqp.publish("requests", body.as_bytes(), properties).await;
}

async fn all_trashed(world: &World, sets: &[(Uuid, i64)]) {
    for (id, _) in sets {
        wait_until("it is in the trash", PURGED, async || world.try_stands(*id).await.is_some()).await;
    }
}

/// Every one is purged with an exact receipt, nothing is left in any queue, and nobody gave up.
async fn all_end_well(world: &World, amqp: &Amqp, sets: &[(Uuid, i64)], rows: i64) {
    for (id, put) in sets {
        world.purged("dataset", *id, *put, rows).await;
    }
    assert!(world.is_quiet(PURGED).await, "something is left to do");
    wait_until("the queues are empty", SOON, async || {
        (amqp.depth("dead").await, amqp.depth("requests").await, amqp.depth("purge").await) == (0, 0, 0)
    })
    .await;
    let stuck = "select count(*) from reprieve.audit where event = 'stuck'";
    assert_eq!(sqlx::query_scalar::<_, i64>(stuck).fetch_one(&world.pool).await.expect("counted"), 0);
}

#[tokio::test]
async fn connections_cut_at_many_moments_change_nothing_about_the_end() {
    let (world, proxy) = behind_a_proxy("", settings()).await;
    let sets = datasets(&world, 6, SHAPE).await;
    let ids: Vec<_> = sets.iter().map(|(id, _)| *id).collect();
    let service = ready(&world, &[]).await;
    let amqp = Amqp::beside(&world, &service).await;
    for (n, (id, _)) in sets.iter().enumerate() {
        // a window that is lost in the middle, an ack that does not arrive, a delivery that is cut short
        proxy.cut_after(Direction::ToServer, 150 + 100 * n);
        proxy.cut_after(Direction::ToClient, 400 + 100 * n);
        request_trash(&amqp, *id).await;
    }
    all_trashed(&world, &sets).await;
    let mut cuts = 0;
    while cuts < 10 && world.moves_on(&ids, cuts * 11).await {
        proxy.cut(if cuts % 2 == 0 { End::Rst } else { End::Fin });
        cuts += 1;
    }
    assert!(cuts >= 3 && proxy.count("cut") >= 3, "{cuts} cuts: it was over too soon to be a test");
    assert!(proxy.count("cut in the middle") >= 6, "{:?}", proxy.counts());
    proxy.forget();
    all_end_well(&world, &amqp, &sets, ROWS).await;
}

#[tokio::test]
async fn connections_that_die_without_a_word_are_given_up_and_made_anew() {
    let (world, proxy) = behind_a_proxy("?heartbeat=1", settings()).await;
    let sets = datasets(&world, 3, SHAPE).await;
    let ids: Vec<_> = sets.iter().map(|(id, _)| *id).collect();
    let service = ready(&world, IMPATIENT).await;
    let amqp = Amqp::beside(&world, &service).await;
    for (id, _) in &sets {
        request_trash(&amqp, *id).await;
    }
    all_trashed(&world, &sets).await;
    assert!(world.moves_on(&ids, 20).await, "it was over too soon to be a test");
    assert!(proxy.strand() >= 2);
    let (late, put) = world.dataset("asked for meanwhile", SMALL).await;
    request_trash(&amqp, late).await;
    all_end_well(&world, &amqp, &sets, ROWS).await;
    all_end_well(&world, &amqp, &[(late, put)], SMALL_ROWS).await;
    assert!(proxy.count("stranded") >= 2, "{:?}", proxy.counts());
}

/// A broker that takes a delivery back after four seconds.
async fn hasty_broker() -> &'static RabbitMq {
    static SERVER: OnceCell<RabbitMq> = OnceCell::const_new();
    SERVER.get_or_init(async || RabbitMq::start_with("consumer_timeout = 4000").await).await
}

const TOOK_IT_BACK: &str = "delivery acknowledgement on channel";

#[tokio::test]
async fn a_delivery_that_the_broker_takes_back_from_a_long_slice_comes_again_and_finds_the_lease() {
    let broker = hasty_broker().await;
    let world = on(broker.amqp_url(), Settings { slice: "30s", ..settings() }).await;
    let (locked, put) = world.dataset("locked", SMALL).await;
    let (other, _) = world.dataset("another", SMALL).await;
    let mut lock = world.pool.begin().await.expect("begins");
    sqlx::query("select from heimdall.synthetic_iq_samples where dataset_id = $1 for update")
        .bind(locked)
        .execute(&mut *lock)
        .await
        .expect("locked");
    let (first, second) = (ready(&world, &[]).await, ready(&world, &[]).await);
    let amqp = Amqp::beside(&world, &first).await;
    world.trash("dataset", locked).await;
    wait_until("its objects are gone, and its rows locked", SOON, async || world.objects(locked).await == 0).await;
    let said = |text: &str| first.log().contains(text) || second.log().contains(text);
    wait_until("the broker takes it back", SOON, async || {
        broker.check_ack_timeouts();
        said(TOOK_IT_BACK)
    })
    .await;
    wait_until("it finds the lease", SOON, async || said("another worker holds the lease")).await;
    // who waits for the lock holds up nobody else
    world.trash("dataset", other).await;
    world.purged("dataset", other, put, SMALL_ROWS).await;
    assert_eq!(world.stands(locked).await.state, "purging");
    lock.rollback().await.expect("ends");
    all_end_well(&world, &amqp, &[(locked, put)], SMALL_ROWS).await;
}

#[tokio::test]
async fn a_purge_much_longer_than_the_brokers_time_out_is_many_slices_and_none_is_taken_back() {
    let broker = hasty_broker().await;
    let places = Places::shared().await;
    let (slow, s3_endpoint) = TcpProxy::before(&places.s3_endpoint);
    let places = Places { s3_endpoint, amqp_url: broker.amqp_url(), ..places };
    let world = World::unmigrated(places, Settings { slice: "500ms", ..settings() }).await;
    world.cli(&["migrate"]).await.with(0);
    let (id, put) = world.dataset("long", SHAPE).await;
    let service = ready(&world, &[]).await;
    let amqp = Amqp::beside(&world, &service).await;
    slow.slow(Duration::from_millis(100));
    world.trash("dataset", id).await;
    let began = world.until("it begins", id, |now| now.state == "purging").await.purging_at.expect("just begun");
    wait_until("it ends", PURGED, async || {
        broker.check_ack_timeouts();
        world.stands(id).await.state == "purged"
    })
    .await;
    slow.slow(Duration::ZERO);
    let took = time::OffsetDateTime::now_utc() - began;
    assert!(took > time::Duration::seconds(8), "{took}: not much longer than four seconds");
    assert!(service.log().matches(r#""message":"purging""#).count() >= 4, "{}", service.log());
    assert!(!service.log().contains(TOOK_IT_BACK), "{}", service.log());
    all_end_well(&world, &amqp, &[(id, put)], ROWS).await;
}

#[tokio::test]
async fn channels_and_connections_that_the_broker_ends_at_many_moments_change_nothing_about_the_end() {
    let broker = RabbitMq::start().await;
    let world = on(broker.amqp_url(), settings()).await;
    let sets = datasets(&world, 3, SHAPE).await;
    let ids: Vec<_> = sets.iter().map(|(id, _)| *id).collect();
    let service = ready(&world, IMPATIENT).await;
    for (id, _) in &sets {
        world.trash("dataset", *id).await;
    }
    let (mut channels, mut connections) = (0, 0);
    for round in 0..4 {
        if !world.moves_on(&ids, round * 30).await {
            break;
        }
        channels += broker.crash_channels();
        if !world.moves_on(&ids, round * 30).await {
            break;
        }
        connections += broker.close_connections();
    }
    assert!(channels >= 2 && connections >= 2, "{channels} and {connections}: it was over too soon to be a test");
    let amqp = Amqp::beside(&world, &service).await;
    all_end_well(&world, &amqp, &sets, ROWS).await;

    // publishers that the broker does not read from, and a worker that goes on
    let (begun, put) = world.dataset("begun before", SHAPE).await;
    let (meanwhile, _) = world.dataset("trashed meanwhile", SMALL).await;
    world.trash("dataset", begun).await;
    world.until_in_the_middle(begun, put).await;
    broker.lacks_memory();
    let fence = world.stands(begun).await.fence;
    world.trash("dataset", meanwhile).await;
    service.says("message not taken, will try again").await;
    let now = world.stands(begun).await;
    assert!(now.gone() > 0 && now.fence <= fence + 1, "{now:?}");
    assert_ne!(world.stands(meanwhile).await.state, "purged");
    broker.has_memory();
    all_end_well(&world, &amqp, &[(begun, put)], ROWS).await;
    all_end_well(&world, &amqp, &[(meanwhile, 20)], SMALL_ROWS).await;
}

#[tokio::test]
async fn messages_dropped_doubled_delayed_reordered_and_forged_change_nothing_about_the_end() {
    const HUGE: usize = 4;
    let world = on(rabbitmq::shared().await.amqp_url(), settings()).await;
    let sets = datasets(&world, 12, SMALL).await;
    let relay = world.serve(&["--roles", "relay,sweeper"]);
    relay.says("relay publishes").await;
    let amqp = Amqp::connect(&world).await;
    let mut mischief = Mischief::connect(&world.amqp_url, &world.namespace).await.expect("connects");
    let mut rng = StdRng::seed_from_u64(7);
    let mut forged = Vec::new();

    for (id, _) in &sets {
        request_trash(&amqp, *id).await;
    }
    forged.extend(forge_all(&mut mischief, &mut rng, Victim::Requests, HUGE).await);
    let doubled = mischief.duplicate(&mut rng, Victim::Requests, 6).await.expect("a broker");
    let moved = mischief.reorder(&mut rng, Victim::Requests, 12).await.expect("a broker");
    let delayed = mischief.delay(&mut rng, Victim::Requests, 4).await.expect("a broker");
    assert!(doubled > 0 && moved > 1 && delayed > 0, "{doubled} {moved} {delayed}");
    let intake = world.serve(&["--roles", "intake"]);
    wait_until("what it was left is done", PURGED, async || amqp.depth("requests").await == 0).await;
    assert_eq!(mischief.release(&mut rng).await.expect("a broker"), delayed);
    all_trashed(&world, &sets).await;

    wait_until("every task was sent", PURGED, async || amqp.depth("purge").await >= 12).await;
    let dropped = mischief.drop_tasks(&mut rng, 4).await.expect("a broker");
    forged.extend(forge_all(&mut mischief, &mut rng, Victim::Purge, HUGE).await);
    let doubled = mischief.duplicate(&mut rng, Victim::Purge, 6).await.expect("a broker");
    let moved = mischief.reorder(&mut rng, Victim::Purge, 12).await.expect("a broker");
    let delayed = mischief.delay(&mut rng, Victim::Purge, 4).await.expect("a broker");
    assert!(doubled > 0 && moved > 1 && delayed > 0 && dropped > 0, "{doubled} {moved} {delayed} {dropped}");
    // tasks of one whose time is far
    let (early, put) = world.dataset("asked for early", SMALL).await;
    let trashed = world.json(&["trash", "dataset", &early.to_string(), "--retention", "1h", "--execute"]).await;
    let tombstone = trashed.pointer("/tombstone/tombstone_id").and_then(|id| id.as_str()?.parse().ok());
    let tombstone = tombstone.unwrap_or_else(|| panic!("{trashed:#}"));
    assert_eq!(mischief.hurry(&[tombstone, tombstone]).await.expect("a broker"), 2);
    let worker = world.serve(&["--roles", "worker"]);
    worker.says("it is not time yet").await;
    for (id, put) in &sets {
        world.purged("dataset", *id, *put, SMALL_ROWS).await;
    }
    assert_eq!(mischief.release(&mut rng).await.expect("a broker"), delayed);
    world.cli(&["restore", "dataset", &early.to_string()]).await.with(0);
    assert_eq!((world.objects(early).await, world.rows(early).await), (put, SMALL_ROWS), "nothing before its time");
    for (role, service) in [("intake", &intake), ("worker", &worker)] {
        let peak = service.peak_rss();
        assert!(peak < MEMORY, "the {role} took {peak} bytes for {HUGE} messages of 20 MB");
    }
    all_are_set_aside(&amqp, forged).await;
    all_end_well(&world, &amqp, &sets, SMALL_ROWS).await;
}

/// As much as the prefetch of forgeries may take, twice (in hand, and on the way to the dead letters), and a service.
const MEMORY: u64 = 400 * 1024 * 1024;

/// Bodies and reasons of those that cannot be read.
async fn forge_all(mischief: &mut Mischief, rng: &mut StdRng, to: Victim, huge: usize) -> Vec<(Vec<u8>, &'static str)> {
    let mut unreadable = Vec::new();
    let more = std::iter::repeat_n(Forgery::Huge, huge - 1);
    for forgery in Forgery::ALL.into_iter().chain(more) {
        let body = mischief.forge_as(rng, to, forgery).await.expect("a broker");
        unreadable.extend(forgery.reason(to).map(|reason| (body, reason)));
    }
    unreadable
}

/// Each of these is a dead letter with its reason (more than once, if it was doubled), and nothing else is one.
async fn all_are_set_aside(amqp: &Amqp, forged: Vec<(Vec<u8>, &'static str)>) {
    let mut left = forged.clone();
    wait_until("every forgery is set aside", PURGED, async || {
        while let Some(dead) = amqp.try_dead_letter().await {
            let reason = dead.headers.get(REASON).unwrap_or_else(|| panic!("without a reason: {:?}", dead.headers));
            let same = |(body, of): &(Vec<u8>, &str)| *body == dead.body && reason.contains(of);
            assert!(forged.iter().any(same), "{reason}: {} bytes that were not forged", dead.body.len());
            if let Some(at) = left.iter().position(same) {
                left.remove(at);
            }
        }
        left.is_empty()
    })
    .await;
}
