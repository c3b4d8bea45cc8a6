//! What the client makes of a store that has a bad day, one kind of bad day a test.

use std::time::Duration;

use reprieve::domain::outcome::{FailureClass, KeyOutcome};
use reprieve::embedded::s3::{Fault, KeyFault, Keys, Operation, Refusal, Times};
use reprieve::objects::s3::{ChecksumPolicy, DeletePolicy, S3Settings, S3Store, VersionsPolicy};
use reprieve::objects::{ObjectStore, UploadsListed, Versioning};

use super::subject::{Subject, embedded};
use super::{everything, keys, list_all, names};

/// A subject, a bucket with `a/0` to `a/(count - 1)`, and those keys.
async fn filled(count: usize) -> (Subject, String, Vec<String>) {
    let subject = embedded().await;
    let bucket = subject.bucket(Versioning::Off).await;
    let keys: Vec<String> = (0..count).map(|n| format!("a/{n:04}")).collect();
    subject.put_all(&bucket, &keys).await;
    (subject, bucket, keys)
}

/// Without the retries of the SDK, so that a fault that happens once is seen.
fn once(settings: &mut S3Settings) {
    settings.attempts = 1;
}

fn outcomes(batch: reprieve::domain::outcome::BatchOutcome) -> Vec<KeyOutcome> {
    batch.into_outcomes().into_iter().map(|(_, outcome)| outcome).collect()
}

fn failed(outcome: &KeyOutcome) -> (&str, FailureClass) {
    let KeyOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    (&failure.code, failure.class)
}

#[tokio::test]
async fn slow_down_is_throttling_and_nothing_was_done() {
    let (subject, bucket, keys) = filled(3).await;
    subject.server().faults().rule(None, Times::Always, Fault::Refuse(Refusal::slow_down()));
    let store = subject.store_with(once).await;
    for outcome in outcomes(store.delete(&bucket, &names(&keys)).await) {
        assert_eq!(failed(&outcome), ("SlowDown", FailureClass::Throttled));
    }
    let listed = store.list(&bucket, "a/", None).await.expect_err("throttled");
    assert_eq!((listed.code.as_str(), listed.class), ("SlowDown", FailureClass::Throttled));
    assert_eq!(subject.server().store().count(&bucket, "a/"), 3);
}

#[tokio::test]
async fn a_fault_that_passes_is_retried_by_the_sdk() {
    let (subject, bucket, keys) = filled(3).await;
    let faults = subject.server().faults();
    let list = faults.next(Operation::ListObjectsV2, Fault::Refuse(Refusal::internal_error()));
    let delete = faults.next(Operation::DeleteObjects, Fault::LoseAnswer(Refusal::CutConnection));
    assert_eq!(everything(&subject, &bucket, "a/").await.len(), 3);
    let outcome = subject.store().delete(&bucket, &names(&keys)).await;
    assert_eq!(outcomes(outcome), [KeyOutcome::Deleted, KeyOutcome::Deleted, KeyOutcome::Deleted]);
    assert_eq!((list.met(), delete.met()), (1, 1));
}

#[tokio::test]
async fn a_delete_that_is_too_fast_is_not_repeated_by_the_sdk_so_that_the_gate_hears_of_it() {
    let (subject, bucket, keys) = filled(2).await;
    let (batch, single) = (names(&keys), names(&keys[..1]));
    let faults = subject.server().faults();
    let refused = faults.rule(Some(Operation::DeleteObjects), Times::Next(1), Fault::Refuse(Refusal::slow_down()));
    for outcome in outcomes(subject.store().delete(&bucket, &batch).await) {
        assert_eq!(failed(&outcome), ("SlowDown", FailureClass::Throttled));
    }
    assert_eq!((refused.met(), subject.server().store().count(&bucket, "a/")), (1, 2));
    let one_by_one = subject.store_with(|settings| settings.delete = DeletePolicy::Single).await;
    let refused = faults.rule(Some(Operation::DeleteObject), Times::Next(1), Fault::Refuse(Refusal::slow_down()));
    assert_eq!(failed(&outcomes(one_by_one.delete(&bucket, &single).await)[0]), ("SlowDown", FailureClass::Throttled));
    assert_eq!((refused.met(), subject.server().store().count(&bucket, "a/")), (1, 2));
}

#[tokio::test]
async fn each_key_has_the_failure_that_the_store_gave_it() {
    let (subject, bucket, keys) = filled(8).await;
    let said = [
        ("InternalError", FailureClass::Transient),
        ("SlowDown", FailureClass::Throttled),
        ("AccessDenied", FailureClass::Permanent),
        ("AnythingNew", FailureClass::Permanent),
    ];
    for (key, (code, _)) in keys.iter().zip(said) {
        subject.server().faults().keys(Keys::Exactly(key.clone()), Times::Always, KeyFault::fail(code));
    }
    for (key, code) in keys[4..].iter().zip(["NoSuchKey", "NoSuchVersion"]) {
        subject.server().faults().keys(Keys::Exactly(key.clone()), Times::Always, KeyFault::fail(code));
    }
    let store = subject.store_with(once).await;
    let got = outcomes(store.delete(&bucket, &names(&keys)).await);
    for (outcome, expected) in got.iter().zip(said) {
        assert_eq!(failed(outcome), expected);
    }
    assert_eq!(got[4..6], [KeyOutcome::AlreadyAbsent, KeyOutcome::AlreadyAbsent]);
    assert_eq!(got[6..], [KeyOutcome::Deleted, KeyOutcome::Deleted]);
    assert_eq!(store.unlisted_codes(), 1);
}

#[tokio::test]
async fn keys_that_the_answer_leaves_out_are_unknown_whether_they_are_gone_or_not() {
    let (subject, bucket, keys) = filled(3).await;
    let faults = subject.server().faults();
    faults.keys(Keys::Exactly(keys[0].clone()), Times::Next(1), KeyFault::omit());
    faults.keys(Keys::Exactly(keys[1].clone()), Times::Next(1), KeyFault::omit_after_deleting());
    let outcome = subject.store().delete(&bucket, &names(&keys)).await;
    assert_eq!(outcome.lost_answer(), None, "the store answered");
    assert_eq!(outcomes(outcome), [KeyOutcome::Unknown, KeyOutcome::Unknown, KeyOutcome::Deleted]);
    assert_eq!(super::keys(&everything(&subject, &bucket, "a/").await), keys[..1]);
}

#[tokio::test]
async fn a_lost_answer_is_unknown_though_the_work_is_done() {
    for (loss, code) in [(Refusal::CutConnection, "ConnectionCut"), (Refusal::internal_error(), "InternalError")] {
        let (subject, bucket, keys) = filled(3).await;
        subject.server().faults().next(Operation::DeleteObjects, Fault::LoseAnswer(loss));
        let outcome = subject.store_with(once).await.delete(&bucket, &names(&keys)).await;
        assert_eq!(outcome.lost_answer().map(|failure| failure.code.as_str()), Some(code));
        assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Unknown));
        assert_eq!(subject.server().store().count(&bucket, "a/"), 0);
    }
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_unknown() {
    let (subject, bucket, keys) = filled(1).await;
    subject.server().faults().next(Operation::DeleteObjects, Fault::Delay(Duration::from_secs(20)));
    let impatient = |settings: &mut S3Settings| {
        settings.attempts = 1;
        settings.read_timeout = Duration::from_millis(200);
    };
    let outcome = subject.store_with(impatient).await.delete(&bucket, &names(&keys)).await;
    assert_eq!(outcome.lost_answer().map(|failure| failure.code.as_str()), Some("Timeout"));
    assert_eq!(outcomes(outcome), [KeyOutcome::Unknown]);
}

#[tokio::test]
async fn a_batch_called_malformed_is_halved_until_the_rest_is_gone() {
    let (subject, bucket, keys) = filled(40).await;
    // The whole, its first half and the first quarter: what a bad key among the first ten would bring about.
    let malformed = Fault::Refuse(Refusal::error("MalformedXML", 400));
    subject.server().faults().rule(Operation::DeleteObjects, Times::Next(3), malformed);
    let outcome = subject.store().delete(&bucket, &names(&keys)).await;
    assert_eq!(outcome.iter().map(|(object, _)| object.key.clone()).collect::<Vec<_>>(), keys);
    assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted));
    let requests = subject.server().requests();
    // 40 ✗ → 20 ✗ 20 → 10 ✗ 10 → 5 5.
    assert_eq!((requests.count(Operation::DeleteObjects), requests.count(Operation::DeleteObject)), (7, 0));
}

#[tokio::test]
async fn a_store_that_refuses_batches_gets_single_deletes() {
    for (code, status) in [("NotImplemented", 501), ("MethodNotAllowed", 405), ("MalformedXML", 400)] {
        let (subject, bucket, keys) = filled(20).await;
        let refused = Fault::Refuse(Refusal::error(code, status));
        subject.server().faults().rule(Operation::DeleteObjects, Times::Always, refused);
        let outcome = subject.store_with(once).await.delete(&bucket, &names(&keys)).await;
        assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted), "{code}");
        assert_eq!(subject.server().requests().count(Operation::DeleteObject), 20, "{code}");
    }
}

#[tokio::test]
async fn a_store_without_batches_is_asked_once_and_then_key_by_key() {
    for (code, status, asked) in [("NotImplemented", 501, 2), ("MethodNotAllowed", 405, 1)] {
        let (subject, bucket, keys) = filled(20).await;
        let refused = Fault::Refuse(Refusal::error(code, status));
        subject.server().faults().rule(Operation::DeleteObjects, Times::Always, refused);
        let store = subject.store_with(once).await;
        for half in keys.chunks(10) {
            let outcome = store.delete(&bucket, &names(half)).await;
            assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted), "{code}");
        }
        let requests = subject.server().requests();
        assert_eq!(requests.count(Operation::DeleteObjects), asked, "{code}: with one checksum, or with each");
        assert_eq!(requests.count(Operation::DeleteObject), 20, "{code}");
    }
}

#[tokio::test]
async fn a_store_that_refuses_one_checksum_gets_the_other_from_then_on() {
    for code in ["InvalidRequest", "MissingContentMD5", "NotImplemented", "InvalidDigest"] {
        let (subject, bucket, keys) = filled(20).await;
        let refused = Fault::Refuse(Refusal::error(code, 400));
        subject.server().faults().rule(Operation::DeleteObjects, Times::Next(1), refused);
        let store = subject.store_with(once).await;
        for half in keys.chunks(10) {
            let outcome = store.delete(&bucket, &names(half)).await;
            assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted), "{code}");
        }
        let requests = subject.server().requests();
        assert_eq!(requests.count(Operation::DeleteObjects), 3, "{code}: refused, taken, taken at once");
        assert_eq!(requests.count(Operation::DeleteObject), 0, "{code}");
    }
}

#[tokio::test]
async fn the_checksum_and_the_form_of_deletes_are_as_they_are_set() {
    // this server takes either checksum, and no batch without one
    for (checksum, taken) in
        [(ChecksumPolicy::Crc32, true), (ChecksumPolicy::ContentMd5, true), (ChecksumPolicy::None, false)]
    {
        let (subject, bucket, keys) = filled(3).await;
        let set = |settings: &mut S3Settings| (settings.checksum, settings.delete) = (checksum, DeletePolicy::Batch);
        let got = outcomes(subject.store_with(set).await.delete(&bucket, &names(&keys)).await);
        match taken {
            true => assert!(got.iter().all(|outcome| *outcome == KeyOutcome::Deleted), "{checksum:?}: {got:?}"),
            false => assert_eq!(failed(&got[0]), ("InvalidRequest", FailureClass::Permanent)),
        }
        assert_eq!(subject.server().requests().count(Operation::DeleteObjects), 1, "{checksum:?}");
        assert_eq!(subject.server().requests().count(Operation::DeleteObject), 0, "{checksum:?}");
    }
    let (subject, bucket, keys) = filled(3).await;
    let store = subject.store_with(|settings| settings.delete = DeletePolicy::Single).await;
    assert!(outcomes(store.delete(&bucket, &names(&keys)).await).iter().all(|one| *one == KeyOutcome::Deleted));
    assert_eq!(subject.server().requests().count(Operation::DeleteObjects), 0);
}

#[tokio::test]
async fn a_store_that_fails_every_batch_and_takes_single_deletes_gets_those() {
    let (subject, bucket, keys) = filled(40).await;
    let fails = Fault::Refuse(Refusal::internal_error());
    subject.server().faults().rule(Operation::DeleteObjects, Times::Always, fails);
    let store = subject.store_with(once).await;
    for _ in 0..2 {
        let outcome = store.delete(&bucket, &names(&keys)).await;
        assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Unknown), "it may pass");
    }
    let outcome = store.delete(&bucket, &names(&keys)).await;
    assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted));
    assert_eq!(subject.server().requests().count(Operation::DeleteObject), 40);
}

#[tokio::test]
async fn a_store_that_is_away_is_asked_for_one_key_more_and_not_for_all_of_them() {
    let (subject, bucket, keys) = filled(40).await;
    subject.server().faults().rule(None, Times::Always, Fault::Refuse(Refusal::internal_error()));
    let store = subject.store_with(once).await;
    for round in 0..5 {
        let outcome = store.delete(&bucket, &names(&keys)).await;
        assert!(outcome.lost_answer().is_some(), "{round}");
        assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Unknown), "{round}");
    }
    assert_eq!(subject.server().requests().count(Operation::DeleteObject), 3);
}

#[tokio::test]
async fn a_batch_that_times_out_is_halved_for_the_next() {
    let (subject, bucket, keys) = filled(40).await;
    subject.server().faults().next(Operation::DeleteObjects, Fault::Delay(Duration::from_secs(20)));
    let impatient = |settings: &mut S3Settings| {
        settings.attempts = 1;
        settings.read_timeout = Duration::from_secs(1);
    };
    let store = subject.store_with(impatient).await;
    let outcome = store.delete(&bucket, &names(&keys)).await;
    assert_eq!(outcome.lost_answer().map(|failure| failure.code.as_str()), Some("Timeout"));
    let outcome = store.delete(&bucket, &names(&keys)).await;
    assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted));
    assert_eq!(subject.server().requests().count(Operation::DeleteObjects), 3, "one that timed out, two of 20");
}

#[tokio::test]
async fn keys_that_xml_cannot_carry_do_not_fail_their_batch() {
    let (subject, bucket, mut keys) = filled(3).await;
    keys.insert(1, "a/bell\u{7}".to_owned());
    subject.put_all(&bucket, &keys).await;
    let outcome = subject.store().delete(&bucket, &names(&keys)).await;
    assert!(outcomes(outcome).iter().all(|outcome| *outcome == KeyOutcome::Deleted));
    let requests = subject.server().requests();
    assert_eq!((requests.count(Operation::DeleteObjects), requests.count(Operation::DeleteObject)), (1, 1));
}

#[tokio::test]
async fn versions_that_cannot_be_asked_for_are_an_error_and_not_taken_for_none() {
    let (subject, bucket, _) = filled(1).await;
    let denied = Fault::Refuse(Refusal::access_denied());
    subject.server().faults().rule(Operation::GetBucketVersioning, Times::Always, denied);
    let listed = subject.store().list(&bucket, "a/", None).await.expect_err("we cannot tell");
    assert_eq!((listed.operation, listed.class), ("GetBucketVersioning", FailureClass::Permanent));
    let current = subject.store_with(|settings| settings.versions = VersionsPolicy::Current).await;
    assert_eq!(list_all(&current, &bucket, "a/").await.len(), 1, "who wants no versions need not ask");
}

#[tokio::test]
async fn a_store_without_versions_and_locks_is_listed_plainly() {
    let (subject, bucket, _) = filled(1).await;
    for operation in
        [Operation::GetBucketVersioning, Operation::GetObjectLockConfiguration, Operation::ListMultipartUploads]
    {
        let missing = Fault::Refuse(Refusal::error("NotImplemented", 501));
        subject.server().faults().rule(operation, Times::Always, missing);
    }
    let store = subject.store_with(once).await;
    assert_eq!(list_all(&store, &bucket, "a/").await.len(), 1);
    let facts = store.facts(&bucket).await.expect("facts");
    assert_eq!((facts.versioning, facts.object_lock), (Versioning::Off, None));
    assert_eq!(facts.uploads, UploadsListed::NotOffered);
    let denied = Fault::Refuse(Refusal::access_denied());
    subject.server().faults().clear();
    subject.server().faults().rule(Operation::ListMultipartUploads, Times::Always, denied);
    let facts = store.facts(&bucket).await.expect("facts");
    assert_eq!(facts.uploads, UploadsListed::Denied("AccessDenied".to_owned()));
}

#[tokio::test]
async fn a_store_that_has_no_listing_of_uploads_has_no_uploads_and_one_that_denies_it_is_an_error() {
    let (subject, bucket, _) = filled(1).await;
    subject.begin_uploads(&bucket, &["a/big".to_owned()]).await;
    let store = subject.store_with(once).await;
    for (code, status) in [("NotImplemented", 501), ("MethodNotAllowed", 405)] {
        let missing = Fault::Refuse(Refusal::error(code, status));
        subject.server().faults().rule(Operation::ListMultipartUploads, Times::Next(1), missing);
        assert_eq!(store.list_uploads(&bucket, "a/", None).await.expect("none").uploads, [], "{code}");
    }
    let denied = Fault::Refuse(Refusal::access_denied());
    subject.server().faults().rule(Operation::ListMultipartUploads, Times::Next(1), denied);
    let error = store.list_uploads(&bucket, "a/", None).await.expect_err("we cannot tell");
    assert_eq!((error.operation, error.class), ("ListMultipartUploads", FailureClass::Permanent));
    assert_eq!(store.list_uploads(&bucket, "a/", None).await.expect("again").uploads.len(), 1);
}

#[tokio::test]
async fn whether_versions_are_kept_is_asked_once_a_bucket() {
    let (subject, bucket, _) = filled(1).await;
    for _ in 0..5 {
        everything(&subject, &bucket, "a/").await;
    }
    assert_eq!(subject.server().requests().count(Operation::GetBucketVersioning), 1);
}

#[tokio::test]
async fn a_locked_bucket_says_so_and_keeps_what_is_locked() {
    let subject = embedded().await;
    let storage = subject.server().store();
    storage.create_locked_bucket("locked").expect("a new name");
    subject.put_all("locked", &["l/free".to_owned(), "l/held".to_owned()]).await;
    storage.hold("locked", "l/held").expect("the object is there");
    let facts = subject.store().facts("locked").await.expect("facts");
    assert_eq!((facts.versioning, facts.object_lock), (Versioning::Kept, Some(true)));
    let asked: Vec<_> = everything(&subject, "locked", "l/").await.into_iter().map(|entry| entry.object).collect();
    let got = outcomes(subject.store().delete("locked", &asked).await);
    assert_eq!(got[0], KeyOutcome::Deleted);
    assert_eq!(failed(&got[1]), ("AccessDenied", FailureClass::Permanent));
    assert_eq!(keys(&everything(&subject, "locked", "l/").await), ["l/held"]);
}

#[tokio::test]
async fn only_current_objects_are_seen_by_who_asks_for_no_more() {
    let subject = embedded().await;
    let bucket = subject.bucket(Versioning::Kept).await;
    for _ in 0..2 {
        subject.put_all(&bucket, &["v/1".to_owned(), "v/2".to_owned()]).await;
    }
    let store: S3Store = subject.store_with(|settings| settings.versions = VersionsPolicy::Current).await;
    let listed = list_all(&store, &bucket, "v/").await;
    assert!(listed.iter().all(|entry| entry.object.version.is_none()));
    assert_eq!(keys(&listed), ["v/1", "v/2"]);
    assert_eq!(
        outcomes(store.delete(&bucket, &names(&keys(&listed))).await),
        [KeyOutcome::Deleted, KeyOutcome::Deleted]
    );
    assert_eq!(list_all(&store, &bucket, "v/").await, []);
    assert_eq!(subject.server().store().versions(&bucket, "v/").len(), 6, "four versions and two markers stay");
}
