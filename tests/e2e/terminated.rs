//! SIGTERM: an orderly end, and no waiting for a lease that nobody holds any more.

use std::time::{Duration, Instant};

use crate::exposition::{Exposition, address_in, get};
use crate::support::heimdall::Shape;
use crate::support::rabbitmq::RabbitMq;
use crate::support::seaweedfs::SeaweedFs;
use crate::support::{SOON, wait_until};
use crate::world::{Places, Settings, World};

#[tokio::test]
async fn a_worker_told_to_stop_finishes_its_batch_and_another_goes_on_without_waiting_for_the_lease() {
    // a lease and a redelivery so long that a test that had to wait for either would fail
    let settings = Settings { batch_size: 100, lease: "10m", redeliver_after: "10m", ..Settings::default() };
    let world = World::new(settings).await;
    let (id, put) = world.dataset("half-way", Shape { samples: 520, receivers: 5 }).await;
    let rows = world.rows(id).await;
    let mut first = world.serve(&[]);
    world.trash("dataset", id).await;
    world.until_in_the_middle(id, put).await;

    let asked = Instant::now();
    let status = first.terminate(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", first.log());
    assert!(asked.elapsed() < Duration::from_secs(10), "one batch takes no {:?}", asked.elapsed());
    assert!(!first.log().contains("deadline passed"), "{}", first.log());
    let between = world.stands(id).await;
    assert!(between.state == "purging" && between.gone() < put, "still in the middle: {between:?}");
    assert_eq!(between.lease_until, None, "the lease was given back");
    assert_eq!(world.objects(id).await, put - between.gone(), "each object that is gone was counted");

    let _second = world.serve(&[]);
    world.purged("dataset", id, put, rows).await;
}

#[tokio::test]
async fn an_idle_service_ends_at_once() {
    let world = World::new(Settings::default()).await;
    for roles in ["api,intake,relay,sweeper,worker", "worker", "relay", "sweeper", "intake", "api"] {
        let mut service = world.serve(&["--roles", roles]);
        service.says("serving").await;
        let asked = Instant::now();
        let status = service.terminate(Duration::from_secs(30)).await;
        assert!(status.success(), "{roles}: {status}\n{}", service.log());
        assert!(asked.elapsed() < Duration::from_secs(5), "{roles} took {:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_listing_that_the_object_store_does_not_answer() {
    let mut store = SeaweedFs::start().await;
    let places = Places { s3_endpoint: store.endpoint(), ..Places::shared().await };
    let world = World::unmigrated(places, Settings::default()).await;
    world.cli(&["migrate"]).await.with(0);
    let (id, put) = world.dataset("in a black hole", Shape { samples: 5, receivers: 4 }).await;
    store.kill9();
    // in its place what takes every connection and answers none
    let address = store.endpoint().replace("http://", "");
    let mut listener = None;
    wait_until("its port is free", SOON, async || {
        listener = std::net::TcpListener::bind(&address).ok();
        listener.is_some()
    })
    .await;
    let mut service = world.serve_with(&[], &[("REPRIEVE__SERVICE__SHUTDOWN_DEADLINE", "2s")]);
    world.trash("dataset", id).await;
    world.until("it hangs", id, |now| now.state == "purging").await;
    let asked = Instant::now();
    let status = service.terminate(Duration::from_secs(30)).await;
    assert!(status.success(), "{status}: {}", service.log());
    assert!(asked.elapsed() < Duration::from_secs(6), "the deadline of 2 s became {:?}", asked.elapsed());
    assert!(!service.log().contains("deadline passed"), "it has nothing to finish: {}", service.log());

    drop(listener);
    store.start_again().await;
    let _next = world.serve(&[]);
    world.purged("dataset", id, put, 1 + 5 + 3).await;
}

#[tokio::test]
async fn a_role_that_panics_ends_the_process_and_not_itself_alone() {
    let world = World::new(Settings::default()).await;
    let mut service = world.serve_with(&[], &[("FAILPOINTS", "relay.leased=1*panic")]);
    service.says("relay publishes").await;
    let (id, _) = world.dataset("with an event to publish", Shape { samples: 1, receivers: 1 }).await;
    world.trash("dataset", id).await;
    let status = service.end(SOON).await;
    assert!(!status.success(), "{}", service.log());
    let log = service.log();
    assert!(log.contains("panicked, the process ends") && log.contains("the role relay ended by itself"), "{log}");
}

#[tokio::test]
async fn the_deadline_holds_when_the_broker_does_not_answer() {
    let broker = RabbitMq::start().await;
    let places = Places { amqp_url: broker.amqp_url(), ..Places::shared().await };
    let world = World::unmigrated(places, Settings::default()).await;
    world.cli(&["migrate"]).await.with(0);
    let given = [("REPRIEVE__SERVICE__SHUTDOWN_DEADLINE", "2s"), ("REPRIEVE__SERVICE__LISTEN", "127.0.0.1:0")];
    let mut service = world.serve_with(&[], &given);
    service.says("worker consumes").await;
    service.says("intake consumes").await;
    service.says("relay publishes").await;
    let listeners = ["api listens", "health and metrics listen"].map(|says| address_in(&service.log(), says));
    broker.freeze();
    let asked = Instant::now();
    // meanwhile it takes no more from whoever asks first, and shows what it counts
    let drains = async {
        for at in listeners {
            wait_until("it is not ready", SOON, async || get(at, "/health/ready").await.1.contains("shut down")).await;
            assert_eq!(Exposition::scrape(at).await.one("reprieve_started", &[]), 1.0);
        }
    };
    let (status, ()) = tokio::join!(service.terminate(Duration::from_secs(30)), drains);
    broker.thaw();
    assert!(status.success(), "{status}: {}", service.log());
    assert!(asked.elapsed() < Duration::from_secs(6), "the deadline of 2 s became {:?}", asked.elapsed());
}
