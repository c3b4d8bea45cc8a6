//! The task queue as Reprieve sees it: publish with confirms, consume with acknowledgements.
//!
//! Invariant: a message is a hint and the database is the truth. A message may come twice, late, out of order or
//! never; nothing here is needed for correctness, only for promptness. Nothing is reported as published before the
//! broker has taken responsibility for it.

pub mod local;
pub mod message;
pub mod rabbitmq;
pub mod supervise;

use std::collections::BTreeMap;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::cause::TraceContext;

/// The header of a dead letter that says why it is one.
pub const REASON_HEADER: &str = "x-reprieve-reason";

/// Bytes of a reason that are kept: all headers of a message share one frame of 128 KiB.
pub const REASON_LIMIT: usize = 4096;

/// A queue that a role consumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Requests of other services: trash, restore, purge.
    Requests,
    /// Purge tasks, written by the relay alone.
    Purge,
}

impl Source {
    /// As the names of queues end.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Purge => "purge",
        }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The purge queue.
    Purge,
    /// The exchange of life-cycle events (topic), with this routing key, such as `dataset.trashed`. Nobody needs to listen.
    Events(String),
    /// The queue that a requester named in `reply_to`.
    Reply(String),
}

impl Target {
    /// Whether a message that no queue takes is an error (else it is dropped, and that is fine).
    pub fn is_mandatory(&self) -> bool {
        matches!(self, Self::Purge)
    }
}

/// A message to publish. Persistent, `application/json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// `message_id`: the outbox row's id, unique in a window.
    pub id: Uuid,
    /// Where to.
    pub target: Target,
    /// The JSON text.
    pub body: Vec<u8>,
    /// `correlation_id`.
    pub correlation_id: Option<String>,
    /// The headers `traceparent` and `tracestate`.
    pub trace: Option<TraceContext>,
}

/// What became of one published message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishOutcome {
    /// The broker has it (or, where the target is not mandatory, dropped it for want of a listener).
    Confirmed,
    /// No queue took a mandatory message; the broker's reason.
    Returned(String),
    /// The broker refuses this message by itself (no permission, no such exchange, a name that is none). The reason.
    Refused(String),
    /// No answer in time, or none that is sure: it may or may not be there. The reason.
    Unconfirmed(String),
}

/// The broker could not be reached, or refused. Always worth another try, after the cause is mended.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct QueueError {
    /// What was being done, such as `declare queue reprieve.purge`.
    pub doing: String,
    /// The cause and, where it is known, what to do about it.
    pub reason: String,
}

impl QueueError {
    pub(crate) fn new(doing: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { doing: doing.into(), reason: reason.into() }
    }
}

/// A message that came. Dropped without an answer, it goes back to the queue when its consumer ends.
#[derive(Debug)]
pub struct Delivery {
    /// The queue that it was taken from, by its name in the broker.
    pub queue: String,
    /// The body as sent; anybody may have sent it.
    pub body: Vec<u8>,
    /// `message_id`, if any.
    pub message_id: Option<String>,
    /// `reply_to`, if any.
    pub reply_to: Option<String>,
    /// `correlation_id`, if any.
    pub correlation_id: Option<String>,
    /// String-valued headers.
    pub headers: BTreeMap<String, String>,
    /// How often the broker has handed it out before, as far as it says (`x-delivery-count`).
    pub redeliveries: u32,
    /// Answers for this delivery.
    pub answer: Box<dyn Answer>,
}

impl Delivery {
    /// The trace that its sender says it is part of.
    pub fn trace(&self) -> Option<TraceContext> {
        let header = |name| self.headers.get(name).map(String::as_str);
        TraceContext::parse(header(TraceContext::TRACEPARENT)?, header(TraceContext::TRACESTATE))
    }
}

/// The one answer to a delivery.
#[async_trait]
pub trait Answer: Send + Sync + std::fmt::Debug {
    /// Done with it. `Ok(false)`: the consumer is stale and the broker will hand the message out again.
    async fn ack(self: Box<Self>) -> Result<bool, QueueError>;
    /// Not now: back to its place in the queue, to be handed out again at once. That counts as a redelivery, and too
    /// many of those make a dead letter, which no message becomes for what it cannot help: from half of the limit on it
    /// is put off instead ([`Answer::put_off`]), and counts anew. What has to wait for a time belongs into the outbox.
    async fn requeue(self: Box<Self>) -> Result<bool, QueueError>;
    /// Not now, and others first: puts a copy at the end of its queue, waits for the confirm, then acks. A crash between
    /// the two leaves it there twice. It counts as new, so this can be done without end. After an error it stays
    /// unanswered, and comes again when the consumer ends.
    async fn put_off(self: Box<Self>) -> Result<bool, QueueError>;
    /// Never: publishes body and properties to the dead-letter queue with `reason` in the header
    /// `x-reprieve-reason`, waits for the confirm, then acks. A crash between the two leaves the message in both. After
    /// an error it stays unanswered, and comes again when the consumer ends.
    async fn dead_letter(self: Box<Self>, reason: &str) -> Result<bool, QueueError>;
}

/// Publishes windows of messages. One to a task; `&mut` keeps two windows from mixing.
#[async_trait]
pub trait Publisher: Send + std::fmt::Debug {
    /// Publishes all of `window`, several in flight, and waits for every confirm (with a time-out). One outcome for
    /// each message, in order. An error means that the connection is gone and none is known to have arrived: the
    /// caller drops this publisher and connects anew. Not safe to cancel: a call that was dropped half-way leaves a
    /// publisher that only returns errors. An empty window tells whether the connection is still up.
    async fn publish(&mut self, window: &[Outgoing]) -> Result<Vec<PublishOutcome>, QueueError>;
    /// How many purge tasks wait to be handed out. An error says nothing about the connection that publishes.
    async fn tasks_waiting(&mut self) -> Result<u64, QueueError>;
}

/// Consumes one queue.
#[async_trait]
pub trait Consumer: Send + std::fmt::Debug {
    /// Waits for the next delivery. `Ok(None)` or an error: the consumer has ended (queue deleted, connection lost);
    /// the caller drops it and connects anew. Safe to cancel.
    async fn next(&mut self) -> Result<Option<Delivery>, QueueError>;
    /// Stops the intake; deliveries already handed out can still be answered, those not yet handed out go back.
    async fn cancel(&mut self) -> Result<(), QueueError>;
}

/// Whether a message that was handed out again so often can go back to its place. Half of the limit is left for
/// connections that are lost and processes that die, which nobody can prevent from counting.
fn has_place(redeliveries: u32, delivery_limit: u32) -> bool {
    redeliveries < delivery_limit / 2
}

/// How many messages wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depths {
    /// In the requests queue.
    pub requests: u64,
    /// In the purge queue.
    pub purge: u64,
    /// In the dead-letter queue.
    pub dead: u64,
}

/// A broker. All implementations pass `tests/contract/queue.rs`. Every call opens what it needs: an implementation
/// keeps no connection between calls that it could not replace.
#[async_trait]
pub trait TaskQueue: Send + Sync + std::fmt::Debug {
    /// Declares (or, where configured, only verifies) exchanges and queues. Safe to run twice and side by side.
    async fn prepare(&self) -> Result<(), QueueError>;
    /// A new publisher on a connection of its own.
    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError>;
    /// A new consumer that holds at most `prefetch` unanswered deliveries, on a connection of its own.
    async fn consumer(&self, source: Source, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError>;
    /// How many messages wait.
    async fn depths(&self) -> Result<Depths, QueueError>;
}
