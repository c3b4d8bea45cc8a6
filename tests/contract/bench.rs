//! One broker of either kind with a namespace to itself, and what the tests do to it from the outside.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use reprieve::queue::{
    Consumer, Delivery, Outgoing, PublishOutcome, REASON_HEADER, Source, Target, TaskQueue,
    local::{LocalLimits, LocalQueue, LocalReply, LocalRequest},
    rabbitmq::{RabbitQueue, RabbitSettings},
};
use uuid::Uuid;

use crate::support::{rabbitmq::shared, unique};

/// Beyond any wait that can succeed, on a busy machine too.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// So low that a test can reach it.
pub(crate) const DELIVERY_LIMIT: u32 = 3;

/// A queue under test.
pub(crate) struct Bench {
    pub(crate) queue: Arc<dyn TaskQueue>,
    outside: Outside,
}

enum Outside {
    Local(LocalQueue),
    Rabbit(Box<Raw>),
}

/// A dead letter, as far as both kinds can show it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub(crate) body: Vec<u8>,
    pub(crate) reason: String,
    pub(crate) message_id: Option<String>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) header: Option<String>,
}

impl Bench {
    pub(crate) fn local() -> Self {
        let queue = LocalQueue::new(LocalLimits { delivery_limit: DELIVERY_LIMIT, ..LocalLimits::default() });
        Self { queue: Arc::new(queue.clone()), outside: Outside::Local(queue) }
    }

    pub(crate) async fn rabbitmq() -> Self {
        let url = shared().await.amqp_url();
        let settings = settings(&url);
        let raw = Raw::open(&settings, &url).await;
        Self { queue: Arc::new(RabbitQueue::new(settings)), outside: Outside::Rabbit(Box::new(raw)) }
    }

    pub(crate) async fn prepared(self) -> Self {
        self.queue.prepare().await.expect("prepares");
        self
    }

    /// Publishes as Reprieve does.
    pub(crate) async fn publish(&self, window: &[Outgoing]) -> Vec<PublishOutcome> {
        let mut publisher = self.queue.publisher().await.expect("connects");
        within(publisher.publish(window)).await.expect("publishes")
    }

    /// Sends a request as another service does.
    pub(crate) async fn request(&self, request: LocalRequest) {
        match &self.outside {
            Outside::Local(queue) => assert_eq!(queue.publish_request(request), PublishOutcome::Confirmed),
            Outside::Rabbit(raw) => raw.publish(&raw.namespace, "requests", &request.body, properties(&request)).await,
        }
    }

    pub(crate) async fn delete(&self, source: Source) {
        match &self.outside {
            Outside::Local(queue) => queue.delete(source),
            Outside::Rabbit(raw) => raw.delete(source).await,
        }
    }

    /// Takes `count` dead letters.
    pub(crate) async fn dead_letters(&self, count: usize) -> Vec<Dead> {
        let dead = match &self.outside {
            Outside::Local(queue) => queue
                .dead_letters()
                .into_iter()
                .map(|dead| Dead {
                    body: dead.message.body,
                    reason: dead.reason,
                    message_id: dead.message.message_id,
                    correlation_id: dead.message.correlation_id,
                    header: dead.message.headers.get("x-custom").cloned(),
                })
                .collect(),
            Outside::Rabbit(raw) => raw.dead_letters(count).await,
        };
        assert_eq!(dead.len(), count, "{dead:?}");
        dead
    }

    /// Opens a reply queue and returns its name.
    pub(crate) async fn open_replies(&self) -> String {
        let name = unique("replies");
        match &self.outside {
            Outside::Local(queue) => queue.open_replies(&name),
            Outside::Rabbit(raw) => raw.declare_transient(&name).await,
        }
        name
    }

    pub(crate) async fn replies(&self, name: &str, count: usize) -> Vec<LocalReply> {
        match &self.outside {
            Outside::Local(queue) => queue.take_replies(name),
            Outside::Rabbit(raw) => raw.replies(name, count).await,
        }
    }

    pub(crate) async fn depth(&self, source: Source) -> u64 {
        let depths = self.queue.depths().await.expect("shows its depths");
        match source {
            Source::Requests => depths.requests,
            Source::Purge => depths.purge,
        }
    }
}

/// Settings for a namespace that nobody else uses.
pub(crate) fn settings(url: &str) -> RabbitSettings {
    RabbitSettings { namespace: unique("t"), delivery_limit: DELIVERY_LIMIT, ..RabbitSettings::new(url) }
}

/// The broker as other services and its operator see it.
pub(crate) struct Raw {
    pub(crate) channel: Channel,
    pub(crate) namespace: String,
    _connection: Connection,
}

impl Raw {
    pub(crate) async fn open(settings: &RabbitSettings, url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connects");
        let channel = connection.create_channel().await.expect("opens a channel");
        Self { channel, namespace: settings.namespace.clone(), _connection: connection }
    }

    pub(crate) async fn publish(&self, exchange: &str, key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
        sent.expect("publishes").await.expect("is taken");
    }

    pub(crate) async fn delete(&self, source: Source) {
        let name = match source {
            Source::Requests => "requests",
            Source::Purge => "purge",
        };
        let queue = format!("{}.{name}", self.namespace);
        self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deletes");
    }

    pub(crate) async fn declare_transient(&self, name: &str) {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, FieldTable::default()).await.expect("declares");
    }

    /// Takes `count` messages off a queue.
    pub(crate) async fn take(&self, queue: &str, count: usize) -> Vec<lapin::message::Delivery> {
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume = self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let stream = consume.await.expect("consumes").take(count);
        within(stream.map(|message| message.expect("arrives")).collect()).await
    }

    async fn dead_letters(&self, count: usize) -> Vec<Dead> {
        let taken = self.take(&format!("{}.dead", self.namespace), count).await;
        let dead = taken.into_iter().map(|message| Dead {
            reason: header(&message.properties, REASON_HEADER)
                .or_else(|| header(&message.properties, "x-first-death-reason"))
                .expect("has a reason"),
            message_id: message.properties.message_id().as_ref().map(ToString::to_string),
            correlation_id: message.properties.correlation_id().as_ref().map(ToString::to_string),
            header: header(&message.properties, "x-custom"),
            body: message.data,
        });
        dead.collect()
    }

    async fn replies(&self, name: &str, count: usize) -> Vec<LocalReply> {
        let taken = self.take(name, count).await;
        let replies = taken.into_iter().map(|message| LocalReply {
            correlation_id: message.properties.correlation_id().as_ref().map(ToString::to_string),
            body: message.data,
        });
        replies.collect()
    }
}

/// The text in a header.
pub(crate) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn properties(request: &LocalRequest) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &request.headers {
        headers.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
    }
    headers.insert("x-number".into(), AMQPValue::LongInt(7));
    let mut properties = BasicProperties::default().with_headers(headers);
    if let Some(id) = &request.message_id {
        properties = properties.with_message_id(id.as_str().into());
    }
    if let Some(id) = &request.correlation_id {
        properties = properties.with_correlation_id(id.as_str().into());
    }
    if let Some(queue) = &request.reply_to {
        properties = properties.with_reply_to(queue.as_str().into());
    }
    properties
}

/// A message for `target`.
pub(crate) fn message(target: Target, body: &str) -> Outgoing {
    Outgoing { id: Uuid::new_v4(), target, body: body.as_bytes().to_vec(), correlation_id: None, trace: None }
}

/// A purge task.
pub(crate) fn task(body: &str) -> Outgoing {
    message(Target::Purge, body)
}

/// A request with a body and nothing else.
pub(crate) fn request(body: &str) -> LocalRequest {
    LocalRequest { body: body.as_bytes().to_vec(), ..LocalRequest::default() }
}

/// Fails the test rather than hang.
pub(crate) async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, wait).await.expect("in time")
}

/// The next delivery, which must come.
pub(crate) async fn next(consumer: &mut Box<dyn Consumer>) -> Delivery {
    within(consumer.next()).await.expect("still consumes").expect("has not ended")
}
