//! Consuming with acknowledgements, and the way to the dead-letter queue.
//!
//! Invariant: a message leaves its queue only by an ack, and a dead letter is acked only after the dead-letter queue
//! has confirmed it; a crash between the two leaves it in both. A delivery outlives its consumer as a stale one: its
//! answers then say `Ok(false)` and do nothing.
//!
//! Every return to the queue (requeue, cancel, a lost connection) raises the broker's delivery count, which at
//! `x-delivery-limit` moves the message to the dead-letter queue with the broker's own `x-death` headers (brokers from
//! 4.3 on do not count requeues). A task that is merely early or refused for now is therefore acked and written to the
//! outbox again, not requeued.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Acker, BasicProperties,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    QueueError, RabbitSettings, Session, explain,
    publisher::{ConfirmChannel, PERSISTENT, Wire},
    short,
    topology::Topology,
    until,
};
use crate::queue::{Answer, Consumer, Delivery, PublishOutcome, REASON_HEADER, REASON_LIMIT, Source};

/// The broker's count of earlier deliveries.
const DELIVERY_COUNT: &str = "x-delivery-count";

const REQUEUE: BasicNackOptions = BasicNackOptions { multiple: false, requeue: true };

/// [`Consumer`] on a connection of its own.
#[derive(Debug)]
pub(super) struct RabbitConsumer {
    stream: lapin::Consumer,
    session: Session,
    ended: bool,
    dead_letters: Arc<DeadLetters>,
}

impl RabbitConsumer {
    pub(super) async fn open(
        settings: &Arc<RabbitSettings>,
        topology: &Arc<Topology>,
        source: Source,
        prefetch: u16,
    ) -> Result<Self, QueueError> {
        let queue = topology.queue(source);
        let session = Session::open(settings, &format!("consumer of {queue}")).await?;
        let qos = session.channel.basic_qos(prefetch, BasicQosOptions::default());
        session.step("set the prefetch", qos).await?;
        let consume = session.channel.basic_consume(
            short(queue)?,
            short("")?,
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let stream = session.step(&format!("consume queue {queue}"), consume).await?;
        let dead_letters = DeadLetters {
            settings: Arc::clone(settings),
            topology: Arc::clone(topology),
            queue: queue.to_owned(),
            channel: Mutex::new(None),
        };
        Ok(Self { stream, session, ended: false, dead_letters: Arc::new(dead_letters) })
    }

    fn delivery(&self, from: lapin::message::Delivery) -> Delivery {
        let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        let headers = string_headers(&from.properties);
        Delivery {
            message_id: text(from.properties.message_id()),
            reply_to: text(from.properties.reply_to()),
            correlation_id: text(from.properties.correlation_id()),
            headers,
            redeliveries: redeliveries(&from.properties).unwrap_or(u32::from(from.redelivered)),
            body: from.data.clone(),
            answer: Box::new(RabbitAnswer {
                acker: from.acker,
                original: Original {
                    exchange: from.exchange,
                    routing_key: from.routing_key,
                    properties: from.properties,
                    body: from.data,
                },
                dead_letters: Arc::clone(&self.dead_letters),
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
                Err(explain(&format!("consume queue {}", self.dead_letters.queue), &error))
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
            self.session.step("requeue", unseen.acker.nack(REQUEUE)).await?;
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

type SetText = fn(BasicProperties, ShortString) -> BasicProperties;

/// What the dead-letter queue gets to keep.
#[derive(Debug)]
struct Original {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

#[derive(Debug)]
struct RabbitAnswer {
    acker: Acker,
    original: Original,
    dead_letters: Arc<DeadLetters>,
}

impl RabbitAnswer {
    async fn within_a_step(
        &self,
        doing: &str,
        answer: impl Future<Output = lapin::Result<bool>>,
    ) -> Result<bool, QueueError> {
        until(Instant::now() + self.dead_letters.settings.step_timeout, doing, answer).await
    }
}

#[async_trait]
impl Answer for RabbitAnswer {
    async fn ack(self: Box<Self>) -> Result<bool, QueueError> {
        self.within_a_step("ack", self.acker.ack(BasicAckOptions::default())).await
    }

    async fn requeue(self: Box<Self>) -> Result<bool, QueueError> {
        self.within_a_step("requeue", self.acker.nack(REQUEUE)).await
    }

    async fn dead_letter(self: Box<Self>, reason: &str) -> Result<bool, QueueError> {
        if !self.acker.usable() {
            return Ok(false);
        }
        self.dead_letters.keep(&self.original, reason).await?;
        self.within_a_step("ack", self.acker.ack(BasicAckOptions::default())).await
    }
}

/// Publishes to the dead-letter exchange on a connection that is opened when the first dead letter turns up.
#[derive(Debug)]
struct DeadLetters {
    settings: Arc<RabbitSettings>,
    topology: Arc<Topology>,
    queue: String,
    /// One publish in flight at a time; taken out while it is, so that a cancelled or failed one is not used again.
    channel: Mutex<Option<ConfirmChannel>>,
}

impl DeadLetters {
    /// Returns when the dead-letter queue has it.
    async fn keep(&self, original: &Original, reason: &str) -> Result<(), QueueError> {
        let doing = format!("publish to the dead-letter exchange {}", self.topology.dead);
        let wire = Wire {
            exchange: short(&self.topology.dead)?,
            routing_key: short(&self.queue)?,
            mandatory: true,
            body: &original.body,
            properties: self.properties(original, reason)?,
        };
        let deadline = Instant::now() + self.settings.connect_timeout + self.settings.confirm_timeout;
        let publish = async {
            let mut idle = self.channel.lock().await;
            let mut channel = match idle.take().filter(|channel| channel.usable().is_ok()) {
                Some(channel) => channel,
                None => ConfirmChannel::open(&self.settings, "dead letters").await?,
            };
            let outcomes = channel.publish(&[wire]).await?;
            *idle = Some(channel);
            Ok(outcomes)
        };
        let outcomes = timeout_at(deadline, publish)
            .await
            .unwrap_or_else(|_| Err(QueueError::new(&doing, "no answer from the broker in time")))?;
        match outcomes.into_iter().next() {
            Some(PublishOutcome::Confirmed) => Ok(()),
            Some(PublishOutcome::Returned(reason)) => {
                Err(QueueError::new(doing, format!("no queue is bound to it: {reason}")))
            }
            Some(PublishOutcome::Unconfirmed(reason)) => Err(QueueError::new(doing, reason)),
            None => Err(QueueError::new(doing, "no outcome")),
        }
    }

    /// The original properties with three exceptions: the broker refuses a `user_id` that is not ours, an
    /// `expiration` would let the dead letter vanish, and the delivery count belongs to the queue it came from.
    fn properties(&self, original: &Original, reason: &str) -> Result<BasicProperties, QueueError> {
        let from = &original.properties;
        let mut headers = from.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
        headers.remove(DELIVERY_COUNT);
        let user = from.user_id().as_ref().map(ShortString::as_str);
        let expiration = from.expiration().as_ref().map(ShortString::as_str);
        let added = [
            (REASON_HEADER, Some(truncated(reason))),
            ("x-reprieve-exchange", Some(original.exchange.as_str())),
            ("x-reprieve-routing-key", Some(original.routing_key.as_str())),
            ("x-reprieve-queue", Some(self.queue.as_str())),
            ("x-reprieve-user-id", user),
            ("x-reprieve-expiration", expiration),
        ];
        for (name, value) in added {
            if let Some(value) = value {
                headers.insert(short(name)?, AMQPValue::LongString(value.into()));
            }
        }
        let mut to = BasicProperties::default().with_headers(headers.into()).with_delivery_mode(PERSISTENT);
        let texts: [(&Option<ShortString>, SetText); 7] = [
            (from.content_type(), BasicProperties::with_content_type),
            (from.content_encoding(), BasicProperties::with_content_encoding),
            (from.correlation_id(), BasicProperties::with_correlation_id),
            (from.reply_to(), BasicProperties::with_reply_to),
            (from.message_id(), BasicProperties::with_message_id),
            (from.kind(), BasicProperties::with_type),
            (from.app_id(), BasicProperties::with_app_id),
        ];
        for (value, set) in texts {
            if let Some(value) = value {
                to = set(to, value.clone());
            }
        }
        to = from.priority().map_or(to.clone(), |priority| to.with_priority(priority));
        Ok(from.timestamp().map_or(to.clone(), |timestamp| to.with_timestamp(timestamp)))
    }
}

/// Headers share one frame; a reason that quotes a body must not burst it.
fn truncated(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_LIMIT)]
}
