use std::time::SystemTime;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{
    BucketVersioningStatus, ObjectLockEnabled, ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockMode,
    ObjectLockRetention, ObjectLockRetentionMode, VersioningConfiguration,
};

use super::*;

const LOCKED: &str = "locked";

async fn locked_server() -> (EmbeddedS3, Client) {
    let (server, client) = server().await;
    client.create_bucket().bucket(LOCKED).object_lock_enabled_for_bucket(true).send().await.unwrap();
    (server, client)
}

fn in_hours(hours: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(hours * 3600)
}

async fn retain(client: &Client, key: &str, mode: ObjectLockRetentionMode, hours: u64) -> Result<(), (String, u16)> {
    let retention =
        ObjectLockRetention::builder().mode(mode).retain_until_date(DateTime::from(in_hours(hours))).build();
    let done = client.put_object_retention().bucket(LOCKED).key(key).retention(retention).send().await;
    if done.is_ok() { Ok(()) } else { Err(refusal(done)) }
}

async fn purge(client: &Client, objects: &[(&str, &str)], bypass: Option<bool>) -> DeleteObjectsOutput {
    let objects = objects.iter().map(|(key, version)| named_version(key, version)).collect();
    let delete = Delete::builder().set_objects(Some(objects)).build().unwrap();
    let asked = client.delete_objects().bucket(LOCKED).delete(delete).set_bypass_governance_retention(bypass);
    asked.send().await.unwrap()
}

#[tokio::test]
async fn a_bucket_says_whether_it_knows_locks() {
    let (_server, client) = locked_server().await;
    let answer = client.get_object_lock_configuration().bucket(LOCKED).send().await.unwrap();
    let configuration = answer.object_lock_configuration().unwrap();
    assert_eq!(configuration.object_lock_enabled(), Some(&ObjectLockEnabled::Enabled));
    let plain = client.get_object_lock_configuration().bucket(BUCKET).send().await;
    assert_eq!(refusal(plain), refused("ObjectLockConfigurationNotFoundError", 404));
    let versioning = client.get_bucket_versioning().bucket(LOCKED).send().await.unwrap();
    assert_eq!(versioning.status(), Some(&BucketVersioningStatus::Enabled));
    let suspend = VersioningConfiguration::builder().status(BucketVersioningStatus::Suspended).build();
    let suspended = client.put_bucket_versioning().bucket(LOCKED).versioning_configuration(suspend).send().await;
    assert_eq!(refusal(suspended), refused("InvalidBucketState", 409));
}

#[tokio::test]
async fn a_locked_version_fails_alone_in_its_batch_and_a_marker_still_hides_it() {
    let (server, client) = locked_server().await;
    let held = server.store().put(LOCKED, "held", "body").unwrap();
    let free = server.store().put(LOCKED, "free", "body").unwrap();
    let hold = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
    client.put_object_legal_hold().bucket(LOCKED).key("held").legal_hold(hold).send().await.unwrap();
    let seen = client.get_object_legal_hold().bucket(LOCKED).key("held").send().await.unwrap();
    assert_eq!(seen.legal_hold().unwrap().status(), Some(&ObjectLockLegalHoldStatus::On));

    let answer = purge(&client, &[("held", &held), ("free", &free)], Some(true)).await;
    assert_eq!(deleted(&answer), ["free"]);
    assert_eq!(failed(&answer), [("held", "AccessDenied")]);
    let single = client.delete_object().bucket(LOCKED).key("held").version_id(&held).send().await;
    assert_eq!(refusal(single), refused("AccessDenied", 403));
    let marker = client.delete_object().bucket(LOCKED).key("held").send().await.unwrap();
    assert_eq!(marker.delete_marker(), Some(true));

    client.delete_object().bucket(LOCKED).key("held").set_version_id(marker.version_id).send().await.unwrap();
    let release = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::Off).build();
    client.put_object_legal_hold().bucket(LOCKED).key("held").legal_hold(release).send().await.unwrap();
    assert_eq!(deleted(&purge(&client, &[("held", &held)], None).await), ["held"]);
    assert!(server.store().versions(LOCKED, "").is_empty());
}

#[tokio::test]
async fn governance_yields_to_a_bypass_and_compliance_to_nothing() {
    let (server, client) = locked_server().await;
    let soft = server.store().put(LOCKED, "soft", "body").unwrap();
    let hard = server.store().put(LOCKED, "hard", "body").unwrap();
    retain(&client, "soft", ObjectLockRetentionMode::Governance, 1).await.unwrap();
    retain(&client, "hard", ObjectLockRetentionMode::Compliance, 1).await.unwrap();
    let seen = client.get_object_retention().bucket(LOCKED).key("hard").send().await.unwrap();
    assert_eq!(seen.retention().unwrap().mode(), Some(&ObjectLockRetentionMode::Compliance));

    let both = [("soft", soft.as_str()), ("hard", hard.as_str())];
    assert_eq!(failed(&purge(&client, &both, None).await), [("soft", "AccessDenied"), ("hard", "AccessDenied")]);
    let bypassed = purge(&client, &both, Some(true)).await;
    assert_eq!(deleted(&bypassed), ["soft"]);
    assert_eq!(failed(&bypassed), [("hard", "AccessDenied")]);
}

#[tokio::test]
async fn a_lock_ends_with_its_date() {
    let (server, client) = locked_server().await;
    let id = server.store().put(LOCKED, "a", "body").unwrap();
    let past = Retention { mode: LockMode::Compliance, until: SystemTime::now() - Duration::from_secs(1) };
    server.store().set_retention(LOCKED, "a", Some(past)).unwrap();
    assert_eq!(deleted(&purge(&client, &[("a", &id)], None).await), ["a"]);
}

#[tokio::test]
async fn a_retention_is_tightened_freely_and_loosened_not() {
    let (server, client) = locked_server().await;
    server.store().put(LOCKED, "a", "body").unwrap();
    retain(&client, "a", ObjectLockRetentionMode::Governance, 2).await.unwrap();
    retain(&client, "a", ObjectLockRetentionMode::Governance, 3).await.unwrap();
    let denied = Err(refused("AccessDenied", 403));
    assert_eq!(retain(&client, "a", ObjectLockRetentionMode::Governance, 1).await, denied);
    retain(&client, "a", ObjectLockRetentionMode::Compliance, 4).await.unwrap();
    assert_eq!(retain(&client, "a", ObjectLockRetentionMode::Governance, 5).await, denied);
    let past = ObjectLockRetention::builder()
        .mode(ObjectLockRetentionMode::Governance)
        .retain_until_date(DateTime::from_secs(1))
        .build();
    let refused_past = client.put_object_retention().bucket(LOCKED).key("a").retention(past).send().await;
    assert_eq!(refusal(refused_past), refused("InvalidArgument", 400));
}

#[tokio::test]
async fn an_object_can_be_written_locked_but_only_where_locks_are_known() {
    let (server, client) = locked_server().await;
    let put = |bucket: &str| {
        client
            .put_object()
            .bucket(bucket)
            .key("a")
            .object_lock_mode(ObjectLockMode::Compliance)
            .object_lock_retain_until_date(DateTime::from(in_hours(1)))
            .send()
    };
    let id = put(LOCKED).await.unwrap().version_id.unwrap();
    let head = client.head_object().bucket(LOCKED).key("a").send().await.unwrap();
    assert_eq!(head.object_lock_mode(), Some(&ObjectLockMode::Compliance));
    assert_eq!(failed(&purge(&client, &[("a", &id)], None).await), [("a", "AccessDenied")]);
    assert_eq!(refusal(put(BUCKET).await), refused("InvalidRequest", 400));
    assert_eq!(server.store().count(BUCKET, ""), 0);
    server.store().put(LOCKED, "free", "body").unwrap();
    let free = client.get_object_retention().bucket(LOCKED).key("free").send().await;
    assert_eq!(refusal(free), refused("NoSuchObjectLockConfiguration", 404));
}
