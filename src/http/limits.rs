//! What holds for every request: a deadline, a log line, a count.
//!
//! Invariant: every request that was begun is counted once. No label takes its text from the client, so none can be
//! flooded with new values.

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::{
    Shared,
    problem::{Problem, Told},
};
use crate::telemetry::metrics::{Operation, Origin, Requests};

/// Drops a request that takes too long, the reading of its body included. Its transaction is rolled back, unless the
/// commit was already on its way: the answer says that the outcome is unknown.
pub(super) async fn deadline(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let only_looks = request.method().is_safe();
    match timeout(api.deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) if only_looks => Problem::too_slow(api.deadline).looking().into_response(),
        Err(_) => Problem::too_slow(api.deadline).into_response(),
    }
}

/// Counts a request to change something. Whoever is not let in, and a method that is none, is not one.
fn count(requests: &Requests, route: &str, response: &Response) {
    let operation = route.rsplit('/').next().and_then(Operation::parse);
    let (Some(operation), Some(told)) = (operation, response.extensions().get::<Told>()) else { return };
    match *told {
        Told::Done => requests.carried_out(Origin::Api, operation),
        Told::DryRun => {}
        Told::Not(_) if [401, 403, 405].contains(&response.status().as_u16()) => {}
        Told::Not(code) => requests.not_carried_out(Origin::Api, operation, code),
    }
}

/// Carries the request out to its end, counts and logs the answer, whether or not anybody still waits for it: of a client
/// that hung up the commit may be on its way.
pub(super) async fn observe(State(api): State<Shared>, request: Request, next: Next) -> Response {
    let observed = tokio::spawn(observed(api, request, next).in_current_span());
    // nobody cancels it, so it has ended or panicked
    observed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn observed(api: Shared, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        _ => "other",
    };
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let (route, status) = (route.as_ref().map_or("none", MatchedPath::as_str), response.status().as_u16());
    api.metrics.requests().answered(route, status, began.elapsed());
    count(api.metrics.requests(), route, &response);
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::debug!(method, route, status, duration_ms, "request answered");
    response
}
