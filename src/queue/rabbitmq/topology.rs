//! The exchanges and queues of one namespace, as data, and how they are declared, verified and measured.
//!
//! Invariant: declaring is idempotent and never deletes or alters what exists; a difference is an error that names it.
//!
//! | exchange            | kind   | leads to                                                         |
//! |---------------------|--------|------------------------------------------------------------------|
//! | `{ns}`              | direct | key `requests` → queue `{ns}.requests`, `purge` → `{ns}.purge`   |
//! | `{ns}.dead`         | fanout | queue `{ns}.dead`                                                |
//! | `{ns}.events`       | topic  | whoever binds a queue to it                                      |
//!
//! All queues are durable quorum queues. Those that are worked on hand a message that came back too often to
//! `{ns}.dead` at least once: that strategy needs `reject-publish`, else the broker falls back to at most once in
//! silence.

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use super::{Session, short};
use crate::queue::{Depths, QueueError, Source};

/// Dead letters are for people. Brokers from 4.0 on apply a limit of 20 where none is set and would then drop them, for
/// want of a further dead-letter queue; 3.x does not know -1 for "none". So: a limit that nobody reaches.
const DEAD_LETTER_DELIVERY_LIMIT: u32 = 1_000_000;

/// The routing key of the requests queue on the exchange of the namespace: what other services publish to.
const REQUESTS_KEY: &str = "requests";
/// The routing key of the purge queue.
pub(super) const PURGE_KEY: &str = "purge";

/// The names and arguments of one namespace.
#[derive(Debug)]
pub(super) struct Topology {
    /// Direct exchange for requests and purge tasks.
    pub(super) exchange: String,
    /// Topic exchange for events.
    pub(super) events: String,
    /// Fanout exchange in front of the dead-letter queue, which has the same name.
    pub(super) dead: String,
    requests: String,
    purge: String,
    delivery_limit: u32,
}

impl Topology {
    pub(super) fn new(namespace: &str, delivery_limit: u32) -> Self {
        Self {
            exchange: namespace.to_owned(),
            events: format!("{namespace}.events"),
            dead: format!("{namespace}.dead"),
            requests: format!("{namespace}.requests"),
            purge: format!("{namespace}.purge"),
            delivery_limit,
        }
    }

    /// The name of the queue behind `source`.
    pub(super) fn queue(&self, source: Source) -> &str {
        match source {
            Source::Requests => &self.requests,
            Source::Purge => &self.purge,
        }
    }

    /// What leads from the exchange of the namespace to the queue behind `source`.
    pub(super) fn key(source: Source) -> &'static str {
        match source {
            Source::Requests => REQUESTS_KEY,
            Source::Purge => PURGE_KEY,
        }
    }

    /// Whether `name` is one of our own queues, where no reply belongs.
    pub(super) fn owns(&self, name: &str) -> bool {
        [&self.requests, &self.purge, &self.dead].into_iter().any(|own| own == name)
    }

    fn exchanges(&self) -> [(&str, ExchangeKind); 3] {
        [
            (&self.dead, ExchangeKind::Fanout),
            (&self.exchange, ExchangeKind::Direct),
            (&self.events, ExchangeKind::Topic),
        ]
    }

    /// The dead-letter queue first: what follows points to it.
    fn queues(&self) -> Result<[(&str, FieldTable); 3], QueueError> {
        let worked_on = [
            ("x-queue-type", text("quorum")),
            ("x-dead-letter-exchange", text(&self.dead)),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
            ("x-delivery-limit", number(self.delivery_limit)),
        ];
        let dead = [("x-queue-type", text("quorum")), ("x-delivery-limit", number(DEAD_LETTER_DELIVERY_LIMIT))];
        Ok([(&self.dead, table(dead)?), (&self.requests, table(worked_on.clone())?), (&self.purge, table(worked_on)?)])
    }

    /// Queue, exchange, routing key.
    fn bindings(&self) -> [(&str, &str, &str); 3] {
        [
            (&self.dead, &self.dead, ""),
            (&self.requests, &self.exchange, REQUESTS_KEY),
            (&self.purge, &self.exchange, PURGE_KEY),
        ]
    }

    /// Creates what is missing. A crash half-way leaves less than all of it, and the next run adds the rest.
    pub(super) async fn declare(&self, session: &Session) -> Result<(), QueueError> {
        for (name, kind) in self.exchanges() {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let declare = session.channel.exchange_declare(short(name)?, kind, options, FieldTable::default());
            session.step(&format!("declare exchange {name}"), declare).await?;
        }
        for (name, arguments) in self.queues()? {
            let declare = session.channel.queue_declare(short(name)?, QueueDeclareOptions::durable(), arguments);
            session.step(&format!("declare queue {name}"), declare).await?;
        }
        for (queue, exchange, key) in self.bindings() {
            let (name, to, by) = (short(queue)?, short(exchange)?, short(key)?);
            let bind = session.channel.queue_bind(name, to, by, QueueBindOptions::default(), FieldTable::default());
            session.step(&format!("bind queue {queue} to exchange {exchange}"), bind).await?;
        }
        Ok(())
    }

    /// Checks that everything exists. The protocol shows neither arguments nor bindings: a missing binding shows when
    /// the first purge task comes back as returned.
    pub(super) async fn verify(&self, session: &Session) -> Result<(), QueueError> {
        for (name, kind) in self.exchanges() {
            let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let look = session.channel.exchange_declare(short(name)?, kind, options, FieldTable::default());
            session.step(&format!("verify exchange {name}"), look).await?;
        }
        self.depths(session).await.map(drop)
    }

    /// Messages ready in each queue; those handed out and not yet answered are not among them.
    pub(super) async fn depths(&self, session: &Session) -> Result<Depths, QueueError> {
        Ok(Depths {
            requests: count(session, &self.requests).await?,
            purge: count(session, &self.purge).await?,
            dead: count(session, &self.dead).await?,
        })
    }

    /// Messages ready in the purge queue.
    pub(super) async fn tasks_waiting(&self, session: &Session) -> Result<u64, QueueError> {
        count(session, &self.purge).await
    }
}

async fn count(session: &Session, name: &str) -> Result<u64, QueueError> {
    let options = QueueDeclareOptions::default().passive();
    let look = session.channel.queue_declare(short(name)?, options, FieldTable::default());
    let queue = session.step(&format!("look at queue {name}"), look).await?;
    Ok(u64::from(queue.message_count()))
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn number(value: u32) -> AMQPValue {
    AMQPValue::LongLongInt(value.into())
}

fn table<const N: usize>(arguments: [(&str, AMQPValue); N]) -> Result<FieldTable, QueueError> {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(short(name)?, value);
    }
    Ok(table)
}
