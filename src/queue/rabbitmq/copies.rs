//! Copies of deliveries: to the dead letters, or to the end of the queue that they came from.
//!
//! Invariant: a copy was confirmed before its original may be acked, so a message is in its queue, or its copy is, or,
//! after a crash between the two, both.

use std::{sync::Arc, time::Duration};

use lapin::{
    BasicProperties,
    types::{AMQPValue, ShortString},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

use super::{
    Headers, QueueError, RabbitSettings,
    consumer::DELIVERY_COUNT,
    publisher::{ConfirmChannel, PERSISTENT, Wire},
    short,
    topology::Topology,
};
use crate::queue::{PublishOutcome, REASON_HEADER, REASON_LIMIT, Source};

type SetText = fn(BasicProperties, ShortString) -> BasicProperties;

/// A message as it came.
#[derive(Debug)]
pub(super) struct Original {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
}

/// Publishes copies of what one consumer gets, on a connection that is opened for the first of them.
#[derive(Debug)]
pub(super) struct Copies {
    settings: Arc<RabbitSettings>,
    topology: Arc<Topology>,
    source: Source,
    /// One publish in flight at a time; taken out while it is, so that a cancelled or failed one is not used again.
    channel: Mutex<Option<ConfirmChannel>>,
}

impl Copies {
    pub(super) fn new(settings: &Arc<RabbitSettings>, topology: &Arc<Topology>, source: Source) -> Self {
        let (settings, topology) = (Arc::clone(settings), Arc::clone(topology));
        Self { settings, topology, source, channel: Mutex::new(None) }
    }

    /// The queue that the originals come from.
    pub(super) fn queue(&self) -> &str {
        self.topology.queue(self.source)
    }

    pub(super) fn step_timeout(&self) -> Duration {
        self.settings.step_timeout
    }

    pub(super) fn delivery_limit(&self) -> u32 {
        self.settings.delivery_limit
    }

    /// Returns when the dead-letter queue has it.
    pub(super) async fn to_the_dead(&self, original: &Original, reason: &str) -> Result<(), QueueError> {
        let from = &original.properties;
        let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        let added = [
            (REASON_HEADER, Some(truncated(reason).to_owned())),
            ("x-reprieve-exchange", Some(original.exchange.to_string())),
            ("x-reprieve-routing-key", Some(original.routing_key.to_string())),
            ("x-reprieve-queue", Some(self.queue().to_owned())),
            ("x-reprieve-user-id", text(from.user_id())),
            ("x-reprieve-expiration", text(from.expiration())),
        ];
        let wire = Wire {
            exchange: short(&self.topology.dead)?,
            routing_key: short(self.queue())?,
            mandatory: true,
            body: &original.body,
            properties: properties(from, &added)?,
        };
        self.publish(wire).await
    }

    /// Returns when its own queue has it once more.
    pub(super) async fn to_the_end(&self, original: &Original) -> Result<(), QueueError> {
        let mut properties = properties(&original.properties, &[])?;
        if let Some(expiration) = original.properties.expiration() {
            properties = properties.with_expiration(expiration.clone());
        }
        let wire = Wire {
            exchange: short(&self.topology.exchange)?,
            routing_key: short(Topology::key(self.source))?,
            mandatory: true,
            body: &original.body,
            properties,
        };
        self.publish(wire).await
    }

    async fn publish(&self, wire: Wire<'_>) -> Result<(), QueueError> {
        let doing = format!("publish a copy to the exchange {}", wire.exchange);
        let deadline = Instant::now() + self.settings.connect_timeout + self.settings.confirm_timeout;
        let publish = async {
            let mut idle = self.channel.lock().await;
            let mut channel = match idle.take().filter(|channel| channel.usable().is_ok()) {
                Some(channel) => channel,
                None => ConfirmChannel::open(&self.settings, "copies", Headers::Anybodys).await?,
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
            Some(PublishOutcome::Refused(reason) | PublishOutcome::Unconfirmed(reason)) => {
                Err(QueueError::new(doing, reason))
            }
            None => Err(QueueError::new(doing, "no outcome")),
        }
    }
}

/// The original properties with three exceptions: the broker refuses a `user_id` that is not ours, an `expiration`
/// would let a dead letter vanish, and the delivery count belongs to the message that was copied.
fn properties(from: &BasicProperties, added: &[(&str, Option<String>)]) -> Result<BasicProperties, QueueError> {
    let mut headers = from.headers().as_ref().map(|headers| headers.inner().clone()).unwrap_or_default();
    headers.remove(DELIVERY_COUNT);
    for (name, value) in added {
        if let Some(value) = value {
            headers.insert(short(name)?, AMQPValue::LongString(value.as_str().into()));
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

/// Headers share one frame; a reason that quotes a body must not burst it.
fn truncated(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_LIMIT)]
}
