//! The proxy does what it says, seen by a client that does not try twice.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};

use super::*;
use crate::support::heimdall::put_keys;
use crate::support::seaweedfs::{self, ACCESS_KEY, SECRET_KEY};

/// A store behind a proxy, with ten objects in a bucket.
struct Place {
    proxy: S3Proxy,
    /// By way of the proxy.
    s3: Client,
    bucket: String,
}

const KEYS: [&str; 10] = ["a/0", "a/1 ", "a/2&", "a/3<", "a/4%2F", "a/5+", "a/6\"", "a/7🗑", "a/8'", "a/9 a b"];

impl Place {
    async fn new() -> Place {
        let store = seaweedfs::shared().await;
        let proxy = S3Proxy::start(&store.endpoint(), ACCESS_KEY, SECRET_KEY).await;
        let timeouts = TimeoutConfig::builder().read_timeout(Duration::from_secs(2));
        let timeouts = timeouts.operation_timeout(Duration::from_secs(4)).build();
        let s3 = seaweedfs::client(&proxy.endpoint(), ACCESS_KEY, SECRET_KEY);
        let config = s3.config().to_builder().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        let s3 = Client::from_conf(config);
        let bucket = store.fresh_bucket().await;
        put_keys(&s3, &bucket, KEYS.map(str::to_owned).to_vec()).await;
        Place { proxy, s3, bucket }
    }

    /// What there is, past the proxy.
    async fn there(&self) -> usize {
        let listing = seaweedfs::shared().await.client().list_objects_v2().bucket(&self.bucket).send().await;
        listing.expect("listed").contents().len()
    }

    /// Keys and whether more follow, by the proxy; or the error's code.
    async fn list(&self) -> Result<(usize, bool), String> {
        let answer = self.s3.list_objects_v2().bucket(&self.bucket).prefix("a/").send().await;
        let answer = answer.map_err(|error| error.code().unwrap_or("no answer").to_owned())?;
        Ok((answer.contents().len(), answer.is_truncated() == Some(true)))
    }

    /// Deletes all, by the proxy.
    async fn delete(&self) -> Result<DeleteObjectsOutput, String> {
        let objects = KEYS.map(|key| ObjectIdentifier::builder().key(key).build().expect("a key"));
        let delete = Delete::builder().set_objects(Some(objects.to_vec())).build().expect("objects");
        let answer = self.s3.delete_objects().bucket(&self.bucket).delete(delete).send().await;
        answer.map_err(|error| error.code().unwrap_or("no answer").to_owned())
    }
}

#[tokio::test]
async fn what_is_no_fault_passes_through_and_is_noted() {
    let place = Place::new().await;
    assert_eq!(place.list().await, Ok((10, false)));
    place.s3.delete_object().bucket(&place.bucket).key(KEYS[9]).send().await.expect("deleted");
    let deleted = place.delete().await.expect("an answer");
    assert_eq!((deleted.deleted().len(), deleted.errors().len(), place.there().await), (10, 0, 0));
    let noted = place.proxy.first_deleted();
    for key in KEYS {
        assert!(noted.contains_key(&(place.bucket.clone(), key.to_owned())), "{key}: {noted:?}");
    }
    assert_eq!((place.proxy.largest_batch(), place.proxy.counts().len()), (10, 0));
    assert_eq!(place.proxy.requests()[&Op::DeleteObject], 1);
}

#[tokio::test]
async fn keys_fail_alone_and_are_kept_or_deleted_as_told() {
    let place = Place::new().await;
    let some = || Which::Named(vec![KEYS[1].into(), KEYS[2].into(), KEYS[7].into()]);
    for (how, said, failed, there) in [
        (KeyFault::AccessDenied(Work::Left), 7, 3, 3),
        (KeyFault::Missing(Work::Left), 7, 0, 3),
        (KeyFault::Lie, 10, 0, 3),
        (KeyFault::SlowDown(Work::Done), 7, 3, 0),
        (KeyFault::Missing(Work::Done), 7, 0, 0),
    ] {
        let rule = place.proxy.next(Op::DeleteObjects.below("a/"), Fault::Keys(some(), how));
        let answer = place.delete().await.expect("an answer");
        assert_eq!(
            (answer.deleted().len(), answer.errors().len(), place.there().await),
            (said, failed, there),
            "{how:?}"
        );
        assert_eq!(rule.met(), 1, "{how:?}");
    }
    let waits = place.proxy.next(Op::DeleteObjects, Fault::Keys(Which::Named(vec!["b".into()]), KeyFault::Lie));
    assert_eq!(place.delete().await.expect("an answer").deleted().len(), 10);
    assert_eq!(waits.met(), 0, "it could not happen");
}

#[tokio::test]
async fn an_answer_is_refused_lost_or_nonsense() {
    let place = Place::new().await;
    for (fault, code) in [
        (Fault::InternalError(Work::Left), "InternalError"),
        (Fault::SlowDown, "SlowDown"),
        (Fault::TooManyRequests(1), "TooManyRequests"),
        (Fault::Unavailable(1), "SlowDown"),
        (Fault::Forbidden, "AccessDenied"),
        (Fault::Closed, "no answer"),
    ] {
        let name = fault.name();
        let rule = place.proxy.rule(On::any().below("a/").bucket(&place.bucket), 2, fault);
        assert_eq!(place.delete().await.err().as_deref(), Some(code), "{name}");
        assert_eq!(place.list().await, Err(code.to_owned()), "{name}");
        assert_eq!((rule.met(), place.proxy.counts()[name]), (2, 2), "{name}");
        assert_eq!(place.there().await, 10, "{name}: nothing is done");
    }
    for fault in [
        Fault::CutBody,
        Fault::CutChunked,
        Fault::Stalled,
        Fault::AnswerLost,
        Fault::Garbage,
        Fault::ErrorInOk,
        Fault::EmptyOk,
    ] {
        let name = fault.name();
        let rule = place.proxy.rule(On::any().below("a/"), 2, fault);
        assert!(place.list().await.is_err(), "{name}");
        assert!(place.delete().await.is_err(), "{name}");
        assert_eq!((rule.met(), place.there().await), (2, 0), "{name}: it is done");
        put_keys(&place.s3, &place.bucket, KEYS.map(str::to_owned).to_vec()).await;
    }
    assert_eq!(place.list().await, Ok((10, false)));
}

#[tokio::test]
async fn a_listing_is_old_or_cut_short() {
    let place = Place::new().await;
    let short = place.proxy.next(On::lists(), Fault::CutShort(4));
    assert_eq!(place.list().await, Ok((4, false)));
    let old = place.proxy.next(Op::ListObjectsV2, Fault::Stale);
    assert_eq!((place.list().await, old.met()), (Ok((10, false)), 0), "nothing is gone yet");
    place.delete().await.expect("deleted");
    assert_eq!((place.list().await, old.met()), (Ok((10, false)), 1), "all of it is gone");
    assert_eq!((place.list().await, short.met()), (Ok((0, false)), 1));
}

#[tokio::test]
async fn a_storm_is_over_when_it_is_calm() {
    let place = Place::new().await;
    place.proxy.storm(1, Weather { stalls: 1000, ..Weather::default() });
    let held = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(place.list(), async {
            crate::support::wait_until("it stalls", crate::support::SOON, async || !place.proxy.counts().is_empty())
                .await;
            place.proxy.calm();
        })
    });
    assert!(held.await.expect("it is let go").0.is_err());
    assert_eq!(place.list().await, Ok((10, false)));
    place.proxy.storm(2, Weather { slow: 0, stalls: 0, ..Weather::passing() });
    for _ in 0..100 {
        let _ = place.list().await;
    }
    assert!(place.proxy.counts().len() > 3, "{:?}", place.proxy.counts());
    place.proxy.calm();
    assert_eq!(place.list().await, Ok((10, false)));
}
