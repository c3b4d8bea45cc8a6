//! The platform's own users: they activate models and start jobs on datasets, whatever else is going on, and look after
//! their data while they use it.
//!
//! Invariant: a use that was committed keeps its dataset until the use ends. Both ends of a use look: at its beginning
//! nothing has begun that could destroy the dataset, and at its end all rows and all objects are still there.

use std::sync::Arc;
use std::time::Instant;

use sqlx::PgConnection;
use tokio::time::sleep;
use uuid::Uuid;

use super::dice::Dice;
use super::land::{Known, Land};
use crate::support::heimdall;

/// What uses a dataset.
#[derive(Debug, Clone, Copy)]
enum Use {
    Model(Uuid),
    Job(Uuid),
}

/// Uses datasets until `end`.
pub async fn use_datasets(land: Arc<Land>, name: String, end: Instant) {
    let mut dice = Dice::of(land.settings.seed, &name);
    while Instant::now() < end {
        let known = dice.pick(&land.datasets);
        let by = if dice.chance(70) && !known.models.is_empty() {
            Use::Model(*dice.pick(&known.models))
        } else {
            Use::Job(Uuid::new_v4())
        };
        if begin(&land, known, by).await {
            sleep(dice.millis(20, 1500)).await;
            // some stay in use to the end
            if !dice.chance(5) {
                end_use(&land, known, by).await;
            }
        }
        sleep(dice.millis(5, 120)).await;
    }
}

/// Ends every use that is left. For when the faults are over.
pub async fn release_all(land: &Land) {
    for sql in [
        "update heimdall.models set is_active = false where is_active",
        "update heimdall.training_jobs set status = 'completed' where status = 'running'",
    ] {
        sqlx::query(sql).execute(&land.pool).await.expect("no fault is left");
    }
}

/// Whether it is in use from now on.
async fn begin(land: &Land, known: &Known, by: Use) -> bool {
    match try_begin(land, known, by).await {
        Ok(true) => {
            land.tally.add("use: begun");
            true
        }
        // deleted, or used by somebody else already
        Ok(false) => false,
        Err(error) => {
            let refused = error.as_database_error().is_some_and(|error| error.message().contains("is in the trash"));
            let missing = error.as_database_error().is_some_and(|error| error.is_foreign_key_violation());
            land.tally.add(match (refused, missing) {
                (true, _) => "use: refused, in the trash",
                (false, true) => "use: refused, the dataset is gone",
                // the answer to a commit may be lost: `end_use` is not called, and the use stays
                _ => "use: the database is away",
            });
            false
        }
    }
}

async fn try_begin(land: &Land, known: &Known, by: Use) -> Result<bool, sqlx::Error> {
    let mut tx = land.pool.begin().await?;
    let begun = match by {
        Use::Model(id) => {
            sqlx::query("update heimdall.models set is_active = true where id = $1 and not is_active and synthetic_dataset_id = $2")
                .bind(id)
                .bind(known.id)
                .execute(&mut *tx)
                .await?
                .rows_affected()
        }
        Use::Job(id) => {
            sqlx::query(
                "insert into heimdall.training_jobs (id, job_name, celery_task_id, job_type, status, config, total_epochs, dataset_id)
                 values ($1, 'training', $1::text, 'training', 'running', '{}', 1, $2)",
            )
            .bind(id)
            .bind(known.id)
            .execute(&mut *tx)
            .await?
            .rows_affected()
        }
    };
    if begun == 0 {
        return Ok(false);
    }
    // the guard has locked the dataset's row: from here to the commit nobody can trash or claim it
    let grave = grave(&mut tx, known.id).await?;
    land.tally.must(grave.is_none(), || format!("a use of {} was accepted while it was {grave:?}", known.id));
    tx.commit().await?;
    Ok(true)
}

async fn grave(conn: &mut PgConnection, dataset: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar(
        "select state from reprieve.tombstones
         where kind = 'dataset' and resource_id = $1 and state in ('trashed', 'blocked', 'purging', 'stuck', 'purged')",
    )
    .bind(dataset.to_string())
    .fetch_optional(conn)
    .await
}

async fn end_use(land: &Land, known: &Known, by: Use) {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        match try_end(land, known, by).await {
            Ok(()) => return land.tally.add("use: ended"),
            Err(_) => sleep(std::time::Duration::from_millis(200)).await,
        }
    }
    // it goes on, which asks more of Reprieve and not less
    land.tally.add("use: could not be ended");
}

async fn try_end(land: &Land, known: &Known, by: Use) -> Result<(), sqlx::Error> {
    let mut tx = land.pool.begin().await?;
    let (table, id) = match by {
        Use::Model(id) => ("heimdall.models set is_active = false", id),
        Use::Job(id) => ("heimdall.training_jobs set status = 'completed'", id),
    };
    let grave = grave(&mut tx, known.id).await?;
    land.tally.must(grave.is_none(), || format!("{} is in use by {by:?} and {grave:?}", known.id));
    let rows = heimdall::count_rows(&mut *tx, known.id).await?;
    land.tally
        .must(rows == known.rows, || format!("{} had {} rows and has {rows} while it is in use", known.id, known.rows));
    match land.objects_of(known.id).await {
        Some(keys) => {
            land.tally.must(keys == known.keys, || {
                let lost = known.keys.difference(&keys).count();
                format!("{} lost {lost} of {} objects while it was in use by {by:?}", known.id, known.keys.len())
            });
            land.tally.add("use: all objects seen at its end");
        }
        None => land.tally.add("use: ended while the store was away"),
    }
    let sql = format!("update {table} where id = $1");
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await?;
    tx.commit().await
}
