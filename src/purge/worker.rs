//! The worker: deliveries in, slices, acknowledgements.
//!
//! Invariant: a delivery is acknowledged after what comes next is in the database, whatever that is. Only when the
//! database itself is away does a worker stop consuming, and then what it holds goes back to the queue. A message that
//! cannot be read goes to the dead letters alone. A panic in one slice ends that slice, and is noted on its tombstone. A
//! task that came back often without an answer waits before it is taken up again.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Budget, Purger, SliceEnd};
use crate::{
    domain::ids::TombstoneId,
    failpoint,
    queue::{Delivery, QueueError, Source, TaskQueue, message::PurgeTask},
    store::StoreError,
    telemetry::trace::{self, End, Work},
};

/// How long to wait between looks at a database that is away.
const DATABASE_AWAY: Duration = Duration::from_secs(1);

/// What the dead letter and the tombstone say of a slice that panicked while it wrote down what comes next.
const PANICKED: &str = "its worker panicked: see its log";

/// Redeliveries after which a task waits before it is taken up again: workers may die over it before they have a
/// lease. Two are ordinary: a crash, and a broker that lost the connection.
const OFTEN: u32 = 3;

impl Purger {
    /// Consumes purge tasks until the queue ends or `stop` is cancelled; then takes no more, lets every slice come to
    /// its next batch, and returns. `supervise` calls it again.
    ///
    /// # Errors
    /// The queue's connection ended.
    pub async fn work(&self, queue: &dyn TaskQueue, stop: &CancellationToken) -> Result<(), QueueError> {
        if self.wait_for_database(stop).await.is_break() {
            return Ok(());
        }
        let mut consumer = queue.consumer(Source::Purge, self.config.concurrency).await?;
        let _connected = self.metrics.messages().connected("worker");
        tracing::info!(concurrency = self.config.concurrency, "worker consumes");
        let mut slices: JoinSet<Result<(), StoreError>> = JoinSet::new();
        let drain = stop.child_token();
        let ended = loop {
            tokio::select! {
                () = stop.cancelled() => break consumer.cancel().await,
                delivery = consumer.next() => match delivery {
                    Ok(Some(delivery)) => {
                        let (purger, drain) = (self.clone(), drain.clone());
                        let work = Work::task(&delivery);
                        slices.spawn(async move { work.run(purger.handle(delivery, drain)).await });
                    }
                    Ok(None) => break Err(QueueError::new("consume purge tasks", "the broker ended the consumer")),
                    Err(error) => break Err(error),
                },
                Some(done) = slices.join_next() => if let Some(error) = database_error(done) {
                    // what it could not cancel the broker takes back when the connection goes
                    let _ = consumer.cancel().await;
                    break Err(QueueError::new("work on purge tasks", error.to_string()));
                },
            }
        };
        drain.cancel();
        // what was begun comes to its next batch; deliveries of a lost connection come again, and find the lease
        while let Some(done) = slices.join_next().await {
            if let Some(error) = database_error(done) {
                tracing::warn!(%error, "slice cut off, it resumes when its lease has run out");
            }
        }
        ended
    }

    async fn wait_for_database(&self, stop: &CancellationToken) -> std::ops::ControlFlow<()> {
        while let Err(error) = self.store.ping().await {
            tracing::debug!(%error, "worker waits for the database");
            tokio::select! {
                () = stop.cancelled() => return std::ops::ControlFlow::Break(()),
                () = tokio::time::sleep(DATABASE_AWAY) => {}
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    async fn handle(&self, delivery: Delivery, stop: CancellationToken) -> Result<(), StoreError> {
        let counted = self.metrics.purges().received();
        let ended = |end: &str, how: End| {
            counted.ended(end);
            trace::ended(end, how);
        };
        let task = match PurgeTask::decode(&delivery.body) {
            Ok(task) => task,
            Err(error) => {
                tracing::error!(%error, message_id = delivery.message_id, "not a purge task, set aside");
                self.metrics.messages().dead_letter("purge");
                log_answer(delivery.answer.dead_letter(&error.to_string()).await);
                ended("malformed", End::Badly);
                return Ok(());
            }
        };
        failpoint::at("worker.received");
        let (purger, budget) = (self.clone(), Budget::new(self.config.slice, stop));
        let redeliveries = delivery.redeliveries;
        // a task of its own, so that a panic is an outcome
        let slice = async move { purger.take_up(task.tombstone, redeliveries, &budget).await };
        let slice = tokio::spawn(trace::along(slice)).await;
        failpoint::at("worker.unanswered");
        match slice {
            Ok(Ok(end)) => {
                ended(end.as_str(), if end.is_well() { End::Well } else { End::Badly });
                if let SliceEnd::Panicked(reason) = &end {
                    self.metrics.messages().dead_letter("purge");
                    log_answer(delivery.answer.dead_letter(reason).await);
                    return Ok(());
                }
                if !matches!(end, SliceEnd::Purged | SliceEnd::Continues) {
                    tracing::debug!(tombstone.id = %task.tombstone, ?end, "slice ended");
                }
                log_answer(delivery.answer.ack().await);
                failpoint::at("worker.answered");
                Ok(())
            }
            Ok(Err(error)) if matches!(error, StoreError::Unavailable(_)) => {
                ended("database_away", End::Badly);
                log_answer(delivery.answer.requeue().await);
                Err(error)
            }
            Ok(Err(error)) => {
                // busy, or a map that does not fit
                ended("error", End::Badly);
                tracing::warn!(tombstone.id = %task.tombstone, %error, "slice failed");
                match self.look_again(task.tombstone).await {
                    Ok(()) => log_answer(delivery.answer.ack().await),
                    Err(error) => {
                        tracing::warn!(tombstone.id = %task.tombstone, %error, "no new task, the old one goes back");
                        log_answer(delivery.answer.requeue().await);
                    }
                }
                Ok(())
            }
            Err(panic) => {
                ended("panic", End::Badly);
                tracing::error!(tombstone.id = %task.tombstone, %panic, "slice panicked");
                // a dead letter alone would be seen by nobody who looks at the tombstone
                if let Err(error) = self.set_back(task.tombstone, PANICKED).await {
                    tracing::warn!(tombstone.id = %task.tombstone, %error, "panic not noted, the sweeper looks again");
                }
                self.metrics.messages().dead_letter("purge");
                log_answer(delivery.answer.dead_letter(PANICKED).await);
                Ok(())
            }
        }
    }

    /// A slice of it, unless its task has come back so often that something is wrong with it.
    async fn take_up(&self, id: TombstoneId, redeliveries: u32, budget: &Budget) -> Result<SliceEnd, StoreError> {
        if redeliveries >= OFTEN {
            let reason =
                format!("its task was handed out {redeliveries} times and never answered: did workers die over it?");
            if self.set_back(id, &reason).await? {
                tracing::warn!(tombstone.id = %id, reason, "task waits");
                return Ok(SliceEnd::Deferred(reason));
            }
        }
        self.run_slice(id, budget).await
    }
}

fn database_error(done: Result<Result<(), StoreError>, tokio::task::JoinError>) -> Option<StoreError> {
    match done {
        Ok(result) => result.err(),
        Err(panic) => {
            tracing::error!(%panic, "delivery handler panicked, the broker hands the message out again");
            None
        }
    }
}

/// An answer that fails is no loss: the message comes again and finds nothing left to do.
fn log_answer(answered: Result<bool, QueueError>) {
    match answered {
        Ok(true) => {}
        Ok(false) => tracing::debug!("stale delivery, the broker hands it out again"),
        Err(error) => tracing::warn!(%error, "delivery not answered, the broker hands it out again"),
    }
}
