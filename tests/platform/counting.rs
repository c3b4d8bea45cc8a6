use reprieve::domain::outcome::{FailureClass, ObjectRef};
use reprieve::objects::faulty::failure;
use reprieve::objects::{ObjectStore, Versioning};
use reprieve::trash::{Count, count};
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, SIZE};
use crate::support::heimdall::key;

/// What its plan says of the prefix with its objects; the older layout's comes after it, and is empty.
async fn counted(bench: &Bench, dataset: Uuid) -> Count {
    let plan = bench.bin.plan(&bench.request("dataset", dataset)).await.expect("nothing is in the way");
    let counts = count(&bench.stores(), plan.locations()).await;
    assert_eq!(counts.len(), 2);
    let none = Count { objects: 0, older_versions: 0, delete_markers: 0, bytes: 0, ..counts[1].clone() };
    assert_eq!(counts[1], none);
    counts.into_iter().next().expect("two")
}

#[tokio::test]
async fn a_plan_says_how_many_versions_delete_markers_and_uploads_a_purge_will_meet() {
    let bench = Bench::heimdall().await;
    bench.objects.memory().make_bucket(BUCKET, Versioning::Kept);
    let dataset = bench.dataset("set a", 10).await;
    bench.put(dataset, 4);
    let hidden = ObjectRef { key: key(dataset, 9, 0), version: None };
    assert!(bench.objects.memory().delete(BUCKET, &[hidden]).await.iter().all(|(_, outcome)| outcome.is_gone()));
    for part in ["/big", "/big", "-copy/big"] {
        let key = format!("synthetic/{dataset}{part}");
        bench.objects.memory().begin_upload(BUCKET, &key).expect("the bucket is there");
    }
    let plan = counted(&bench, dataset).await;
    assert_eq!((plan.objects, plan.older_versions, plan.delete_markers, plan.uploads.count), (15, 5, 1, 2));
    assert_eq!((plan.bytes, plan.at_least, plan.uploads.at_least), (14 * SIZE, false, false));
    assert_eq!((plan.error, plan.uploads.error), (None, None));

    let id = bench.trash_due("dataset", dataset).await;
    bench.slice(id).await;
    let receipt = bench.told(id, "purged").await.details;
    for (figure, planned) in [
        ("/objects/listed", plan.objects),
        ("/objects/older_versions", plan.older_versions),
        ("/objects/delete_markers", plan.delete_markers),
        ("/uploads_aborted", plan.uploads.count),
        ("/bytes_freed", plan.bytes),
    ] {
        assert_eq!(receipt.pointer(figure), Some(&planned.into()), "{figure}");
    }
}

#[tokio::test]
async fn a_giant_prefix_is_counted_up_to_a_bound_and_the_plan_says_so() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 0).await;
    // pages of 700
    bench.put(dataset, 70_500);
    for n in 0..7_001 {
        let key = format!("synthetic/{dataset}/{n}");
        bench.objects.memory().begin_upload(BUCKET, &key).expect("the bucket is there");
    }
    let plan = counted(&bench, dataset).await;
    assert_eq!((plan.objects, plan.at_least, plan.bytes), (70_000, true, 70_000 * SIZE));
    assert_eq!((plan.uploads.count, plan.uploads.at_least), (7_000, true));
}

#[tokio::test]
async fn a_store_that_refuses_spoils_its_own_figures_and_not_the_plan() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    bench.objects.faults.fail_next_upload_list(failure("AccessDenied", FailureClass::Permanent));
    let plan = counted(&bench, dataset).await;
    assert_eq!((plan.objects, plan.error), (3, None));
    let why = plan.uploads.error.expect("it was denied");
    assert!(why.contains("AccessDenied"), "{why}");
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_not_waited_for() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let plan = bench.bin.plan(&bench.request("dataset", dataset)).await.expect("nothing is in the way");
    bench.objects.fall_silent();
    let stores = bench.stores();
    // from here on nothing but the clock moves
    tokio::time::pause();
    let counts = count(&stores, plan.locations()).await;
    assert_eq!(counts.len(), 2);
    assert!(counts.iter().all(|count| count.objects == 0 && count.at_least && count.error.is_none()), "{counts:?}");
}
