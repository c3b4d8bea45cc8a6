//! Requests in hand that cannot be carried out yet: the row that they need is locked.
//!
//! Invariant: a request waits alone, and others are carried out meanwhile; but two for the same resource stay in the
//! order in which they came, or a restore could overtake its trash. Nothing here answers a delivery.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    domain::cause::{Cause, CorrelationId},
    queue::{Delivery, message::Request},
    retry::Backoff,
};

/// Tries of a busy request, some thirty seconds; then it goes to the end of its queue, so that it takes no place from
/// others. Its order among those that are still in the queue is lost then.
const MOST_TRIES: u32 = 8;

/// A request in hand.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) delivery: Delivery,
    /// To what it belongs, the same for each try.
    pub(super) cause: Cause,
    /// Kind and id, as far as it can be read.
    resource: Option<(String, String)>,
    tries: u32,
    /// When to try it again.
    due: Instant,
}

impl Held {
    pub(super) fn new(delivery: Delivery) -> Self {
        let resource = Request::decode(&delivery.body).ok().map(|request| (request.kind, request.id));
        let cause = cause_of(&delivery);
        Self { delivery, cause, resource, tries: 0, due: Instant::now() }
    }
}

/// What the sender says that it belongs to. A message without a correlation id begins a conversation, whose id is its own.
fn cause_of(delivery: &Delivery) -> Cause {
    let given = delivery.correlation_id.as_deref().and_then(|raw| {
        CorrelationId::parse(raw).inspect_err(|error| tracing::warn!(%error, "correlation id left out")).ok()
    });
    let own = || delivery.message_id.as_deref().and_then(|raw| CorrelationId::parse(raw).ok());
    Cause { correlation_id: Some(given.or_else(own).unwrap_or_default()), trace: delivery.trace() }
}

/// Those that wait, in the order in which they came. No more than the prefetch.
#[derive(Debug)]
pub(super) struct Waiting {
    held: Vec<Held>,
    backoff: Backoff,
}

impl Waiting {
    pub(super) fn new(backoff: Backoff) -> Self {
        Self { held: Vec::new(), backoff }
    }

    /// Lets one that has just come wait, if another for its resource does; or gives it back.
    pub(super) fn queue_up(&mut self, new: Held) -> Option<Held> {
        if !self.held.iter().any(|held| held.resource.is_some() && held.resource == new.resource) {
            return Some(new);
        }
        self.held.push(new);
        None
    }

    /// Lets one wait whose row was locked. What has been tried too often comes back, with all that wait behind it.
    pub(super) fn again_later(&mut self, mut busy: Held) -> Vec<Held> {
        busy.tries += 1;
        if busy.tries >= MOST_TRIES {
            let behind = self.held.extract_if(.., |held| held.resource.is_some() && held.resource == busy.resource);
            let behind: Vec<_> = behind.collect();
            return std::iter::once(busy).chain(behind).collect();
        }
        busy.due = Instant::now() + self.backoff.delay_for(busy.tries);
        // before those that wait behind it
        let place = self.held.iter().position(|held| held.resource.is_some() && held.resource == busy.resource);
        self.held.insert(place.unwrap_or(self.held.len()), busy);
        Vec::new()
    }

    /// Returns the next one when it is its turn; never, if there is none. Safe to cancel.
    pub(super) async fn next(&mut self) -> Held {
        let is_first = |at: usize| {
            let own = &self.held[at].resource;
            own.is_none() || !self.held[..at].iter().any(|held| held.resource == *own)
        };
        let firsts = (0..self.held.len()).filter(|at| is_first(*at));
        match firsts.min_by_key(|at| self.held[*at].due) {
            Some(at) => {
                tokio::time::sleep_until(self.held[at].due).await;
                self.held.remove(at)
            }
            None => std::future::pending().await,
        }
    }

    /// Adds one that will not be carried out here any more.
    pub(super) fn keep(&mut self, delivery: Delivery) {
        self.held.push(Held::new(delivery));
    }

    /// Puts one in front that was being carried out.
    pub(super) fn keep_first(&mut self, held: Held) {
        self.held.insert(0, held);
    }

    /// All of them, in the order in which they came.
    pub(super) fn into_all(self) -> impl Iterator<Item = Delivery> {
        self.held.into_iter().map(|held| held.delivery)
    }
}

/// Between tries of a busy request.
pub(super) const BUSY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;

    use super::*;
    use crate::queue::{Answer, QueueError};

    #[derive(Debug)]
    struct NoAnswer;

    #[async_trait]
    impl Answer for NoAnswer {
        async fn ack(self: Box<Self>) -> Result<bool, QueueError> {
            Ok(true)
        }
        async fn requeue(self: Box<Self>) -> Result<bool, QueueError> {
            Ok(true)
        }
        async fn put_off(self: Box<Self>) -> Result<bool, QueueError> {
            Ok(true)
        }
        async fn dead_letter(self: Box<Self>, _: &str) -> Result<bool, QueueError> {
            Ok(true)
        }
    }

    fn request(op: &str, id: &str) -> Held {
        let body = format!(r#"{{"v":1,"op":"{op}","kind":"dataset","id":"{id}","actor":"a"}}"#);
        Held::new(Delivery {
            queue: "requests".to_owned(),
            body: body.into_bytes(),
            message_id: Some(format!("{op} {id}")),
            reply_to: None,
            correlation_id: None,
            headers: BTreeMap::new(),
            redeliveries: 0,
            answer: Box::new(NoAnswer),
        })
    }

    fn waiting() -> Waiting {
        let moment = Duration::from_millis(1);
        Waiting::new(Backoff::new(moment, moment).expect("valid"))
    }

    fn name(held: &Held) -> &str {
        held.delivery.message_id.as_deref().expect("it has one")
    }

    #[tokio::test]
    async fn one_resource_keeps_its_order_and_others_pass() {
        let mut waiting = waiting();
        assert!(waiting.again_later(request("trash", "a")).is_empty());
        assert!(waiting.queue_up(request("restore", "a")).is_none(), "behind its trash");
        assert!(waiting.queue_up(request("trash", "b")).is_some(), "not held up");
        let busy = waiting.next().await;
        assert_eq!(name(&busy), "trash a");
        assert!(waiting.again_later(busy).is_empty());
        assert_eq!(name(&waiting.next().await), "trash a", "first again, however often it is busy");
        assert_eq!(name(&waiting.next().await), "restore a");
    }

    #[tokio::test]
    async fn what_stays_busy_is_given_back_with_all_behind_it() {
        let mut waiting = waiting();
        let mut busy = request("trash", "a");
        for _ in 1..MOST_TRIES {
            assert!(waiting.again_later(busy).is_empty());
            busy = waiting.next().await;
        }
        assert!(waiting.again_later(request("trash", "b")).is_empty());
        waiting.keep(request("restore", "a").delivery);
        let given_back = waiting.again_later(busy);
        assert_eq!(given_back.iter().map(name).collect::<Vec<_>>(), ["trash a", "restore a"]);
        assert_eq!(waiting.into_all().count(), 1, "the other one goes on waiting");
    }

    #[tokio::test]
    async fn what_cannot_be_read_waits_for_nobody() {
        let mut waiting = waiting();
        let unreadable = || Held { resource: None, ..request("trash", "a") };
        assert!(waiting.again_later(unreadable()).is_empty());
        assert!(waiting.queue_up(unreadable()).is_some());
    }
}
