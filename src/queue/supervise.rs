//! Keeping a connection up: run, and when it ends for whatever reason, pause and run again.
//!
//! Invariant: `run` is never dropped half-way. It gets to see the cancellation itself, drains and returns; supervision
//! only refrains from starting it once more. Connecting is part of `run`, so it needs its own time limit there.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::QueueError;

/// A connection that lived this long was sound: its loss starts the back-off anew. Above the usual longest pause.
const SOUND: Duration = Duration::from_secs(60);

/// Pause when the back-off has no more delays to give.
const LAST_RESORT: Duration = Duration::from_secs(30);

/// Calls `run` until `token` is cancelled, with a pause from `delays` (a fresh, jittered series whenever it is called)
/// after each end. `on_reconnect` is called before each attempt but the first, for the count.
///
/// Logs the first failure and each one that differs from the one before as an error, repetitions at debug.
pub async fn supervise<R, D>(
    name: &str,
    token: &CancellationToken,
    delays: impl Fn() -> D,
    on_reconnect: impl Fn(),
    mut run: impl FnMut() -> R,
) where
    R: Future<Output = Result<(), QueueError>>,
    D: Iterator<Item = Duration>,
{
    let mut pauses = delays();
    let mut reported = None;
    while !token.is_cancelled() {
        let started = Instant::now();
        let ended = run().await;
        if token.is_cancelled() {
            break;
        }
        if started.elapsed() >= SOUND {
            pauses = delays();
            reported = None;
        }
        let pause = pauses.next().unwrap_or(LAST_RESORT);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let failure = ended.err().map_or_else(|| "ended by the broker".to_owned(), |error| error.to_string());
        if reported.as_ref() == Some(&failure) {
            tracing::debug!(role = name, error = failure, pause_ms, "queue connection still down");
        } else {
            tracing::error!(role = name, error = failure, pause_ms, "queue connection down");
            reported = Some(failure);
        }
        tokio::select! {
            () = token.cancelled() => break,
            () = sleep(pause) => on_reconnect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const NO_PAUSE: fn() -> std::iter::Repeat<Duration> = || std::iter::repeat(Duration::ZERO);

    #[tokio::test]
    async fn it_runs_again_after_every_end_and_counts_the_reconnects() {
        let (token, runs, reconnects) = (CancellationToken::new(), Cell::new(0), Cell::new(0));
        let run = || async {
            runs.set(runs.get() + 1);
            match runs.get() {
                1 => Err(QueueError::new("connect", "refused")),
                2 => Ok(()),
                _ => {
                    token.cancel();
                    Ok(())
                }
            }
        };
        supervise("test", &token, NO_PAUSE, || reconnects.set(reconnects.get() + 1), run).await;
        assert_eq!((runs.get(), reconnects.get()), (3, 2));
    }

    #[tokio::test]
    async fn cancelling_ends_a_pause_but_never_a_run() {
        let token = CancellationToken::new();
        let finished = Cell::new(false);
        let run = || async {
            token.cancel();
            tokio::task::yield_now().await;
            finished.set(true);
            Ok(())
        };
        supervise("test", &token, NO_PAUSE, || (), run).await;
        assert!(finished.get());

        let token = CancellationToken::new();
        let for_ever = || std::iter::repeat(Duration::from_secs(3600));
        let run = || async { Err(QueueError::new("connect", "refused")) };
        let supervised = supervise("test", &token, for_ever, || (), run);
        tokio::join!(supervised, async { token.cancel() });
    }
}
