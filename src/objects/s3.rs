//! The [`ObjectStore`] over S3 and everything that speaks its protocol.
//!
//! Invariant: whether a bucket keeps versions is known before it is listed. When the store does not tell, the listing
//! fails: taking "we cannot tell" for "no" would call a bucket empty whose versions are all still there.
//!
//! One client, with one pool of connections, serves all requests of a store. Nothing here logs credentials; the
//! SDK's own events below `warn` may hold headers, so telemetry keeps `aws_*` targets at `warn`.

mod answer;
mod checksum;
mod decode;
mod delete;
mod learned;
mod list;
mod lock;
mod permitted;
mod retry_after;
mod sent;
mod settings;
mod unchanged;
mod uploads;

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{BucketVersioningStatus, EncodingType, ObjectLockEnabled};
use tokio::time::Instant;

pub use settings::{ChecksumPolicy, DeletePolicy, NoCertificates, S3Credentials, S3Settings, VersionsPolicy};

use super::error::{Verdict, judge_sdk};
use super::{
    BucketFacts, Cursor, DefaultRetention, ObjectLock, ObjectStore, ObjectsError, Page, Permit, UnfinishedUpload,
    UploadPage, Versioning,
};
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyOutcome, ObjectRef};

/// How long a bucket's versioning is taken to be as it was. Turning it on takes S3 itself up to 15 minutes to
/// propagate (S3 User Guide, Enabling versioning), so a minute adds nothing that a caller could notice.
const VERSIONING_VALID: Duration = Duration::from_secs(60);

/// Above this many buckets the cache starts anew. A deployment has a handful.
const VERSIONING_ENTRIES: usize = 1024;

/// A store that speaks S3.
pub struct S3Store {
    /// Shared by all requests: connections and the retry budget belong to it.
    client: Client,
    /// Which versions listings show.
    versions: VersionsPolicy,
    /// Sent with deletes: whether to bypass locks in governance mode.
    bypass: Option<bool>,
    /// What deletes have shown of the store.
    learned: learned::Learned,
    /// What GetBucketVersioning said, and when. Held only for a look, never across a request.
    versioning: Mutex<HashMap<String, (Instant, Versioning)>>,
    /// Requests sent.
    sent: sent::Sent,
    /// Error codes met that the table does not list.
    unlisted: AtomicU64,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the client: its configuration is long, and holds the credentials provider.
        f.debug_struct("S3Store").field("versions", &self.versions).finish_non_exhaustive()
    }
}

/// What a request is about, for its errors.
#[derive(Debug, Clone, Copy)]
struct Scope<'a> {
    operation: &'static str,
    bucket: &'a str,
    /// The prefix or the key; empty for requests about a bucket.
    subject: &'a str,
}

impl Scope<'_> {
    fn of(self, operation: &'static str) -> Self {
        Self { operation, ..self }
    }

    fn error(&self, code: &str, message: &str, class: FailureClass) -> ObjectsError {
        ObjectsError {
            operation: self.operation,
            bucket: self.bucket.to_owned(),
            prefix: self.subject.to_owned(),
            code: code.to_owned(),
            message: message.to_owned(),
            class,
            retry_after: None,
        }
    }

    fn failed(&self, verdict: &Verdict) -> ObjectsError {
        let retry_after = verdict.retry_after;
        ObjectsError { retry_after, ..self.error(&verdict.code, &verdict.message, verdict.class()) }
    }
}

impl S3Store {
    /// A store with these settings. Sends nothing: whether the store answers shows in [`ObjectStore::facts`].
    pub async fn new(settings: &S3Settings) -> Self {
        let sent = sent::Sent::default();
        Self {
            client: settings.client(sent.clone()).await,
            versions: settings.versions,
            bypass: settings.governance_bypass.then_some(true),
            learned: learned::Learned::new(settings),
            versioning: Mutex::default(),
            sent,
            unlisted: AtomicU64::new(0),
        }
    }

    /// How many HTTP requests were sent, those that the SDK repeats by itself too.
    pub fn attempts(&self) -> u64 {
        self.sent.count()
    }

    /// How many errors had a code that is not in our table and so counted as permanent, for a metric.
    pub fn unlisted_codes(&self) -> u64 {
        self.unlisted.load(Ordering::Relaxed)
    }

    /// What the bucket keeps, as of at most [`VERSIONING_VALID`] ago.
    async fn versioning(&self, bucket: &str) -> Result<Versioning, ObjectsError> {
        let cached = self.versioning.lock().unwrap_or_else(PoisonError::into_inner).get(bucket).copied();
        if let Some((at, versioning)) = cached
            && at.elapsed() < VERSIONING_VALID
        {
            return Ok(versioning);
        }
        self.look_up_versioning(bucket).await
    }

    async fn look_up_versioning(&self, bucket: &str) -> Result<Versioning, ObjectsError> {
        let scope = Scope { operation: "GetBucketVersioning", bucket, subject: "" };
        let request = self.client.get_bucket_versioning().bucket(bucket).customize();
        let versioning = match request.interceptor(decode::Decode::Versioning).send().await {
            Ok(answer) => match answer.status() {
                Some(BucketVersioningStatus::Enabled | BucketVersioningStatus::Suspended) => Versioning::Kept,
                None => Versioning::Off,
                Some(other) => {
                    let message = format!("the status {:?} is not known", other.as_str());
                    return Err(scope.error("UnknownVersioning", &message, FailureClass::Permanent));
                }
            },
            Err(error) => {
                let verdict = self.verdict(scope, &error);
                if !not_offered(&verdict) {
                    return Err(scope.failed(&verdict));
                }
                Versioning::Off
            }
        };
        let mut cache = self.versioning.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= VERSIONING_ENTRIES {
            cache.clear();
        }
        cache.insert(bucket.to_owned(), (Instant::now(), versioning));
        Ok(versioning)
    }

    async fn object_lock(&self, bucket: &str) -> Result<(Option<bool>, Option<DefaultRetention>), ObjectsError> {
        let scope = Scope { operation: "GetObjectLockConfiguration", bucket, subject: "" };
        match self.client.get_object_lock_configuration().bucket(bucket).send().await {
            Ok(answer) => {
                let lock = answer.object_lock_configuration();
                let enabled = lock.and_then(|lock| lock.object_lock_enabled()) == Some(&ObjectLockEnabled::Enabled);
                let default = lock.and_then(|lock| lock.rule()).and_then(|rule| rule.default_retention());
                Ok((Some(enabled), default.and_then(lock::default_retention)))
            }
            Err(error) => {
                let verdict = self.verdict(scope, &error);
                match verdict.code.as_str() {
                    "ObjectLockConfigurationNotFoundError" => Ok((Some(false), None)),
                    // Not being allowed to ask is not a fault of the bucket: its objects can still be purged.
                    "AccessDenied" | "InvalidRequest" => Ok((None, None)),
                    _ if not_offered(&verdict) => Ok((None, None)),
                    _ => Err(scope.failed(&verdict)),
                }
            }
        }
    }

    fn verdict<E>(&self, scope: Scope<'_>, error: &SdkError<E, HttpResponse>) -> Verdict
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let verdict = judge_sdk(error);
        self.note(scope, &verdict);
        verdict
    }

    fn failed<E>(&self, scope: Scope<'_>, error: &SdkError<E, HttpResponse>) -> ObjectsError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        scope.failed(&self.verdict(scope, error))
    }

    /// Counts and logs a code that the table does not list.
    fn note(&self, scope: Scope<'_>, verdict: &Verdict) {
        if verdict.listed {
            return;
        }
        self.unlisted.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            s3.operation = scope.operation,
            s3.bucket = scope.bucket,
            s3.code = verdict.code,
            s3.message = verdict.message,
            "error code is not listed, taken as permanent"
        );
    }
}

/// Whether the store says that it has no such operation.
fn not_offered(verdict: &Verdict) -> bool {
    matches!(verdict.code.as_str(), "NotImplemented" | "MethodNotAllowed" | "Http405" | "Http501")
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let scope = Scope { operation: "List", bucket, subject: prefix };
        let kept = match self.versions {
            VersionsPolicy::All => self.versioning(bucket).await?,
            VersionsPolicy::Current => Versioning::Off,
        };
        match kept {
            Versioning::Off => self.list_current(scope, after).await,
            Versioning::Kept => self.list_versions(scope, after).await,
        }
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        self.delete_all(&Permit::unlimited(), bucket, objects).await
    }

    async fn delete_while(&self, permit: &Permit, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        self.delete_all(permit, bucket, objects).await
    }

    async fn delete_unchanged(&self, permit: &Permit, bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        self.delete_if_unchanged(permit, bucket, objects).await
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        self.unfinished_uploads(Scope { operation: "ListMultipartUploads", bucket, subject: prefix }, after).await
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        self.abort(permit, bucket, upload).await
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        self.lock(bucket, object).await
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        // Not HeadBucket: its errors have no code, and listing is what a purge has to be allowed to do.
        let scope = Scope { operation: "ListObjectsV2", bucket, subject: "" };
        let request = self.client.list_objects_v2().bucket(bucket).max_keys(1).encoding_type(EncodingType::Url);
        let answer = request.send().await.map_err(|error| self.failed(scope, &error))?;
        let versioning = self.look_up_versioning(bucket).await?;
        let (object_lock, default_retention) = self.object_lock(bucket).await?;
        Ok(BucketFacts {
            versioning,
            object_lock,
            default_retention,
            uploads: self.uploads_listed(bucket).await?,
            url_encoded: answer.encoding_type() == Some(&EncodingType::Url),
            deletes: self.learned.describe(),
        })
    }
}
