//! Between the outbox and the broker: the relay publishes what is due, the sweeper makes up for what was lost.
//!
//! Invariant: a message leaves the outbox after the broker has confirmed it, and no tombstone that is due waits for a
//! message that no longer exists for longer than `sweeper.redeliver_after`. No more tasks wait in the broker than
//! `relay.max_queued` and a window a relay; events and replies are never held back.

mod room;
mod sweeper;

use std::{convert::Infallible, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::room::Room;
pub use self::sweeper::Sweeper;
use crate::{
    config::RelayConfig,
    failpoint,
    queue::{Outgoing, PublishOutcome, Publisher, QueueError, Target, TaskQueue},
    retry::{Backoff, InvalidBackoff},
    store::{
        Store, StoreError,
        outbox::{self, Leased, Topic, Window},
        tombstones,
    },
    telemetry::{Metrics, metrics::NotTaken},
};

/// A reply that the broker refuses so often is dropped: a requester named the queue, and may have named any. Purge tasks
/// and events never are.
const MOST_ATTEMPTS: u32 = 10;

/// How often the queues are looked at, for the metrics: each look costs a connection.
const WATCH: Duration = Duration::from_secs(15);

/// Publishes the outbox.
#[derive(Debug, Clone)]
pub struct Relay {
    store: Store,
    config: RelayConfig,
    backoff: Backoff,
    metrics: Metrics,
}

impl Relay {
    /// A relay.
    ///
    /// # Errors
    /// None with the constants that stand here.
    pub fn new(store: Store, config: RelayConfig, metrics: Metrics) -> Result<Self, InvalidBackoff> {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60))?;
        Ok(Self { store, config, backoff, metrics })
    }

    /// Publishes what is due until the broker is lost or `stop` is cancelled. `supervise` calls it again.
    ///
    /// # Errors
    /// The broker was lost.
    pub async fn run(&self, queue: &dyn TaskQueue, stop: &CancellationToken) -> Result<(), QueueError> {
        queue.prepare().await?;
        let mut publisher = queue.publisher().await?;
        let _connected = self.metrics.messages().connected("relay");
        tracing::info!("relay publishes");
        tokio::select! {
            ended = self.publish(publisher.as_mut(), stop) => ended,
            never = self.watch(queue) => match never {},
        }
    }

    /// Looks from time to time how many messages wait in the broker.
    async fn watch(&self, queue: &dyn TaskQueue) -> Infallible {
        loop {
            let depths =
                queue.depths().await.inspect_err(|error| tracing::debug!(%error, "queues cannot be looked at"));
            self.metrics.messages().waits(depths.ok());
            tokio::time::sleep(WATCH).await;
        }
    }

    async fn publish(&self, publisher: &mut dyn Publisher, stop: &CancellationToken) -> Result<(), QueueError> {
        let mut room = Room::new(self.config.max_queued);
        let mut away = false;
        while !stop.is_cancelled() {
            let pause = match self.pump(publisher, &mut room).await {
                // more may be waiting
                Ok(sent) if sent >= usize::from(self.config.window) => continue,
                Ok(_) => {
                    away = false;
                    self.config.poll
                }
                Err(PumpError::Queue(error)) => return Err(error),
                Err(PumpError::Store(error)) => {
                    if !away {
                        tracing::error!(%error, "relay waits for the database");
                    }
                    away = true;
                    self.config.poll.max(Duration::from_secs(1))
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(())
    }

    /// One window: lease, publish, settle. A crash in between sends messages twice, which does no harm.
    async fn pump(&self, publisher: &mut dyn Publisher, room: &mut Room) -> Result<usize, PumpError> {
        let window = self.config.window;
        let tasks = room.for_window(publisher, window, &self.metrics).await;
        let lease = async {
            let mut conn = self.store.conn().await?;
            outbox::lease(&mut conn, Window { tasks, messages: window }, self.config.lease).await
        };
        let leased = self.store.within(1, lease).await?;
        if leased.is_empty() {
            // a connection that is lost is made anew now, and not when there is something to send
            publisher.publish(&[]).await?;
            return Ok(0);
        }
        room.sent(leased.iter().filter(|row| row.topic == Topic::Purge).count());
        failpoint::at("relay.leased");
        let window: Vec<Outgoing> = leased.iter().map(outgoing).collect();
        let began = Instant::now();
        let outcomes = match publisher.publish(&window).await {
            Ok(outcomes) => {
                self.metrics.messages().window(began.elapsed());
                outcomes
            }
            Err(error) => {
                // nobody knows what has arrived: all of it goes again
                let reason = error.to_string();
                let outcomes = vec![PublishOutcome::Unconfirmed(reason); leased.len()];
                self.store.within(1, self.settle(&leased, &outcomes)).await?;
                return Err(PumpError::Queue(error));
            }
        };
        failpoint::at("relay.published");
        self.store.within(1, self.settle(&leased, &outcomes)).await?;
        Ok(leased.len())
    }

    async fn settle(&self, leased: &[Leased], outcomes: &[PublishOutcome]) -> Result<(), StoreError> {
        leased.iter().zip(outcomes).for_each(|(row, outcome)| self.count(row.topic, outcome));
        let (mut gone, mut queued) = (Vec::new(), Vec::new());
        // single statements that pass locked rows over: who has locked one is working on it already, and a settlement
        // that waited for him could wait in a circle
        let mut conn = self.store.conn().await?;
        for (row, outcome) in leased.iter().zip(outcomes) {
            match outcome {
                PublishOutcome::Confirmed => {
                    gone.push(row.id);
                    if row.topic == Topic::Purge {
                        queued.extend(row.tombstone.map(|id| id.0));
                    }
                }
                PublishOutcome::Returned(reason)
                | PublishOutcome::Refused(reason)
                | PublishOutcome::Unconfirmed(reason) => {
                    // a broker that does not answer, for however long, has not refused it
                    let correlation_id = row.correlation_id.as_deref();
                    let refused = !matches!(outcome, PublishOutcome::Unconfirmed(_));
                    if refused && row.topic == Topic::Reply && row.attempts + 1 >= MOST_ATTEMPTS {
                        tracing::warn!(
                            destination = row.destination,
                            correlation_id,
                            reason,
                            "message dropped, nobody takes it"
                        );
                        self.metrics.messages().dropped();
                        gone.push(row.id);
                    } else {
                        tracing::warn!(topic = ?row.topic, correlation_id, reason, "message not taken, will try again");
                        let wait = self.backoff.delay_for(row.attempts.saturating_add(1));
                        outbox::put_back(&mut conn, row.id, reason, wait).await?;
                    }
                }
            }
        }
        tombstones::mark_queued(&mut conn, &queued).await?;
        failpoint::at("relay.marked_queued");
        outbox::confirm(&mut conn, &gone).await?;
        failpoint::at("relay.confirmed");
        Ok(())
    }

    fn count(&self, topic: Topic, outcome: &PublishOutcome) {
        let (messages, topic) = (self.metrics.messages(), topic.as_str());
        match outcome {
            PublishOutcome::Confirmed => messages.published(topic),
            PublishOutcome::Returned(_) => messages.not_taken(topic, NotTaken::Returned),
            PublishOutcome::Refused(_) => messages.not_taken(topic, NotTaken::Refused),
            PublishOutcome::Unconfirmed(_) => messages.not_taken(topic, NotTaken::Unconfirmed),
        }
    }
}

fn outgoing(row: &Leased) -> Outgoing {
    Outgoing {
        id: row.id,
        target: match row.topic {
            Topic::Purge => Target::Purge,
            Topic::Event => Target::Events(row.destination.clone()),
            Topic::Reply => Target::Reply(row.destination.clone()),
        },
        body: row.payload.to_string().into_bytes(),
        correlation_id: row.correlation_id.clone(),
        trace: row.trace.clone(),
    }
}

/// Which side failed.
#[derive(Debug, thiserror::Error)]
enum PumpError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
