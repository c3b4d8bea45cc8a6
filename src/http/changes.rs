//! What changes something: trash, restore, hold, release, retry.
//!
//! Invariant: trash and retry, at whose end objects are destroyed, change nothing unless the body says
//! `"dry_run": false`; the dry run answers with what the real run would do, from the same planner. `status` says in a
//! word what happened, and a request that is repeated changes nothing and says so.

use axum::{Extension, Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Named, Shared,
    body::{Asked, By, provenance},
    problem::{Problem, Told},
};
use crate::{
    domain::{cause::Cause, ids::ResourceRef, retention::Retention, state},
    telemetry::metrics::{Origin, RetriedBy},
    trash::{IfChildrenLost, TrashError, TrashRequest, count},
};

type Answer = Result<(Extension<Told>, Json<Value>), Problem>;

fn done(answer: Value) -> Answer {
    Ok((Extension(Told::Done), Json(answer)))
}

fn dry_run(answer: Value) -> Answer {
    Ok((Extension(Told::DryRun), Json(answer)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrashBody {
    actor: String,
    reason: Option<String>,
    #[serde(default)]
    with: Vec<String>,
    retention: Option<String>,
    #[serde(default = "yes")]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreBody {
    actor: String,
    reason: Option<String>,
    #[serde(default)]
    partial: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryBody {
    actor: String,
    reason: Option<String>,
    #[serde(default = "yes")]
    dry_run: bool,
}

fn yes() -> bool {
    true
}

/// `POST /v1/resources/{kind}/{id}/trash`.
pub(super) async fn trash(
    State(api): State<Shared>,
    Extension(cause): Extension<Cause>,
    Named(resource): Named,
    Asked(body): Asked<TrashBody>,
) -> Answer {
    let request = TrashRequest {
        resource,
        with: api.trash.kinds(body.with.iter().map(String::as_str))?,
        retention: body.retention.as_deref().map(Retention::parse).transpose().map_err(TrashError::from)?,
        by: provenance(&body.actor, body.reason)?.within(cause),
    };
    if body.dry_run {
        let plan = api.trash.plan(&request).await.map_err(Problem::of_dry_run)?;
        let status = if plan.already.is_some() { "already_trashed" } else { "would_trash" };
        let counts = count(&api.stores, plan.locations()).await;
        return dry_run(json!({ "status": status, "dry_run": true, "plan": plan, "counts": counts }));
    }
    let trashed = api.trash.trash(&request).await?;
    api.metrics.requests().trashed(Origin::Api, trashed.written());
    let status = if trashed.already { "already_trashed" } else { "trashed" };
    log("trash", &request.resource, status);
    done(json!({ "status": status, "dry_run": false, "result": trashed }))
}

/// `POST /v1/resources/{kind}/{id}/restore`.
pub(super) async fn restore(
    State(api): State<Shared>,
    Extension(cause): Extension<Cause>,
    Named(resource): Named,
    Asked(body): Asked<RestoreBody>,
) -> Answer {
    let by = provenance(&body.actor, body.reason)?.within(cause);
    let if_lost = if body.partial { IfChildrenLost::RestoreTheRest } else { IfChildrenLost::Refuse };
    let restored = api.trash.restore(&resource, if_lost, &by).await?;
    api.metrics.requests().restored(Origin::Api, restored.closed());
    let status = if restored.already { "already_restored" } else { "restored" };
    log("restore", &resource, status);
    done(json!({ "status": status, "result": restored }))
}

/// `POST /v1/resources/{kind}/{id}/hold`.
pub(super) async fn hold(
    State(api): State<Shared>,
    Extension(cause): Extension<Cause>,
    Named(resource): Named,
    Asked(body): Asked<By>,
) -> Answer {
    let changed = api.trash.hold(&resource, &body.provenance()?.within(cause)).await?;
    let status = if changed { "held" } else { "already_held" };
    log("hold", &resource, status);
    done(json!({ "status": status }))
}

/// `POST /v1/resources/{kind}/{id}/release`.
pub(super) async fn release(
    State(api): State<Shared>,
    Extension(cause): Extension<Cause>,
    Named(resource): Named,
    Asked(body): Asked<By>,
) -> Answer {
    let changed = api.trash.release(&resource, &body.provenance()?.within(cause)).await?;
    let status = if changed { "released" } else { "not_held" };
    log("release", &resource, status);
    done(json!({ "status": status }))
}

/// `POST /v1/resources/{kind}/{id}/retry`. `was` is the tombstone as it was stuck, or waited for its next try.
pub(super) async fn retry(
    State(api): State<Shared>,
    Extension(cause): Extension<Cause>,
    Named(resource): Named,
    Asked(body): Asked<RetryBody>,
) -> Answer {
    let by = provenance(&body.actor, body.reason)?.within(cause);
    if body.dry_run {
        let was = api.trash.retriable(&resource).await.map_err(Problem::of_dry_run)?;
        return dry_run(json!({ "status": "would_retry", "dry_run": true, "was": was }));
    }
    let was = api.trash.retry(&resource, &by).await?;
    if was.state == state::State::Stuck {
        api.metrics.purges().retried(&was.resource.kind, RetriedBy::Request);
    }
    log("retry", &resource, "retried");
    done(json!({ "status": "retried", "dry_run": false, "was": was }))
}

fn log(op: &str, resource: &ResourceRef, status: &str) {
    tracing::info!(op, kind = %resource.kind, id = %resource.id, status, "request carried out");
}
