//! Whether the process lives, and whether it can do its work.
//!
//! Invariant: both answer within seconds, whatever the database does. They are open to everybody, so they say what is
//! missing and not what the database said; the log has that.

use std::time::Duration;

use axum::{Json, extract::State};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Shared, problem::Problem};
use crate::store::{StoreError, migrate};

/// For the database to answer a probe: probes give up after a few seconds themselves.
pub(super) const PROBE: Duration = Duration::from_secs(2);

/// `GET /health/live`.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

/// `GET /health/ready`.
pub(super) async fn ready(State(api): State<Shared>) -> Result<Json<Value>, Problem> {
    let checked = timeout(PROBE, async {
        api.trash.store().ping().await?;
        migrate::pending(api.trash.store()).await
    });
    match checked.await {
        Ok(Ok(0)) => Ok(Json(json!({ "status": "ready" }))),
        Ok(Ok(missing)) => {
            let detail = format!("the schema `reprieve` lacks {missing} migrations: run `reprieve migrate`");
            Err(Problem::not_ready(detail, json!({ "schema": { "pending_migrations": missing } })))
        }
        Ok(Err(error)) => Err(no_database(&error)),
        Err(_) => Err(no_database(&StoreError::Unusable(format!("no answer within {PROBE:?}")))),
    }
}

fn no_database(error: &StoreError) -> Problem {
    tracing::warn!(%error, "not ready");
    Problem::not_ready("the database does not answer".into(), json!({ "database": "away" }))
}
