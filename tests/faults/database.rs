//! Faults of the database and of the way to it: every one is got over without help, none makes a purge stuck, and every
//! receipt counts as if nothing had happened.

mod failing;

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::BasicProperties;
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use serde_json::json;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::process::Service;
use crate::support::heimdall::{self, Shape};
use crate::support::{SOON, unique, wait_until};
use crate::tcp_proxy::{End, Lost, TcpProxy};
use crate::world::{PURGED, Places, Settings, World};

/// 1,000 objects in batches of 50.
const SHAPE: Shape = Shape { samples: 250, receivers: 4 };
/// Its row, those of its samples, and three of features.
const ROWS: i64 = 1 + 250 + 3;
const SMALL: Shape = Shape { samples: 10, receivers: 4 };
const SMALL_ROWS: i64 = 1 + 10 + 3;

/// So short that a test can wait for them.
const IMPATIENT: &[(&str, &str)] =
    &[("REPRIEVE__DATABASE__STATEMENT_TIMEOUT", "3s"), ("REPRIEVE__DATABASE__ACQUIRE_TIMEOUT", "2s")];

fn settings() -> Settings {
    Settings { batch_size: 50, lease: "1s", redeliver_after: "2s", ..Settings::default() }
}

/// A server that listens on TCP, for the tests that leave it running.
async fn server() -> &'static PrivatePostgres {
    static SERVER: OnceCell<PrivatePostgres> = OnceCell::const_new();
    SERVER
        .get_or_init(async || {
            PrivatePostgres::start(Options { tcp: true, ..Options::default() }).await.expect("starts")
        })
        .await
}

/// A world whose services reach their database through a proxy; `world.pool` does not.
async fn behind_a_proxy(settings: Settings) -> (World, TcpProxy) {
    on(server().await, settings).await
}

async fn on(server: &PrivatePostgres, settings: Settings) -> (World, TcpProxy) {
    let direct = server.create_database(&unique("faults")).await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(8).connect(&direct).await.expect("connects");
    heimdall::load(&pool).await;
    let (proxy, database_url) = TcpProxy::before(&direct);
    let world = World::unmigrated(Places { pool, database_url, ..Places::shared().await }, settings).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    (world, proxy)
}

/// Sends requests to trash and gathers what is answered.
struct Requests<'a> {
    amqp: Amqp,
    replies: String,
    world: &'a World,
}

impl Requests<'_> {
    async fn beside<'a>(world: &'a World, service: &Service) -> Requests<'a> {
        let amqp = Amqp::beside(world, service).await;
        Requests { replies: amqp.reply_queue().await, amqp, world }
    }

    async fn trash(&self, id: Uuid) {
        self.send("trash", id).await;
    }

    async fn send(&self, op: &str, id: Uuid) {
        let body = json!({ "v": 1, "op": op, "kind": "dataset", "id": id, "actor": "service" });
        let name = format!("{op} {id}");
        let properties = BasicProperties::default()
            .with_message_id(name.as_str().into())
            .with_correlation_id(name.as_str().into())
            .with_reply_to(self.replies.as_str().into());
        self.amqp.publish("requests", body.to_string().as_bytes(), properties).await;
    }

    /// Waits until so many requests are answered, each with this status however often, and none is set aside.
    async fn all_answered(&self, count: usize, status: &str) {
        let mut answered = BTreeSet::new();
        wait_until(format!("{count} answers"), PURGED, async || {
            while let Some(reply) = self.amqp.try_take(&self.replies).await {
                assert_eq!(reply.json()["status"], status, "{:#}", reply.json());
                answered.insert(reply.correlation_id.expect("given back"));
            }
            answered.len() == count
        })
        .await;
        assert_eq!((self.amqp.depth("dead").await, self.amqp.depth("requests").await), (0, 0));
    }

    /// What every test of this file ends with.
    async fn nothing_is_left(&self) {
        nothing_is_left(self.world).await;
        assert_eq!((self.amqp.depth("dead").await, self.amqp.depth("requests").await), (0, 0));
    }
}

/// No task waits, no lease is held, nothing is or was stuck, and nothing counted as a failed attempt.
async fn nothing_is_left(world: &World) {
    assert!(world.is_quiet(SOON).await, "something is left to do");
    let count = async |sql: &str| -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&world.pool).await.expect("counted")
    };
    assert_eq!(count("select count(*) from reprieve.tombstones where lease_until > now()").await, 0);
    assert_eq!(count("select count(*) from reprieve.tombstones where attempts > 0").await, 0);
    assert_eq!(count("select count(*) from reprieve.audit where event = 'stuck'").await, 0);
    let trashed = "select count(*) - count(distinct resource_id) from reprieve.audit where event = 'trashed'";
    assert_eq!(count(trashed).await, 0, "each was trashed once");
}

async fn datasets(world: &World, count: usize, shape: Shape) -> Vec<(Uuid, i64)> {
    let mut made = Vec::new();
    for n in 0..count {
        made.push(world.dataset(&format!("set {n}"), shape).await);
    }
    made
}

#[tokio::test]
async fn connections_cut_at_many_moments_change_nothing_about_the_end() {
    let (world, proxy) = behind_a_proxy(settings()).await;
    let sets = datasets(&world, 3, SHAPE).await;
    let ids: Vec<_> = sets.iter().map(|(id, _)| *id).collect();
    let mut service = world.serve(&[]);
    let requests = Requests::beside(&world, &service).await;
    for id in &ids {
        requests.trash(*id).await;
        proxy.cut(End::Rst);
    }
    requests.all_answered(ids.len(), "trashed").await;
    let mut cuts = 0;
    while cuts < 15 && world.moves_on(&ids, cuts * 7).await {
        proxy.cut(if cuts % 2 == 0 { End::Rst } else { End::Fin });
        cuts += 1;
    }
    assert!(cuts >= 5 && proxy.count("cut") >= 5, "{cuts} cuts: it was over too soon to be a test");
    for (id, put) in sets {
        world.purged("dataset", id, put, ROWS).await;
    }
    requests.nothing_is_left().await;
    assert!(!service.has_ended());
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_done_and_one_that_never_came_is_done_again() {
    let (world, proxy) = behind_a_proxy(settings()).await;
    let sets = datasets(&world, 8, SMALL).await;
    let service = world.serve(&[]);
    let requests = Requests::beside(&world, &service).await;
    // which commit it meets is chance; over all of them it meets those of every step
    for (n, (id, _)) in sets.iter().enumerate() {
        let lost = if n % 2 == 0 { Lost::Answer } else { Lost::Request };
        for skip in [0, 2] {
            proxy.cut_at("COMMIT", lost, skip);
        }
        requests.trash(*id).await;
        let sprung = async || proxy.count("answer lost") + proxy.count("request lost") > 2 * n as u64 + 1;
        wait_until("both were lost", PURGED, sprung).await;
    }
    assert_eq!((proxy.count("answer lost"), proxy.count("request lost")), (8, 8));
    requests.all_answered(sets.len(), "trashed").await;
    for (id, put) in sets {
        world.purged("dataset", id, put, SMALL_ROWS).await;
    }
    requests.nothing_is_left().await;
}

#[tokio::test]
async fn connections_that_die_without_a_word_hold_up_no_role_and_no_lease() {
    // in so many batches that they still go on when the last connection dies, on a busy machine too
    let (world, proxy) = behind_a_proxy(Settings { batch_size: 10, ..settings() }).await;
    let sets = datasets(&world, 2, SHAPE).await;
    let ids: Vec<_> = sets.iter().map(|(id, _)| *id).collect();
    let mut service = world.serve_with(&[], IMPATIENT);
    let requests = Requests::beside(&world, &service).await;
    for id in &ids {
        requests.trash(*id).await;
    }
    requests.all_answered(ids.len(), "trashed").await;
    for linger in [0, 30, 60] {
        assert!(world.moves_on(&ids, linger).await, "it was over too soon to be a test");
        assert!(proxy.strand() > 0);
    }
    let (late, _) = world.dataset("asked for behind dead connections", SMALL).await;
    requests.trash(late).await;
    requests.all_answered(1, "trashed").await;
    assert!(proxy.count("stranded") > 0, "{:?}", proxy.counts());
    world.purged("dataset", late, 40, SMALL_ROWS).await;
    for (id, put) in sets {
        world.purged("dataset", id, put, ROWS).await;
    }
    requests.nothing_is_left().await;
    assert!(!service.has_ended());
}

#[tokio::test]
async fn a_worker_whose_database_stands_still_loses_its_lease_to_another_and_comes_back() {
    let (world, proxy) = behind_a_proxy(settings()).await;
    let direct = world.database_url.replace(&proxy.address().to_string(), &upstream().await);
    let (id, put) = world.dataset("half-way", SHAPE).await;
    let mut first = world.serve_with(&[], IMPATIENT);
    first.says("worker consumes").await;
    world.trash("dataset", id).await;
    world.until_in_the_middle(id, put).await;
    proxy.stall();

    let mut second = world.serve_with(&[], &[("REPRIEVE__DATABASE__URL", &direct)]);
    world.until_state(id, "purged").await;
    assert!(proxy.count("stalled") > 0, "{:?}", proxy.counts());
    assert!(!first.has_ended());
    first.says("no answer within").await;
    proxy.resume();
    world.purged("dataset", id, put, ROWS).await;
    assert!(second.terminate(SOON).await.success());

    let (next, put) = world.dataset("after it", SMALL).await;
    world.trash("dataset", next).await;
    world.purged("dataset", next, put, SMALL_ROWS).await;
    nothing_is_left(&world).await;
}

async fn upstream() -> String {
    let url = server().await.url();
    let rest = url.split_once('@').expect("with a password").1;
    rest.split('/').next().expect("not empty").to_owned()
}

#[tokio::test]
async fn a_slow_database_is_only_slow() {
    let (world, proxy) = behind_a_proxy(settings()).await;
    let (id, put) = world.dataset("patience", SMALL).await;
    proxy.slow(Duration::from_millis(15));
    let service = world.serve(&[]);
    let requests = Requests::beside(&world, &service).await;
    requests.trash(id).await;
    requests.all_answered(1, "trashed").await;
    world.purged("dataset", id, put, SMALL_ROWS).await;
    assert!(proxy.count("slowed") > 100, "{:?}", proxy.counts());
    requests.nothing_is_left().await;
}

#[tokio::test]
async fn sessions_ended_by_an_administrator_at_many_moments_change_nothing_about_the_end() {
    let (world, _proxy) = behind_a_proxy(settings()).await;
    let (id, put) = world.dataset("ended", SHAPE).await;
    let service = world.serve(&[]);
    let requests = Requests::beside(&world, &service).await;
    requests.trash(id).await;
    let mut ended = end_sessions(&world).await;
    requests.all_answered(1, "trashed").await;
    let mut rounds = 0;
    while rounds < 10 && world.moves_on(&[id], rounds * 5).await {
        ended += end_sessions(&world).await;
        rounds += 1;
    }
    assert!(rounds >= 3 && ended >= 5, "{ended} sessions: it was over too soon to be a test");
    world.purged("dataset", id, put, ROWS).await;
    requests.nothing_is_left().await;
}

/// 57P01 for every session of ours; how many.
async fn end_sessions(world: &World) -> i64 {
    let sql = "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and application_name = 'reprieve'";
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("asked")
}

#[tokio::test]
async fn a_standby_in_its_place_makes_no_dead_letter_and_nothing_stuck_however_long() {
    let (world, _proxy) = behind_a_proxy(settings()).await;
    let (begun, put) = world.dataset("begun before", SHAPE).await;
    let sets = datasets(&world, 5, SMALL).await;
    // so low that a few returns to the queue would make a dead letter of anything
    let service = world.serve_with(&[], &[("REPRIEVE__BROKER__DELIVERY_LIMIT", "2")]);
    let requests = Requests::beside(&world, &service).await;
    requests.trash(begun).await;
    world.until_in_the_middle(begun, put).await;

    read_only(&world, true).await;
    for (id, _) in &sets {
        requests.trash(*id).await;
    }
    service.says("intake waits for the database").await;
    // the worker can look at a standby, so it takes its tasks and gives them back again and again
    let reconnects = || service.log().matches("work on purge tasks: the database cannot be reached").count();
    wait_until("the worker has tried often", PURGED, async || reconnects() >= 4).await;
    assert_eq!(requests.amqp.depth("dead").await, 0);
    read_only(&world, false).await;

    requests.all_answered(1 + sets.len(), "trashed").await;
    world.purged("dataset", begun, put, ROWS).await;
    for (id, put) in sets {
        world.purged("dataset", id, put, SMALL_ROWS).await;
    }
    requests.nothing_is_left().await;
}

async fn read_only(world: &World, on: bool) {
    let database: String = sqlx::query_scalar("select current_database()").fetch_one(&world.pool).await.expect("asked");
    let sql = format!("alter database \"{database}\" set default_transaction_read_only = {on}");
    let mut tx = world.pool.begin().await.expect("begins");
    sqlx::query("set local transaction_read_only = off").execute(&mut *tx).await.expect("set");
    sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await.expect("altered");
    tx.commit().await.expect("committed");
    end_sessions(world).await;
}

#[tokio::test]
async fn a_request_whose_row_is_locked_waits_alone_and_makes_no_dead_letter() {
    let (world, _proxy) = behind_a_proxy(Settings { window: "1h", ..settings() }).await;
    let (locked, _) = world.dataset("locked", SMALL).await;
    let others = datasets(&world, 30, Shape { samples: 1, receivers: 1 }).await;
    let service = world.serve_with(&[], &[("REPRIEVE__BROKER__DELIVERY_LIMIT", "2")]);
    let requests = Requests::beside(&world, &service).await;
    let mut lock = world.pool.begin().await.expect("begins");
    sqlx::query("select from heimdall.synthetic_datasets where id = $1 for update")
        .bind(locked)
        .execute(&mut *lock)
        .await
        .expect("locked");
    requests.trash(locked).await;
    requests.send("restore", locked).await;
    for (id, _) in &others {
        requests.trash(*id).await;
    }
    // all of the others, and those behind them too: more than the intake takes ahead
    wait_until("the others are answered", PURGED, async || {
        let sql = "select count(*) from reprieve.tombstones";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&world.pool).await.expect("counted") == 30
    })
    .await;
    assert!(world.try_stands(locked).await.is_none() && !service.log().contains("queue connection down"));
    service.says("request waits for a lock").await;
    lock.rollback().await.expect("ends");
    // in the order in which they were sent
    wait_until("it is trashed, and restored", PURGED, async || {
        world.try_stands(locked).await.is_some_and(|now| now.state == "restored")
    })
    .await;
    assert_eq!((requests.amqp.depth("dead").await, requests.amqp.depth("requests").await), (0, 0));
}

#[tokio::test]
async fn a_pool_that_locked_rows_use_up_is_waited_for() {
    let (world, _proxy) = behind_a_proxy(settings()).await;
    let sets = datasets(&world, 4, SMALL).await;
    let service = world.serve_with(&[], &[("REPRIEVE__DATABASE__MAX_CONNECTIONS", "2"), IMPATIENT[1]]);
    let requests = Requests::beside(&world, &service).await;
    let mut lock = world.pool.begin().await.expect("begins");
    sqlx::query("select from heimdall.synthetic_datasets for update").execute(&mut *lock).await.expect("locked");
    for (id, _) in &sets {
        requests.trash(*id).await;
    }
    service.says("request waits for a lock").await;
    lock.rollback().await.expect("ends");
    requests.all_answered(sets.len(), "trashed").await;

    let mut lock = world.pool.begin().await.expect("begins");
    sqlx::query("select from heimdall.synthetic_datasets for update").execute(&mut *lock).await.expect("locked");
    // two workers' transactions hold both connections, and everybody else waits in vain
    service.says("pool timed out").await;
    lock.rollback().await.expect("ends");
    for (id, put) in sets {
        world.purged("dataset", id, put, SMALL_ROWS).await;
    }
    requests.nothing_is_left().await;
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_waited_for() {
    let settings_of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let few = vec![settings_of("max_connections", "20"), settings_of("superuser_reserved_connections", "0")];
    let server = PrivatePostgres::start(Options { tcp: true, settings: few }).await.expect("starts");
    let (world, proxy) = on(&server, settings()).await;
    let (id, put) = world.dataset("patience", SHAPE).await;
    let service = world.serve_with(&[], &[IMPATIENT[1]]);
    let requests = Requests::beside(&world, &service).await;
    requests.trash(id).await;
    world.until_in_the_middle(id, put).await;

    // a place that becomes free is taken at once
    let mut others = Vec::new();
    let url = server.url();
    proxy.refuse(true);
    proxy.cut(End::Rst);
    wait_until("every place is taken", SOON, async || {
        use sqlx::Connection;
        match sqlx::PgConnection::connect(&url).await {
            Ok(connection) => others.push(connection),
            Err(error) => {
                let full = error.as_database_error().and_then(|error| error.code()).as_deref() == Some("53300");
                return full && world.pool.size() > 0 && proxy.open() == 0;
            }
        }
        false
    })
    .await;
    proxy.refuse(false);
    let before = proxy.count("connections");
    wait_until("it has tried", SOON, async || proxy.count("connections") > before + 5).await;
    assert_eq!(world.stands(id).await.state, "purging");
    requests.send("trash", id).await;
    drop(others);
    world.purged("dataset", id, put, ROWS).await;
    requests.nothing_is_left().await;
}
