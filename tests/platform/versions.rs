//! Objects that are named one by one in a bucket that keeps versions: what stays of a key is counted once, and passed by.

use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::objects::{LockMode, ObjectLock, Retention};
use reprieve::purge::{Budget, SliceEnd};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, budget};
use crate::gate::At;
use crate::keyed::{MAP, TABLES, link};

const VERSIONED: &str = "second-bucket";

/// Two objects a batch, so that a few of them are several.
async fn versioned(keys: &[&str]) -> Bench {
    let map = MAP.replacen("bucket = \"heimdall-synthetic-iq\"", &format!("bucket = \"{VERSIONED}\""), 1);
    let bench =
        Bench::with(&map, TABLES, |config| config.stores.values_mut().for_each(|store| store.batch_size = 2)).await;
    link(&bench, "a", keys).await;
    bench
}

fn put(bench: &Bench, key: &str, versions: usize) {
    (0..versions).for_each(|_| bench.objects.memory().put(VERSIONED, key, 10));
}

/// Slices of no time, each of which does one step, until one ends otherwise than by going on.
async fn in_slices_of_no_time(bench: &Bench, id: TombstoneId) -> (usize, SliceEnd) {
    for slices in 1..=30 {
        let none = Budget::new(Duration::ZERO, CancellationToken::new());
        match bench.purger().run_slice(id, &none).await.expect("no outage") {
            SliceEnd::Continues => bench.make_due(id).await,
            end => return (slices, end),
        }
    }
    panic!("30 slices and no end: {:?}", bench.tombstone(id).await.progress);
}

#[tokio::test]
async fn a_slice_of_no_time_gets_past_a_key_that_is_kept_and_counts_it_once() {
    for kept in ["k1", "k2", "k3", "k4"] {
        let bench = versioned(&["k1", "k2", "k3", "k4"]).await;
        ["k1", "k2", "k3", "k4"].iter().for_each(|key| put(&bench, key, 1));
        link(&bench, "b", &[kept]).await;
        let id = bench.trash_due("album", "a").await;
        let (slices, end) = in_slices_of_no_time(&bench, id).await;
        assert!(end == SliceEnd::Purged && slices > 2, "{kept}: {end:?} after {slices}");
        let progress = bench.tombstone(id).await.progress;
        assert_eq!((progress.objects_deleted, progress.objects_kept), (3, 1), "{kept}");
        assert_eq!(bench.objects.memory().keys(VERSIONED), [kept]);
    }
}

#[tokio::test]
async fn a_key_of_more_versions_than_a_batch_has_goes_or_stays_in_any_number_of_slices() {
    let bench = versioned(&["k1", "k2", "k3"]).await;
    [("k1", 5), ("k2", 5), ("k3", 4)].iter().for_each(|(key, versions)| put(&bench, key, *versions));
    link(&bench, "b", &["k2"]).await;
    let id = bench.trash_due("album", "a").await;
    let (slices, end) = in_slices_of_no_time(&bench, id).await;
    assert!(end == SliceEnd::Purged && slices > 6, "{end:?} after {slices}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.objects_kept), (9, 5));
    assert_eq!(
        (bench.objects.memory().keys(VERSIONED), bench.objects.memory().count(VERSIONED)),
        (vec!["k2".into()], 5)
    );
}

#[tokio::test]
async fn versions_that_cannot_go_are_passed_by_and_counted_once() {
    let bench = versioned(&["k1", "k2", "k3"]).await;
    [("k1", 1), ("k2", 5), ("k3", 1)].iter().for_each(|(key, versions)| put(&bench, key, *versions));
    let until = time::OffsetDateTime::now_utc() + time::Duration::days(3);
    let retention = Some(Retention { mode: LockMode::Compliance, until });
    bench.objects.memory().lock_key(VERSIONED, "k2", ObjectLock { retention, legal_hold: false });
    let id = bench.trash_due("album", "a").await;
    let (_, end) = in_slices_of_no_time(&bench, id).await;
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("5 locked in compliance mode")), "{end:?}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_failed), (7, 2, 5));
}

#[tokio::test]
async fn a_version_that_is_written_between_two_slices_goes_too() {
    let bench = versioned(&["k1"]).await;
    put(&bench, "k1", 4);
    let id = bench.trash_due("album", "a").await;
    let none = Budget::new(Duration::ZERO, CancellationToken::new());
    assert_eq!(bench.purger().run_slice(id, &none).await.expect("no outage"), SliceEnd::Continues);
    // newer than all that have been counted
    put(&bench, "k1", 1);
    bench.make_due(id).await;
    let mut ends = Vec::new();
    while ends.len() < 5 && ends.last() != Some(&SliceEnd::Purged) {
        ends.push(bench.slice(id).await);
        bench.make_due(id).await;
    }
    assert_eq!(ends.last(), Some(&SliceEnd::Purged), "{ends:?}");
    assert_eq!((bench.objects.memory().count(VERSIONED), bench.tombstone(id).await.progress.objects_deleted), (0, 5));
}

#[tokio::test]
async fn a_batch_in_hand_that_goes_in_parts_is_counted_once_whoever_dies_between_them() {
    let mut bench = versioned(&["k1", "k2", "k3"]).await;
    [("k1", 5), ("k2", 1), ("k3", 4)].iter().for_each(|(key, versions)| put(&bench, key, *versions));
    set_batch_size(&mut bench, 1000);
    let id = bench.trash_due("album", "a").await;
    dies(&bench, id, 0, At::After).await;
    assert_eq!((bench.objects.memory().count(VERSIONED), bench.objects.faults.batches()), (0, vec![10]));
    // none of it is listed any more: what falls out of the hand is never counted
    set_batch_size(&mut bench, 3);
    dies(&bench, id, 1, At::After).await;
    let (slices, end) = in_slices_of_no_time(&bench, id).await;
    assert!(end == SliceEnd::Purged && slices > 3, "{end:?} after {slices}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone(), progress.bytes_freed), (10, 10, 100));
    assert_eq!(bench.objects.faults.batches(), [10, 3, 3, 3, 3, 1], "the part that was not counted goes again");
}

#[tokio::test]
async fn what_another_comes_to_need_between_two_parts_of_a_batch_in_hand_stays() {
    let mut bench = versioned(&["k1", "k2", "k3", "k4"]).await;
    ["k1", "k2", "k3", "k4"].iter().for_each(|key| put(&bench, key, 1));
    set_batch_size(&mut bench, 1000);
    let id = bench.trash_due("album", "a").await;
    dies(&bench, id, 0, At::Before).await;
    assert_eq!(bench.objects.faults.batches(), [0; 0]);
    set_batch_size(&mut bench, 2);
    let none = Budget::new(Duration::ZERO, CancellationToken::new());
    assert_eq!(bench.purger().run_slice(id, &none).await.expect("no outage"), SliceEnd::Continues);
    assert_eq!(
        (bench.objects.memory().keys(VERSIONED), bench.objects.faults.batches()),
        (keys(&["k3", "k4"]), vec![2])
    );
    link(&bench, "b", &["k1", "k4"]).await;
    bench.make_due(id).await;
    let (_, end) = in_slices_of_no_time(&bench, id).await;
    assert_eq!((end, bench.objects.memory().keys(VERSIONED)), (SliceEnd::Purged, keys(&["k4"])));
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.objects_kept), (3, 1));
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

fn set_batch_size(bench: &mut Bench, size: usize) {
    bench.config.stores.values_mut().for_each(|store| store.batch_size = size);
}

/// A slice of a worker that is killed at the delete after `deletes` of them, before it hears of that one.
async fn dies(bench: &Bench, id: TombstoneId, deletes: usize, at: At) {
    let keeper = bench.objects.stop_a_delete(deletes, at);
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    slice.abort();
    assert!(slice.await.expect_err("it was ended").is_cancelled());
    bench.run("update reprieve.tombstones set lease_until = now() - interval '1 second'").await;
    bench.make_due(id).await;
}

#[tokio::test]
async fn versions_below_a_prefix_go_in_smaller_requests_where_the_store_grants_fewer_keys_at_once() {
    let map = MAP.replace("bucket = \"heimdall-synthetic-iq\"", &format!("bucket = \"{VERSIONED}\""));
    let bench = Bench::with(&map, TABLES, |_| ()).await;
    bench.run("insert into plat.folders values ('f')").await;
    (0..30).for_each(|n| put(&bench, &format!("folders/f/{n:02}"), 2));
    bench.objects.faults.grant_at_once(4);
    let id = bench.trash_due("folder", "f").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged, "{:?}", bench.objects.faults.batches());
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, bench.objects.memory().count(VERSIONED)), (60, 0));
}
