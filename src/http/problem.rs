//! What went wrong, as `application/problem+json` (RFC 9457).
//!
//! Invariant: `code` is stable and for programs, `detail` is for people. Every refusal of [`TrashError`] has one
//! status, chosen here and nowhere else, and names what refused it.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::Value;

use crate::{
    store::{ASK_AGAIN, NOTHING_DONE, StoreError},
    trash::TrashError,
};

/// Seconds after which a client may ask again: a failover takes a few.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"reprieve\"");

const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An answer that is none.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Box<str>,
    details: Value,
    advice: Cow<'static, str>,
    header: Extra,
    told: Told,
}

/// What an answer says of the request, for the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It was carried out.
    Done,
    /// It asked what would happen.
    DryRun,
    /// It was not carried out, for this reason.
    Not(&'static str),
}

/// A header that some problems carry.
#[derive(Debug, Clone, Copy)]
enum Extra {
    Nothing,
    RetryAfter,
    Challenge,
}

/// The document.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Value::is_null")]
    details: &'a Value,
    #[serde(skip_serializing_if = "str::is_empty")]
    advice: &'a str,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let (detail, told) = (detail.into().into_boxed_str(), Told::Not(code));
        Self { status, code, detail, details: Value::Null, advice: Cow::Borrowed(""), header: Extra::Nothing, told }
    }

    /// The same, of a dry run.
    pub(super) fn of_dry_run(error: TrashError) -> Self {
        Self { told: Told::DryRun, ..Self::from(error) }.looking()
    }

    /// The same, of a request that changes nothing.
    pub(super) fn looking(self) -> Self {
        Self { advice: if self.advice == ASK_AGAIN { "".into() } else { self.advice }, ..self }
    }

    /// 400.
    pub(super) fn malformed(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 401.
    pub(super) fn no_token() -> Self {
        let detail = "this needs `Authorization: Bearer …` with the token of the configuration (api.token)";
        Self { header: Extra::Challenge, ..Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail) }
    }

    /// 403.
    pub(super) fn foreign_host() -> Self {
        let detail = "without a token only requests to localhost, 127.0.0.1 or [::1] are answered: set api.token to \
                      serve other names";
        Self::new(StatusCode::FORBIDDEN, "foreign_host", detail)
    }

    /// 404, of a path.
    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_route", "there is nothing at this path")
    }

    /// 405. The router adds `Allow`.
    pub(super) fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
    }

    /// 413.
    pub(super) fn too_large(most: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", format!("the body has more than {most} bytes"))
    }

    /// 415.
    pub(super) fn not_json() -> Self {
        let detail = "the body must be JSON, with `content-type: application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail)
    }

    /// 503, with what is missing.
    pub(super) fn not_ready(detail: String, missing: Value) -> Self {
        Self { details: missing, ..Self::later("not_ready", detail) }
    }

    /// 503: dropped at the deadline.
    pub(super) fn too_slow(deadline: Duration) -> Self {
        let detail = format!("not answered within {}", humantime::format_duration(deadline));
        Self { advice: ASK_AGAIN.into(), ..Self::later("deadline_exceeded", detail) }
    }

    fn later(code: &'static str, detail: impl Into<String>) -> Self {
        Self { header: Extra::RetryAfter, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }
}

impl From<TrashError> for Problem {
    fn from(error: TrashError) -> Self {
        let TrashError::Store(error) = error else {
            let (details, advice) = (error.details(), error.advice());
            return Self { details, advice, ..Self::new(status(&error), error.code(), error.to_string()) };
        };
        Self::from(error)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "request failed at the database");
        match &error {
            StoreError::Unavailable(_) if error.was_never_asked() => {
                Self { advice: NOTHING_DONE.into(), ..Self::later("unavailable", error.to_string()) }
            }
            StoreError::Unavailable(_) | StoreError::Busy(_) => {
                Self { advice: ASK_AGAIN.into(), ..Self::later("unavailable", error.to_string()) }
            }
            StoreError::NotMigrated(_) => Self::later("unavailable", error.to_string()),
            StoreError::Platform { .. } | StoreError::Unusable(_) | StoreError::Other(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
            }
        }
    }
}

/// Malformed is 400, not there is 404, and what another state of the platform would allow is 409.
fn status(error: &TrashError) -> StatusCode {
    match error {
        TrashError::MalformedId { .. }
        | TrashError::InvalidName(_)
        | TrashError::InvalidRetention(_)
        | TrashError::NoSuchChildren { .. }
        | TrashError::RetentionTooShort { .. } => StatusCode::BAD_REQUEST,
        TrashError::UnknownKind(_) | TrashError::NotFound(_) | TrashError::NotInTrash(_) => StatusCode::NOT_FOUND,
        TrashError::Refused { .. }
        | TrashError::UnsafePlace { .. }
        | TrashError::ForeignBucket { .. }
        | TrashError::PastReturn { .. }
        | TrashError::RowGone(_)
        | TrashError::NothingToRetry { .. } => StatusCode::CONFLICT,
        TrashError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            r#type: format!("urn:reprieve:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: &self.detail,
            details: &self.details,
            advice: &self.advice,
        };
        let mut response = (self.status, Json(document)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
        response.extensions_mut().insert(self.told);
        match self.header {
            Extra::Nothing => None,
            Extra::RetryAfter => response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER),
            Extra::Challenge => response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE),
        };
        response
    }
}
