//! A platform of one's own: a database with its tables, a bucket, a broker namespace, and configuration files.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::{Semaphore, SemaphorePermit};
use uuid::Uuid;

use crate::process::{Ended, Service, reprieve};
use crate::support::heimdall::{self, Dataset, Shape};
use crate::support::{PrivateDirectory, rabbitmq, seaweedfs, unique, wait_until};

/// Worlds at the same time, however many cores there are: each runs several processes.
const AT_ONCE: usize = 4;
static PERMITS: Semaphore = Semaphore::const_new(AT_ONCE);

/// For a purge of some thousand objects on a busy machine, restarts included.
pub const PURGED: Duration = Duration::from_secs(90);

/// The bytes of each object that [`heimdall::put_objects`] puts.
pub const OBJECT_BYTES: i64 = 80;

/// The real map; its bucket is replaced by the world's.
const MAP: &str = include_str!("../../config/maps/heimdall.toml");
const MAP_BUCKET: &str = "heimdall-synthetic-iq";

/// What a test is about; the rest from `default()`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The restore window.
    pub window: &'static str,
    pub lease: &'static str,
    pub slice: &'static str,
    /// Keys a request. Small, so that there is a middle to be killed in.
    pub batch_size: u32,
    /// Delete requests in flight. One, so that a test knows which batch is next and has the time to be in the middle.
    pub concurrency: u32,
    pub redeliver_after: &'static str,
    pub max_attempts: u32,
    /// More lines for `[stores.main]`.
    pub store: &'static str,
    /// More lines for `[purge]`.
    pub purge: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            window: "1s",
            lease: "2s",
            slice: "30s",
            batch_size: 1000,
            concurrency: 1,
            redeliver_after: "3s",
            max_attempts: 10,
            store: "",
            purge: "",
        }
    }
}

/// Where a world is.
pub struct Places {
    pub pool: PgPool,
    pub database_url: String,
    pub s3_endpoint: String,
    pub amqp_url: String,
}

impl Places {
    /// On the servers that all tests share.
    pub async fn shared() -> Places {
        let ((pool, database_url), s3, broker) =
            tokio::join!(heimdall::fresh(), seaweedfs::shared(), rabbitmq::shared());
        Places { pool, database_url, s3_endpoint: s3.endpoint(), amqp_url: broker.amqp_url() }
    }
}

/// A tombstone as it stands, straight from the table.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Stands {
    pub state: String,
    pub objects_deleted: i64,
    pub objects_absent: i64,
    pub fence: i64,
    pub last_error: Option<String>,
    pub purge_after: OffsetDateTime,
    pub purging_at: Option<OffsetDateTime>,
    pub lease_until: Option<OffsetDateTime>,
}

impl Stands {
    pub fn gone(&self) -> i64 {
        self.objects_deleted + self.objects_absent
    }
}

pub struct World {
    pub pool: PgPool,
    pub database_url: String,
    pub s3: Client,
    pub bucket: String,
    pub amqp_url: String,
    pub namespace: String,
    pub config: PathBuf,
    dir: PrivateDirectory,
    services: AtomicU32,
    _permit: SemaphorePermit<'static>,
}

impl World {
    /// On the shared servers, migrated, with the guards.
    pub async fn new(settings: Settings) -> World {
        let world = World::unmigrated(Places::shared().await, settings).await;
        world.cli(&["migrate", "--guards"]).await.with(0);
        world
    }

    pub async fn unmigrated(places: Places, settings: Settings) -> World {
        let permit = PERMITS.acquire().await.expect("never closed");
        let s3 = seaweedfs::client(&places.s3_endpoint, seaweedfs::ACCESS_KEY, seaweedfs::SECRET_KEY);
        let (bucket, namespace) = (unique("bucket"), unique("e2e"));
        s3.create_bucket().bucket(&bucket).send().await.expect("a new name");
        let dir = PrivateDirectory::new("reprieve-e2e-");
        std::fs::write(dir.path().join("map.toml"), MAP.replace(MAP_BUCKET, &bucket)).expect("our own directory");
        let config = dir.path().join("reprieve.toml");
        std::fs::write(&config, config_text(&places, &bucket, &namespace, &settings)).expect("our own directory");
        World {
            pool: places.pool,
            database_url: places.database_url,
            s3,
            bucket,
            amqp_url: places.amqp_url,
            namespace,
            config,
            dir,
            services: AtomicU32::new(0),
            _permit: permit,
        }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file beside the configuration.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("our own directory");
        path
    }

    /// The map, as this world's configuration names it.
    pub fn map_text(&self) -> String {
        MAP.replace(MAP_BUCKET, &self.bucket)
    }

    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = reprieve();
        command.arg("--config").arg(&self.config).args(args).current_dir(self.dir.path());
        command
    }

    /// Runs a command to its end.
    pub async fn cli(&self, args: &[&str]) -> Ended {
        Ended::of(self.command(args)).await
    }

    /// Runs a command that must succeed, with `--json`.
    pub async fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        self.cli(&args).await.with(0).json()
    }

    /// `serve` with these arguments.
    pub fn serve(&self, args: &[&str]) -> Service {
        self.serve_with(args, &[])
    }

    /// `serve` with these arguments and this environment.
    pub fn serve_with(&self, args: &[&str], env: &[(&str, &str)]) -> Service {
        let mut command = self.command(&["serve"]);
        command.args(args).envs(env.iter().copied());
        self.spawn(command)
    }

    pub fn spawn(&self, command: std::process::Command) -> Service {
        let n = self.services.fetch_add(1, Ordering::Relaxed);
        Service::spawn(command, &self.dir.path().join(format!("serve-{n}.log")))
    }

    /// A dataset with rows, features and objects. Its id, and how many objects were put.
    pub async fn dataset(&self, name: &str, shape: Shape) -> (Uuid, i64) {
        self.dataset_like(Dataset { features: 3, ..Dataset::iq_raw(name) }, shape).await
    }

    pub async fn dataset_like(&self, dataset: Dataset, shape: Shape) -> (Uuid, i64) {
        let dataset = Dataset { samples: shape.samples, receivers: shape.receivers, ..dataset };
        let id = dataset.insert(&self.pool).await;
        let keys = heimdall::put_objects(&self.s3, &self.bucket, id, shape).await;
        (id, keys.len().try_into().expect("some thousand"))
    }

    /// Trashes it by the command line.
    pub async fn trash(&self, kind: &str, id: Uuid) -> Value {
        self.json(&["trash", kind, &id.to_string(), "--execute"]).await
    }

    /// How many objects lie below `synthetic/{id}/`.
    pub async fn objects(&self, id: Uuid) -> i64 {
        self.objects_below(&format!("synthetic/{id}/")).await
    }

    pub async fn objects_below(&self, prefix: &str) -> i64 {
        let mut pages = self.s3.list_objects_v2().bucket(&self.bucket).prefix(prefix).into_paginator().send();
        let mut count = 0;
        while let Some(page) = pages.next().await {
            count += i64::from(page.expect("listed").key_count().unwrap_or(0));
        }
        count
    }

    /// How many rows the platform has of a dataset, its own among them.
    pub async fn rows(&self, id: Uuid) -> i64 {
        heimdall::count_rows(&self.pool, id).await.expect("counted")
    }

    /// The newest tombstone of a resource, if the database answers and has one.
    pub async fn try_stands(&self, id: Uuid) -> Option<Stands> {
        sqlx::query_as(
            "select state, objects_deleted, objects_absent, fence, last_error, purge_after, purging_at,
                    lease_until
             from reprieve.tombstones where resource_id = $1 order by trashed_at desc limit 1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await
        .ok()
        .flatten()
    }

    pub async fn stands(&self, id: Uuid) -> Stands {
        self.try_stands(id).await.expect("it has a tombstone")
    }

    /// Waits until its tombstone is as `condition` says, and gives it back.
    pub async fn until(&self, what: &str, id: Uuid, mut condition: impl FnMut(&Stands) -> bool) -> Stands {
        let mut seen = None;
        wait_until(what, PURGED, async || {
            seen = self.try_stands(id).await;
            seen.as_ref().is_some_and(&mut condition)
        })
        .await;
        seen.expect("just seen")
    }

    pub async fn until_state(&self, id: Uuid, state: &str) -> Stands {
        self.until(state, id, |now| now.state == state).await
    }

    /// Waits until some of `put` objects are gone and others are not.
    pub async fn until_in_the_middle(&self, id: Uuid, put: i64) -> Stands {
        let now = self.until("some objects are gone", id, |now| now.gone() > 0).await;
        assert!(now.state == "purging" && now.gone() < put, "that was the end, not the middle: {now:?}");
        now
    }

    /// Waits until something happens to one of these purges, and then `linger` milliseconds longer, so that each call
    /// returns at another point of a batch. `false`: all of them have ended.
    pub async fn moves_on(&self, ids: &[Uuid], linger: u64) -> bool {
        let look = async || {
            let mut seen = (0, true);
            for id in ids {
                let now = self.stands(*id).await;
                seen = (seen.0 + now.gone() + now.fence, seen.1 && now.state == "purged");
            }
            seen
        };
        let before = look().await;
        wait_until("a purge moves on", PURGED, async || {
            let now = look().await;
            now.1 || now.0 != before.0
        })
        .await;
        tokio::time::sleep(Duration::from_millis(linger)).await;
        !look().await.1
    }

    /// Waits until nothing is left to send or to do.
    pub async fn is_quiet(&self, limit: Duration) -> bool {
        let sql = "select (select count(*) from reprieve.outbox)
                        + (select count(*) from reprieve.tombstones where state in ('trashed', 'blocked', 'purging'))";
        let quiet = async {
            loop {
                let left: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect("counted");
                if left == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(limit, quiet).await.is_ok()
    }

    /// Waits for the end of a purge, and holds it against what there was: everything is gone, it did not begin before
    /// its time, and the receipt counts each object and each row exactly once.
    pub async fn purged(&self, kind: &str, id: Uuid, put: i64, rows: i64) -> Value {
        let end = self.until_state(id, "purged").await;
        assert!(end.purging_at.expect("it was begun") >= end.purge_after, "not before its time: {end:?}");
        assert_eq!(self.objects(id).await, 0, "objects are left");
        assert_eq!(self.rows(id).await, 0, "rows are left");
        let shown = self.json(&["show", kind, &id.to_string()]).await;
        let receipt = shown["receipt"].clone();
        let n = |pointer: &str| receipt.pointer(pointer).and_then(Value::as_i64).expect("a number");
        assert_eq!(n("/objects/listed"), put, "{receipt:#}");
        assert_eq!(n("/objects/deleted") + n("/objects/absent"), put, "{receipt:#}");
        assert_eq!((n("/objects/failed"), n("/objects/unknown")), (0, 0), "{receipt:#}");
        assert_eq!(n("/rows_deleted"), rows, "{receipt:#}");
        assert_eq!(receipt["row_deleted"], true, "{receipt:#}");
        let receipts = shown["history"].as_array().expect("entries").iter().filter(|entry| entry["event"] == "purged");
        assert_eq!(receipts.count(), 1, "one receipt");
        receipt
    }
}

fn config_text(places: &Places, bucket: &str, namespace: &str, settings: &Settings) -> String {
    let (access, secret) = (seaweedfs::ACCESS_KEY, seaweedfs::SECRET_KEY);
    let Places { database_url, s3_endpoint, amqp_url, .. } = places;
    let Settings { window, lease, slice, batch_size, concurrency, redeliver_after, max_attempts, store, purge } =
        settings;
    format!(
        r#"
maps = ["map.toml"]
[database]
url = "{database_url}"
acquire_timeout = "5s"
[broker]
url = "{amqp_url}"
namespace = "{namespace}"
[stores.main]
endpoint = "{s3_endpoint}"
access_key = "{access}"
secret_key = "{secret}"
buckets = ["{bucket}"]
batch_size = {batch_size}
concurrency = {concurrency}
{store}
[retention]
default = "{window}"
minimum = "1s"
[purge]
lease = "{lease}"
slice = "{slice}"
row_chunk = 500
max_attempts = {max_attempts}
backoff_initial = "200ms"
backoff_max = "2s"
recheck_initial = "200ms"
recheck_max = "1s"
{purge}
[relay]
poll = "50ms"
lease = "5s"
[sweeper]
interval = "200ms"
redeliver_after = "{redeliver_after}"
[api]
listen = "127.0.0.1:0"
[service]
log = "reprieve=debug,lapin=off,warn"
"#
    )
}
