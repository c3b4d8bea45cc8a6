use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::SliceEnd;
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, alice};

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
