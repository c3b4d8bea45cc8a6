//! A hostile client of a namespace: it takes messages out of the queues and gives them back as it likes, and forges.
//!
//! Invariant: of requests, which have no other copy, it loses none: it holds a message unacknowledged until its copies
//! are confirmed, so a request comes at least once, also when this client dies. Purge tasks it may drop: the database
//! brings them back. Every method says what it did; an error means that its connection is gone (a broker that is
//! killed), and whoever calls it connects anew. What it held goes back to its queue then.
#![allow(dead_code, reason = "the campaign and the tests of single faults each use their own part")]

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde_json::{Value, json};
use uuid::Uuid;

/// How long it waits for messages that it wants to take.
const PATIENCE: Duration = Duration::from_millis(300);

/// What no service should be sent.
const HUGE: usize = 20 * 1024 * 1024;

/// A queue of a namespace that a role works on; also the routing key to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    Requests,
    Purge,
}

impl Victim {
    pub const ALL: [Victim; 2] = [Victim::Requests, Victim::Purge];

    pub fn key(self) -> &'static str {
        match self {
            Victim::Requests => "requests",
            Victim::Purge => "purge",
        }
    }
}

/// A message that nobody of ours has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    UnknownId,
    WrongKind,
    OtherVersion,
    NotJson,
    DeepJson,
    DuplicateKeys,
    Empty,
    Huge,
    StrangeProperties,
    NoMessageId,
}

impl Forgery {
    pub const ALL: [Forgery; 10] = [
        Forgery::UnknownId,
        Forgery::WrongKind,
        Forgery::OtherVersion,
        Forgery::NotJson,
        Forgery::DeepJson,
        Forgery::DuplicateKeys,
        Forgery::Empty,
        Forgery::Huge,
        Forgery::StrangeProperties,
        Forgery::NoMessageId,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Forgery::UnknownId => "forged unknown id",
            Forgery::WrongKind => "forged wrong kind",
            Forgery::OtherVersion => "forged other version",
            Forgery::NotJson => "forged not json",
            Forgery::DeepJson => "forged deep json",
            Forgery::DuplicateKeys => "forged duplicate keys",
            Forgery::Empty => "forged empty body",
            Forgery::Huge => "forged 20 MB",
            Forgery::StrangeProperties => "forged strange properties",
            Forgery::NoMessageId => "forged no message id",
        }
    }

    /// What the reason of its dead letter speaks of; `None`: it can be read, and is answered with "no such thing".
    pub fn reason(self, to: Victim) -> Option<&'static str> {
        match (self, to) {
            (Forgery::UnknownId | Forgery::StrangeProperties | Forgery::NoMessageId, _) => None,
            (Forgery::WrongKind, Victim::Requests) => Some("no-such-kind"),
            (Forgery::WrongKind, Victim::Purge) => Some("UUID"),
            (Forgery::OtherVersion, _) => Some("unknown version 9"),
            (Forgery::NotJson | Forgery::Empty, _) => Some("not JSON"),
            (Forgery::DeepJson, _) => Some("recursion limit"),
            (Forgery::DuplicateKeys, _) => Some("duplicate field"),
            (Forgery::Huge, _) => Some("too large"),
        }
    }

    fn body(self, to: Victim, rng: &mut impl Rng) -> Vec<u8> {
        let id = uuid(rng);
        let sound = match to {
            Victim::Requests => {
                let op = *["trash", "restore", "purge"].choose(rng).expect("not empty");
                json!({ "v": 1, "op": op, "kind": "dataset", "id": id, "actor": "mischief" })
            }
            Victim::Purge => json!({ "v": 1, "tombstone_id": id }),
        };
        let with = |name: &str, value: Value| {
            let mut body = sound.clone();
            body[name] = value;
            body.to_string().into_bytes()
        };
        match self {
            Forgery::UnknownId | Forgery::StrangeProperties | Forgery::NoMessageId => sound.to_string().into_bytes(),
            Forgery::WrongKind if to == Victim::Requests => with("kind", json!("no-such-kind")),
            Forgery::WrongKind => with("tombstone_id", json!("dataset")),
            Forgery::OtherVersion => with("v", json!(9)),
            Forgery::NotJson => (0..rng.random_range(1..200)).map(|_| rng.random_range(128..=255u8)).collect(),
            Forgery::DeepJson => "[".repeat(30_000).into_bytes(),
            Forgery::DuplicateKeys => {
                let text = sound.to_string();
                format!(r#"{{"v":1,{}"#, &text[1..]).into_bytes()
            }
            Forgery::Empty => Vec::new(),
            Forgery::Huge => vec![b' '; HUGE],
        }
    }

    fn properties(self, rng: &mut impl Rng) -> BasicProperties {
        let plain = BasicProperties::default().with_delivery_mode(2);
        match self {
            Forgery::NoMessageId => plain,
            Forgery::StrangeProperties => strange(plain, rng),
            _ => plain.with_message_id(uuid(rng).to_string().into()),
        }
    }
}

/// Properties as nobody should set them: a type that does not fit, headers of ours with other types, a NUL.
fn strange(plain: BasicProperties, rng: &mut impl Rng) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongString("many".into()));
    headers.insert("x-reprieve-reason".into(), AMQPValue::Double(1.5));
    headers.insert("x-death".into(), AMQPValue::Boolean(true));
    headers.insert("blob".into(), AMQPValue::LongString(vec![0xff; 10_000].into()));
    plain
        .with_message_id(format!("{}\0", uuid(rng)).into())
        .with_correlation_id("\0".into())
        .with_reply_to("no\0such queue".into())
        .with_content_type("image/png".into())
        .with_content_encoding("gzip".into())
        .with_priority(255)
        .with_timestamp(u64::MAX)
        .with_headers(headers)
}

/// Drawn like everything else, so that a seed gives the same run.
fn uuid(rng: &mut impl Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

/// The client.
pub struct Mischief {
    _connection: Connection,
    channel: Channel,
    namespace: String,
    /// Taken, and not given back yet.
    held: Vec<(Victim, Delivery)>,
}

impl Mischief {
    /// On a connection of its own; the namespace has been declared.
    ///
    /// # Errors
    /// The broker does not answer.
    pub async fn connect(amqp_url: &str, namespace: &str) -> lapin::Result<Mischief> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Mischief { _connection: connection, channel, namespace: namespace.to_owned(), held: Vec::new() })
    }

    /// Takes up to `most` purge tasks away for good. How many.
    pub async fn drop_tasks(&mut self, rng: &mut impl Rng, most: u16) -> lapin::Result<usize> {
        let taken = self.take(Victim::Purge, rng.random_range(1..=most)).await?;
        for task in &taken {
            task.ack(BasicAckOptions::default()).await?;
        }
        Ok(taken.len())
    }

    /// Sends up to `most` messages two to four times. How many messages there are now beyond those that there were.
    pub async fn duplicate(&mut self, rng: &mut impl Rng, from: Victim, most: u16) -> lapin::Result<usize> {
        let mut more = 0;
        for message in self.take(from, rng.random_range(1..=most)).await? {
            let copies = rng.random_range(2..=4);
            self.copy(from, &message, copies).await?;
            more += copies - 1;
        }
        Ok(more)
    }

    /// Puts up to `most` messages back in another order, behind all others. How many changed places.
    pub async fn reorder(&mut self, rng: &mut impl Rng, from: Victim, most: u16) -> lapin::Result<usize> {
        let mut taken = self.take(from, most.max(2)).await?;
        taken.shuffle(rng);
        for message in &taken {
            self.copy(from, message, 1).await?;
        }
        Ok(if taken.len() > 1 { taken.len() } else { 0 })
    }

    /// Takes up to `most` messages and keeps them until [`Mischief::release`]. How many.
    pub async fn delay(&mut self, rng: &mut impl Rng, from: Victim, most: u16) -> lapin::Result<usize> {
        let taken = self.take(from, rng.random_range(1..=most)).await?;
        let delayed = taken.len();
        self.held.extend(taken.into_iter().map(|message| (from, message)));
        Ok(delayed)
    }

    /// How many messages it keeps.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Gives back what it keeps, in another order. How many.
    pub async fn release(&mut self, rng: &mut impl Rng) -> lapin::Result<usize> {
        let mut held = std::mem::take(&mut self.held);
        held.shuffle(rng);
        for (from, message) in &held {
            self.copy(*from, message, 1).await?;
        }
        Ok(held.len())
    }

    /// Publishes a forgery of a kind that is drawn; all but [`Forgery::Huge`], which has its price.
    pub async fn forge(&mut self, rng: &mut impl Rng, to: Victim) -> lapin::Result<Forgery> {
        let cheap: Vec<_> = Forgery::ALL.into_iter().filter(|forgery| *forgery != Forgery::Huge).collect();
        let forgery = *cheap.choose(rng).expect("not empty");
        self.forge_as(rng, to, forgery).await?;
        Ok(forgery)
    }

    /// Publishes this forgery. Its body.
    pub async fn forge_as(&mut self, rng: &mut impl Rng, to: Victim, forgery: Forgery) -> lapin::Result<Vec<u8>> {
        let body = forgery.body(to, rng);
        let properties = forgery.properties(rng);
        self.publish(&self.namespace, to.key(), &body, properties).await?;
        Ok(body)
    }

    /// Publishes a task of each of these, whether or not it is due. How many.
    pub async fn hurry(&self, tombstones: &[Uuid]) -> lapin::Result<usize> {
        for id in tombstones {
            let body = json!({ "v": 1, "tombstone_id": id }).to_string();
            let properties = BasicProperties::default().with_delivery_mode(2);
            self.publish(&self.namespace, Victim::Purge.key(), body.as_bytes(), properties).await?;
        }
        Ok(tombstones.len())
    }

    /// Takes up to `most` messages out of a queue. It competes with who works on it, so it can get none.
    async fn take(&mut self, from: Victim, most: u16) -> lapin::Result<Vec<Delivery>> {
        let queue = format!("{}.{}", self.namespace, from.key());
        self.channel.basic_qos(most, BasicQosOptions::default()).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer = self.channel.basic_consume(queue.into(), "".into(), options, none).await?;
        let mut taken = Vec::new();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while taken.len() < usize::from(most) {
            match tokio::time::timeout_at(deadline, consumer.next()).await {
                Ok(Some(message)) => taken.push(message?),
                Ok(None) | Err(_) => break,
            }
        }
        self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        // what came before the broker knew
        while let Some(Some(Ok(message))) = consumer.next().now_or_never() {
            taken.push(message);
        }
        Ok(taken)
    }

    /// Publishes copies of a message to the queue that it came from, and then takes the original out.
    async fn copy(&self, to: Victim, message: &Delivery, copies: usize) -> lapin::Result<()> {
        let mut properties = message.properties.clone();
        if let Some(headers) = message.properties.headers() {
            let mut headers = headers.inner().clone();
            headers.remove("x-delivery-count");
            properties = properties.with_headers(headers.into());
        }
        for _ in 0..copies {
            self.publish(&self.namespace, to.key(), &message.data, properties.clone()).await?;
        }
        message.ack(BasicAckOptions::default()).await.map(drop)
    }

    async fn publish(&self, exchange: &str, key: &str, body: &[u8], with: BasicProperties) -> lapin::Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key): (ShortString, ShortString) = (exchange.into(), key.into());
        self.channel.basic_publish(exchange, key, options, body, with).await?.await.map(drop)
    }
}
