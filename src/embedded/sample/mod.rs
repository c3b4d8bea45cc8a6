//! Sample data made like Heimdall's: jobs, datasets, `.npy` objects by the thousand, models.

use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use super::s3::EmbeddedS3;

/// The bucket of the datasets' objects.
pub const BUCKET: &str = "heimdall-synthetic-iq";

/// Receivers of a sample, and so objects: the platform has 4 to 10.
const RECEIVERS: u32 = 5;

/// Bytes of a sample object. The platform's have 1.5 MB; the counts matter here, not the memory.
const OBJECT_BYTES: usize = 2048;

/// A dataset that was put in.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// How many objects it has.
    pub objects: u32,
}

impl Dataset {
    /// Where its objects lie.
    pub fn prefix(&self) -> String {
        format!("synthetic/{}/", self.id)
    }
}

/// What the demo and `dev` begin with.
#[derive(Debug)]
pub struct Sample {
    /// A finished job.
    pub job: Uuid,
    /// A large dataset that the job made and nothing uses.
    pub unused: Dataset,
    /// A dataset that an active model uses.
    pub used: Dataset,
    /// The name of that model.
    pub model: String,
    /// A dataset that stays.
    pub neighbour: Dataset,
}

/// Creates the platform's tables, as they stand in production.
///
/// # Errors
/// The database.
pub async fn create_tables(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::raw_sql(include_str!("heimdall.sql")).execute(pool).await.map(|_| ())
}

/// Puts everything in; `tick` hears of each thousand objects or fewer.
///
/// # Errors
/// The database, or the bucket is not there.
pub async fn load(pool: &PgPool, s3: &EmbeddedS3, tick: impl Fn(u64)) -> anyhow::Result<Sample> {
    let job: Uuid = sqlx::query_scalar(
        "insert into heimdall.training_jobs (job_name, job_type, status, config, total_epochs)
         values ('generate rooftop recordings', 'synthetic_generation', 'completed', '{}', 1) returning id",
    )
    .fetch_one(pool)
    .await?;
    let unused = dataset(pool, s3, "rooftop-2026-05", 1_600, Some(job), &tick).await?;
    let used = dataset(pool, s3, "harbour-2026-06", 400, None, &tick).await?;
    let neighbour = dataset(pool, s3, "rooftop-2026-06", 300, Some(job), &tick).await?;
    let model = "localizer-v3".to_owned();
    sqlx::query(
        "insert into heimdall.models (model_name, is_active, synthetic_dataset_id, hyperparameters)
         values ($1, true, $2, $3)",
    )
    .bind(&model)
    .bind(used.id)
    .bind(json!({ "dataset_ids": [used.id] }))
    .execute(pool)
    .await?;
    Ok(Sample { job, unused, used, model, neighbour })
}

async fn dataset(
    pool: &PgPool,
    s3: &EmbeddedS3,
    name: &str,
    samples: u32,
    job: Option<Uuid>,
    tick: &impl Fn(u64),
) -> anyhow::Result<Dataset> {
    let id: Uuid = sqlx::query_scalar(
        "insert into heimdall.synthetic_datasets (name, num_samples, config, dataset_type, created_by_job_id)
         values ($1, $2, '{}', 'iq_raw', $3) returning id",
    )
    .bind(name)
    .bind(i32::try_from(samples)?)
    .bind(job)
    .fetch_one(pool)
    .await?;
    sqlx::query(
        "insert into heimdall.synthetic_iq_samples
             (timestamp, dataset_id, sample_idx, tx_lat, tx_lon, tx_alt, tx_power_dbm, frequency_hz,
              receivers_metadata, num_receivers, iq_metadata, iq_storage_paths)
         select now(), $1, n, 45, 7, 200, 30, 145000000, '[]', $3, '{}',
                jsonb_build_object('RX_000', 'synthetic/' || $1 || '/' || n || '/RX_000.npy')
         from generate_series(0, $2 - 1) as n",
    )
    .bind(id)
    .bind(i32::try_from(samples)?)
    .bind(i32::try_from(RECEIVERS)?)
    .execute(pool)
    .await?;
    let keys: Vec<String> = (0..samples)
        .flat_map(|sample| (0..RECEIVERS).map(move |rx| format!("synthetic/{id}/{sample}/RX_{rx:03}.npy")))
        .collect();
    for chunk in keys.chunks(1_000) {
        let put = s3.store().put_all(BUCKET, chunk.iter().cloned(), vec![0_u8; OBJECT_BYTES]);
        put.map_err(|error| anyhow::anyhow!("cannot put the sample objects: {error:?}"))?;
        tick(chunk.len() as u64);
        // the bar moves
        tokio::task::yield_now().await;
    }
    Ok(Dataset { id, name: name.to_owned(), objects: samples * RECEIVERS })
}
