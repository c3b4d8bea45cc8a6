//! The implementations that the contract is run against, each with a way to fill it that does not go through it.

use std::sync::Arc;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use futures_util::{StreamExt, stream};
use reprieve::objects::memory::MemoryStore;
use reprieve::objects::s3::{S3Credentials, S3Settings, S3Store};
use reprieve::objects::{ObjectStore, Versioning};

use crate::support::{self, seaweedfs};

/// Objects written at a time when filling a bucket.
const WRITERS: usize = 16;

/// One implementation, with nothing in it.
pub(crate) struct Subject {
    store: Arc<dyn ObjectStore>,
    filler: Filler,
    keys: Keys,
}

/// What keys are to an implementation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    AreNames,
    ArePaths,
}

enum Filler {
    Memory(Arc<MemoryStore>),
    S3 { client: Client, settings: S3Settings },
}

/// The store in memory.
pub(crate) async fn memory() -> Subject {
    let store = Arc::new(MemoryStore::new());
    Subject { store: store.clone(), filler: Filler::Memory(store), keys: Keys::AreNames }
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

async fn over_s3(settings: S3Settings, client: Client, keys: Keys) -> Subject {
    let store = Arc::new(S3Store::new(&settings).await);
    Subject { store, filler: Filler::S3 { client, settings }, keys }
}

impl Subject {
    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// Whether keys are paths to it, so that one cannot be another's directory.
    pub(crate) fn keeps_keys_as_paths(&self) -> bool {
        self.keys == Keys::ArePaths
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
        let Filler::S3 { settings, .. } = &self.filler else { panic!("has no credentials") };
        let credentials =
            S3Credentials { access_key_id: id.into(), secret_access_key: secret.into(), session_token: None };
        S3Store::new(&S3Settings { credentials: Some(credentials), ..settings.clone() }).await
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

    /// Writes an object of one byte under each key.
    pub(crate) async fn put_all(&self, bucket: &str, keys: &[String]) {
        match &self.filler {
            Filler::Memory(store) => keys.iter().for_each(|key| store.put(bucket, key, 1)),
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
