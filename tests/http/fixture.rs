//! The platform with the API in front of it, one of each a test.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reprieve::config::Config;
use reprieve::http::{Api, serve};
use reprieve::objects::Versioning;
use reprieve::objects::flow::Flow;
use reprieve::objects::memory::MemoryStore;
use reprieve::objects::stores::{NamedStore, Stores};
use reprieve::store::{Store, migrate};
use reprieve::telemetry::Metrics;
use reprieve::trash::TrashBin;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::{Answer, send};
use crate::support::{SOON, heimdall};

/// The platform's bucket, in memory.
pub const BUCKET: &str = "data-sets";

const CONFIG: &str = r#"
    [database]
    url = "DATABASE"
    acquire_timeout = "1s"
    [stores.main]
    endpoint = "http://127.0.0.1:9"
    access_key = "key"
    secret_key = "secret"
    buckets = ["data-sets"]
    [[resource]]
    kind = "dataset"
    table = "heimdall.synthetic_datasets"
    name = "name"
    size = "storage_size_bytes"
    soft_delete = "deleted_at"
    protect = { names = ["benchmark-v1"] }
    [[resource.objects]]
    store = "main"
    prefix = "synthetic/{id}/"
    [[resource.references]]
    name = "active model"
    query = "select id, model_name from heimdall.models where synthetic_dataset_id = $1 and is_active"
    [[resource]]
    kind = "job"
    table = "heimdall.training_jobs"
    name = "job_name"
    [[resource.children]]
    kind = "dataset"
    query = "select id from heimdall.synthetic_datasets where created_by_job_id = $1"
"#;

/// The configuration for the database at `url`.
pub fn config(url: &str) -> Config {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("reprieve.toml");
    fs::write(&file, CONFIG.replace("DATABASE", url)).expect("written");
    Config::load(&[file]).expect("a good configuration")
}

/// A running API.
pub struct Server {
    pub objects: Arc<MemoryStore>,
    pub address: SocketAddr,
    pub stop: CancellationToken,
    pub ended: JoinHandle<()>,
}

/// How the API is started.
#[derive(Default)]
pub struct Options {
    pub token: Option<&'static str>,
    pub deadline: Option<Duration>,
}

impl Server {
    pub async fn start(config: &Config, options: Options) -> Server {
        let trash = TrashBin::new(Store::new(&config.database).expect("a good url"), config);
        let objects = Arc::new(MemoryStore::new().with_bucket(BUCKET, Versioning::Off));
        let stores = config.stores.iter().map(|(name, store)| {
            let (objects, buckets, flow) = (objects.clone(), store.buckets.clone(), Flow::new(store.ceiling));
            (name.clone(), NamedStore { objects, batch_size: 1, buckets, address: store.address(), flow })
        });
        let metrics = Metrics::new();
        metrics.expect_kinds(config.map.kinds().map(|kind| &kind.kind));
        let mut api = Api::new(trash, Stores::new(stores), metrics, options.token.map(Into::into));
        if let Some(deadline) = options.deadline {
            api = api.with_deadline(deadline);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let (address, stop) = (listener.local_addr().expect("bound"), CancellationToken::new());
        let ended = tokio::spawn(serve(listener, api, stop.clone()));
        Server { address, stop, ended, objects }
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.address, "GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.address, "POST", path, &[], &body.to_string()).await
    }

    /// Posts what a dataset's verb takes from an operator named alice, and `more`.
    pub async fn ask(&self, dataset: Uuid, verb: &str, more: Value) -> Answer {
        let mut body = json!({ "actor": "alice", "reason": "test" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        self.post(&format!("/v1/resources/dataset/{dataset}/{verb}"), &body).await
    }

    /// Puts a dataset into the trash.
    pub async fn trashed(&self, dataset: Uuid) -> Value {
        let answer = self.ask(dataset, "trash", json!({ "dry_run": false })).await.ok();
        assert_eq!(answer["status"], "trashed");
        answer
    }
}

/// A platform whose schema is migrated, and the API.
pub struct Platform {
    pub pool: PgPool,
    pub api: Server,
}

impl Platform {
    pub async fn start() -> Platform {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Platform {
        let (pool, url) = heimdall::fresh().await;
        add_mark(&pool).await;
        let config = config(&url);
        migrate::run(&config.database).await.expect("migrates");
        Platform { api: Server::start(&config, options).await, pool }
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect("counts")
    }

    /// Everything that a request could have written.
    pub async fn traces(&self) -> Vec<i64> {
        let mut counts = Vec::new();
        for sql in [
            "select count(*) from reprieve.tombstones",
            "select count(*) from reprieve.outbox",
            "select count(*) from reprieve.audit",
            "select count(*) from reprieve.holds",
            "select count(*) from heimdall.synthetic_datasets where deleted_at is not null",
        ] {
            counts.push(self.count(sql).await);
        }
        counts
    }

    /// Changes rows as no request could.
    pub async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.expect("executes");
    }

    /// Until a request waits for a row's lock.
    pub async fn until_one_waits_for_a_lock(&self) {
        let sql =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        crate::support::wait_until("a request waits for the lock", SOON, async || self.count(sql).await > 0).await;
    }
}

/// The platform has no mark of its own in production; here it has one, so that a test can see it.
pub async fn add_mark(pool: &PgPool) {
    let sql = "alter table heimdall.synthetic_datasets add deleted_at timestamptz";
    sqlx::raw_sql(sql).execute(pool).await.expect("altered");
}
