//! Whether the process lives, whether its start is over, and whether it can do its work; if not, what is missing and
//! since when.
//!
//! Invariant: each answers within seconds, whatever the database does. They are open to everybody, so they say what is
//! missing and not what a server said; the log has that.

use std::time::Duration;

use axum::{Json, extract::State};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::timeout;

use super::{Api, Shared, problem::Problem};
use crate::{
    store::{StoreError, migrate},
    telemetry::standing::{Missing, Part},
};

/// For the database to answer a probe: probes give up after a few seconds themselves.
pub(super) const PROBE: Duration = Duration::from_secs(2);

/// `GET /health/live`.
pub(super) async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

/// `GET /health/startup`.
pub(super) async fn startup(State(api): State<Shared>) -> Result<Json<Value>, Problem> {
    let missing: Vec<Missing> =
        api.metrics.standing().missing().into_iter().filter(|missing| missing.part == Part::Start).collect();
    if missing.is_empty() { Ok(Json(json!({ "status": "started" }))) } else { Err(not_ready(&missing)) }
}

/// `GET /health/ready`. A process with the role `api` can answer requests without the broker; what is missing besides is
/// told all the same.
pub(super) async fn ready(State(api): State<Shared>) -> Result<Json<Value>, Problem> {
    look(&api).await;
    let missing = api.metrics.standing().missing();
    let is_needed = |missing: &Missing| !(api.shows_facts && matches!(missing.part, Part::Broker(_)));
    if missing.iter().any(is_needed) {
        return Err(not_ready(&missing));
    }
    if missing.is_empty() {
        return Ok(Json(json!({ "status": "ready" })));
    }
    Ok(Json(json!({ "status": "ready", "missing": told(&missing) })))
}

/// Asks the database, and notes what it says.
async fn look(api: &Api) {
    let standing = api.metrics.standing();
    let checked = timeout(PROBE, async {
        api.trash.store().ping().await?;
        migrate::compare(api.trash.store()).await
    });
    let error = match checked.await {
        Ok(Ok(schema)) => {
            standing.has(Part::Database);
            return match schema.mismatch() {
                None => standing.has(Part::Schema),
                Some(why) => standing.misses(Part::Schema, why),
            };
        }
        Ok(Err(error)) => error,
        Err(_) => StoreError::Unusable(format!("no answer within {PROBE:?}")),
    };
    tracing::warn!(%error, "not ready");
    standing.misses(Part::Database, "the database does not answer");
}

fn not_ready(missing: &[Missing]) -> Problem {
    let mut parts: Vec<&str> = Vec::new();
    for why in missing.iter().map(|missing| missing.why.as_str()) {
        // several roles miss one broker
        if !parts.contains(&why) {
            parts.push(why);
        }
    }
    Problem::not_ready(parts.join("; "), json!({ "missing": told(missing) }))
}

fn told(missing: &[Missing]) -> Vec<Value> {
    let now = OffsetDateTime::now_utc();
    let one = |missing: &Missing| {
        json!({
            "part": missing.part.to_string(),
            "since": missing.since.format(&Rfc3339).unwrap_or_default(),
            "seconds": (now - missing.since).whole_seconds().max(0),
            "why": missing.why,
        })
    };
    missing.iter().map(one).collect()
}
