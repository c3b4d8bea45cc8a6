//! The tasks of a process that run until it is told to stop.
//!
//! Invariant: none of them ends before that, by a panic or by itself, without ending the process: a role that is gone
//! while probes are answered would be missed by nobody. Whoever started the process starts it again.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::shutdown;

/// Tasks with a common end.
#[derive(Debug, Clone)]
pub(super) struct Crew {
    tasks: TaskTracker,
    /// Tells them to end.
    pub(super) until: CancellationToken,
    /// Cancelled when one is lost.
    ends: CancellationToken,
    lost: Arc<OnceLock<&'static str>>,
}

impl Crew {
    /// They run until `until` is cancelled; when one is lost, `ends` is.
    pub(super) fn new(until: &CancellationToken, ends: &CancellationToken) -> Self {
        let (until, ends) = (until.clone(), ends.clone());
        Self { tasks: TaskTracker::new(), until, ends, lost: Arc::default() }
    }

    pub(super) fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let crew = self.clone();
        self.tasks.spawn(async move {
            match tokio::spawn(work).await {
                Ok(()) if crew.until.is_cancelled() => return,
                Ok(()) => tracing::error!(role = name, "ended by itself, the process ends"),
                Err(error) => tracing::error!(role = name, %error, "panicked, the process ends"),
            }
            // the first is told of
            let _ = crew.lost.set(name);
            crew.ends.cancel();
        });
    }

    /// Waits for all of them, when they have been told to end. The one that was lost, if any.
    pub(super) async fn drain(self, deadline: Duration) -> Option<&'static str> {
        shutdown::drain(self.tasks, &self.until, deadline).await;
        self.lost.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lost(work: impl Future<Output = ()> + Send + 'static) -> Option<&'static str> {
        let stop = CancellationToken::new();
        let crew = Crew::new(&stop, &stop);
        let until = stop.clone();
        crew.spawn("relay", async move { until.cancelled().await });
        crew.spawn("sweeper", work);
        stop.cancelled().await;
        crew.drain(Duration::from_secs(60)).await
    }

    #[tokio::test]
    async fn a_task_that_panics_or_ends_by_itself_ends_all_and_is_named() {
        assert_eq!(lost(async { panic!("a mistake in the program") }).await, Some("sweeper"));
        assert_eq!(lost(async {}).await, Some("sweeper"));
    }

    #[tokio::test]
    async fn tasks_that_end_when_they_are_told_to_are_not_missed() {
        let stop = CancellationToken::new();
        let crew = Crew::new(&stop, &stop);
        let until = stop.clone();
        crew.spawn("relay", async move { until.cancelled().await });
        stop.cancel();
        assert_eq!(crew.drain(Duration::from_secs(60)).await, None);
    }
}
