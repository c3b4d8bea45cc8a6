use std::time::Duration;

use reprieve::domain::outcome::{FailureClass, KeyOutcome, ObjectRef, RetryAfter};
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::objects::{ObjectStore, Versioning};
use reprieve::purge::{Budget, SliceEnd};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, SIZE, alice};
use crate::support::heimdall::key;

async fn due(samples: u32) -> (Bench, Uuid, reprieve::domain::ids::TombstoneId) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", samples).await;
    let id = bench.trash_due("dataset", dataset).await;
    (bench, dataset, id)
}

/// How often the purge has waited in vain by now.
async fn waits(bench: &Bench) -> i32 {
    bench.value("select waits from reprieve.tombstones").await
}

#[tokio::test]
async fn thousands_of_objects_go_in_batches_and_the_neighbours_stay() {
    let (bench, dataset, id) = due(2_543).await;
    let memory = bench.objects.memory();
    let neighbours = [
        format!("synthetic/{dataset}-copy/0/RX_000.npy"),
        format!("synthetic/{dataset}.npy"),
        format!("synthetic/dataset-{dataset}0/x"),
        format!("synthetic/{}/0/RX_000.npy", Uuid::new_v4()),
        format!("Synthetic/{dataset}/0"),
    ];
    neighbours.iter().for_each(|key| memory.put(BUCKET, key, 1));
    memory.put(BUCKET, &format!("synthetic/dataset-{dataset}/old layout"), 20);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects(), neighbours.len());
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted), (2_544, 2_544));
    assert_eq!(progress.bytes_freed, 2_543 * SIZE + 20);
    assert_eq!(progress.rows_deleted, 101, "50 samples, 50 features, the dataset");
    let batches = bench.objects.faults.batches();
    assert_eq!(batches.iter().sum::<usize>(), 2_544);
    assert_eq!(batches, [700, 700, 700, 443, 1], "a page is a batch, up to the limit of a batch");
}

#[tokio::test]
async fn keys_that_fail_in_passing_are_tried_again_alone() {
    let (bench, dataset, id) = due(10).await;
    for sample in [2, 5] {
        let busy = failure("SlowDown", FailureClass::Throttled);
        bench.objects.faults.fail_key(&key(dataset, sample, 0), Times::Next(1), busy);
    }
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.faults.batches(), [10, 2]);
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 10);
}

#[tokio::test]
async fn one_locked_object_sets_the_purge_aside_with_its_reason_while_the_rest_goes() {
    let (bench, dataset, id) = due(10).await;
    let locked = key(dataset, 3, 0);
    bench.objects.faults.fail_key(&locked, Times::Next(1), failure("AccessDenied", FailureClass::Permanent));
    let end = bench.slice(id).await;
    assert!(
        matches!(&end, SliceEnd::Stuck(why) if why.contains("1 object: AccessDenied") && why.contains(&locked)),
        "{end:?}"
    );
    assert_eq!(bench.objects(), 1);
    let tombstone = bench.tombstone(id).await;
    assert_eq!((tombstone.state, tombstone.progress.objects_failed), (State::Stuck, 1));
    assert_eq!((tombstone.progress.objects_listed, tombstone.progress.objects_deleted), (10, 9));
    assert_eq!(bench.count("heimdall.synthetic_datasets").await, 1, "its rows stay, all of them");
    assert_eq!(bench.count("heimdall.synthetic_iq_samples").await, 10);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0, "it waits for somebody");
    assert_eq!(bench.slice(id).await, SliceEnd::Nothing("it is stuck and waits for a retry, or for its date"));

    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_failed), (10, 10, 0));
    assert_eq!(bench.events(id).await, ["trashed", "purge_begun", "stuck", "retried", "purged"]);
}

#[tokio::test]
async fn a_lost_answer_is_resolved_by_trying_again_and_counts_once() {
    let (bench, _, id) = due(10).await;
    bench.objects.faults.lose_next_answer();
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone(), progress.objects_unknown), (10, 10, 0));
    assert_eq!(progress.bytes_freed, 10 * SIZE);
}

#[tokio::test]
async fn answers_lost_to_the_last_try_are_resolved_by_a_listing() {
    let (bench, _, id) = due(10).await;
    // the last try names two keys a request
    for _ in 0..1 + 5 {
        bench.objects.faults.lose_next_answer();
    }
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_absent), (10, 0, 10));
    assert_eq!(progress.bytes_freed, 10 * SIZE);
}

#[tokio::test]
async fn keys_that_every_answer_leaves_out_are_gone_when_a_listing_says_so() {
    let (bench, dataset, id) = due(10).await;
    bench.objects.faults.leave_out(&key(dataset, 4, 0), Times::Always);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.objects_absent), (9, 1));
}

#[tokio::test]
async fn a_key_that_no_answer_mentions_and_that_is_still_there_keeps_the_rows_and_is_named() {
    let (bench, dataset, id) = due(10).await;
    let silent = key(dataset, 4, 0);
    bench.objects.ignore(&silent);
    let SliceEnd::Failed(why) = bench.slice(id).await else { panic!("an object is left") };
    assert!(why.contains("1 object:") && why.contains(&silent), "{why:?}");
    let tombstone = bench.tombstone(id).await;
    assert_eq!((tombstone.progress.objects_unknown, tombstone.progress.objects_listed), (1, 10));
    assert_eq!((bench.objects(), bench.count("heimdall.synthetic_iq_samples").await), (1, 10));
    bench.objects.heed();
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_unknown), (10, 10, 0));
}

#[tokio::test]
async fn a_directory_marker_that_no_answer_mentions_is_seen_where_paths_are_listed_in_their_order() {
    let (bench, dataset, id) = due(0).await;
    bench.objects.list_by_path();
    let marker = format!("synthetic/{dataset}/x/");
    let objects = [format!("synthetic/{dataset}/a"), marker.clone(), format!("{marker}0"), format!("{marker}1")];
    objects.iter().for_each(|key| bench.objects.memory().put(BUCKET, key, 1));
    bench.objects.ignore(&marker);
    let SliceEnd::Failed(reason) = bench.slice(id).await else { panic!("one is left") };
    assert!(reason.contains("NoAnswer") && reason.contains(&marker), "{reason}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_gone(), progress.objects_absent, progress.objects_unknown), (3, 0, 1));
    bench.objects.heed();
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.objects_gone(), 4, "each once");
}

#[tokio::test]
async fn a_listing_that_fails_is_a_failure_and_never_an_empty_prefix() {
    let (bench, _, id) = due(10).await;
    bench.objects.faults.fail_next_list(failure("InternalError", FailureClass::Transient));
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("InternalError")), "{end:?}");
    assert_eq!((bench.state(id).await, bench.objects()), (State::Purging, 10));
    let waiting = "reprieve.outbox where topic = 'purge' and available_at > now() + interval '20 minutes'";
    assert_eq!(bench.count(waiting).await, 1, "it backs off");
    let kept = bench.tombstone(id).await;
    assert!(kept.lease_owner.is_none() && kept.last_error.is_some());
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert!(bench.tombstone(id).await.last_error.is_none());
}

#[tokio::test]
async fn an_outage_however_long_never_sets_a_purge_aside_nor_uses_up_its_attempts() {
    let (bench, dataset, id) = due(4).await;
    for _ in 0..8 {
        bench.objects.faults.fail_next_list(failure("Connection", FailureClass::Transient));
        assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
        bench.make_due(id).await;
    }
    assert_eq!(waits(&bench).await, 8, "each in vain");
    bench.objects.ignore(&key(dataset, 0, 0));
    let end = bench.slice(id).await;
    assert!(matches!(end, SliceEnd::Failed(_)), "the first failure of its own: {end:?}");
    bench.objects.heed();
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn a_store_that_grants_a_few_keys_at_a_time_is_emptied_and_each_counts_once() {
    let (bench, dataset, id) = due(20).await;
    bench.objects.faults.grant(8, RetryAfter::seconds(60));
    for left in [12, 4] {
        let end = bench.slice(id).await;
        let named = format!("{left} objects, such as \"synthetic/{dataset}/");
        let is_told = |why: &str| why.contains("SlowDown") && why.contains(&named);
        assert!(matches!(&end, SliceEnd::Failed(why) if is_told(why)), "{end:?}");
        let tombstone = bench.tombstone(id).await;
        assert_eq!((bench.objects(), tombstone.progress.objects_deleted), (left, 20 - left as u64));
        assert_eq!(tombstone.attempts, 0, "an outage");
        assert_eq!(waits(&bench).await, 1, "it got further, so the next wait is no longer than this one");
        bench.make_due(id).await;
    }
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, bench.objects()), (20, 20, 0));
    assert_eq!(bench.objects.faults.batches(), [20, 12, 4], "what has gone is not sent again");
}

#[tokio::test]
async fn what_smaller_repeats_have_deleted_before_the_store_closes_is_counted() {
    let (bench, _, id) = due(20).await;
    // of the first request two keys go and no answer comes; the repeats name three keys each, and the first ends it
    bench.objects.faults.grant(2, RetryAfter::seconds(60));
    bench.objects.faults.lose_next_answer();
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("left alone")), "{end:?}");
    assert_eq!(bench.objects.faults.batches(), [20, 3]);
    assert_eq!((bench.objects(), bench.tombstone(id).await.progress.objects_deleted), (18, 2));
    bench.objects.faults.grant(20, RetryAfter::seconds(60));
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.bytes_freed), (20, 20, 20 * SIZE));
}

#[tokio::test]
async fn what_smaller_repeats_have_deleted_is_out_of_hand_where_batches_go_one_at_a_time() {
    let (bench, dataset, id) = due(0).await;
    bench.objects.list_by_path();
    let keys = (0..19).map(|n| format!("x/{n:02}")).chain(["x.y".to_owned()]);
    keys.for_each(|key| bench.objects.memory().put(BUCKET, &format!("synthetic/{dataset}/{key}"), 1));
    bench.objects.faults.grant(2, RetryAfter::seconds(60));
    bench.objects.faults.lose_next_answer();
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("left alone")), "{end:?}");
    // the repeat goes by key, "x.y" first: one of the two that went before is counted, and the other is still in hand
    assert_eq!((bench.objects(), bench.tombstone(id).await.progress.objects_deleted), (17, 2));
    bench.objects.faults.grant(20, RetryAfter::seconds(60));
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.faults.batches(), [20, 3, 18], "what has gone is not sent again");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted), (20, 20));
}

#[tokio::test]
async fn a_batch_in_hand_goes_in_smaller_requests_where_batches_go_one_at_a_time() {
    let (bench, dataset, id) = due(0).await;
    bench.objects.list_by_path();
    let keys = (0..19).map(|n| format!("x/{n:02}")).chain(["x.y".to_owned()]);
    keys.for_each(|key| bench.objects.memory().put(BUCKET, &format!("synthetic/{dataset}/{key}"), 1));
    bench.objects.faults.grant_at_once(10);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let batches = bench.objects.faults.batches();
    let tries = batches.iter().take_while(|keys| **keys == 20).count();
    assert_eq!(batches[tries..], [10, 10], "what was refused several times is not sent again: {batches:?}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, bench.objects()), (20, 20, 0));
}

#[tokio::test]
async fn a_store_that_grants_a_few_keys_at_once_is_emptied_in_one_delivery() {
    let (bench, dataset, id) = due(0).await;
    (0..1500).for_each(|n| bench.objects.memory().put(BUCKET, &key(dataset, n, 0), 1));
    bench.objects.faults.grant_at_once(12);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, bench.objects()), (1500, 1500, 0));
    let refused = bench.objects.faults.batches().into_iter().filter(|keys| *keys > 12).count();
    assert!(refused < 30, "{refused} refused");
}

#[tokio::test]
async fn what_a_try_that_was_broken_off_did_not_name_is_still_unanswered() {
    let (bench, _, id) = due(20).await;
    bench.objects.faults.grant(0, None);
    bench.objects.faults.lose_next_answer();
    bench.objects.faults.refuse_next_delete(failure("SlowDown", FailureClass::Throttled));
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("Timeout")), "{end:?}");
    assert_eq!(bench.objects.faults.batches(), [20, 3]);
    assert_eq!((bench.tombstone(id).await.attempts, bench.objects()), (0, 20), "an outage");
}

#[tokio::test]
async fn keys_that_a_store_refuses_for_ever_are_named_and_make_no_request_smaller() {
    let (bench, dataset, id) = due(0).await;
    (0..210).for_each(|n| bench.objects.memory().put(BUCKET, &key(dataset, n, 0), 1));
    for n in (0..210).step_by(7) {
        let busy = failure("SlowDown", FailureClass::Throttled);
        bench.objects.faults.fail_key(&key(dataset, n, 0), Times::Always, busy);
    }
    let stores = bench.stores();
    let gates: Vec<_> = stores.iter().map(|(_, store)| store.flow.gate(BUCKET)).collect();
    let purger = bench.with_stores(stores);
    let end = purger.run_slice(id, &crate::bench::budget()).await.expect("the database is there");
    assert!(
        matches!(&end, SliceEnd::Failed(why) if why.contains("30 objects") && why.contains(&key(dataset, 0, 0))),
        "{end:?}"
    );
    assert_eq!(bench.objects(), 30);
    assert_eq!(bench.objects.faults.batches().iter().filter(|keys| **keys < 30).count(), 0);
    for gate in gates {
        assert_eq!((gate.keys_at_once(1000), gate.open().closed_for), (1000, Duration::ZERO), "others are not held up");
    }
}

#[tokio::test]
async fn what_a_store_grants_too_slowly_for_one_delivery_goes_on_in_the_next_and_nothing_of_it_has_failed() {
    let (bench, _, id) = due(20).await;
    bench.objects.faults.grant(4, None);
    let at_once = Budget::new(Duration::ZERO, CancellationToken::new());
    for left in [12, 4] {
        let end = bench.purger().run_slice(id, &at_once).await.expect("the database is there");
        let progress = bench.tombstone(id).await.progress;
        assert_eq!((end, bench.objects()), (SliceEnd::Continues, left));
        assert_eq!(
            (progress.objects_deleted, progress.objects_failed, progress.objects_unknown),
            (20 - left as u64, 0, 0)
        );
    }
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted), (20, 20));
    let failed = bench.told(id, "purged").await.details["objects"]["failed"].clone();
    assert_eq!((failed, bench.count("reprieve.audit where event = 'purge_failed'").await), (0.into(), 0));
}

#[tokio::test]
async fn a_listing_that_fails_while_verifying_deletes_no_row() {
    let (bench, _, id) = due(3).await;
    // the first prefix, the second, and then the first again to verify
    let gate = bench.objects.stop_a_delete(0, crate::gate::At::After);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &crate::bench::budget()).await });
    gate.reached().await;
    bench.objects.fail_list_after(1, failure("InternalError", FailureClass::Transient));
    gate.open();
    let end = working.await.expect("no panic").expect("the database is there");
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("InternalError")), "{end:?}");
    assert_eq!((bench.objects(), bench.count("heimdall.synthetic_iq_samples").await), (0, 3));
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.objects_listed, 3);
}

#[tokio::test]
async fn a_bucket_that_does_not_exist_is_stuck_and_no_row_goes() {
    let (bench, dataset, id) = due(3).await;
    bench.objects.faults.fail_next_list(failure("NoSuchBucket", FailureClass::Permanent));
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("NoSuchBucket")), "{end:?}");
    assert_eq!((bench.state(id).await, bench.count("heimdall.synthetic_iq_samples").await), (State::Stuck, 3));
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn what_a_late_writer_puts_is_found_by_the_verification_and_goes_in_the_next_pass() {
    let (bench, dataset, id) = due(3).await;
    // after both prefixes have been listed empty, before the verification
    bench.objects.write_late(2, BUCKET, &key(dataset, 77, 0));
    let end = bench.slice(id).await;
    assert!(
        matches!(&end, SliceEnd::Failed(why) if why.contains("writer") && why.contains(&key(dataset, 77, 0))),
        "{end:?}"
    );
    assert_eq!((bench.state(id).await, bench.count("heimdall.synthetic_iq_samples").await), (State::Purging, 3));
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!((bench.objects(), bench.tombstone(id).await.progress.objects_deleted), (0, 4));
}

#[tokio::test]
async fn delete_markers_that_come_late_are_not_called_the_work_of_a_writer() {
    let map = crate::bench::HEIMDALL.replace("heimdall-synthetic-iq", "second-bucket");
    let bench = Bench::with(&map, "", |_| ()).await;
    let dataset = bench.dataset("set a", 0).await;
    bench.objects.memory().make_bucket("second-bucket", Versioning::Kept);
    let marked = key(dataset, 77, 0);
    let id = bench.trash_due("dataset", dataset).await;
    bench.objects.mark_late(2, "second-bucket", &marked);
    let end = bench.slice(id).await;
    let SliceEnd::Failed(why) = &end else { panic!("{end:?}") };
    assert!(why.contains("delete marker") && why.contains(&marked) && !why.contains("writer"), "{why}");
    // one object among them is a writer's
    bench.make_due(id).await;
    bench.objects.mark_late(2, "second-bucket", &key(dataset, 1, 0));
    bench.objects.write_late(2, "second-bucket", &marked);
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("writer") && why.contains(&marked)), "{end:?}");
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn what_comes_late_into_the_second_place_keeps_the_rows_too() {
    let (bench, dataset, id) = due(3).await;
    let late = format!("synthetic/dataset-{dataset}/late");
    bench.objects.write_late(2, BUCKET, &late);
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains(&late)), "{end:?}");
    assert_eq!((bench.objects(), bench.count("heimdall.synthetic_iq_samples").await), (1, 3));
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects(), 0);
}

#[tokio::test]
async fn what_comes_late_behind_an_empty_page_of_the_verification_keeps_the_rows_too() {
    let (bench, dataset, id) = due(3).await;
    // after both prefixes have been listed; the next listing is the verification's first
    bench.objects.write_late(2, BUCKET, &key(dataset, 77, 0));
    bench.objects.hollow_list_after(2);
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains(&key(dataset, 77, 0))), "{end:?}");
    assert_eq!((bench.objects(), bench.objects.hollow_lists_to_come()), (1, 0));
    assert_eq!(bench.count("heimdall.synthetic_iq_samples").await, 3);
}

#[tokio::test]
async fn a_writer_that_never_stops_ends_as_stuck_with_every_row_in_place() {
    let (bench, dataset, id) = due(3).await;
    for attempt in 1..=3 {
        bench.objects.write_late(2, BUCKET, &key(dataset, 100 + attempt, 0));
        let end = bench.slice(id).await;
        assert_eq!(matches!(end, SliceEnd::Stuck(_)), attempt == 3, "{attempt}: {end:?}");
        bench.make_due(id).await;
    }
    assert_eq!(bench.count("heimdall.synthetic_iq_samples").await, 3);
    // a retry counts anew
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    bench.objects.write_late(2, BUCKET, &key(dataset, 104, 0));
    let end = bench.slice(id).await;
    assert!(matches!(end, SliceEnd::Failed(_)), "the first attempt after the retry: {end:?}");
    assert_eq!(bench.tombstone(id).await.attempts, 1);
}

#[tokio::test]
async fn every_version_and_every_delete_marker_goes() {
    let map = crate::bench::HEIMDALL.replace("heimdall-synthetic-iq", "second-bucket");
    let bench = Bench::with(&map, "", |_| ()).await;
    let dataset = bench.dataset("set a", 0).await;
    let memory = bench.objects.memory();
    memory.make_bucket("second-bucket", Versioning::Kept);
    for _ in 0..3 {
        memory.put("second-bucket", &key(dataset, 0, 0), SIZE);
    }
    let hide = ObjectRef { key: key(dataset, 0, 0), version: None };
    assert!(memory.delete("second-bucket", &[hide]).await.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted));
    memory.put("second-bucket", &key(dataset, 1, 0), SIZE);
    let id = bench.trash_due("dataset", dataset).await;
    bench.objects.faults.lose_next_answer();
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(memory.count("second-bucket"), 0);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_absent), (5, 5), "deleted unseen, found gone");
    assert_eq!((progress.versions_gone, progress.markers_gone), (3, 1));
    let objects = &bench.told(id, "purged").await.details["objects"];
    assert_eq!((&objects["older_versions"], &objects["delete_markers"]), (&3.into(), &1.into()));
}

#[tokio::test]
async fn an_empty_page_that_says_that_more_follows_is_no_proof_of_absence() {
    let (bench, dataset, id) = due(10).await;
    bench.objects.ignore(&key(dataset, 4, 0));
    // the first listing finds them; the second is to resolve the key that no answer mentioned
    bench.objects.hollow_list_after(1);
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("no answer")), "{end:?}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_unknown, progress.objects_absent), (1, 0));
    bench.objects.heed();
    // and the next pass and the verification after it begin with one; between them come the page that it hid and the
    // second prefix
    for lists in [0, 3] {
        bench.objects.hollow_list_after(lists);
    }
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.hollow_lists_to_come(), 0);
    assert_eq!(bench.tombstone(id).await.progress.objects_listed, 10);
    assert_eq!(bench.objects(), 0);
}
