//! Consuming with acknowledgements.
//!
//! Invariant: a message leaves its queue only by an ack, and what is copied elsewhere (see [`copies`](super::copies)) is
//! acked only after the copy was confirmed; a crash between the two leaves both. A delivery outlives its consumer as a
//! stale one: its answers then say `Ok(false)` and do nothing.
//!
//! Every return to the queue (requeue, cancel, a lost connection) raises the broker's delivery count, which at
//! `x-delivery-limit` moves the message to the dead-letter queue with the broker's own `x-death` headers (brokers from
//! 4.3 on do not count requeues). Those that we make ourselves therefore stop at half of it, and a copy takes the
//! message's place.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Acker, BasicProperties,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::Instant;

use super::{
    Headers, QueueError, RabbitSettings, Session,
    copies::{Copies, Original},
    explain, short,
    topology::Topology,
    until,
};
use crate::queue::{Answer, Consumer, Delivery, Source, has_place};

/// The broker's count of earlier deliveries.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

/// [`Consumer`] on a connection of its own.
#[derive(Debug)]
pub(super) struct RabbitConsumer {
    stream: lapin::Consumer,
    session: Session,
    ended: bool,
    copies: Arc<Copies>,
}

impl RabbitConsumer {
    pub(super) async fn open(
        settings: &Arc<RabbitSettings>,
        topology: &Arc<Topology>,
        source: Source,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        let queue = topology.queue(source);
        let session = Session::open(settings, &format!("consumer of {queue}"), Headers::Anybodys).await?;
        let qos = session.channel.basic_qos(prefetch, BasicQosOptions::default());
        session.step("set the prefetch", qos).await?;
        let consume = session.channel.basic_consume(
            short(queue)?,
            short("")?,
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let stream = session.step(&format!("consume queue {queue}"), consume).await?;
        let copies = Arc::new(Copies::new(settings, topology, source));
        Ok(Self { stream, session, ended: false, copies })
    }

    fn delivery(&self, from: lapin::message::Delivery) -> Delivery {
        let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        let headers = string_headers(&from.properties);
        // the broker writes its count into the first delivery of no message: there it is the sender's
        let redeliveries = if from.redelivered { redeliveries(&from.properties).unwrap_or(1) } else { 0 };
        Delivery {
            queue: self.copies.queue().to_owned(),
            message_id: text(from.properties.message_id()),
            reply_to: text(from.properties.reply_to()),
            correlation_id: text(from.properties.correlation_id()),
            headers,
            redeliveries,
            body: from.data.clone(),
            answer: Box::new(RabbitAnswer {
                acker: from.acker,
                redeliveries,
                original: Original {
                    exchange: from.exchange,
                    routing_key: from.routing_key,
                    properties: from.properties,
                    body: from.data,
                },
                copies: Arc::clone(&self.copies),
            }),
        }
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    /// Waits without a limit; heartbeats end it when the broker falls silent.
    async fn next(&mut self) -> Result<Option<Delivery>, QueueError> {
        if self.ended {
            return Ok(None);
        }
        match self.stream.next().await {
            Some(Ok(delivery)) => Ok(Some(self.delivery(delivery))),
            Some(Err(error)) => {
                self.ended = true;
                Err(explain(&format!("consume queue {}", self.copies.queue()), &error))
            }
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    async fn cancel(&mut self) -> Result<(), QueueError> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        let cancel = self.session.channel.basic_cancel(self.stream.tag(), BasicCancelOptions::default());
        self.session.step("cancel the consumer", cancel).await?;
        // What the broker had sent ahead would wait until the connection closes; others can have it now.
        while let Some(Some(Ok(unseen))) = self.stream.next().now_or_never() {
            self.delivery(unseen).answer.requeue().await?;
        }
        Ok(())
    }
}

/// Header values of other types than text do not concern us, nor does text that is not UTF-8.
fn string_headers(properties: &BasicProperties) -> BTreeMap<String, String> {
    let headers = properties.headers().iter().flat_map(FieldTable::inner);
    let texts = headers.filter_map(|(name, value)| match value {
        AMQPValue::LongString(text) => {
            std::str::from_utf8(text.as_bytes()).ok().map(|text| (name.to_string(), text.to_owned()))
        }
        _ => None,
    });
    texts.collect()
}

fn redeliveries(properties: &BasicProperties) -> Option<u32> {
    let count = match properties.headers().as_ref()?.inner().get(DELIVERY_COUNT)? {
        AMQPValue::LongLongInt(count) => *count,
        AMQPValue::LongInt(count) => i64::from(*count),
        AMQPValue::ShortInt(count) => i64::from(*count),
        AMQPValue::ShortShortInt(count) => i64::from(*count),
        _ => return None,
    };
    Some(u32::try_from(count.max(0)).unwrap_or(u32::MAX))
}

#[derive(Debug)]
struct RabbitAnswer {
    acker: Acker,
    redeliveries: u32,
    original: Original,
    copies: Arc<Copies>,
}

impl RabbitAnswer {
    async fn within_a_step(
        &self,
        doing: &str,
        answer: impl Future<Output = lapin::Result<bool>>,
    ) -> Result<bool, QueueError> {
        until(Instant::now() + self.copies.step_timeout(), doing, answer).await
    }
}

#[async_trait]
impl Answer for RabbitAnswer {
    async fn ack(self: Box<Self>) -> Result<bool, QueueError> {
        self.within_a_step("ack", self.acker.ack(BasicAckOptions::default())).await
    }

    async fn requeue(self: Box<Self>) -> Result<bool, QueueError> {
        if !has_place(self.redeliveries, self.copies.delivery_limit()) {
            return self.put_off().await;
        }
        self.within_a_step("requeue", self.acker.nack(REQUEUE)).await
    }

    async fn put_off(self: Box<Self>) -> Result<bool, QueueError> {
        if !self.acker.usable() {
            return Ok(false);
        }
        self.copies.to_the_end(&self.original).await?;
        self.within_a_step("ack", self.acker.ack(BasicAckOptions::default())).await
    }

    async fn dead_letter(self: Box<Self>, reason: &str) -> Result<bool, QueueError> {
        if !self.acker.usable() {
            return Ok(false);
        }
        self.copies.to_the_dead(&self.original, reason).await?;
        self.within_a_step("ack", self.acker.ack(BasicAckOptions::default())).await
    }
}
