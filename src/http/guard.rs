//! Who is let in.
//!
//! Invariant: with a token configured, whatever is not named as open here needs it, unknown routes too. Without one
//! (on loopback alone) a request must name loopback as its host, so that a web page whose name was made to resolve to
//! this machine cannot speak to it from an operator's browser.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::{Shared, problem::Problem};

/// What probes and scrapers ask, which carry no token.
const OPEN: [&str; 4] = ["/health/live", "/health/ready", "/health/startup", "/metrics"];

/// Answers 401 or 403 in place of the handler, or lets the request pass.
pub(super) async fn admit(State(api): State<Shared>, request: Request, next: Next) -> Response {
    if OPEN.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let refused = match &api.token {
        Some(token) if carries(request.headers(), token.expose_secret()) => None,
        Some(_) => Some(Problem::no_token()),
        None if names_loopback(&request) => None,
        None => Some(Problem::foreign_host()),
    };
    match refused {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

/// Compared in constant time; only the length of the token can be measured.
fn carries(headers: &HeaderMap, token: &str) -> bool {
    let credentials = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
    credentials.is_some_and(|(scheme, given)| {
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(given.trim_ascii().ct_eq(token.as_bytes()))
    })
}

/// A request without any host comes from no browser.
fn names_loopback(request: &Request) -> bool {
    let loopback = |authority: &Authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    let of_header =
        |value: &header::HeaderValue| Authority::try_from(value.as_bytes()).is_ok_and(|host| loopback(&host));
    request.headers().get_all(header::HOST).iter().all(of_header) && request.uri().authority().is_none_or(loopback)
}
