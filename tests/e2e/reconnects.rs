//! Servers that crash and come back in the middle of a purge: it converges by itself.

use std::time::Duration;

use reprieve::embedded::postgres::{Options, PrivatePostgres};
use sqlx::postgres::PgPoolOptions;

use crate::amqp::Amqp;
use crate::support::heimdall::{self, Shape};
use crate::support::rabbitmq::RabbitMq;
use crate::support::seaweedfs::SeaweedFs;
use crate::world::{Places, Settings, World};

const SHAPE: Shape = Shape { samples: 520, receivers: 5 };

fn settings() -> Settings {
    Settings { batch_size: 100, ..Settings::default() }
}

async fn migrated(places: Places) -> World {
    let world = World::unmigrated(places, settings()).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    world
}

#[tokio::test]
async fn rabbitmq_crashes_and_is_wiped_and_nothing_is_lost() {
    let mut broker = RabbitMq::start().await;
    let world = migrated(Places { amqp_url: broker.amqp_url(), ..Places::shared().await }).await;
    let (crash, put) = world.dataset("over a crash", SHAPE).await;
    let (wipe, _) = world.dataset("over a wipe", SHAPE).await;
    let (later, _) = world.dataset("trashed while it is away", Shape { samples: 10, receivers: 4 }).await;
    let rows = world.rows(crash).await;
    let mut service = world.serve(&[]);
    service.says("worker consumes").await;
    for queue in ["requests", "purge", "dead"] {
        broker.queue_on_disk(&format!("{}.{queue}", world.namespace)).await;
    }

    world.trash("dataset", crash).await;
    world.until_in_the_middle(crash, put).await;
    broker.kill9();
    // what needs no broker goes on without one
    world.trash("dataset", later).await;
    broker.start_again().await;
    world.purged("dataset", crash, put, rows).await;
    world.purged("dataset", later, 40, 1 + 10 + 3).await;

    // its task is in the broker, and is lost with all the queues
    let mut worker_gone = service;
    assert!(worker_gone.terminate(Duration::from_secs(20)).await.success());
    let relay = world.serve(&["--roles", "relay"]);
    world.trash("dataset", wipe).await;
    let sent = async || {
        let sql = "select exists (select from reprieve.tombstones where resource_id = $1 and queued_at is not null)";
        sqlx::query_scalar::<_, bool>(sql).bind(wipe.to_string()).fetch_one(&world.pool).await.expect("asked")
    };
    crate::support::wait_until("its task was sent", Duration::from_secs(30), sent).await;
    assert_eq!(Amqp::connect(&world).await.depth("purge").await, 1);
    drop(relay);
    broker.wipe().await;
    service = world.serve(&[]);
    world.purged("dataset", wipe, put, rows).await;
    drop(service);
}

#[tokio::test]
async fn a_running_service_gets_over_a_wiped_broker() {
    let mut broker = RabbitMq::start().await;
    let world = migrated(Places { amqp_url: broker.amqp_url(), ..Places::shared().await }).await;
    let (before, put) = world.dataset("before", SHAPE).await;
    let (after, _) = world.dataset("after", SHAPE).await;
    let rows = world.rows(before).await;
    let service = world.serve(&[]);
    service.says("worker consumes").await;
    world.trash("dataset", before).await;
    world.until_in_the_middle(before, put).await;
    broker.wipe().await;
    world.trash("dataset", after).await;
    world.purged("dataset", before, put, rows).await;
    world.purged("dataset", after, put, rows).await;
    let amqp = Amqp::connect(&world).await;
    assert_eq!((amqp.depth("dead").await, amqp.depth("requests").await), (0, 0), "the queues were declared anew");
}

#[tokio::test]
async fn postgresql_crashes_and_restarts_in_the_middle() {
    let mut postgres = PrivatePostgres::start(Options { tcp: true, settings: Vec::new() }).await.expect("starts");
    let database_url = postgres.create_database("platform").await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(4).connect(&database_url).await.expect("connects");
    heimdall::load(&pool).await;
    let world = migrated(Places { pool, database_url, ..Places::shared().await }).await;
    let (crash, put) = world.dataset("over a crash", SHAPE).await;
    let (restart, _) = world.dataset("over a restart", SHAPE).await;
    let rows = world.rows(crash).await;
    let mut service = world.serve(&[]);

    world.trash("dataset", crash).await;
    world.until_in_the_middle(crash, put).await;
    postgres.kill9().expect("ends");
    service.says("worker waits for the database").await;
    let down = world.cli(&["list"]).await.with(1);
    assert!(down.stderr.contains("database cannot be reached"), "{}", down.stderr);
    postgres.start_again().await.expect("starts again");
    world.purged("dataset", crash, put, rows).await;

    world.trash("dataset", restart).await;
    world.until_in_the_middle(restart, put).await;
    postgres.stop().expect("ends");
    postgres.start_again().await.expect("starts again");
    world.purged("dataset", restart, put, rows).await;
    assert!(!service.has_ended());
    assert!(service.terminate(Duration::from_secs(20)).await.success());
}

#[tokio::test]
async fn a_service_started_before_its_servers_waits_for_them() {
    let mut postgres = PrivatePostgres::start(Options { tcp: true, settings: Vec::new() }).await.expect("starts");
    let database_url = postgres.create_database("platform").await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(4).connect(&database_url).await.expect("connects");
    heimdall::load(&pool).await;
    let world = migrated(Places { pool, database_url, ..Places::shared().await }).await;
    let (id, put) = world.dataset("waits", Shape { samples: 10, receivers: 4 }).await;
    world.trash("dataset", id).await;
    postgres.stop().expect("ends");
    let mut service = world.serve(&[]);
    service.says("every role waits for it").await;
    postgres.start_again().await.expect("starts again");
    world.purged("dataset", id, put, 1 + 10 + 3).await;
    postgres.stop().expect("ends");
    assert!(service.terminate(Duration::from_secs(20)).await.success(), "it ends without its database, too");
}

#[tokio::test]
async fn the_object_store_crashes_and_comes_back_in_the_middle() {
    let mut store = SeaweedFs::start().await;
    // so few attempts that outages which counted as such would leave it stuck
    let places = Places { s3_endpoint: store.endpoint(), ..Places::shared().await };
    let world = World::unmigrated(places, Settings { max_attempts: 2, ..settings() }).await;
    world.cli(&["migrate"]).await.with(0);
    let (id, put) = world.dataset("over a crash", SHAPE).await;
    let rows = world.rows(id).await;
    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    let working = world.until_in_the_middle(id, put).await;
    store.kill9();
    let away = world.until("two deliveries have failed", id, |now| now.fence >= working.fence + 2).await;
    assert_eq!((away.state.as_str(), world.rows(id).await), ("purging", rows), "an outage is waited for: {away:?}");
    store.start_again().await;
    world.purged("dataset", id, put, rows).await;
}
