//! Keys with the character NUL, which Amazon S3 takes and which PostgreSQL stores neither as text nor in JSON.

use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::{Budget, SliceEnd};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, HEIMDALL, budget};
use crate::gate::At;
use crate::support::keys::with_nul;

/// A due dataset with such keys among its objects, which go two at a time; how many objects there are.
async fn due(samples: u32) -> (Bench, Uuid, TombstoneId, u64) {
    let bench = Bench::with(HEIMDALL, "", |config| {
        config.stores.values_mut().for_each(|store| store.batch_size = 2);
        config.purge.key_attempts = 2;
    })
    .await;
    let dataset = bench.dataset("set a", samples).await;
    with_nul(&prefix(dataset)).iter().for_each(|key| bench.objects.memory().put(BUCKET, key, 1));
    let id = bench.trash_due("dataset", dataset).await;
    let objects = bench.objects() as u64;
    (bench, dataset, id, objects)
}

fn prefix(dataset: Uuid) -> String {
    format!("synthetic/{dataset}/")
}

async fn is_counted(bench: &Bench, id: TombstoneId, objects: u64) {
    let tombstone = bench.tombstone(id).await;
    let progress = tombstone.progress;
    assert_eq!((tombstone.state, bench.objects()), (State::Purged, 0));
    assert_eq!((progress.objects_listed, progress.objects_gone()), (objects, objects));
}

#[tokio::test]
async fn they_are_purged_and_counted_once_whenever_a_slice_ends() {
    let (bench, _, id, objects) = due(3).await;
    let mut slices = 0;
    loop {
        let spent = Budget::new(Duration::ZERO, CancellationToken::new());
        match bench.purger().run_slice(id, &spent).await.expect("the database is there") {
            SliceEnd::Purged => break,
            end => assert_eq!(end, SliceEnd::Continues),
        }
        slices += 1;
        assert!(slices < 50, "does not come to an end");
        bench.make_due(id).await;
    }
    assert!(slices > 1, "nobody had to go on");
    is_counted(&bench, id, objects).await;
}

#[tokio::test]
async fn they_are_counted_once_when_a_worker_dies_with_them_in_hand() {
    let (bench, _, id, objects) = due(0).await;
    let gate = bench.objects.stop_a_delete(1, At::After);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    working.abort();
    assert!(working.await.expect_err("aborted").is_cancelled());
    bench.run("update reprieve.tombstones set lease_until = now() - interval '1 second'").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, objects).await;
}

#[tokio::test]
async fn one_that_stays_behind_is_named_in_the_reason_and_costs_an_attempt() {
    let (bench, dataset, id, objects) = due(0).await;
    // after both prefixes were listed empty, before the verification
    bench.objects.write_late(2, BUCKET, &format!("{}late\0x", prefix(dataset)));
    let SliceEnd::Failed(_) = bench.slice(id).await else { panic!("something came late") };
    let tombstone = bench.tombstone(id).await;
    let reason = tombstone.last_error.expect("says why");
    assert!(reason.contains("late\u{2400}x"), "{reason}");
    assert_eq!(tombstone.attempts, 1);
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, objects + 1).await;
}

#[tokio::test]
async fn one_that_is_denied_makes_the_purge_stuck_for_that_reason() {
    let (bench, dataset, id, objects) = due(0).await;
    let denied = format!("{}x\0", prefix(dataset));
    bench.objects.faults.fail_key(&denied, Times::Always, failure("Access\0Denied", FailureClass::Permanent));
    let SliceEnd::Stuck(_) = bench.slice(id).await else { panic!("one is denied") };
    let told = bench.told(id, "stuck").await.details["reason"].to_string();
    assert!(told.contains("Access\u{2400}Denied"), "{told}");
    assert_eq!((bench.objects(), bench.tombstone(id).await.progress.objects_gone()), (1, objects - 1));
}

#[tokio::test]
async fn a_look_at_one_that_was_not_answered_comes_to_an_end_however_many_lie_before_it() {
    let (bench, dataset, id, _) = due(0).await;
    for n in 0..1200 {
        let key = format!("{}a/{n:04}", prefix(dataset));
        bench.objects.memory().put(BUCKET, &key, 1);
        bench.objects.faults.fail_key(&key, Times::Always, failure("AccessDenied", FailureClass::Permanent));
    }
    let unanswered = format!("{}x\0", prefix(dataset));
    bench.objects.ignore(&unanswered);
    let SliceEnd::Stuck(reason) = bench.slice(id).await else { panic!("most are denied") };
    assert!(reason.contains("1200 objects: AccessDenied") && reason.contains("1 object: NoAnswer"), "{reason}");
    assert_eq!(bench.objects(), 1201);
}
