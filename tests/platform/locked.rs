//! Object lock: what is locked is named with its date, the rest goes, and the purge goes on by itself when it can.

use std::io::Write;
use std::sync::{Arc, Mutex};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockRetention,
    ObjectLockRetentionMode, VersioningConfiguration,
};
use reprieve::domain::ids::TombstoneId;
use reprieve::domain::location::StoreName;
use reprieve::domain::state::State;
use reprieve::objects::flow::Flow;
use reprieve::objects::s3::{DeletePolicy, S3Credentials, S3Settings, S3Store};
use reprieve::objects::stores::{NamedStore, Stores};
use reprieve::objects::{LockMode, ObjectLock, Retention};
use reprieve::purge::{Purger, SliceEnd};
use reprieve::relay::Sweeper;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, alice, budget};
use crate::support::heimdall::key;
use crate::support::{moto, seaweedfs};

fn until(days: i64) -> ObjectLock {
    let until = OffsetDateTime::now_utc() + Duration::days(days);
    ObjectLock { retention: Some(Retention { mode: LockMode::Compliance, until }), legal_hold: false }
}

const HELD: ObjectLock = ObjectLock { retention: None, legal_hold: true };

/// A due dataset of ten objects, of which two are locked.
async fn due_with_locks(locks: [ObjectLock; 2]) -> (Bench, Uuid, TombstoneId) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 10).await;
    for (sample, lock) in (3..).zip(locks) {
        bench.objects.memory().lock_key(BUCKET, &key(dataset, sample, 0), lock);
    }
    let id = bench.trash_due("dataset", dataset).await;
    (bench, dataset, id)
}

/// Lets the dates of the locks pass, in the store and in the database.
async fn dates_pass(bench: &Bench, dataset: Uuid, id: TombstoneId) {
    for sample in 3..5 {
        bench.objects.memory().lock_key(BUCKET, &key(dataset, sample, 0), ObjectLock::default());
    }
    bench
        .run(&format!(
            "update reprieve.tombstones set retry_at = now() - interval '1 second',
                 next_attempt_at = now() - interval '1 second' where id = '{id}'"
        ))
        .await;
}

#[tokio::test]
async fn what_is_locked_until_dates_waits_for_the_first_while_the_rest_goes() {
    let (bench, dataset, id) = due_with_locks([until(9), until(2)]).await;
    let SliceEnd::Stuck(reason) = bench.slice(id).await else { panic!("not stuck") };
    assert_eq!(bench.objects(), 2, "the rest has gone");
    for part in ["2 objects: AccessDenied", "2 locked in compliance mode", &key(dataset, 3, 0)] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    let stuck = bench.tombstone(id).await;
    let first = until(2).retention.expect("locked").until;
    let retry_at = stuck.retry_at.expect("a date");
    assert!((first - retry_at).abs() < Duration::minutes(5), "{retry_at}");
    assert_eq!(stuck.next_attempt_at, retry_at);
    assert_eq!(stuck.last_error.as_deref(), Some(&*reason));
    let task: OffsetDateTime = bench.value("select available_at from reprieve.outbox where topic = 'purge'").await;
    assert!((task - retry_at).abs() < Duration::seconds(1), "its task leaves then");
    assert!(bench.told(id, "stuck").await.details["until"].is_string());

    // an early task, or a forged one
    assert!(matches!(bench.slice(id).await, SliceEnd::Nothing(_)));
    assert_eq!(bench.state(id).await, State::Stuck);
    dates_pass(&bench, dataset, id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.events(id).await, ["trashed", "purge_begun", "stuck", "retried", "purged"]);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted), (10, 10));
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_goes_on_by_itself_at_a_date_is_no_error_in_the_log_and_what_needs_somebody_is() {
    let log = Log::default();
    let writer = log.clone();
    // for the whole process: whether a line is logged is decided once, by whichever test comes to it first
    let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::WARN);
    let subscriber = subscriber.with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).expect("nobody else sets one");
    let level = |id: TombstoneId| {
        let text = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line"));
        let lines: Vec<_> = lines.filter(|line| line["fields"]["tombstone.id"] == id.to_string()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert!(lines[0]["fields"]["message"].as_str().is_some_and(|said| said.starts_with("stuck")), "{text}");
        (lines[0]["level"].clone(), lines[0]["fields"]["until"].is_string())
    };
    let (bench, _, id) = due_with_locks([until(2), until(2)]).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Stuck(_)));
    assert_eq!(level(id), ("WARN".into(), true));
    let (bench, _, id) = due_with_locks([HELD, HELD]).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Stuck(_)));
    assert_eq!(level(id), ("ERROR".into(), false));
}

#[tokio::test]
async fn a_lost_task_of_what_is_locked_comes_back_when_its_date_has_come_and_not_before() {
    let (bench, dataset, id) = due_with_locks([until(2), until(2)]).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Stuck(_)));
    bench.run("delete from reprieve.outbox where topic = 'purge'").await;
    let sweeper = Sweeper::new(bench.store.clone(), bench.config.sweeper.clone(), bench.metrics.clone());
    assert_eq!(sweeper.sweep().await.expect("the database is there"), 0);
    dates_pass(&bench, dataset, id).await;
    assert_eq!(sweeper.sweep().await.expect("the database is there"), 1);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn a_legal_hold_waits_for_somebody() {
    let (bench, dataset, id) = due_with_locks([until(2), HELD]).await;
    let SliceEnd::Stuck(reason) = bench.slice(id).await else { panic!("not stuck") };
    assert!(reason.contains("1 under legal hold") && reason.contains("1 locked in compliance mode"), "{reason}");
    assert!(bench.tombstone(id).await.retry_at.is_some(), "the other one is free by itself");
    dates_pass(&bench, dataset, id).await;
    bench.objects.memory().lock_key(BUCKET, &key(dataset, 4, 0), HELD);
    let SliceEnd::Stuck(reason) = bench.slice(id).await else { panic!("not stuck") };
    assert!(reason.contains("1 under legal hold") && !reason.contains("compliance"), "{reason}");
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 9);
    assert_eq!(bench.tombstone(id).await.retry_at, None);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0);
    for sample in 3..5 {
        bench.objects.memory().lock_key(BUCKET, &key(dataset, sample, 0), ObjectLock::default());
    }
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("it is stuck");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn an_operator_need_not_wait_for_the_date() {
    let (bench, dataset, id) = due_with_locks([until(2), until(2)]).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Stuck(_)));
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("it is stuck");
    assert_eq!(bench.tombstone(id).await.retry_at, None);
    assert!(matches!(bench.slice(id).await, SliceEnd::Stuck(_)), "it is still locked");
    assert!(bench.tombstone(id).await.retry_at.is_some());
}

/// The bench's buckets in moto, the first of them with object lock.
async fn in_moto() -> (Bench, Client) {
    let bench = Bench::with(&crate::bench::HEIMDALL.replacen(BUCKET, "second-bucket", 1), "", |_| ()).await;
    let client = moto::shared().await.client();
    let locked = client.create_bucket().bucket(BUCKET).object_lock_enabled_for_bucket(true);
    // they may be there: the tests share them, each with prefixes of its own
    let _ = locked.send().await;
    let _ = client.create_bucket().bucket("second-bucket").send().await;
    (bench, client)
}

async fn set_versioning(client: &Client, status: BucketVersioningStatus) {
    let versioning = VersioningConfiguration::builder().status(status).build();
    let request = client.put_bucket_versioning().bucket("second-bucket").versioning_configuration(versioning);
    request.send().await.expect("set");
}

/// A worker that finds the store `main` in moto.
async fn purger(bench: &Bench, change: impl FnOnce(&mut S3Settings)) -> Purger {
    let (access_key_id, secret) = (moto::ACCESS_KEY.to_owned(), moto::SECRET_KEY.to_owned());
    let credentials = S3Credentials { access_key_id, secret_access_key: secret.into(), session_token: None };
    let mut settings = S3Settings::custom(moto::shared().await.endpoint(), seaweedfs::REGION, credentials);
    change(&mut settings);
    let name = StoreName::parse("main").expect("a name");
    let config = &bench.config.stores[&name];
    let (buckets, address) = (config.buckets.clone(), config.address());
    let objects = Arc::new(S3Store::new(&settings).await);
    let stores = Stores::new([(
        name,
        NamedStore { objects, batch_size: config.batch_size, buckets, address, flow: Flow::new(config.ceiling) },
    )]);
    let (map, purge) = (Arc::new(bench.config.map.clone()), bench.config.purge.clone());
    Purger::new(bench.store.clone(), map, stores, purge, bench.metrics.clone()).expect("fine settings")
}

async fn put(client: &Client, bucket: &str, key: &str) {
    client.put_object().bucket(bucket).key(key).body(ByteStream::from_static(b"data")).send().await.expect("put");
}

async fn retain(client: &Client, key: &str, mode: ObjectLockRetentionMode) {
    let date = DateTime::from_secs((OffsetDateTime::now_utc() + Duration::days(3)).unix_timestamp());
    let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(date).build();
    client.put_object_retention().bucket(BUCKET).key(key).retention(retention).send().await.expect("retained");
}

async fn versions_below(client: &Client, bucket: &str, prefix: &str) -> usize {
    let listed = client.list_object_versions().bucket(bucket).prefix(prefix).send().await.expect("listed");
    listed.versions().len() + listed.delete_markers().len()
}

#[tokio::test]
async fn in_a_locked_bucket_all_goes_but_what_is_locked_and_then_that_by_bypass_or_release() {
    let (bench, client) = in_moto().await;
    let dataset = bench.dataset("set a", 0).await;
    let below = format!("synthetic/dataset-{dataset}/");
    let name = |name: &str| format!("{below}{name}");
    for object in ["free", "governed", "kept", "held"] {
        put(&client, BUCKET, &name(object)).await;
    }
    // an older version, and a marker in front of two
    put(&client, BUCKET, &name("free")).await;
    client.delete_object().bucket(BUCKET).key(name("free")).send().await.expect("hidden");
    retain(&client, &name("governed"), ObjectLockRetentionMode::Governance).await;
    retain(&client, &name("kept"), ObjectLockRetentionMode::Compliance).await;
    let hold = async |status| {
        let hold = ObjectLockLegalHold::builder().status(status).build();
        client.put_object_legal_hold().bucket(BUCKET).key(name("held")).legal_hold(hold).send().await.expect("set");
    };
    hold(ObjectLockLegalHoldStatus::On).await;

    let id = bench.trash_due("dataset", dataset).await;
    let careful = purger(&bench, |_| ()).await;
    let end = careful.run_slice(id, &budget()).await.expect("the database is there");
    let SliceEnd::Stuck(reason) = end else { panic!("{end:?}") };
    for part in ["1 locked in governance mode", "1 locked in compliance mode", "1 under legal hold", "locked until"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(versions_below(&client, BUCKET, &below).await, 3);
    let stuck = bench.tombstone(id).await;
    assert_eq!((stuck.progress.versions_gone, stuck.progress.markers_gone), (2, 1));
    assert!(stuck.retry_at.is_some(), "two are locked until dates");

    hold(ObjectLockLegalHoldStatus::Off).await;
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("it is stuck");
    // moto heeds the bypass in single deletes alone
    let bold = |settings: &mut S3Settings| (settings.governance_bypass, settings.delete) = (true, DeletePolicy::Single);
    let bold = purger(&bench, bold).await;
    let end = bold.run_slice(id, &budget()).await.expect("the database is there");
    let SliceEnd::Stuck(reason) = end else { panic!("{end:?}") };
    assert!(reason.contains("1 locked in compliance mode") && !reason.contains("governance"), "{reason}");
    assert_eq!(versions_below(&client, BUCKET, &below).await, 1);
    assert!(bench.tombstone(id).await.retry_at.is_some(), "all that is left is locked until a date");
    assert_eq!(bench.count("heimdall.synthetic_datasets").await, 1, "its row stays");
}

#[tokio::test]
async fn a_suspended_bucket_is_emptied_of_versions_null_versions_and_uploads() {
    let (bench, client) = in_moto().await;
    let dataset = bench.dataset("set a", 0).await;
    let below = format!("synthetic/{dataset}/");
    let name = |name: &str| format!("{below}{name}");
    put(&client, "second-bucket", &name("twice")).await;
    set_versioning(&client, BucketVersioningStatus::Enabled).await;
    for object in ["twice", "plain"] {
        put(&client, "second-bucket", &name(object)).await;
    }
    set_versioning(&client, BucketVersioningStatus::Suspended).await;
    client.create_multipart_upload().bucket("second-bucket").key(name("big")).send().await.expect("begun");
    assert_eq!(versions_below(&client, "second-bucket", &below).await, 3);

    let id = bench.trash_due("dataset", dataset).await;
    let end = purger(&bench, |_| ()).await.run_slice(id, &budget()).await.expect("the database is there");
    assert_eq!(end, SliceEnd::Purged);
    assert_eq!(versions_below(&client, "second-bucket", &below).await, 0);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted), (3, 3));
    assert_eq!((progress.versions_gone, progress.markers_gone, progress.uploads_aborted), (1, 0, 1));
}
