//! Reading the body of a POST.
//!
//! Invariant: what a handler gets is a JSON object of which every field was understood. A form that another site makes
//! a browser send cannot claim to be `application/json`.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, StatusCode, header},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Shared, problem::Problem};
use crate::{domain::tombstone::Provenance, trash::TrashError};

/// As large as a request by message may be.
pub(super) const MOST_BYTES: usize = 64 * 1024;

/// Who asks and why, for what takes nothing else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct By {
    actor: String,
    reason: Option<String>,
}

/// As the audit log keeps it.
///
/// # Errors
/// An actor without a name, or a reason that cannot be kept.
pub(super) fn provenance(actor: &str, reason: Option<String>) -> Result<Provenance, Problem> {
    Ok(Provenance::parse(actor, "api", reason).map_err(TrashError::from)?)
}

impl By {
    /// As [`provenance`].
    pub(super) fn provenance(self) -> Result<Provenance, Problem> {
        provenance(&self.actor, self.reason)
    }
}

/// A body that was read.
pub(super) struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Asked<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::not_json());
        }
        let bytes = Bytes::from_request(request, api).await.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::too_large(MOST_BYTES),
            _ => Problem::malformed("malformed_body", "the body ended early"),
        })?;
        // serde would take a struct's fields from an array too, by position
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(Problem::malformed("malformed_body", "the body must be a JSON object"));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| Problem::malformed("malformed_body", format!("the body cannot be used: {error}")))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}
