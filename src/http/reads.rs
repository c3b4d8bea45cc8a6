//! What only looks: the list of tombstones, and everything about one resource.
//!
//! Invariant: nothing here takes a lock or writes.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Named, Shared, problem::Problem};
use crate::{
    domain::{cause::CorrelationId, ids::ResourceRef, state::State as Stands},
    store::{
        audit::{self, Happened},
        holds,
        platform::{self, Locking},
        tombstones::{self, Filter},
    },
    trash::TrashError,
};

/// Tombstones in an answer that did not ask for a number.
const USUAL_LIMIT: u32 = 100;
/// The most that one can ask for: about a megabyte.
const MOST: u32 = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    state: Option<String>,
    kind: Option<String>,
    correlation_id: Option<String>,
    #[serde(default)]
    overdue: bool,
    limit: Option<u32>,
}

impl ListQuery {
    fn states(&self) -> Result<Vec<Stands>, Problem> {
        let names = self.state.iter().flat_map(|list| list.split(','));
        let read = |name: &str| {
            Stands::parse(name).ok_or_else(|| {
                let known = Stands::ALL.map(Stands::as_str).join(", ");
                let name: String = name.chars().take(80).collect();
                Problem::malformed("invalid_request", format!("{name:?} is not a state; the states are: {known}"))
            })
        };
        names.map(read).collect()
    }

    fn correlation_id(&self) -> Result<Option<CorrelationId>, Problem> {
        let parsed = self.correlation_id.as_deref().map(CorrelationId::parse).transpose();
        parsed.map_err(|error| Problem::malformed("invalid_request", error.to_string()))
    }

    fn limit(&self) -> Result<u32, Problem> {
        match self.limit.unwrap_or(USUAL_LIMIT) {
            limit @ 1..=MOST => Ok(limit),
            other => Err(Problem::malformed("invalid_request", format!("a limit of {other} is not from 1 to {MOST}"))),
        }
    }
}

/// `GET /v1/tombstones?state=trashed,blocked&kind=&correlation_id=&overdue=true&limit=`, newest first, or, of what is
/// overdue, oldest first.
pub(super) async fn tombstones(
    State(api): State<Shared>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    list(&api, query).await.map_err(Problem::looking)
}

async fn list(api: &Shared, query: Result<Query<ListQuery>, QueryRejection>) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|error| Problem::malformed("invalid_request", error.body_text()))?;
    if let Some(kind) = &query.kind {
        api.trash.map().kind(kind).map_err(TrashError::from)?;
    }
    let (states, limit, correlation_id) = (query.states()?, query.limit()?, query.correlation_id()?);
    let filter = Filter { states, kind: query.kind, correlation_id, overdue: query.overdue, limit };
    let mut conn = api.trash.store().conn().await?;
    let found = tombstones::list(&mut conn, &filter).await?;
    Ok(Json(json!({ "tombstones": found })))
}

/// `GET /v1/resources/{kind}/{id}`: its newest tombstone with that one's history, the receipt if it was purged, and the
/// hold. A resource that never was in the trash has none of them, and 404 is for what does not exist.
pub(super) async fn resource(State(api): State<Shared>, Named(resource): Named) -> Result<Json<Value>, Problem> {
    show(&api, resource).await.map_err(Problem::looking)
}

async fn show(api: &Shared, resource: ResourceRef) -> Result<Json<Value>, Problem> {
    let mut conn = api.trash.store().conn().await?;
    let tombstone = tombstones::newest_of(&mut conn, &resource).await?;
    let hold = holds::find(&mut conn, &resource).await?;
    let history = match &tombstone {
        Some(tombstone) => audit::of_tombstone(&mut conn, tombstone.id).await?,
        None => {
            let kind = api.trash.map().kind(resource.kind.as_str()).map_err(TrashError::from)?;
            let row = platform::find(&mut conn, kind, &resource.id, Locking::None).await?;
            if !row.is_some_and(|row| row.fits) {
                return Err(TrashError::NotFound(resource).into());
            }
            Vec::new()
        }
    };
    let receipt = history.iter().rev().find(|entry| entry.event == Happened::Purged.as_str());
    Ok(Json(json!({
        "kind": resource.kind,
        "id": resource.id,
        "in_trash": tombstone.as_ref().is_some_and(|tombstone| tombstone.state.is_open()),
        "tombstone": tombstone,
        "receipt": receipt.map(|entry| &entry.details),
        "hold": hold,
        "history": history,
    })))
}
