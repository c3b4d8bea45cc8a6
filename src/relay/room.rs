//! How many purge tasks may still go to the broker.
//!
//! Invariant: the purge queue is filled to `relay.max_queued` and not beyond, but for one window a relay. What does not
//! fit waits in the outbox, where a tombstone has one row however often its task is written; in the queue, the tasks
//! that the sweeper takes for lost while they only wait would pile up beside each other without end.

use std::time::Duration;

use tokio::time::Instant;

use crate::{queue::Publisher, telemetry::Metrics};

/// Tasks sent at a time while nobody knows how many wait: enough to keep purges going, and slower than any worker.
const BLIND: u16 = 16;

/// How long a queue that could not be looked at is left alone; each look may cost a connection.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What one relay knows of the purge queue.
#[derive(Debug)]
pub(super) struct Room {
    most: u64,
    seen: Seen,
}

#[derive(Debug, Clone, Copy)]
enum Seen {
    /// Nothing, or something that our own tasks have changed since.
    Nothing,
    /// There is room for so many more; others may have used it since, but for no more than a window each.
    Room(u64),
    /// It could not be looked at.
    Blind { until: Instant },
}

impl Room {
    pub(super) fn new(max_queued: u32) -> Self {
        Self { most: u64::from(max_queued), seen: Seen::Nothing }
    }

    /// How many tasks the next window may hold. Looks only where it has to.
    pub(super) async fn for_window(&mut self, publisher: &mut dyn Publisher, window: u16, metrics: &Metrics) -> u16 {
        let known = match self.seen {
            Seen::Room(room) if room > 0 => Some(room),
            Seen::Blind { until } if Instant::now() < until => None,
            _ => self.look(publisher, metrics).await,
        };
        known.map_or(window.min(BLIND), |room| u16::try_from(room).map_or(window, |room| room.min(window)))
    }

    async fn look(&mut self, publisher: &mut dyn Publisher, metrics: &Metrics) -> Option<u64> {
        match publisher.tasks_waiting().await {
            Ok(waiting) => {
                metrics.messages().tasks_wait(waiting);
                let room = self.most.saturating_sub(waiting);
                if room == 0 {
                    tracing::debug!(waiting, "purge queue is full, tasks wait in the outbox");
                }
                self.seen = Seen::Room(room);
                Some(room)
            }
            Err(error) => {
                if !matches!(self.seen, Seen::Blind { .. }) {
                    tracing::warn!(%error, "purge queue cannot be looked at, tasks go out a few at a time");
                }
                self.seen = Seen::Blind { until: Instant::now() + LOOK_AGAIN };
                None
            }
        }
    }

    /// Notes how many tasks have been sent.
    pub(super) fn sent(&mut self, tasks: usize) {
        if tasks > 0 && matches!(self.seen, Seen::Room(_)) {
            self.seen = Seen::Nothing;
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::queue::{Outgoing, PublishOutcome, QueueError};

    /// A queue that holds what it is told to hold, or cannot be looked at.
    #[derive(Debug)]
    struct Fake {
        waiting: Option<u64>,
        looks: u32,
    }

    #[async_trait]
    impl Publisher for Fake {
        async fn publish(&mut self, _: &[Outgoing]) -> Result<Vec<PublishOutcome>, QueueError> {
            Ok(Vec::new())
        }

        async fn tasks_waiting(&mut self) -> Result<u64, QueueError> {
            self.looks += 1;
            self.waiting.ok_or_else(|| QueueError::new("look", "nobody answers"))
        }
    }

    async fn window(room: &mut Room, queue: &mut Fake) -> u16 {
        room.for_window(queue, 256, &Metrics::new()).await
    }

    #[tokio::test]
    async fn a_window_holds_what_the_queue_has_room_for() {
        for (waiting, fits) in [(0, 256), (700, 256), (900, 100), (999, 1), (1000, 0), (5000, 0)] {
            let (mut room, mut queue) = (Room::new(1000), Fake { waiting: Some(waiting), looks: 0 });
            assert_eq!(window(&mut room, &mut queue).await, fits, "{waiting}");
        }
    }

    #[tokio::test]
    async fn the_queue_is_looked_at_again_after_tasks_were_sent_and_while_it_is_full_and_not_otherwise() {
        let (mut room, mut queue) = (Room::new(100), Fake { waiting: Some(0), looks: 0 });
        for _ in 0..5 {
            assert_eq!(window(&mut room, &mut queue).await, 100);
            room.sent(0);
        }
        assert_eq!(queue.looks, 1);
        room.sent(100);
        queue.waiting = Some(100);
        for looks in 2..5 {
            assert_eq!((window(&mut room, &mut queue).await, queue.looks), (0, looks));
        }
    }

    #[tokio::test]
    async fn a_queue_that_cannot_be_looked_at_gets_a_few_tasks_at_a_time_and_is_looked_at_seldom() {
        let (mut room, mut queue) = (Room::new(100), Fake { waiting: None, looks: 0 });
        for _ in 0..5 {
            assert_eq!((window(&mut room, &mut queue).await, queue.looks), (BLIND, 1));
            room.sent(usize::from(BLIND));
        }
        queue.waiting = Some(90);
        // as if the time had passed
        room.seen = Seen::Blind { until: Instant::now() };
        assert_eq!((window(&mut room, &mut queue).await, queue.looks), (10, 2));
    }
}
