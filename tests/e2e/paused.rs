//! Pauses take effect within a batch, and stuck purges go on when an operator says so.

use std::time::Duration;

use serde_json::json;

use crate::support::heimdall::Shape;
use crate::support::wait_until;
use crate::world::{Settings, World};

const SHAPE: Shape = Shape { samples: 520, receivers: 5 };

#[tokio::test]
async fn a_paused_purge_does_not_progress_until_it_is_resumed() {
    let world = World::new(Settings { batch_size: 100, ..Settings::default() }).await;
    let (id, put) = world.dataset("paused", SHAPE).await;
    let rows = world.rows(id).await;
    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    world.until_in_the_middle(id, put).await;

    assert_eq!(world.json(&["pause", "--kind", "dataset", "--reason", "incident"]).await["changed"], true);
    let again = world.cli(&["pause", "--kind", "dataset"]).await.with(0);
    assert!(again.stdout.contains("paused already"), "{}", again.stdout);
    // from the moment that its lease is given back nobody works on it
    let paused = world.until("the lease is given back", id, |now| now.lease_until.is_none()).await;
    assert!(paused.state == "purging" && paused.gone() < put, "still in the middle: {paused:?}");
    let left = world.objects(id).await;
    // several more looks, and none of them gets past the pause
    let looks = async || {
        let sql = "select coalesce(max(available_at), now())::text from reprieve.outbox where topic = 'purge'";
        sqlx::query_scalar::<_, String>(sql).fetch_one(&world.pool).await.expect("read")
    };
    for _ in 0..3 {
        let before = looks().await;
        wait_until("it is looked at once more", Duration::from_secs(20), async || looks().await != before).await;
    }
    let still = world.stands(id).await;
    assert_eq!((still.gone(), world.objects(id).await, still.fence), (paused.gone(), left, paused.fence));
    assert_eq!(left, put - paused.gone(), "each object that is gone was counted");

    // another scope, which does not concern it, is no help
    assert_eq!(world.json(&["resume", "--all"]).await["changed"], false);
    assert_eq!(world.json(&["resume", "--kind", "dataset"]).await["changed"], true);
    world.purged("dataset", id, put, rows).await;
}

#[tokio::test]
async fn pauses_of_everything_and_of_a_store_hold_back_what_is_due_and_nothing_else() {
    let world = World::new(Settings::default()).await;
    let (id, put) = world.dataset("due", Shape { samples: 5, receivers: 4 }).await;
    let _service = world.serve(&[]);
    for scope in [&["--all"][..], &["--store", "main"]] {
        let pause: Vec<&str> = ["pause"].iter().chain(scope).copied().collect();
        world.json(&pause).await;
    }
    world.trash("dataset", id).await;
    let held_back = |now: &crate::world::Stands| now.last_error.as_deref().is_some_and(|why| why.contains("paused"));
    let now = world.until("it is due, and held back", id, held_back).await;
    assert_eq!((now.state.as_str(), world.objects(id).await), ("trashed", put), "before the point of no return");
    world.json(&["resume", "--all"]).await;
    // the store's pause still stands, and a restore is possible all the time
    let why = |now: &crate::world::Stands| now.last_error.as_deref().is_some_and(|why| why.contains("store main"));
    world.until("the other pause is named", id, why).await;
    world.json(&["restore", "dataset", &id.to_string()]).await;
    world.json(&["resume", "--store", "main"]).await;
    world.trash("dataset", id).await;
    world.purged("dataset", id, put, 1 + 5 + 3).await;
}

#[tokio::test]
async fn a_purge_without_its_bucket_is_stuck_and_a_retry_finishes_it() {
    let world = World::new(Settings::default()).await;
    let (id, _) = world.dataset("homeless", Shape { samples: 5, receivers: 4 }).await;
    let text = id.to_string();
    let _service = world.serve(&[]);
    let plan = world.json(&["trash", "dataset", &text]).await;
    assert_eq!(plan["counts"].as_array().map(Vec::len), Some(2));
    crate::versions::delete_bucket(&world).await;
    let plan = world.cli(&["trash", "dataset", &text]).await.with(0);
    assert!(plan.stdout.contains("NoSuchBucket") || plan.stdout.contains("bucket"), "{}", plan.stdout);

    world.trash("dataset", id).await;
    let stuck = world.until_state(id, "stuck").await;
    assert!(stuck.last_error.as_deref().is_some_and(|why| why.contains("NoSuchBucket")), "{stuck:?}");
    assert_eq!(world.rows(id).await, 1 + 5 + 3, "rows stay");
    assert!(world.cli(&["list"]).await.with(0).stdout.contains("NoSuchBucket"));
    let refused = world.cli(&["restore", "dataset", &text]).await.with(5);
    assert!(refused.stderr.contains("can no longer be restored"), "{}", refused.stderr);

    let dry = world.cli(&["retry", "dataset", &text]).await.with(0);
    assert!(dry.stdout.contains("dry run") && dry.stdout.contains("NoSuchBucket"), "{}", dry.stdout);
    assert_eq!(world.stands(id).await.state, "stuck");
    world.s3.create_bucket().bucket(&world.bucket).send().await.expect("created again");
    assert_eq!(world.json(&["retry", "dataset", &text, "--execute"]).await["dry_run"], json!(false));
    world.purged("dataset", id, 0, 1 + 5 + 3).await;
    let over = world.cli(&["retry", "dataset", &text, "--execute"]).await.with(4);
    assert!(over.stderr.contains("not in the trash"), "{}", over.stderr);
}

#[tokio::test]
async fn a_worker_with_wrong_credentials_sets_purges_aside_and_the_right_ones_finish_them() {
    let world = World::new(Settings::default()).await;
    let (id, put) = world.dataset("locked out", Shape { samples: 5, receivers: 4 }).await;
    let mut wrong = world.serve_with(&[], &[("REPRIEVE__STORES__MAIN__SECRET_KEY", "not-the-secret")]);
    world.trash("dataset", id).await;
    let stuck = world.until_state(id, "stuck").await;
    assert!(stuck.last_error.as_deref().is_some_and(|why| why.contains("SignatureDoesNotMatch")), "{stuck:?}");
    assert_eq!((world.objects(id).await, world.rows(id).await), (put, 1 + 5 + 3));
    assert!(!wrong.log().contains("not-the-secret"));
    let not_yet = world.cli(&["retry", "dataset", &id.to_string()]).await.with(0);
    assert!(not_yet.stdout.contains("SignatureDoesNotMatch"));
    assert!(wrong.terminate(Duration::from_secs(20)).await.success());

    let _service = world.serve(&[]);
    world.json(&["retry", "dataset", &id.to_string(), "--execute"]).await;
    world.purged("dataset", id, put, 1 + 5 + 3).await;
}
