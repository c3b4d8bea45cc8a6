//! To what a request belongs: its id, and its place in a trace.
//!
//! Invariant: only whoever was let in says so, and only of what is below `/v1`: probes and scrapers leave no span. What an
//! id may look like is bounded ([`CorrelationId`]); one that is malformed is left out, and the answer names the one in force.

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method},
    middleware::Next,
    response::Response,
};

use crate::{
    domain::cause::{Cause, CorrelationId, TraceContext},
    telemetry::trace::{self, HttpRequest, Work},
};

/// The id of a request, as proxies and clients give it, and as the answer gives it back.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Works on a request as part of what it belongs to.
pub(super) async fn follow(mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    if !route.starts_with("/v1/") {
        return next.run(request).await;
    }
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        _ => "_OTHER",
    };
    let asked = HttpRequest { method, route: &route, path: request.uri().path() };
    let (work, cause) = Work::http(asked, &cause_of(request.headers()));
    let id = cause.correlation_id().and_then(|id| HeaderValue::from_str(id).ok());
    request.extensions_mut().insert(cause);
    let answer = async {
        let response = next.run(request).await;
        trace::answered(response.status().as_u16());
        response
    };
    let mut response = work.run(answer).await;
    response.headers_mut().extend(id.map(|id| (REQUEST_ID, id)));
    response
}

fn cause_of(headers: &HeaderMap) -> Cause {
    let given = only(headers, &REQUEST_ID).and_then(|raw| {
        CorrelationId::parse(&raw).inspect_err(|error| tracing::warn!(%error, "x-request-id left out")).ok()
    });
    let state = joined(headers, TraceContext::TRACESTATE);
    let parent = only(headers, &HeaderName::from_static(TraceContext::TRACEPARENT));
    let trace = parent.and_then(|parent| TraceContext::parse(&parent, state.as_deref()));
    Cause { correlation_id: Some(given.unwrap_or_default()), trace }
}

/// A header's value. `None` where it is not there, or more than once: then nobody knows which is meant.
fn only(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The values of a header that may be there several times, which is the same as once with commas.
fn joined(headers: &HeaderMap, name: &'static str) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().ok()).collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.join(","))
}
