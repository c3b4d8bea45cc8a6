//! A platform's database with Reprieve's schema beside it, its objects, a trash bin and a purger over both.

use std::sync::Arc;
use std::time::Duration;

use reprieve::config::Config;
use reprieve::domain::ids::{Kind, ResourceRef, TombstoneId};
use reprieve::domain::location::StoreName;
use reprieve::domain::state::State;
use reprieve::domain::tombstone::{Provenance, Tombstone};
use reprieve::objects::Versioning;
use reprieve::objects::flow::Flow;
use reprieve::objects::memory::MemoryStore;
use reprieve::objects::stores::{NamedStore, Stores};
use reprieve::purge::{Budget, Purger, SliceEnd};
use reprieve::store::audit::{self, Entry};
use reprieve::store::{Store, StoreError, migrate, tombstones};
use reprieve::telemetry::Metrics;
use reprieve::trash::{IfChildrenLost, Restored, TrashBin, TrashError, TrashRequest, Trashed};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::gate::GateStore;
use crate::support::heimdall::{self, Dataset};
use crate::support::{SOON, wait_until};

/// The platform's bucket of datasets.
pub const BUCKET: &str = "heimdall-synthetic-iq";

/// Entries in a page of a listing: fewer than some batches name and than most tests put.
const PAGE: usize = 700;

/// What one object of [`Bench::dataset`] weighs.
pub const SIZE: u64 = 80;

/// The platform's map, as a user would write it.
pub const HEIMDALL: &str = r#"
[[resource]]
kind = "dataset"
table = "heimdall.synthetic_datasets"
name = "name"
protect = { names = ["benchmark-v1"] }
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "synthetic/{id}/"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "synthetic/dataset-{id}/"
[[resource.rows]]
table = "heimdall.synthetic_iq_samples"
column = "dataset_id"
[[resource.rows]]
table = "heimdall.synthetic_training_samples"
column = "dataset_id"
[[resource.rows]]
table = "heimdall.measurement_features"
column = "dataset_id"
[[resource.references]]
name = "active model"
query = "select id, model_name from heimdall.models where is_active and (synthetic_dataset_id = $1 or hyperparameters->'dataset_ids' ? $1::text)"
guard = { table = "heimdall.models", column = "synthetic_dataset_id", when = "is_active or is_production" }
[[resource.references]]
name = "production model"
query = "select id, model_name from heimdall.models where is_production and not is_active and (synthetic_dataset_id = $1 or hyperparameters->'dataset_ids' ? $1::text)"
[[resource.references]]
name = "running job"
query = "select id, job_name from heimdall.training_jobs where status in ('pending', 'queued', 'running', 'paused') and (dataset_id = $1 or config->'dataset_ids' ? $1::text)"

[[resource]]
kind = "job"
table = "heimdall.training_jobs"
name = "job_name"
[[resource.rows]]
table = "heimdall.training_metrics"
column = "training_job_id"
[[resource.references]]
name = "running job"
query = "select id, job_name from heimdall.training_jobs where id = $1 and status in ('pending', 'queued', 'running', 'paused')"
[[resource.children]]
kind = "dataset"
query = "select id from heimdall.synthetic_datasets where created_by_job_id = $1"
"#;

/// One batch at a time, so that a test knows which comes next, and back-offs of an hour, so that what waits is seen to wait; a test makes due what has to go on.
pub const SETTINGS: &str = r#"
[stores.main]
endpoint = "http://127.0.0.1:1"
access_key = "nobody"
secret_key = "nothing"
buckets = ["heimdall-synthetic-iq", "second-bucket"]
concurrency = 1
[stores.other]
endpoint = "http://127.0.0.1:1"
access_key = "nobody"
secret_key = "nothing"
buckets = ["elsewhere"]
concurrency = 1
[retention]
default = "14d"
minimum = "1h"
[purge]
key_attempts = 2
max_attempts = 3
backoff_initial = "1h"
backoff_max = "2h"
recheck_initial = "1h"
recheck_max = "2h"
[relay]
poll = "10ms"
[sweeper]
interval = "20ms"
redeliver_after = "200ms"
"#;

/// Reads a configuration over this database with this map.
pub fn load_config(url: &str, map: &str) -> Config {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("reprieve.toml");
    std::fs::write(&path, format!("[database]\nurl = \"{url}\"\n{SETTINGS}\n{map}")).expect("written");
    Config::load(&[path]).unwrap_or_else(|error| panic!("{error}"))
}

/// Everything that a test needs.
pub struct Bench {
    pub pool: PgPool,
    pub config: Config,
    pub store: Store,
    pub bin: TrashBin,
    pub objects: Arc<GateStore>,
    pub metrics: Metrics,
}

impl Bench {
    /// Heimdall with its own map.
    pub async fn heimdall() -> Bench {
        Bench::with(HEIMDALL, "", |_| ()).await
    }

    /// Heimdall's tables, more of them, another map, other settings.
    pub async fn with(map: &str, schema: &str, change: impl FnOnce(&mut Config)) -> Bench {
        let (pool, url) = heimdall::fresh().await;
        Bench::over_database(pool, &url, map, schema, change).await
    }

    /// The same over a database that has Heimdall's schema.
    pub async fn over_database(
        pool: PgPool,
        url: &str,
        map: &str,
        schema: &str,
        change: impl FnOnce(&mut Config),
    ) -> Bench {
        sqlx::raw_sql(AssertSqlSafe(schema.to_owned())).execute(&pool).await.expect("the schema loads");
        let mut config = load_config(url, map);
        change(&mut config);
        migrate::run(&config.database).await.expect("migrates");
        let memory = MemoryStore::new()
            .with_page(PAGE)
            .with_bucket(BUCKET, Versioning::Off)
            .with_bucket("second-bucket", Versioning::Kept)
            .with_bucket("elsewhere", Versioning::Off);
        let store = Store::new(&config.database).expect("the URL is fine");
        let bin = TrashBin::new(store.clone(), &config);
        Bench { pool, store, bin, objects: Arc::new(GateStore::new(memory)), metrics: Metrics::new(), config }
    }

    /// A worker of its own: its own name, the same settings.
    pub fn purger(&self) -> Purger {
        self.over(self.store.clone())
    }

    /// The stores by their names; one is behind all of them.
    pub fn stores(&self) -> Stores {
        let stores = ["main", "other"].map(|name| {
            let name = StoreName::parse(name).expect("a name");
            let config = &self.config.stores[&name];
            let (buckets, address) = (config.buckets.clone(), config.address());
            let flow = Flow::new(config.ceiling);
            (name, NamedStore { objects: self.objects.clone(), batch_size: config.batch_size, buckets, address, flow })
        });
        Stores::new(stores)
    }

    /// A worker with a pool of its own.
    pub fn over(&self, store: Store) -> Purger {
        self.purger_of(store, self.stores())
    }

    /// A worker over these stores.
    pub fn with_stores(&self, stores: Stores) -> Purger {
        self.purger_of(self.store.clone(), stores)
    }

    fn purger_of(&self, store: Store, stores: Stores) -> Purger {
        let (map, purge) = (Arc::new(self.config.map.clone()), self.config.purge.clone());
        Purger::new(store, map, stores, purge, self.metrics.clone()).expect("fine settings")
    }

    /// One delivery, with all the time it wants.
    pub async fn slice(&self, id: TombstoneId) -> SliceEnd {
        self.try_slice(id).await.expect("the database is there")
    }

    pub async fn try_slice(&self, id: TombstoneId) -> Result<SliceEnd, StoreError> {
        self.purger().run_slice(id, &budget()).await
    }

    /// Due, whatever its window and its back-off; a living lease stays.
    pub async fn make_due(&self, id: TombstoneId) {
        self.run(&format!(
            "update reprieve.tombstones set trashed_at = now() - interval '2 days',
                 purge_after = least(purge_after, now() - interval '1 second'),
                 next_attempt_at = now() - interval '1 second' where id = '{id}';
             update reprieve.outbox set available_at = now() - interval '1 second'
                 where tombstone_id = '{id}' and topic = 'purge'"
        ))
        .await;
    }

    /// Statements of the test's own.
    pub async fn run(&self, sql: &str) {
        self.try_run(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub async fn try_run(&self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.map(|_| ())
    }

    /// A `select count(*) from …`, from the table on.
    pub async fn count(&self, from: &str) -> i64 {
        self.value(&format!("select count(*) from {from}")).await
    }

    /// How many sessions of this database wait for a lock; the server is shared with other tests.
    pub async fn waiting(&self) -> i64 {
        self.count("pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'").await
    }

    /// Waits until so many sessions wait for a lock.
    pub async fn until_waiting(&self, what: &str, sessions: i64) {
        wait_until(what, SOON, async || self.waiting().await >= sessions).await;
    }

    /// One value.
    pub async fn value<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let value = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await;
        value.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn resource(&self, kind: &str, id: impl ToString) -> ResourceRef {
        self.bin.resource(kind, &id.to_string()).expect("a kind and an id of the map")
    }

    pub fn request(&self, kind: &str, id: impl ToString) -> TrashRequest {
        TrashRequest { resource: self.resource(kind, id), with: Vec::new(), retention: None, by: alice() }
    }

    pub async fn try_trash(&self, kind: &str, id: impl ToString) -> Result<Trashed, TrashError> {
        self.bin.trash(&self.request(kind, id)).await
    }

    /// Trashes it and gives back its tombstone's id.
    pub async fn trash(&self, kind: &str, id: impl ToString) -> TombstoneId {
        self.try_trash(kind, id).await.unwrap_or_else(|error| panic!("{error}")).tombstone.id
    }

    /// Trashes it and makes it due at once.
    pub async fn trash_due(&self, kind: &str, id: impl ToString) -> TombstoneId {
        let id = self.trash(kind, id).await;
        self.make_due(id).await;
        id
    }

    /// A cascade from a job to its datasets.
    pub async fn trash_job_with_datasets(&self, job: Uuid) -> Result<Trashed, TrashError> {
        let request = TrashRequest { with: vec![kind("dataset")], ..self.request("job", job) };
        self.bin.trash(&request).await
    }

    pub async fn try_restore(&self, kind: &str, id: impl ToString) -> Result<Restored, TrashError> {
        self.bin.restore(&self.resource(kind, id), IfChildrenLost::Refuse, &alice()).await
    }

    pub async fn restore(&self, kind: &str, id: impl ToString) -> Restored {
        self.try_restore(kind, id).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub async fn tombstone(&self, id: TombstoneId) -> Tombstone {
        let mut conn = self.store.conn().await.expect("the database is there");
        tombstones::find(&mut conn, id).await.expect("reads").expect("is there")
    }

    pub async fn state(&self, id: TombstoneId) -> State {
        self.tombstone(id).await.state
    }

    pub async fn history(&self, id: TombstoneId) -> Vec<Entry> {
        let mut conn = self.store.conn().await.expect("the database is there");
        audit::of_tombstone(&mut conn, id).await.expect("reads")
    }

    /// The events of a tombstone's audit log, in order.
    pub async fn events(&self, id: TombstoneId) -> Vec<String> {
        self.history(id).await.into_iter().map(|entry| entry.event).collect()
    }

    /// The last entry of the audit log that says `event`.
    pub async fn told(&self, id: TombstoneId, event: &str) -> Entry {
        let found = self.history(id).await.into_iter().rfind(|entry| entry.event == event);
        found.unwrap_or_else(|| panic!("the audit log does not say {event}"))
    }

    /// A dataset with `samples` rows of samples and an object of [`SIZE`] bytes for each. Its id begins with a digit
    /// below `d`, so that the prefix of its objects comes before the one of the older layout.
    pub async fn dataset(&self, name: &str, samples: u32) -> Uuid {
        let rows = samples.min(50);
        let id = Uuid::from_u128(Uuid::new_v4().as_u128() >> 1);
        let dataset = Dataset { id, samples: rows, receivers: 1, features: rows, ..Dataset::iq_raw(name) };
        dataset.insert(&self.pool).await;
        self.put(id, samples);
        id
    }

    /// The objects of a dataset.
    pub fn put(&self, dataset: Uuid, samples: u32) {
        (0..samples).for_each(|sample| self.objects.memory().put(BUCKET, &heimdall::key(dataset, sample, 0), SIZE));
    }

    /// Objects in the platform's bucket.
    pub fn objects(&self) -> usize {
        self.objects.memory().count(BUCKET)
    }
}

pub fn kind(name: &str) -> Kind {
    Kind::parse(name).expect("a kind")
}

pub fn by(actor: &str, reason: Option<&str>) -> Provenance {
    let reason = reason.map(str::to_owned);
    Provenance::parse(actor, "test", reason).expect("a name")
}

pub fn alice() -> Provenance {
    by("alice", Some("no longer needed"))
}

/// More time than any test takes.
pub fn budget() -> Budget {
    Budget::new(Duration::from_secs(120), CancellationToken::new())
}
