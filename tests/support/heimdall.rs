//! The platform that Reprieve was first made for: its schema (`heimdall.sql`), and its jobs, datasets, models and
//! objects as its own services write them. Fill in what the test is about and take the rest from the constructor:
//!
//! ```ignore
//! let job = Job { status: "running", ..Job::named("night run") }.insert(&pool).await;
//! let dataset = Dataset { samples: 50, created_by: Some(job), ..Dataset::iq_raw("set a") }.insert(&pool).await;
//! let keys = put_objects(&client, &bucket, dataset, Shape { samples: 50, receivers: 5 }).await;
//! ```

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use futures_util::{StreamExt, stream};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

/// Requests in flight while objects are put.
const CONCURRENCY: usize = 32;

/// A pool on a new database with the platform's schema in it, and the database's address.
pub async fn fresh() -> (PgPool, String) {
    let url = super::fresh_database().await;
    let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("our own server");
    load(&pool).await;
    (pool, url)
}

/// Creates the schema `heimdall`.
pub async fn load(pool: &PgPool) {
    sqlx::raw_sql(include_str!("../../src/embedded/sample/heimdall.sql"))
        .execute(pool)
        .await
        .expect("heimdall.sql loads");
}

/// A row of `training_jobs`.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: Uuid,
    pub name: String,
    /// One of the platform's: training, terrain_download, synthetic_generation, model_export, model_evaluation.
    pub job_type: &'static str,
    /// One of the platform's: pending, queued, running, paused, completed, failed, cancelled.
    pub status: &'static str,
    /// The datasets that it reads, named in its configuration alone (json, no foreign key).
    pub config_dataset_ids: Vec<Uuid>,
    /// The dataset that it continues to fill.
    pub dataset: Option<Uuid>,
    pub parent: Option<Uuid>,
}

impl Job {
    /// A completed generation.
    pub fn named(name: &str) -> Job {
        Job {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            job_type: "synthetic_generation",
            status: "completed",
            config_dataset_ids: Vec::new(),
            dataset: None,
            parent: None,
        }
    }

    pub async fn insert(self, pool: &PgPool) -> Uuid {
        sqlx::query(
            "insert into heimdall.training_jobs
               (id, job_name, celery_task_id, job_type, status, config, total_epochs, dataset_id, parent_job_id)
             values ($1, $2, $3, $4, $5, $6, 1, $7, $8)",
        )
        .bind(self.id)
        .bind(self.name)
        .bind(Uuid::new_v4().to_string())
        .bind(self.job_type)
        .bind(self.status)
        .bind(json!({ "dataset_ids": self.config_dataset_ids }))
        .bind(self.dataset)
        .bind(self.parent)
        .execute(pool)
        .await
        .expect("a job");
        self.id
    }
}

/// A row of `synthetic_datasets` and the rows of its samples.
#[derive(Debug, Clone)]
pub struct Dataset {
    pub id: Uuid,
    /// Unique in the platform.
    pub name: String,
    /// `iq_raw` or `feature_based`.
    pub dataset_type: &'static str,
    /// Rows of `synthetic_iq_samples` (iq_raw) or `synthetic_training_samples` (feature_based).
    pub samples: u32,
    /// Receivers a sample, 4 to 10 on the platform.
    pub receivers: u32,
    /// Rows of `measurement_features`, which no foreign key ties to the dataset.
    pub features: u32,
    pub created_by: Option<Uuid>,
}

impl Dataset {
    /// Raw IQ data; no samples yet.
    pub fn iq_raw(name: &str) -> Dataset {
        Dataset {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            dataset_type: "iq_raw",
            samples: 0,
            receivers: 5,
            features: 0,
            created_by: None,
        }
    }

    /// Extracted features; no samples yet.
    pub fn feature_based(name: &str) -> Dataset {
        Dataset { dataset_type: "feature_based", ..Dataset::iq_raw(name) }
    }

    pub async fn insert(self, pool: &PgPool) -> Uuid {
        sqlx::query(
            "insert into heimdall.synthetic_datasets (id, name, num_samples, config, dataset_type, created_by_job_id)
             values ($1, $2, $3, '{}', $4::heimdall.dataset_type_enum, $5)",
        )
        .bind(self.id)
        .bind(&self.name)
        .bind(count(self.samples))
        .bind(self.dataset_type)
        .bind(self.created_by)
        .execute(pool)
        .await
        .expect("a dataset");
        if self.dataset_type == "iq_raw" {
            add_iq_samples(pool, self.id, 0, Shape { samples: self.samples, receivers: self.receivers }).await;
        } else {
            self.add_training_samples(pool).await;
        }
        add_features(pool, self.id, self.features).await;
        self.id
    }

    async fn add_training_samples(&self, pool: &PgPool) {
        sqlx::query(
            "insert into heimdall.synthetic_training_samples
               (timestamp, dataset_id, tx_lat, tx_lon, tx_power_dbm, frequency_hz, receivers, num_receivers, split)
             select now(), $1, 45.0, 7.5, 37.0, 144800000, '[]', $3, 'train' from generate_series(1, $2)",
        )
        .bind(self.id)
        .bind(count(self.samples))
        .bind(count(self.receivers))
        .execute(pool)
        .await
        .expect("training samples");
    }
}

/// How much a dataset holds: objects are `samples * receivers`.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub samples: u32,
    pub receivers: u32,
}

/// Adds rows of `synthetic_iq_samples` from sample index `first` on, with the keys of their objects in them.
pub async fn add_iq_samples(pool: &PgPool, dataset: Uuid, first: u32, shape: Shape) {
    sqlx::query(
        "insert into heimdall.synthetic_iq_samples
           (timestamp, dataset_id, sample_idx, tx_lat, tx_lon, tx_alt, tx_power_dbm, frequency_hz,
            receivers_metadata, num_receivers, iq_metadata, iq_storage_paths)
         select now(), $1, sample, 45.0, 7.5, 300.0, 37.0, 144800000, '[]', $4, '{}',
                (select coalesce(jsonb_object_agg(rx, format('synthetic/%s/%s/%s.npy', $1::text, sample, rx)), '{}')
                   from (select 'RX_' || lpad(n::text, 3, '0') as rx from generate_series(0, $4 - 1) n) receivers)
           from generate_series($2, $2 + $3 - 1) sample",
    )
    .bind(dataset)
    .bind(count(first))
    .bind(count(shape.samples))
    .bind(count(shape.receivers))
    .execute(pool)
    .await
    .expect("iq samples");
}

/// Adds rows of `measurement_features`.
pub async fn add_features(pool: &PgPool, dataset: Uuid, rows: u32) {
    sqlx::query(
        "insert into heimdall.measurement_features
           (recording_session_id, dataset_id, timestamp, receiver_features, tx_known, extraction_metadata,
            overall_confidence)
         select gen_random_uuid(), $1, now(), array['{}'::jsonb], true, '{\"extraction_method\": \"synthetic\"}', 0.9
           from generate_series(1, $2)",
    )
    .bind(dataset)
    .bind(count(rows))
    .execute(pool)
    .await
    .expect("features");
}

/// A row of `models`.
#[derive(Debug, Clone)]
pub struct Model {
    pub id: Uuid,
    pub name: String,
    pub version: i32,
    /// The datasets that it was trained on. The first goes into the column with the foreign key, all of them into
    /// the json, as the platform does it.
    pub datasets: Vec<Uuid>,
    pub trained_by: Option<Uuid>,
    pub parent: Option<Uuid>,
    pub active: bool,
    pub production: bool,
}

impl Model {
    /// Version 1, not in use.
    pub fn named(name: &str) -> Model {
        Model {
            id: Uuid::new_v4(),
            name: name.to_owned(),
            version: 1,
            datasets: Vec::new(),
            trained_by: None,
            parent: None,
            active: false,
            production: false,
        }
    }

    pub async fn insert(self, pool: &PgPool) -> Uuid {
        sqlx::query(
            "insert into heimdall.models
               (id, model_name, version, synthetic_dataset_id, hyperparameters, trained_by_job_id, parent_model_id,
                is_active, is_production)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(self.id)
        .bind(self.name)
        .bind(self.version)
        .bind(self.datasets.first())
        .bind(json!({ "dataset_ids": self.datasets }))
        .bind(self.trained_by)
        .bind(self.parent)
        .bind(self.active)
        .bind(self.production)
        .execute(pool)
        .await
        .expect("a model");
        self.id
    }
}

/// How many rows the platform has of a dataset, its own among them.
pub async fn count_rows<'a>(executor: impl PgExecutor<'a>, dataset: Uuid) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select (select count(*) from heimdall.synthetic_datasets where id = $1)
              + (select count(*) from heimdall.synthetic_iq_samples where dataset_id = $1)
              + (select count(*) from heimdall.synthetic_training_samples where dataset_id = $1)
              + (select count(*) from heimdall.measurement_features where dataset_id = $1)",
    )
    .bind(dataset)
    .fetch_one(executor)
    .await
}

/// Where the platform puts one receiver's recording of one sample.
pub fn key(dataset: Uuid, sample: u32, receiver: u32) -> String {
    format!("synthetic/{dataset}/{sample}/RX_{receiver:03}.npy")
}

/// Puts every object of a dataset, many at a time, 80 bytes each (the real ones have 1.5 MB). Returns their keys,
/// sorted.
pub async fn put_objects(client: &Client, bucket: &str, dataset: Uuid, shape: Shape) -> Vec<String> {
    let keys = (0..shape.samples).flat_map(|sample| (0..shape.receivers).map(move |rx| key(dataset, sample, rx)));
    put_keys(client, bucket, keys.collect()).await
}

/// Puts an object at each key, many at a time. Returns the keys, sorted.
pub async fn put_keys(client: &Client, bucket: &str, mut keys: Vec<String>) -> Vec<String> {
    const BODY: &[u8] = &[0x93; 80];
    stream::iter(&keys)
        .for_each_concurrent(CONCURRENCY, async |key| {
            let body = ByteStream::from_static(BODY);
            client.put_object().bucket(bucket).key(key).body(body).send().await.expect("an object");
        })
        .await;
    keys.sort();
    keys
}

fn count(n: u32) -> i32 {
    n.try_into().expect("a test's row count")
}
