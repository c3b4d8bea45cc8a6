//! Shutdown: a signal becomes a token, the token a drain, the drain has a deadline.
//!
//! Invariant: nothing is lost by being cut off at the deadline; it resumes elsewhere when its lease has run out.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A token that SIGTERM or SIGINT cancels.
///
/// # Errors
/// The handlers could not be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down");
        stop.cancel();
    });
    Ok(token)
}

/// Waits until `stop` is cancelled and then for every task, but no longer than `deadline`. `true`: all came to an end.
pub async fn drain(tasks: TaskTracker, stop: &CancellationToken, deadline: Duration) -> bool {
    tasks.close();
    stop.cancelled().await;
    let drained = tokio::time::timeout(deadline, tasks.wait()).await.is_ok();
    if !drained {
        tracing::warn!(
            deadline_ms = deadline.as_millis(),
            "shutdown deadline passed, work is cut off and resumes elsewhere"
        );
    }
    drained
}
