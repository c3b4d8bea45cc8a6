//! The queue inside the process, for embedded mode and for tests: what RabbitMQ does, as far as Reprieve relies on it.
//!
//! Invariant: a message is in exactly one place: a queue, the hands of one living consumer, or the dead letters. An
//! unanswered one goes back to the front of its queue when its consumer is dropped. Nothing survives the process; the
//! database does, and refills the queues.
//!
//! Bounded: a full queue refuses (`Unconfirmed`), the oldest of too many dead letters or replies makes room.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::{Notify, broadcast};

use super::{
    Answer, Consumer, Delivery, Depths, Outgoing, PublishOutcome, Publisher, QueueError, Source, Target, TaskQueue,
    has_place,
};
use crate::domain::cause::TraceContext;

/// Events that a slow subscriber may lag behind before it loses the oldest.
const EVENTS_KEPT: usize = 1024;

/// The limits of a [`LocalQueue`].
#[derive(Debug, Clone, Copy)]
pub struct LocalLimits {
    /// Messages in one queue, dead letters, and replies in one reply queue.
    pub capacity: usize,
    /// How often a message may be handed out again before it becomes a dead letter.
    pub delivery_limit: u32,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self { capacity: 100_000, delivery_limit: 20 }
    }
}

/// What a client sends to the requests queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalRequest {
    /// Any bytes.
    pub body: Vec<u8>,
    /// `message_id`.
    pub message_id: Option<String>,
    /// `reply_to`: a name given to [`LocalQueue::open_replies`].
    pub reply_to: Option<String>,
    /// `correlation_id`.
    pub correlation_id: Option<String>,
    /// Headers.
    pub headers: BTreeMap<String, String>,
}

/// A message that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The queue it came from.
    pub source: Source,
    /// As it was sent.
    pub message: LocalRequest,
    /// Why.
    pub reason: String,
}

/// A reply that reached its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// The JSON text.
    pub body: Vec<u8>,
    /// That of the request.
    pub correlation_id: Option<String>,
}

/// A life-cycle event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEvent {
    /// Such as `dataset.trashed`.
    pub routing_key: String,
    /// The JSON text.
    pub body: Vec<u8>,
}

/// An in-process broker. Clones share it.
#[derive(Debug, Clone)]
pub struct LocalQueue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: LocalLimits,
    state: Mutex<State>,
    /// Wakes consumers: a message, a free place in the prefetch, or the end of a queue.
    changed: Notify,
    events: broadcast::Sender<LocalEvent>,
}

#[derive(Debug, Default)]
struct State {
    /// Exist from `prepare` on.
    queues: HashMap<Source, VecDeque<Message>>,
    dead: VecDeque<DeadLetter>,
    replies: HashMap<String, VecDeque<LocalReply>>,
    consumers: HashMap<u64, Held>,
    /// Numbers consumers and deliveries.
    last: u64,
}

#[derive(Debug)]
struct Message {
    content: LocalRequest,
    redeliveries: u32,
}

/// What one consumer has in hand, oldest first.
#[derive(Debug)]
struct Held {
    source: Source,
    unanswered: BTreeMap<u64, Message>,
}

impl LocalQueue {
    /// An empty broker; the queues exist once `prepare` has run.
    pub fn new(limits: LocalLimits) -> Self {
        let events = broadcast::Sender::new(EVENTS_KEPT);
        Self(Arc::new(Shared { limits, state: Mutex::default(), changed: Notify::new(), events }))
    }

    /// Sends a request, as another service would.
    pub fn publish_request(&self, request: LocalRequest) -> PublishOutcome {
        self.0.enqueue(Source::Requests, request)
    }

    /// The messages set aside, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        self.0.lock().dead.iter().cloned().collect()
    }

    /// Opens a reply queue; replies to a name that was not opened are dropped.
    pub fn open_replies(&self, name: impl Into<String>) {
        self.0.lock().replies.entry(name.into()).or_default();
    }

    /// Takes the replies that have come, oldest first.
    pub fn take_replies(&self, name: &str) -> Vec<LocalReply> {
        self.0.lock().replies.get_mut(name).map(std::mem::take).unwrap_or_default().into()
    }

    /// Events published from now on.
    pub fn events(&self) -> broadcast::Receiver<LocalEvent> {
        self.0.events.subscribe()
    }

    /// Deletes a queue with all its messages, as a broker's operator can. Its consumers end.
    pub fn delete(&self, source: Source) {
        let mut state = self.0.lock();
        state.queues.remove(&source);
        state.consumers.retain(|_, held| held.source != source);
        drop(state);
        self.0.changed.notify_waiters();
    }
}

impl Default for LocalQueue {
    fn default() -> Self {
        Self::new(LocalLimits::default())
    }
}

#[async_trait]
impl TaskQueue for LocalQueue {
    async fn prepare(&self) -> Result<(), QueueError> {
        let mut state = self.0.lock();
        for source in [Source::Requests, Source::Purge] {
            state.queues.entry(source).or_default();
        }
        Ok(())
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError> {
        Ok(Box::new(LocalPublisher(Arc::clone(&self.0))))
    }

    async fn consumer(&self, source: Source, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        let mut state = self.0.lock();
        if !state.queues.contains_key(&source) {
            return Err(QueueError::new(format!("consume {source:?}"), "no such queue; run `prepare` first"));
        }
        let id = state.number();
        state.consumers.insert(id, Held { source, unanswered: BTreeMap::new() });
        Ok(Box::new(LocalConsumer { shared: Arc::clone(&self.0), id, source, prefetch, cancelled: false }))
    }

    async fn depths(&self) -> Result<Depths, QueueError> {
        let state = self.0.lock();
        let waiting = |source| state.queues.get(&source).map_or(0, |queue| queue.len() as u64);
        let (requests, purge) = (waiting(Source::Requests), waiting(Source::Purge));
        Ok(Depths { requests, purge, dead: state.dead.len() as u64 })
    }
}

impl Shared {
    /// Every change is complete before the lock is released, so a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, source: Source, content: LocalRequest) -> PublishOutcome {
        let mut state = self.lock();
        let Some(queue) = state.queues.get_mut(&source) else {
            return PublishOutcome::Returned("312 NO_ROUTE".to_owned());
        };
        if queue.len() >= self.limits.capacity {
            return PublishOutcome::Unconfirmed("the queue is full".to_owned());
        }
        queue.push_back(Message { content, redeliveries: 0 });
        drop(state);
        self.changed.notify_waiters();
        PublishOutcome::Confirmed
    }

    fn publish(&self, message: &Outgoing) -> PublishOutcome {
        match &message.target {
            Target::Purge => {
                let content = LocalRequest {
                    body: message.body.clone(),
                    message_id: Some(message.id.to_string()),
                    correlation_id: message.correlation_id.clone(),
                    headers: headers(message),
                    ..LocalRequest::default()
                };
                return self.enqueue(Source::Purge, content);
            }
            Target::Events(routing_key) => {
                let event = LocalEvent { routing_key: routing_key.clone(), body: message.body.clone() };
                // An error means that nobody listens, which is fine.
                let _ = self.events.send(event);
            }
            Target::Reply(name) => {
                let reply = LocalReply { body: message.body.clone(), correlation_id: message.correlation_id.clone() };
                if let Some(queue) = self.lock().replies.get_mut(name) {
                    push_bounded(queue, reply, self.limits.capacity);
                }
            }
        }
        PublishOutcome::Confirmed
    }

    /// Ends a delivery. `false`: its consumer is gone, and the message went back before.
    fn settle(&self, consumer: u64, tag: u64, verdict: Verdict<'_>) -> bool {
        let mut state = self.lock();
        let Some(held) = state.consumers.get_mut(&consumer) else { return false };
        let source = held.source;
        let Some(message) = held.unanswered.remove(&tag) else { return false };
        match verdict {
            Verdict::Done => {}
            Verdict::Requeue if has_place(message.redeliveries, self.limits.delivery_limit) => {
                state.give_back(source, message, self.limits);
            }
            Verdict::Requeue | Verdict::PutOff => state.put_off(source, message),
            Verdict::Dead(reason) => state.bury(source, message.content, reason, self.limits),
        }
        drop(state);
        self.changed.notify_waiters();
        true
    }
}

/// What RabbitMQ would carry as headers.
fn headers(message: &Outgoing) -> BTreeMap<String, String> {
    let headers = message.trace.iter().flat_map(TraceContext::headers);
    headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl State {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn give_back(&mut self, source: Source, message: Message, limits: LocalLimits) {
        let redeliveries = message.redeliveries.saturating_add(1);
        if redeliveries > limits.delivery_limit {
            self.bury(source, message.content, "delivery_limit", limits);
        } else if let Some(queue) = self.queues.get_mut(&source) {
            queue.push_front(Message { redeliveries, ..message });
        }
    }

    fn put_off(&mut self, source: Source, message: Message) {
        if let Some(queue) = self.queues.get_mut(&source) {
            queue.push_back(Message { redeliveries: 0, ..message });
        }
    }

    fn bury(&mut self, source: Source, message: LocalRequest, reason: &str, limits: LocalLimits) {
        push_bounded(&mut self.dead, DeadLetter { source, message, reason: reason.to_owned() }, limits.capacity);
    }
}

/// A plain queue that drops its oldest entry rather than grow beyond `capacity`.
fn push_bounded<T>(queue: &mut VecDeque<T>, entry: T, capacity: usize) {
    if queue.len() >= capacity {
        queue.pop_front();
        tracing::warn!(capacity, "in-process queue full, the oldest entry is dropped");
    }
    queue.push_back(entry);
}

#[derive(Debug, Clone, Copy)]
enum Verdict<'a> {
    Done,
    Requeue,
    PutOff,
    Dead(&'a str),
}

#[derive(Debug)]
struct LocalPublisher(Arc<Shared>);

#[async_trait]
impl Publisher for LocalPublisher {
    async fn publish(&mut self, window: &[Outgoing]) -> Result<Vec<PublishOutcome>, QueueError> {
        Ok(window.iter().map(|message| self.0.publish(message)).collect())
    }

    async fn tasks_waiting(&mut self) -> Result<u64, QueueError> {
        let state = self.0.lock();
        let queue = state.queues.get(&Source::Purge);
        queue.map(|queue| queue.len() as u64).ok_or_else(|| QueueError::new("look at the purge queue", "no such queue"))
    }
}

#[derive(Debug)]
struct LocalConsumer {
    shared: Arc<Shared>,
    id: u64,
    source: Source,
    /// 0: no limit, as in AMQP.
    prefetch: u16,
    cancelled: bool,
}

impl LocalConsumer {
    /// The front message if there is room for it. `Err`: the queue was deleted.
    fn take(&self) -> Result<Option<Delivery>, Deleted> {
        let mut state = self.shared.lock();
        let tag = state.number();
        let State { queues, consumers, .. } = &mut *state;
        let held = consumers.get_mut(&self.id).ok_or(Deleted)?;
        let queue = queues.get_mut(&self.source).ok_or(Deleted)?;
        if self.prefetch > 0 && held.unanswered.len() >= usize::from(self.prefetch) {
            return Ok(None);
        }
        let Some(message) = queue.pop_front() else { return Ok(None) };
        let LocalRequest { body, message_id, reply_to, correlation_id, headers } = message.content.clone();
        let answer = Box::new(LocalAnswer { shared: Arc::clone(&self.shared), consumer: self.id, tag });
        let redeliveries = message.redeliveries;
        held.unanswered.insert(tag, message);
        let queue = self.source.as_str().to_owned();
        Ok(Some(Delivery { queue, body, message_id, reply_to, correlation_id, headers, redeliveries, answer }))
    }
}

struct Deleted;

#[async_trait]
impl Consumer for LocalConsumer {
    async fn next(&mut self) -> Result<Option<Delivery>, QueueError> {
        loop {
            // Registered before the look, so that no change falls between the look and the wait.
            let changed = self.shared.changed.notified();
            if self.cancelled {
                return Ok(None);
            }
            match self.take() {
                Ok(Some(delivery)) => return Ok(Some(delivery)),
                Ok(None) => changed.await,
                Err(Deleted) => return Ok(None),
            }
        }
    }

    async fn cancel(&mut self) -> Result<(), QueueError> {
        self.cancelled = true;
        Ok(())
    }
}

impl Drop for LocalConsumer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let held = state.consumers.remove(&self.id).map(|held| held.unanswered).unwrap_or_default();
        // The newest first, so that the oldest ends up in front.
        for message in held.into_values().rev() {
            state.give_back(self.source, message, self.shared.limits);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

#[derive(Debug)]
struct LocalAnswer {
    shared: Arc<Shared>,
    consumer: u64,
    tag: u64,
}

#[async_trait]
impl Answer for LocalAnswer {
    async fn ack(self: Box<Self>) -> Result<bool, QueueError> {
        Ok(self.shared.settle(self.consumer, self.tag, Verdict::Done))
    }

    async fn requeue(self: Box<Self>) -> Result<bool, QueueError> {
        Ok(self.shared.settle(self.consumer, self.tag, Verdict::Requeue))
    }

    async fn put_off(self: Box<Self>) -> Result<bool, QueueError> {
        Ok(self.shared.settle(self.consumer, self.tag, Verdict::PutOff))
    }

    async fn dead_letter(self: Box<Self>, reason: &str) -> Result<bool, QueueError> {
        Ok(self.shared.settle(self.consumer, self.tag, Verdict::Dead(reason)))
    }
}
