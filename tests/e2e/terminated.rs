//! SIGTERM: an orderly end, and no waiting for a lease that nobody holds any more.

use std::time::{Duration, Instant};

use crate::support::heimdall::Shape;
use crate::world::{Settings, World};

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
