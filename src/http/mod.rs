//! The role `api`: the trash bin over HTTP, for services and people.
//!
//! Invariant: a handler parses, calls [`TrashBin`] and writes the answer; it decides nothing about a resource. What
//! cannot be done is a problem document (RFC 9457) with a stable code, and what destroys is a dry run unless the body
//! says `"dry_run": false`. With a token configured, everything but health and metrics needs it.
//!
//! ```text
//! GET  /health/{live|ready|startup}  /metrics                                      open
//! GET  /v1/tombstones?state=&kind=&…             /v1/resources/{kind}/{id}       with the token
//! POST /v1/resources/{kind}/{id}/{trash|restore|hold|release|retry}              with the token, JSON alone
//! ```

mod body;
mod cause;
mod changes;
mod guard;
mod health;
mod limits;
mod metrics;
mod problem;
mod reads;
mod server;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, FromRequestParts, Path},
    http::request::Parts,
    middleware,
    routing::{get, post},
};
use secrecy::SecretString;

use self::problem::Problem;
pub use self::server::{serve, serve_probes};
use crate::{domain::ids::ResourceRef, objects::stores::Stores, telemetry::Metrics, trash::TrashBin};

/// The longest that a request may take: longer than the 20 s that a statement waits for a row's lock, so a lock that
/// is not to be had is reported as what it is.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the API works with.
#[derive(Debug, Clone)]
pub struct Api {
    /// What is asked, and the database behind it.
    trash: TrashBin,
    /// Where a dry run counts.
    stores: Stores,
    /// Shown at `/metrics`.
    metrics: Metrics,
    /// What requests must carry. `None`: only ones that name this machine's loopback as their host are answered.
    token: Option<SecretString>,
    /// Whether `/metrics` shows what the database holds: with the role `api` alone, so that it is not read by each process.
    shows_facts: bool,
    /// Shared by the listeners of a process, like all of this.
    facts: Arc<metrics::Cache>,
    /// For one request.
    deadline: Duration,
}

/// An [`Api`] as its handlers share it.
type Shared = Arc<Api>;

impl Api {
    /// An API over this trash bin, and the stores of its objects. The configuration leaves `token` out only where it listens on loopback.
    pub fn new(trash: TrashBin, stores: Stores, metrics: Metrics, token: Option<SecretString>) -> Self {
        let facts = Arc::new(metrics::Cache::default());
        Self { trash, stores, metrics, token, shows_facts: true, facts, deadline: DEADLINE }
    }

    /// Does not show what the database holds.
    #[must_use]
    pub fn without_facts(self) -> Self {
        Self { shows_facts: false, ..self }
    }

    /// Gives requests another deadline than 30 seconds. One that passes it is dropped, its transaction rolled back.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Health and metrics alone, with their limits.
    pub fn probes(self) -> Router {
        self.limited(observed())
    }

    /// Every route, with its limits.
    pub fn router(self) -> Router {
        let routes = observed()
            .route("/v1/tombstones", get(reads::tombstones))
            .route("/v1/resources/{kind}/{id}", get(reads::resource))
            .route("/v1/resources/{kind}/{id}/trash", post(changes::trash))
            .route("/v1/resources/{kind}/{id}/restore", post(changes::restore))
            .route("/v1/resources/{kind}/{id}/hold", post(changes::hold))
            .route("/v1/resources/{kind}/{id}/release", post(changes::release))
            .route("/v1/resources/{kind}/{id}/retry", post(changes::retry));
        self.limited(routes)
    }

    fn limited(self, routes: Router<Shared>) -> Router {
        let api = Arc::new(self);
        routes
            .fallback(async || Problem::no_route())
            .method_not_allowed_fallback(async || Problem::wrong_method())
            .layer(DefaultBodyLimit::max(body::MOST_BYTES))
            // the last is the outermost
            .layer(middleware::from_fn_with_state(api.clone(), limits::deadline))
            .layer(middleware::from_fn(cause::follow))
            .layer(middleware::from_fn_with_state(api.clone(), guard::admit))
            .layer(middleware::from_fn_with_state(api.clone(), limits::observe))
            .with_state(api)
    }
}

/// What probes and scrapers ask.
fn observed() -> Router<Shared> {
    Router::new()
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/startup", get(health::startup))
        .route("/metrics", get(metrics::scrape))
}

/// The resource that a path names: its kind is in the map, its id is one of that kind.
struct Named(ResourceRef);

impl FromRequestParts<Shared> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let Path((kind, id)) = Path::<(String, String)>::from_request_parts(parts, api)
            .await
            .map_err(|_| Problem::malformed("malformed_id", "the path does not decode to a kind and an id in UTF-8"))?;
        Ok(Self(api.trash.resource(&kind, &id)?))
    }
}
