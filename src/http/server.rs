//! The listener and its connections.
//!
//! Invariant: a client cannot keep the process: connections are bounded in number, a request's head in time, and
//! after `stop` each finishes the request that it has begun and no other.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::Api;

/// For the head of a request, idle time before it included.
const HEAD: Duration = Duration::from_secs(30);

/// Open connections; further ones wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 512;

/// After a failed accept (usually: no file descriptors left), so that it is not tried in a busy loop.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(200);

/// Serves until `stop` is cancelled and the requests that were under way have been answered; no longer than their
/// deadline.
pub async fn serve(listener: TcpListener, api: Api, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "api listens");
    }
    let drain = api.deadline;
    answer(listener, api.router(), drain, stop).await;
}

/// As [`serve`], health and metrics alone.
pub async fn serve_probes(listener: TcpListener, api: Api, stop: CancellationToken) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "health and metrics listen");
    }
    let drain = api.deadline;
    answer(listener, api.probes(), drain, stop).await;
}

async fn answer(listener: TcpListener, router: Router, drain: Duration, stop: CancellationToken) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let server = Arc::new(server);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < MOST_CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(converse(Arc::clone(&server), stream, router.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::select! { () = stop.cancelled() => break, () = sleep(AFTER_FAILED_ACCEPT) => {} }
            }
        }
    }
    drop(listener);
    let drained = timeout(drain, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(connections = connections.len(), "api stops with connections open");
    }
}

async fn converse(server: Arc<http1::Builder>, stream: TcpStream, router: Router, stop: CancellationToken) {
    // answers are small; waiting for the peer's delayed ack would cost 40 ms each
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set nodelay");
    }
    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // the client went away or was too slow: its affair
        tracing::debug!(%error, "connection ended");
    }
}
