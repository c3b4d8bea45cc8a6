//! What [`ObjectStore`] means: each function here is one sentence of it, run against each implementation below.
//!
//! A sentence gets a [`Subject`] of its own, with buckets that nobody else sees.

mod conditions;
mod faults;
mod subject;
mod wire;

use std::collections::BTreeSet;

use reprieve::domain::outcome::{BatchOutcome, EntryKind, FailureClass, KeyOutcome, ObjectRef};
use reprieve::objects::{
    Cursor, LockMode, MAX_BATCH, ObjectEntry, ObjectLock, ObjectStore, Permit, Retention, UnfinishedUpload,
    UploadsListed, Versioning,
};

use subject::Subject;

/// More requests than any sentence needs: a store that does not move on fails instead of hanging.
const ROUNDS: usize = 50;

macro_rules! contract {
    ($module:ident, $implementation:ident: $($sentence:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $sentence() {
                    super::$sentence(&super::subject::$implementation().await).await;
                }
            )*
        }
    };
}

macro_rules! object_store {
    ($($module:ident: $implementation:ident)*) => { $(contract! { $module, $implementation:
        keys_come_in_order_and_each_once
        a_sibling_of_the_prefix_is_never_listed
        directory_markers_are_objects_like_others
        a_cursor_goes_on_in_the_middle_after_a_restart
        a_cursor_holds_when_what_it_names_is_deleted
        odd_keys_come_back_as_they_went_in_and_can_be_deleted
        control_characters_can_be_deleted_among_other_keys
        deleting_what_is_not_there_never_fails
        a_missing_bucket_is_a_permanent_error
        more_than_a_thousand_names_have_one_outcome_each
        a_name_given_twice_counts_once
        every_version_and_marker_is_listed_and_can_be_deleted
        a_cursor_goes_on_among_the_versions_of_one_key
        facts_tell_whether_versions_are_kept
        unfinished_uploads_below_the_prefix_are_aborted_until_none_is_listed
        an_upload_that_has_ended_is_absent
        nothing_is_aborted_without_a_permit
        what_is_locked_is_denied_and_the_store_says_until_when
        a_version_is_never_deleted_on_a_condition
    })* };
}

/// Of stores that speak S3, and so have credentials and a switch for versions.
macro_rules! s3_store {
    ($($module:ident: $implementation:ident)*) => { $(contract! { $module, $implementation:
        wrong_credentials_are_a_permanent_error_and_show_no_secret
        a_suspended_bucket_is_emptied_of_its_old_versions
    })* };
}

object_store! { in_memory: memory without_faults: faulty embedded: embedded on_seaweedfs: seaweedfs on_moto: moto }

s3_store! { s3_embedded: embedded s3_on_seaweedfs: seaweedfs }

contract! { etags_in_memory, memory: an_object_goes_only_while_it_has_its_etag }
contract! { etags_without_faults, faulty: an_object_goes_only_while_it_has_its_etag }
contract! { etags_embedded, embedded: an_object_goes_only_while_it_has_its_etag }
contract! { etags_on_seaweedfs, seaweedfs: an_object_goes_only_while_it_has_its_etag }
// it would delete whatever the ETag is
contract! { etags_on_moto, moto: a_store_that_heeds_no_etags_gets_no_conditional_delete }
contract! { s3_on_moto, moto: a_suspended_bucket_is_emptied_of_its_old_versions }
contract! { odd_in_memory, memory: keys_that_xml_cannot_carry_are_aborted_too }
contract! { odd_embedded, embedded: keys_that_xml_cannot_carry_are_aborted_too }
contract! { odd_on_seaweedfs, seaweedfs: keys_that_xml_cannot_carry_are_aborted_too }
contract! { locks_embedded, embedded: governance_can_be_bypassed_by_who_says_so }
contract! { locks_on_seaweedfs, seaweedfs: governance_can_be_bypassed_by_who_says_so }

async fn keys_come_in_order_and_each_once(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let keys: Vec<String> = (0..2500).map(|n| format!("data/{n:05}")).collect();
    subject.put_all(&bucket, &keys).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    for _ in 0..ROUNDS {
        let page = subject.store().list(&bucket, "data/", cursor.as_ref()).await.expect("list");
        assert!(page.entries.len() <= MAX_BATCH, "a page of {}", page.entries.len());
        seen.extend(page.entries.into_iter().map(|entry| entry.object.key));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, keys);
}

async fn a_sibling_of_the_prefix_is_never_listed(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let inside = ["a/1/", "a/1/x", "a/1/y/z"].map(str::to_owned);
    let outside = ["a/1", "a/10/x", "a/1-/x", "a/0/x", "a/2/x", "A/1/x", "b/a/1/x"].map(str::to_owned);
    // A store that keeps keys as paths cannot hold both "a/1" and what is below "a/1/".
    let kept = |key: &&String| !subject.keeps_keys_as_paths() || !["a/1", "a/1/"].contains(&key.as_str());
    let inside: Vec<_> = inside.iter().filter(kept).cloned().collect();
    let outside: Vec<_> = outside.iter().filter(kept).cloned().collect();
    subject.put_all(&bucket, &inside).await;
    subject.put_all(&bucket, &outside).await;
    assert_eq!(keys(&everything(subject, &bucket, "a/1/").await), inside);
    let _ = delete(subject, &bucket, &names(&inside)).await;
    assert_eq!(everything(subject, &bucket, "a/1/").await, []);
    assert_eq!(everything(subject, &bucket, "").await.len(), outside.len());
}

/// As consoles and file system gateways make them: keys that end in a slash, without content. One is equal to the prefix.
async fn directory_markers_are_objects_like_others(subject: &Subject) {
    for versioning in [Versioning::Off, Versioning::Kept] {
        let bucket = subject.bucket(versioning).await;
        let inside = ["d/1/", "d/1/empty/", "d/1/sub/", "d/1/sub/x"].map(str::to_owned);
        let outside = ["d/", "d/10/", "d/1-/"].map(str::to_owned);
        subject.put_all(&bucket, &inside[3..]).await;
        subject.put_markers(&bucket, &inside[..3]).await;
        subject.put_markers(&bucket, &outside).await;
        let listed = everything(subject, &bucket, "d/1/").await;
        assert_eq!(keys(&listed), inside, "{versioning:?}");
        let asked: Vec<_> = listed.into_iter().map(|entry| entry.object).collect();
        let outcome = delete(subject, &bucket, &asked).await;
        assert!(outcome.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted), "{versioning:?}: {outcome:?}");
        assert_eq!(everything(subject, &bucket, "d/1/").await, [], "{versioning:?}");
        let mut left = keys(&everything(subject, &bucket, "").await);
        left.sort();
        assert_eq!(left, ["d/", "d/1-/", "d/10/"], "{versioning:?}");
    }
}

async fn a_cursor_goes_on_in_the_middle_after_a_restart(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let keys: Vec<String> = (0..1200).map(|n| format!("d/{n:04} +%&")).collect();
    subject.put_all(&bucket, &keys).await;
    let first = subject.store().list(&bucket, "d/", None).await.expect("list");
    let stored = serde_json::to_string(&first.next.expect("1200 keys do not fit in a page")).expect("json");
    let cursor: Cursor = serde_json::from_str(&stored).expect("json");
    let restarted = subject.another_store().await;
    let rest = restarted.list(&bucket, "d/", Some(&cursor)).await.expect("list");
    assert_eq!(first.entries.len() + rest.entries.len(), keys.len());
    assert_eq!(rest.entries.last().map(|entry| &entry.object.key), keys.last());
    assert_eq!(rest.next, None);
}

async fn a_cursor_holds_when_what_it_names_is_deleted(subject: &Subject) {
    for versioning in [Versioning::Off, Versioning::Kept] {
        if versioning == Versioning::Kept && subject.is_moto() {
            break; // it ends a listing of versions that begins after one that is gone; a purge lists anew
        }
        let bucket = subject.bucket(versioning).await;
        let keys: Vec<String> = (0..1100).map(|n| format!("d/{n:04}")).collect();
        subject.put_all(&bucket, &keys).await;
        let first = subject.store().list(&bucket, "d/", None).await.expect("list");
        let named: Vec<_> = first.entries.iter().map(|entry| entry.object.clone()).collect();
        let _ = delete(subject, &bucket, &named).await;
        let rest = subject.store().list(&bucket, "d/", first.next.as_ref()).await.expect("list");
        let seen: BTreeSet<_> = first.entries.iter().chain(&rest.entries).map(|entry| &entry.object.key).collect();
        assert_eq!(seen.len(), keys.len(), "{versioning:?}");
    }
}

async fn odd_keys_come_back_as_they_went_in_and_can_be_deleted(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let odd = [
        "o/ leading and trailing ",
        "o/100%",
        "o/%41 is not A",
        "o/a%2Fb",
        "o/a+b c",
        "o/a&b<c>d",
        "o/it's \"quoted\"",
        "o/ünïcödé/文件/🗑",
        "o/semi;colon=equals?query#hash",
        "o/back\\slash|pipe^caret`tick{brace}[bracket]~",
        "o/@:$,!*()",
    ];
    let mut odd: Vec<String> = odd.map(str::to_owned).into();
    if subject.keeps_keys_as_paths() {
        odd.retain(|key| !key.contains('\\')); // a separator to it
    }
    odd.sort();
    subject.put_all(&bucket, &odd).await;
    let mut listed = keys(&everything(subject, &bucket, "o/").await);
    listed.sort();
    assert_eq!(listed, odd);
    let outcome = delete(subject, &bucket, &names(&odd)).await;
    assert!(outcome.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted), "{outcome:?}");
    assert_eq!(everything(subject, &bucket, "").await, []);
}

async fn control_characters_can_be_deleted_among_other_keys(subject: &Subject) {
    for versioning in [Versioning::Off, Versioning::Kept] {
        let bucket = subject.bucket(versioning).await;
        let mixed =
            ["c/bell\u{7}", "c/carriage\rreturn", "c/line\nfeed", "c/not a char \u{FFFF}", "c/plain", "c/tab\t"];
        let mut mixed: Vec<_> = mixed.map(str::to_owned).into();
        mixed.retain(|key| subject.takes(key) && subject.shows(key, versioning));
        subject.put_all(&bucket, &mixed).await;
        let listed = everything(subject, &bucket, "c/").await;
        assert_eq!(keys(&listed), mixed, "{versioning:?}");
        let asked: Vec<_> = listed.into_iter().map(|entry| entry.object).collect();
        let outcome = delete(subject, &bucket, &asked).await;
        assert!(outcome.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted), "{versioning:?}: {outcome:?}");
        assert_eq!(everything(subject, &bucket, "").await, [], "{versioning:?}");
    }
}

async fn deleting_what_is_not_there_never_fails(subject: &Subject) {
    for versioning in [Versioning::Off, Versioning::Kept] {
        let bucket = subject.bucket(versioning).await;
        subject.put_all(&bucket, &["n/there".to_owned()]).await;
        let mut asked: Vec<_> = everything(subject, &bucket, "").await.into_iter().map(|entry| entry.object).collect();
        for round in 0..2 {
            let outcome = delete(subject, &bucket, &asked).await;
            assert!(outcome.iter().all(|(_, outcome)| gone(outcome)), "{versioning:?} round {round}: {outcome:?}");
        }
        assert_eq!(everything(subject, &bucket, "").await, [], "{versioning:?}");
        asked = names(&["n/never".to_owned(), "n/never\u{1}".to_owned()]);
        let outcome = delete(subject, &bucket, &asked).await;
        assert!(outcome.iter().all(|(_, outcome)| gone(outcome)), "{versioning:?}: {outcome:?}");
    }
}

async fn a_missing_bucket_is_a_permanent_error(subject: &Subject) {
    let bucket = "no-such-bucket-anywhere";
    let listed = subject.store().list(bucket, "a/", None).await.expect_err("no bucket");
    assert_eq!((listed.code.as_str(), listed.class), ("NoSuchBucket", FailureClass::Permanent));
    let looked = subject.store().facts(bucket).await.expect_err("no bucket");
    assert_eq!((looked.code.as_str(), looked.class), ("NoSuchBucket", FailureClass::Permanent));
    for (object, outcome) in delete(subject, bucket, &names(&["a/1".to_owned(), "a/\u{1}".to_owned()])).await.iter() {
        let KeyOutcome::Failed(failure) = outcome else { panic!("{object:?}: {outcome:?}") };
        assert_eq!((failure.code.as_str(), failure.class), ("NoSuchBucket", FailureClass::Permanent));
    }
}

async fn more_than_a_thousand_names_have_one_outcome_each(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let keys: Vec<String> = (0..1001).map(|n| format!("m/{n:04}")).collect();
    subject.put_all(&bucket, &keys).await;
    let outcome = delete(subject, &bucket, &names(&keys)).await;
    let answered: Vec<_> = outcome.iter().map(|(object, _)| object.key.clone()).collect();
    assert_eq!(answered, keys, "in the order of asking");
    assert!(outcome.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted));
    assert_eq!(everything(subject, &bucket, "").await, []);
}

async fn a_name_given_twice_counts_once(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    subject.put_all(&bucket, &["t/1".to_owned(), "t/2".to_owned()]).await;
    let outcome = delete(subject, &bucket, &names(&["t/2", "t/1", "t/2"].map(str::to_owned))).await;
    let answered: Vec<_> = outcome.iter().map(|(object, outcome)| (object.key.as_str(), outcome)).collect();
    assert_eq!(answered, [("t/2", &KeyOutcome::Deleted), ("t/1", &KeyOutcome::Deleted)]);
}

async fn every_version_and_marker_is_listed_and_can_be_deleted(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Kept).await;
    let keys = ["v/1", "v/2 +%", "v/3/deep"].map(str::to_owned);
    for _ in 0..3 {
        subject.put_all(&bucket, &keys).await;
    }
    // Named without a version, an object stays and gets a marker.
    let _ = delete(subject, &bucket, &names(&keys[..2])).await;
    let listed = everything(subject, &bucket, "v/").await;
    assert_eq!(listed.len(), 3 * 3 + 2, "{listed:?}");
    assert!(listed.iter().all(|entry| entry.object.version.is_some()));
    assert_eq!(listed.iter().filter(|entry| entry.size == 0).count(), 2, "markers have no size");
    let of = |kind| listed.iter().filter(|entry| entry.kind == kind).count();
    let kinds = [EntryKind::Current, EntryKind::Older, EntryKind::Marker].map(of);
    assert_eq!(kinds, [1, 8, 2], "two are hidden behind markers");

    let asked: Vec<_> = listed.into_iter().map(|entry| entry.object).collect();
    let outcome = delete(subject, &bucket, &asked).await;
    assert!(outcome.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted), "{outcome:?}");
    assert_eq!(everything(subject, &bucket, "").await, []);
}

async fn a_cursor_goes_on_among_the_versions_of_one_key(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Kept).await;
    let key = ["v/same".to_owned()];
    let others: Vec<String> = (0..900).map(|n| format!("v/a{n:03}")).collect();
    subject.put_all(&bucket, &others).await;
    for _ in 0..150 {
        subject.put_all(&bucket, &key).await;
    }
    let listed = everything(subject, &bucket, "v/").await;
    let distinct: BTreeSet<_> = listed.iter().map(|entry| &entry.object).collect();
    assert_eq!((listed.len(), distinct.len()), (1050, 1050));
    assert_eq!(listed.iter().filter(|entry| entry.kind == EntryKind::Current).count(), 901, "one of each key");
}

async fn facts_tell_whether_versions_are_kept(subject: &Subject) {
    for versioning in [Versioning::Off, Versioning::Kept] {
        let bucket = subject.bucket(versioning).await;
        let facts = subject.store().facts(&bucket).await.expect("facts");
        assert_eq!(facts.versioning, versioning);
        assert_ne!(facts.object_lock, Some(true));
        assert_eq!((facts.uploads, facts.default_retention), (UploadsListed::Yes, None));
        assert!(facts.url_encoded && facts.deletes.starts_with("in batches"), "{}", facts.deletes);
    }
}

async fn wrong_credentials_are_a_permanent_error_and_show_no_secret(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    for (id, secret) in [(subject.access_key(), "hush-wrong-secret"), ("nobody", "hush-unknown-key")] {
        let intruder = subject.store_as(id, secret).await;
        let listed = intruder.list(&bucket, "a/", None).await.expect_err("not let in");
        assert_eq!(listed.class, FailureClass::Permanent, "{listed}");
        assert_ne!(listed.code, "NoCredentials");
        let outcome = intruder.delete(&bucket, &names(&["a/1".to_owned()])).await;
        let told = format!("{listed} {listed:?} {outcome:?} {intruder:?}");
        assert!(!told.contains("hush"), "{told}");
        let [(_, KeyOutcome::Failed(failure))] = &outcome.into_outcomes()[..] else { panic!("{told}") };
        assert_eq!(failure.class, FailureClass::Permanent);
    }
}

async fn a_suspended_bucket_is_emptied_of_its_old_versions(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let key = ["s/1".to_owned()];
    subject.put_all(&bucket, &key).await;
    subject.set_versioning(&bucket, true).await;
    subject.put_all(&bucket, &key).await;
    subject.set_versioning(&bucket, false).await;
    let facts = subject.store().facts(&bucket).await.expect("facts");
    assert_eq!(facts.versioning, Versioning::Kept);
    let listed = everything(subject, &bucket, "s/").await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().any(|entry| entry.object.version.as_deref() == Some("null")), "{listed:?}");
    let asked: Vec<_> = listed.into_iter().map(|entry| entry.object).collect();
    let outcome = delete(subject, &bucket, &asked).await;
    assert!(outcome.iter().all(|(_, outcome)| *outcome == KeyOutcome::Deleted), "{outcome:?}");
    assert_eq!(everything(subject, &bucket, "").await, []);
}

async fn unfinished_uploads_below_the_prefix_are_aborted_until_none_is_listed(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    subject.put_all(&bucket, &["u/1/object".to_owned()]).await;
    let odd = ["u/1/plain", "u/1/plain", "u/1/a+b", "u/1/a+b c%20&<d>", "u/1/ünï/文件"].map(str::to_owned);
    // more than fit in a page
    let many = (0..1000).map(|n| format!("u/1/many/{n:04}"));
    let mut inside: Vec<String> = odd.into_iter().chain(many).collect();
    let outside = ["u/10/x", "u/1-/x", "u/2/x"].map(str::to_owned);
    subject.begin_uploads(&bucket, &inside).await;
    subject.begin_uploads(&bucket, &outside).await;
    assert_eq!(keys(&everything(subject, &bucket, "u/1/").await), ["u/1/object"], "no listing of objects shows them");

    let mut aborted = Vec::new();
    for round in 0.. {
        // SeaweedFS leaves some out between two pages
        let uploads = all_uploads(subject, &bucket, "u/1/").await;
        if uploads.is_empty() {
            break;
        }
        assert!(round == 0 || subject.keeps_keys_as_paths(), "left: {uploads:?}");
        for upload in uploads {
            let outcome = subject.store().abort_upload(&Permit::unlimited(), &bucket, &upload).await;
            assert_eq!(outcome, KeyOutcome::Deleted, "{upload:?}");
            aborted.push(upload.key);
        }
    }
    aborted.sort();
    inside.sort();
    assert!(aborted == inside, "{} of {}", aborted.len(), inside.len());
    assert_eq!(all_uploads(subject, &bucket, "u/").await.len(), outside.len());
    assert_eq!(everything(subject, &bucket, "").await.len(), 1, "the object stays");
    let missing = subject.store().list_uploads("no-such-bucket-anywhere", "u/", None).await.expect_err("no bucket");
    assert_eq!((missing.code.as_str(), missing.class), ("NoSuchBucket", FailureClass::Permanent));
}

async fn an_upload_that_has_ended_is_absent(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    subject.begin_uploads(&bucket, &["u/1".to_owned()]).await;
    let upload = all_uploads(subject, &bucket, "u/").await.remove(0);
    for expected in [KeyOutcome::Deleted, KeyOutcome::AlreadyAbsent] {
        let outcome = subject.store().abort_upload(&Permit::unlimited(), &bucket, &upload).await;
        // some stores (SeaweedFS among them) say of one that is gone what they say of one that they have aborted
        let lenient = subject.keeps_keys_as_paths() && outcome == KeyOutcome::Deleted;
        assert!(outcome == expected || lenient, "{outcome:?}");
    }
}

async fn keys_that_xml_cannot_carry_are_aborted_too(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let mut odd: Vec<String> = ["x/plain+%20", "x/bell\u{7}", "x/tab\t", "x/line\nfeed"].map(str::to_owned).into();
    if subject.keeps_keys_as_paths() {
        odd.retain(|key| !key.contains('\u{7}')); // SeaweedFS shows another key in its place, encoded or not
    }
    subject.begin_uploads(&bucket, &odd).await;
    let uploads = all_uploads(subject, &bucket, "x/").await;
    let mut listed: Vec<_> = uploads.iter().map(|upload| upload.key.clone()).collect();
    listed.sort();
    odd.sort();
    assert_eq!(listed, odd);
    for upload in &uploads {
        let outcome = subject.store().abort_upload(&Permit::unlimited(), &bucket, upload).await;
        assert_eq!(outcome, KeyOutcome::Deleted, "{upload:?}");
    }
    assert_eq!(all_uploads(subject, &bucket, "x/").await, []);
}

async fn nothing_is_aborted_without_a_permit(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    subject.begin_uploads(&bucket, &["u/1".to_owned()]).await;
    let uploads = all_uploads(subject, &bucket, "u/").await;
    let outcome = subject.store().abort_upload(&Permit::new(|| false), &bucket, &uploads[0]).await;
    assert!(matches!(&outcome, KeyOutcome::Failed(why) if why.class == FailureClass::Transient), "{outcome:?}");
    assert_eq!(all_uploads(subject, &bucket, "u/").await, uploads);
}

/// A day from now, in whole seconds, as stores keep it.
fn tomorrow() -> time::OffsetDateTime {
    (time::OffsetDateTime::now_utc() + time::Duration::days(1)).replace_nanosecond(0).expect("a second")
}

async fn what_is_locked_is_denied_and_the_store_says_until_when(subject: &Subject) {
    let bucket = subject.locked_bucket().await;
    let until = tomorrow();
    let lock = |mode, legal_hold| ObjectLock { retention: Some(Retention { mode, until }), legal_hold };
    let locks = [
        ("l/free", ObjectLock::default()),
        ("l/governance", lock(LockMode::Governance, false)),
        ("l/compliance", lock(LockMode::Compliance, false)),
        ("l/held", ObjectLock { retention: None, legal_hold: true }),
        ("l/both", lock(LockMode::Governance, true)),
    ];
    for (key, lock) in locks {
        subject.put_all(&bucket, &[key.to_owned()]).await;
        subject.lock_key(&bucket, key, lock).await;
    }
    let listed: Vec<_> = everything(subject, &bucket, "l/").await.into_iter().map(|entry| entry.object).collect();
    for (object, outcome) in delete(subject, &bucket, &listed).await.iter() {
        match outcome {
            KeyOutcome::Deleted => assert_eq!(object.key, "l/free"),
            KeyOutcome::Failed(why) => {
                assert_eq!(why.class, FailureClass::Permanent, "{object:?}: {why:?}");
                assert_ne!(object.key, "l/free");
            }
            other => panic!("{object:?}: {other:?}"),
        }
    }
    let left = everything(subject, &bucket, "l/").await;
    assert_eq!(left.len(), 4, "{left:?}");
    for entry in left {
        let told = subject.store().lock_of(&bucket, &entry.object).await.expect("told");
        let expected = locks.iter().find(|(key, _)| *key == entry.object.key).expect("one of them").1;
        assert_eq!(told, expected, "{entry:?}");
    }
    if subject.is_moto() {
        return; // it says nothing that can be read of an object without a lock
    }
    let plain = subject.bucket(Versioning::Off).await;
    subject.put_all(&plain, &["p/1".to_owned()]).await;
    let told = subject.store().lock_of(&plain, &names(&["p/1".to_owned()])[0]).await.expect("told");
    assert_eq!(told, ObjectLock::default(), "a bucket without locks locks nothing");
}

async fn governance_can_be_bypassed_by_who_says_so(subject: &Subject) {
    let bucket = subject.locked_bucket().await;
    for (key, mode) in [("l/governance", LockMode::Governance), ("l/compliance", LockMode::Compliance)] {
        subject.put_all(&bucket, &[key.to_owned()]).await;
        let retention = Some(Retention { mode, until: tomorrow() });
        subject.lock_key(&bucket, key, ObjectLock { retention, legal_hold: false }).await;
    }
    let listed: Vec<_> = everything(subject, &bucket, "l/").await.into_iter().map(|entry| entry.object).collect();
    let bold = subject.store_with(|settings| settings.governance_bypass = true).await;
    let _ = bold.delete(&bucket, &listed).await;
    assert_eq!(keys(&everything(subject, &bucket, "l/").await), ["l/compliance"]);
}

/// All pages of the unfinished uploads.
async fn an_object_goes_only_while_it_has_its_etag(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    let names: Vec<String> = (0..7).map(|n| format!("k/{n}")).chain(["k/odd\u{1}".to_owned()]).collect();
    subject.put_all(&bucket, &names).await;
    let mut asked = Vec::new();
    for (n, key) in names.iter().enumerate() {
        let etag = subject.etag(&bucket, key).await;
        let etag = if n % 2 == 0 { etag } else { "0123456789abcdef0123456789abcdef".to_owned() };
        asked.push((ObjectRef { key: key.clone(), version: None }, etag));
    }
    let answer = subject.store().delete_unchanged(&Permit::unlimited(), &bucket, &asked).await;
    let outcomes = answer.into_outcomes();
    assert_eq!(outcomes.len(), asked.len());
    for (n, (object, outcome)) in outcomes.iter().enumerate() {
        match outcome {
            KeyOutcome::Deleted => assert_eq!(n % 2, 0, "{object:?}"),
            KeyOutcome::Failed(why) => {
                assert_eq!((n % 2, why.code.as_str(), why.class), (1, "PreconditionFailed", FailureClass::Permanent));
            }
            other => panic!("{object:?}: {other:?}"),
        }
    }
    let left: Vec<String> = names.iter().skip(1).step_by(2).cloned().collect();
    assert_eq!(keys(&everything(subject, &bucket, "").await), left, "those that are not as they were");
    // of what is gone, no store says that it was deleted
    let again = subject.store().delete_unchanged(&Permit::unlimited(), &bucket, &asked[..1]).await;
    let (_, outcome) = &again.into_outcomes()[0];
    let denied = |outcome: &KeyOutcome| matches!(outcome, KeyOutcome::Failed(why) if why.code == "PreconditionFailed");
    assert!(*outcome == KeyOutcome::AlreadyAbsent || denied(outcome), "{outcome:?}");
}

async fn a_store_that_heeds_no_etags_gets_no_conditional_delete(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Off).await;
    subject.put_all(&bucket, &["a".to_owned()]).await;
    let asked = [(ObjectRef { key: "a".into(), version: None }, subject.etag(&bucket, "a").await)];
    for _ in 0..2 {
        let answer = subject.store().delete_unchanged(&Permit::unlimited(), &bucket, &asked).await;
        let (_, outcome) = &answer.into_outcomes()[0];
        assert!(matches!(outcome, KeyOutcome::Failed(why) if why.code == "NoConditionalDelete"), "{outcome:?}");
    }
    assert_eq!(everything(subject, &bucket, "").await.len(), 1);
}

async fn a_version_is_never_deleted_on_a_condition(subject: &Subject) {
    let bucket = subject.bucket(Versioning::Kept).await;
    subject.put_all(&bucket, &["a".to_owned()]).await;
    let entry = everything(subject, &bucket, "").await.remove(0);
    let asked = [(entry.object, subject.etag(&bucket, "a").await)];
    let answer = subject.store().delete_unchanged(&Permit::unlimited(), &bucket, &asked).await;
    let (_, outcome) = &answer.into_outcomes()[0];
    assert!(matches!(outcome, KeyOutcome::Failed(why) if why.code == "NoConditionalDelete"), "{outcome:?}");
    assert_eq!(everything(subject, &bucket, "").await.len(), 1);
}

async fn all_uploads(subject: &Subject, bucket: &str, prefix: &str) -> Vec<UnfinishedUpload> {
    let mut uploads = Vec::new();
    let mut cursor = None;
    for _ in 0..ROUNDS {
        let page = subject.store().list_uploads(bucket, prefix, cursor.as_ref()).await.expect("list");
        uploads.extend(page.uploads);
        cursor = page.next;
        if cursor.is_none() {
            return uploads;
        }
    }
    panic!("no end after {ROUNDS} pages");
}

async fn everything(subject: &Subject, bucket: &str, prefix: &str) -> Vec<ObjectEntry> {
    list_all(subject.store(), bucket, prefix).await
}

/// All pages of a listing.
async fn list_all(store: &dyn ObjectStore, bucket: &str, prefix: &str) -> Vec<ObjectEntry> {
    let mut entries = Vec::new();
    let mut cursor = None;
    for _ in 0..ROUNDS {
        let page = store.list(bucket, prefix, cursor.as_ref()).await.expect("list");
        entries.extend(page.entries);
        cursor = page.next;
        if cursor.is_none() {
            return entries;
        }
    }
    panic!("no end after {ROUNDS} pages");
}

async fn delete(subject: &Subject, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
    subject.store().delete(bucket, objects).await
}

fn names(keys: &[String]) -> Vec<ObjectRef> {
    keys.iter().map(|key| ObjectRef { key: key.clone(), version: None }).collect()
}

fn keys(entries: &[ObjectEntry]) -> Vec<String> {
    entries.iter().map(|entry| entry.object.key.clone()).collect()
}

fn gone(outcome: &KeyOutcome) -> bool {
    matches!(outcome, KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent)
}
