//! `[stores.NAME]`: an S3 endpoint with its credentials, and the buckets that Reprieve may touch there.
//!
//! Invariant: no bucket that is not listed here is ever asked for anything.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use secrecy::SecretString;

use super::reader::Reader;
use crate::{
    domain::location::StoreName,
    objects::{
        MAX_BATCH,
        flow::Ceiling,
        s3::{ChecksumPolicy, DeletePolicy},
    },
};

/// One store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The endpoint's URL; `None` for AWS itself.
    pub endpoint: Option<String>,
    /// The region; stores that have none take any.
    pub region: String,
    /// Access key and secret; `None` for the SDK's default chain (environment, profile, instance role).
    pub credentials: Option<Credentials>,
    /// Whether the bucket stands in the path instead of the host name.
    pub path_style: bool,
    /// The buckets that may be touched.
    pub buckets: Vec<String>,
    /// Keys in one DeleteObjects request, 1 to 1000.
    pub batch_size: usize,
    /// What is asked of each bucket at most, by one process.
    pub ceiling: Ceiling,
    /// Whether old versions and delete markers go too.
    pub all_versions: bool,
    /// The checksum of DeleteObjects requests.
    pub checksum: ChecksumPolicy,
    /// Whether objects are deleted many at a time.
    pub delete: DeletePolicy,
    /// Whether deletes bypass object locks in governance mode.
    pub governance_bypass: bool,
    /// To connect.
    pub connect_timeout: Duration,
    /// For one request, without its retries.
    pub attempt_timeout: Duration,
    /// For one request with its retries.
    pub operation_timeout: Duration,
}

impl StoreConfig {
    /// Where the store is: its endpoint, or `aws/REGION`. Kept with each location that is resolved, so that a purge never
    /// takes another server for the one that held the objects.
    pub fn address(&self) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("aws/{}", self.region))
    }
}

/// An access key.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Its id.
    pub access_key: String,
    /// Its secret.
    pub secret_key: SecretString,
    /// The session token of temporary credentials.
    pub session_token: Option<SecretString>,
}

/// Delete requests in flight to one bucket. A bare client reached its best on SeaweedFS with 16.
const CONCURRENCY: NonZeroU32 = NonZeroU32::MIN.saturating_add(15);
const MOST_CONCURRENCY: NonZeroU32 = NonZeroU32::MIN.saturating_add(255);

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Reads every store.
/// A bucket has one name: by two of them nobody would see that somebody else needs what lies in it.
pub fn read(root: &Reader<'_>) -> BTreeMap<StoreName, StoreConfig> {
    let mut stores: BTreeMap<StoreName, StoreConfig> = BTreeMap::new();
    for (name, section) in root.named_sections("stores") {
        let name = match StoreName::parse(name) {
            Ok(name) => name,
            Err(error) => {
                section.problem("", error);
                continue;
            }
        };
        let store = read_store(&section);
        for (known, other) in stores.iter().filter(|(_, other)| other.address() == store.address()) {
            if let Some(twice) = store.buckets.iter().find(|bucket| other.buckets.contains(bucket)) {
                let problem =
                    format!("the bucket {twice:?} of {} is in stores.{known} already: list it once", store.address());
                section.problem("buckets", problem);
            }
        }
        section.finish();
        stores.insert(name, store);
    }
    stores
}

fn read_store(section: &Reader<'_>) -> StoreConfig {
    let endpoint = section.parsed("endpoint", |raw| {
        let rest = raw.strip_prefix("http://").or_else(|| raw.strip_prefix("https://"));
        match rest {
            Some(host) if !host.is_empty() && !host.contains('@') => Ok(raw.trim_end_matches('/').to_owned()),
            Some(_) | None => Err("expected a URL such as \"https://minio.example.com:9000\", without a user in it"),
        }
    });
    let region = section.text("region").unwrap_or_else(|| "us-east-1".to_owned());
    let access_key = section.text("access_key");
    let secret_key = section.secret("secret_key", "secret_key_file");
    let session_token = section.secret("session_token", "session_token_file");
    let credentials = match (access_key, secret_key) {
        (Some(access_key), Some(secret_key)) => Some(Credentials { access_key, secret_key, session_token }),
        (None, None) => None,
        (Some(_), None) => {
            section.problem(
                "secret_key",
                "is missing: `access_key` is given, so `secret_key` or `secret_key_file` must be",
            );
            None
        }
        (None, Some(_)) => {
            section.problem("access_key", "is missing: `secret_key` is given, so `access_key` must be");
            None
        }
    };
    let mut buckets = section.texts("buckets");
    buckets.extend(section.text("bucket"));
    if buckets.is_empty() {
        section.problem("buckets", "is missing: list the buckets that Reprieve may touch, such as [\"datasets\"]");
    }
    for bucket in buckets.iter().filter(|bucket| !is_bucket_name(bucket)) {
        section.problem("buckets", format_args!("{bucket:?} is not a bucket's name: 3 to 63 of a-z, 0-9, . _ and -"));
    }
    let path_style = section.flag("path_style", endpoint.is_some());
    let batch_size = section.count("batch_size", MAX_BATCH, 1..=MAX_BATCH);
    let ceiling = Ceiling {
        concurrency: section.count("concurrency", CONCURRENCY, NonZeroU32::MIN..=MOST_CONCURRENCY),
        objects_per_second: section.parsed("max_objects_per_second", |raw| {
            raw.parse().map_err(|_| format!("{raw:?} is not a whole number from 1 to {}", u32::MAX))
        }),
    };
    let all_versions = section
        .parsed("versions", |raw| match raw {
            "all" => Ok(true),
            "current" => Ok(false),
            other => Err(format!("{other:?} is neither \"all\" nor \"current\"")),
        })
        .unwrap_or(true);
    let checksum = section.parsed("checksum", |raw| match raw {
        "auto" => Ok(ChecksumPolicy::Auto),
        "crc32" => Ok(ChecksumPolicy::Crc32),
        "content-md5" => Ok(ChecksumPolicy::ContentMd5),
        "none" => Ok(ChecksumPolicy::None),
        other => Err(format!("{other:?} is none of \"auto\", \"crc32\", \"content-md5\" and \"none\"")),
    });
    let delete = section.parsed("delete", |raw| match raw {
        "auto" => Ok(DeletePolicy::Auto),
        "batch" => Ok(DeletePolicy::Batch),
        "single" => Ok(DeletePolicy::Single),
        other => Err(format!("{other:?} is none of \"auto\", \"batch\" and \"single\"")),
    });
    let governance_bypass = section.flag("governance_bypass", false);
    let connect_timeout = section.duration("connect_timeout", seconds(5), Duration::from_millis(100)..=seconds(300));
    // SeaweedFS was measured to take 4.4 s for 1000 keys with 16 requests in flight
    let attempt_timeout = section.duration("attempt_timeout", seconds(60), Duration::from_millis(100)..=seconds(900));
    let operation_timeout =
        section.duration("operation_timeout", seconds(180), Duration::from_millis(100)..=seconds(1200));
    if operation_timeout < attempt_timeout {
        section.problem("operation_timeout", "must not be shorter than attempt_timeout, which it includes");
    }
    StoreConfig {
        endpoint,
        region,
        credentials,
        path_style,
        buckets,
        batch_size,
        ceiling,
        all_versions,
        checksum: checksum.unwrap_or_default(),
        delete: delete.unwrap_or_default(),
        governance_bypass,
        connect_timeout,
        attempt_timeout,
        operation_timeout,
    }
}

fn is_bucket_name(raw: &str) -> bool {
    (3..=63).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}
