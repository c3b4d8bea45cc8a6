//! The implementations that the contract is run against, each with a way to fill it that does not go through it.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockRetention,
    ObjectLockRetentionMode, VersioningConfiguration,
};
use futures_util::{StreamExt, stream};
use reprieve::embedded::s3::{EmbeddedS3, Options, REGION};
use reprieve::objects::faulty::FaultyStore;
use reprieve::objects::memory::{MemoryStore, etag_of};
use reprieve::objects::s3::{S3Credentials, S3Settings, S3Store};
use reprieve::objects::{LockMode, ObjectLock, ObjectStore, Retention, Versioning};

use crate::support::{self, moto, seaweedfs};

/// Objects written at a time when filling a bucket.
const WRITERS: usize = 16;

/// One implementation, with nothing in it.
pub(crate) struct Subject {
    store: Arc<dyn ObjectStore>,
    filler: Filler,
    keys: Keys,
    server: Option<EmbeddedS3>,
}

/// What keys are to an implementation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    AreNames,
    ArePaths,
    /// Names, but for those with a line feed, which its router does not know.
    InMoto,
}

enum Filler {
    Memory(Arc<MemoryStore>),
    S3 { client: Client, settings: S3Settings },
}

/// The store in memory.
pub(crate) async fn memory() -> Subject {
    let store = Arc::new(MemoryStore::new());
    Subject { store: store.clone(), filler: Filler::Memory(store), keys: Keys::AreNames, server: None }
}

/// The store with faults, when nobody has asked for any.
pub(crate) async fn faulty() -> Subject {
    let store = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultyStore::new(store.clone()));
    Subject { store: faulty, filler: Filler::Memory(store), keys: Keys::AreNames, server: None }
}

/// A real SeaweedFS, shared by all tests of this binary.
pub(crate) async fn seaweedfs() -> Subject {
    let server = seaweedfs::shared().await;
    let credentials = S3Credentials {
        access_key_id: seaweedfs::ACCESS_KEY.into(),
        secret_access_key: seaweedfs::SECRET_KEY.into(),
        session_token: None,
    };
    let settings = S3Settings::custom(server.endpoint(), seaweedfs::REGION, credentials);
    over_s3(settings, server.client(), Keys::ArePaths).await
}

/// A moto, shared by all tests of this binary.
pub(crate) async fn moto() -> Subject {
    let server = moto::shared().await;
    let credentials = S3Credentials {
        access_key_id: moto::ACCESS_KEY.into(),
        secret_access_key: moto::SECRET_KEY.into(),
        session_token: None,
    };
    let settings = S3Settings::custom(server.endpoint(), seaweedfs::REGION, credentials);
    over_s3(settings, server.client(), Keys::InMoto).await
}

/// The S3 server of `reprieve dev`, one for each test.
pub(crate) async fn embedded() -> Subject {
    let options = Options::default();
    let credentials = S3Credentials {
        access_key_id: options.access_key.clone(),
        secret_access_key: options.secret_key.clone(),
        session_token: None,
    };
    let client = {
        use secrecy::ExposeSecret;
        let secret = options.secret_key.expose_secret().to_owned();
        move |endpoint: &str| seaweedfs::client(endpoint, &Options::default().access_key, &secret)
    };
    let server = EmbeddedS3::start(options).await.expect("a port is free");
    let settings = S3Settings::custom(server.endpoint(), REGION, credentials);
    let mut subject = over_s3(settings, client(&server.endpoint()), Keys::AreNames).await;
    subject.server = Some(server);
    subject
}

async fn over_s3(settings: S3Settings, client: Client, keys: Keys) -> Subject {
    let store = Arc::new(S3Store::new(&settings).await);
    Subject { store, filler: Filler::S3 { client, settings }, keys, server: None }
}

/// Locks the current version of an object.
async fn lock_current(client: &Client, bucket: &str, key: &str, lock: ObjectLock) {
    if let Some(Retention { mode, until }) = lock.retention {
        let mode = match mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let until = DateTime::from_secs(until.unix_timestamp());
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(until).build();
        let request = client.put_object_retention().bucket(bucket).key(key).retention(retention);
        request.send().await.expect("retained");
    }
    if lock.legal_hold {
        let hold = ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build();
        client.put_object_legal_hold().bucket(bucket).key(key).legal_hold(hold).send().await.expect("held");
    }
}

impl Subject {
    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// The server in this process, to make it fail.
    pub(crate) fn server(&self) -> &EmbeddedS3 {
        self.server.as_ref().expect("is not embedded")
    }

    /// The same storage through a client with other settings.
    pub(crate) async fn store_with(&self, change: impl FnOnce(&mut S3Settings)) -> S3Store {
        let Filler::S3 { settings, .. } = &self.filler else { panic!("has no settings") };
        let mut settings = settings.clone();
        change(&mut settings);
        S3Store::new(&settings).await
    }

    /// Whether keys are paths to it, so that one cannot be another's directory.
    pub(crate) fn keeps_keys_as_paths(&self) -> bool {
        self.keys == Keys::ArePaths
    }

    pub(crate) fn is_moto(&self) -> bool {
        self.keys == Keys::InMoto
    }

    /// Whether an object can have this key there at all.
    pub(crate) fn takes(&self, key: &str) -> bool {
        !self.is_moto() || !key.contains(['\n', '\r'])
    }

    /// Whether its listings show this key, which it has. Of versions, SeaweedFS shows another key in place of one that XML
    /// cannot carry, asked for url-encoding or not.
    pub(crate) fn shows(&self, key: &str, versioning: Versioning) -> bool {
        let is_exact = !self.keeps_keys_as_paths() || versioning == Versioning::Off;
        is_exact || !key.contains(['\u{7}', '\u{FFFF}'])
    }

    /// An empty bucket with versions and object lock.
    pub(crate) async fn locked_bucket(&self) -> String {
        let Filler::S3 { client, .. } = &self.filler else { return self.bucket(Versioning::Kept).await };
        let name = support::unique("locked");
        let request = client.create_bucket().bucket(&name).object_lock_enabled_for_bucket(true);
        request.send().await.expect("create bucket");
        name
    }

    /// Locks the current version.
    pub(crate) async fn lock_key(&self, bucket: &str, key: &str, lock: ObjectLock) {
        match &self.filler {
            Filler::Memory(store) => store.lock_key(bucket, key, lock),
            Filler::S3 { client, .. } => lock_current(client, bucket, key, lock).await,
        }
    }

    /// The same storage seen by a process that has just started.
    pub(crate) async fn another_store(&self) -> Arc<dyn ObjectStore> {
        match &self.filler {
            Filler::Memory(store) => store.clone(),
            Filler::S3 { settings, .. } => Arc::new(S3Store::new(settings).await),
        }
    }

    /// The same storage with other credentials.
    pub(crate) async fn store_as(&self, id: &str, secret: &str) -> S3Store {
        let credentials =
            S3Credentials { access_key_id: id.into(), secret_access_key: secret.into(), session_token: None };
        self.store_with(|settings| settings.credentials = Some(credentials)).await
    }

    pub(crate) fn access_key(&self) -> &str {
        let Filler::S3 { settings, .. } = &self.filler else { panic!("has no credentials") };
        &settings.credentials.as_ref().expect("tests name theirs").access_key_id
    }

    /// An empty bucket.
    pub(crate) async fn bucket(&self, versioning: Versioning) -> String {
        let name = support::unique("contract");
        match &self.filler {
            Filler::Memory(store) => store.make_bucket(&name, versioning),
            Filler::S3 { client, .. } => {
                client.create_bucket().bucket(&name).send().await.expect("create bucket");
                if versioning == Versioning::Kept {
                    self.set_versioning(&name, true).await;
                }
            }
        }
        name
    }

    /// Turns versioning on, or suspends it.
    pub(crate) async fn set_versioning(&self, bucket: &str, on: bool) {
        let Filler::S3 { client, .. } = &self.filler else { panic!("is set when the bucket is made") };
        let status = if on { BucketVersioningStatus::Enabled } else { BucketVersioningStatus::Suspended };
        let versioning = VersioningConfiguration::builder().status(status).build();
        let request = client.put_bucket_versioning().bucket(bucket).versioning_configuration(versioning);
        request.send().await.expect("set versioning");
    }

    /// Begins a multipart upload for each key, and sends nothing of it.
    pub(crate) async fn begin_uploads(&self, bucket: &str, keys: &[String]) {
        match &self.filler {
            Filler::Memory(store) => {
                keys.iter().for_each(|key| drop(store.begin_upload(bucket, key).expect("the bucket is there")));
            }
            Filler::S3 { client, .. } => {
                let begun = stream::iter(keys.to_vec()).map(|key| {
                    let begin = client.create_multipart_upload().bucket(bucket).key(&key);
                    async move {
                        match begin.send().await {
                            // an answer that repeats a key which XML cannot carry cannot be read, and says enough
                            Err(error) if error.raw_response().is_some_and(|raw| raw.status().is_success()) => None,
                            begun => begun.err().map(|error| (key, error)),
                        }
                    }
                });
                let failed: Vec<_> = begun.buffer_unordered(WRITERS).filter_map(async |one| one).collect().await;
                assert!(failed.is_empty(), "create: {failed:?}");
            }
        }
    }

    /// Writes an empty object under each key.
    pub(crate) async fn put_markers(&self, bucket: &str, keys: &[String]) {
        match &self.filler {
            Filler::Memory(store) => keys.iter().for_each(|key| store.put(bucket, key, 0)),
            Filler::S3 { client, .. } => {
                for key in keys {
                    client.put_object().bucket(bucket).key(key).send().await.expect("put");
                }
            }
        }
    }

    /// What an object can be told by that [`Subject::put_all`] wrote, without its quotes.
    pub(crate) async fn etag(&self, bucket: &str, key: &str) -> String {
        match &self.filler {
            Filler::Memory(_) => etag_of(1),
            Filler::S3 { client, .. } => {
                let head = client.head_object().bucket(bucket).key(key).send().await.expect("it is there");
                head.e_tag().expect("every object has one").trim_matches('"').to_owned()
            }
        }
    }

    /// Writes an object of one byte under each key.
    pub(crate) async fn put_all(&self, bucket: &str, keys: &[String]) {
        match &self.filler {
            Filler::Memory(store) => keys.iter().for_each(|key| store.put(bucket, key, 1)),
            Filler::S3 { .. } if self.server.is_some() => {
                self.server().store().put_all(bucket, keys.iter().cloned(), "x").expect("the bucket is there");
            }
            Filler::S3 { client, .. } => {
                let puts = stream::iter(keys.to_vec()).map(|key| {
                    let put = client.put_object().bucket(bucket).key(&key).body(ByteStream::from_static(b"x"));
                    async move { put.send().await.map(drop).map_err(|error| (key, error)) }
                });
                let failed: Vec<_> = puts.buffer_unordered(WRITERS).filter_map(async |put| put.err()).collect().await;
                assert!(failed.is_empty(), "put: {failed:?}");
            }
        }
    }
}
