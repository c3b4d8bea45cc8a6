use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::{Budget, SliceEnd};
use reprieve::store::pauses::Scope;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, alice, budget};
use crate::gate::At;
use crate::support::SOON;

async fn due_with_uploads(keys: &[&str]) -> (Bench, Uuid, TombstoneId) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    keys.iter().for_each(|key| begin(&bench, dataset, key));
    let id = bench.trash_due("dataset", dataset).await;
    (bench, dataset, id)
}

fn begin(bench: &Bench, dataset: Uuid, key: &str) {
    let key = format!("synthetic/{dataset}{key}");
    bench.objects.memory().begin_upload(BUCKET, &key).expect("the bucket is there");
}

#[tokio::test]
async fn unfinished_uploads_go_along_with_the_objects_and_are_in_the_receipt() {
    let (bench, dataset, id) = due_with_uploads(&["/big", "/big", "/deep/er", "-copy/big", "0/big"]).await;
    let older = format!("synthetic/dataset-{dataset}/big");
    bench.objects.memory().begin_upload(BUCKET, &older).expect("the bucket is there");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.memory().uploads(BUCKET), 2, "those of its neighbours");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.uploads_aborted, progress.objects_listed), (4, 3));
    assert_eq!(bench.told(id, "purged").await.details["uploads_aborted"], 4);
}

#[tokio::test]
async fn more_uploads_than_a_page_shows_are_all_aborted() {
    let (bench, dataset, id) = due_with_uploads(&[]).await;
    (0..1_500).for_each(|n| begin(&bench, dataset, &format!("/{n}")));
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.memory().uploads(BUCKET), 0);
    assert_eq!(bench.tombstone(id).await.progress.uploads_aborted, 1_500);
}

#[tokio::test]
async fn an_upload_that_its_writer_completes_after_it_was_listed_is_found_as_an_object() {
    let (bench, dataset, id) = due_with_uploads(&["/big"]).await;
    bench.objects.finish_uploads_when_listed(&format!("synthetic/{dataset}/"));
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("/big")), "{end:?}");
    assert_eq!(bench.count("heimdall.synthetic_datasets").await, 1, "its row stays");
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects(), 0);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.uploads_aborted, progress.objects_deleted), (0, 4));
}

#[tokio::test]
async fn an_upload_that_cannot_be_aborted_keeps_the_rows_and_holds_up_no_other() {
    let (bench, dataset, id) = due_with_uploads(&["/a", "/denied", "/z"]).await;
    let denied = failure("AccessDenied", FailureClass::Permanent);
    bench.objects.faults.fail_abort(&format!("synthetic/{dataset}/denied"), Times::Next(1), denied);
    let end = bench.slice(id).await;
    assert!(
        matches!(&end, SliceEnd::Stuck(why) if why.contains("AbortMultipartUpload") && why.contains("/denied")),
        "{end:?}"
    );
    assert_eq!((bench.objects(), bench.objects.memory().uploads(BUCKET)), (0, 1));
    assert_eq!(bench.count("heimdall.synthetic_datasets").await, 1, "its row stays");
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("it is stuck");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.uploads_aborted, 3);
}

#[tokio::test]
async fn a_store_that_is_away_when_uploads_are_looked_for_is_waited_for() {
    let (bench, _, id) = due_with_uploads(&["/big"]).await;
    bench.objects.faults.fail_next_upload_list(failure("SlowDown", FailureClass::Throttled));
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("SlowDown")), "{end:?}");
    let waiting = bench.tombstone(id).await;
    assert_eq!((waiting.state, waiting.attempts), (State::Purging, 0), "an outage is no attempt");
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.memory().uploads(BUCKET), 0);
}

/// A due dataset without objects, with more uploads than two pages show, and a worker that stands
/// in the second batch of the first.
async fn in_the_midst(budget: Budget) -> (Bench, TombstoneId, impl AsyncFnOnce() -> SliceEnd) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 0).await;
    let id = bench.trash_due("dataset", dataset).await;
    // pages of 700
    (0..1_500).for_each(|n| begin(&bench, dataset, &format!("/{n:04}")));
    let gate = bench.objects.stop_a_delete(100, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget).await });
    gate.reached().await;
    let go_on = async move || {
        gate.open();
        working.await.expect("no panic").expect("the database is there")
    };
    (bench, id, go_on)
}

async fn the_rest_goes(bench: &Bench, id: TombstoneId) {
    assert_eq!(bench.objects.memory().uploads(BUCKET), 1_300, "the batch under way and no other");
    let waiting = bench.tombstone(id).await;
    assert_eq!((waiting.state, waiting.attempts), (State::Purging, 0));
    assert_eq!(waiting.progress.uploads_aborted, 200, "what was done is counted");
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.memory().uploads(BUCKET), 0);
    assert_eq!(bench.told(id, "purged").await.details["uploads_aborted"], 1_500);
}

#[tokio::test]
async fn a_pause_takes_effect_before_the_next_batch_of_uploads_and_the_rest_goes_when_it_is_lifted() {
    let (bench, id, go_on) = in_the_midst(budget()).await;
    bench.bin.pause(&Scope::All, &alice()).await.expect("pauses");
    assert_eq!(go_on().await, SliceEnd::Deferred("paused".into()));
    bench.make_due(id).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)));
    bench.bin.resume(&Scope::All, &alice()).await.expect("resumes");
    the_rest_goes(&bench, id).await;
}

#[tokio::test]
async fn a_shutdown_takes_effect_before_the_next_batch_of_uploads_and_another_worker_goes_on() {
    let stop = CancellationToken::new();
    let (bench, id, go_on) = in_the_midst(Budget::new(SOON, stop.clone())).await;
    stop.cancel();
    assert_eq!(go_on().await, SliceEnd::Continues);
    the_rest_goes(&bench, id).await;
}

#[tokio::test]
async fn uploads_that_cannot_be_aborted_end_as_stuck_however_short_the_slices_are() {
    let (bench, dataset, id) = due_with_uploads(&[]).await;
    for n in 0..1_500 {
        begin(&bench, dataset, &format!("/{n:04}"));
        let denied = failure("AccessDenied", FailureClass::Permanent);
        bench.objects.faults.fail_abort(&format!("synthetic/{dataset}/{n:04}"), Times::Always, denied);
    }
    let mut ends = Vec::new();
    while ends.len() < 5 && !matches!(ends.last(), Some(SliceEnd::Stuck(_))) {
        bench.make_due(id).await;
        let spent = Budget::new(Duration::ZERO, CancellationToken::new());
        ends.push(bench.purger().run_slice(id, &spent).await.expect("the database is there"));
    }
    let Some(SliceEnd::Stuck(why)) = ends.last() else { panic!("it goes on for ever: {ends:?}") };
    assert!(why.contains("AbortMultipartUpload") && why.contains("AccessDenied"), "{why}");
    assert_eq!((bench.state(id).await, bench.objects.memory().uploads(BUCKET)), (State::Stuck, 1_500));
    assert_eq!(bench.count("heimdall.synthetic_datasets").await, 1, "its row stays");
}
