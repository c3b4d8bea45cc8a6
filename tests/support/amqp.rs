//! A client of the broker that is not ours: it publishes what it likes and looks into queues.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::BTreeMap;
use std::sync::Arc;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::Value;

use crate::process::Service;
use crate::support::{SOON, wait_until};
use crate::world::World;

#[derive(Clone)]
pub struct Amqp {
    _connection: Arc<Connection>,
    channel: Channel,
    namespace: String,
}

/// A message taken from a queue.
#[derive(Debug)]
pub struct Taken {
    pub body: Vec<u8>,
    pub message_id: Option<String>,
    pub correlation_id: Option<String>,
    pub headers: BTreeMap<String, String>,
}

impl Taken {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

impl Amqp {
    /// Connects as soon as a service with the role intake has declared the namespace's queues.
    pub async fn beside(world: &World, service: &Service) -> Amqp {
        service.says("intake consumes").await;
        Amqp::connect(world).await
    }

    pub async fn connect(world: &World) -> Amqp {
        let connection = Connection::connect(&world.amqp_url, ConnectionProperties::default()).await.expect("connects");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Amqp { _connection: Arc::new(connection), channel, namespace: world.namespace.clone() }
    }

    /// The same client for another namespace, whose queues are there.
    pub fn of(&self, namespace: &str) -> Amqp {
        Amqp { namespace: namespace.to_owned(), ..self.clone() }
    }

    /// A queue of our own, for replies, bound to nothing.
    pub async fn reply_queue(&self) -> String {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = self.channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
        queue.name().to_string()
    }

    /// A queue of our own that gets a copy of what an exchange of the namespace hands on under `key`.
    pub async fn listen(&self, exchange: &str, key: &str) -> String {
        let queue = self.reply_queue().await;
        let exchange = format!("{}{exchange}", self.namespace);
        let bound = self.channel.queue_bind(
            queue.as_str().into(),
            exchange.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("bound");
        queue
    }

    /// Publishes to the exchange of the namespace and insists that a queue took it.
    pub async fn publish(&self, key: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = self.namespace.as_str().into();
        let sent = self.channel.basic_publish(exchange, key.into(), options, body, properties.with_delivery_mode(2));
        let confirmed = sent.await.expect("sent").await.expect("confirmed");
        assert!(confirmed.is_ack() && confirmed.take_message().is_none(), "no queue took it");
    }

    /// Publishes a request, and gives back what is answered.
    pub async fn ask(&self, request: &Value) -> Value {
        let queue = self.reply_queue().await;
        let id = uuid::Uuid::new_v4().to_string();
        let properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_correlation_id(id.as_str().into())
            .with_reply_to(queue.as_str().into());
        self.publish("requests", request.to_string().as_bytes(), properties).await;
        let reply = self.take(&queue).await;
        assert_eq!(reply.correlation_id.as_deref(), Some(id.as_str()));
        reply.json()
    }

    /// Waits for the next message of a queue.
    pub async fn take(&self, queue: &str) -> Taken {
        let mut taken = None;
        wait_until(format!("a message in {queue}"), SOON, async || {
            taken = self.try_take(queue).await;
            taken.is_some()
        })
        .await;
        taken.expect("just taken")
    }

    /// The next dead letter.
    pub async fn dead_letter(&self) -> Taken {
        self.take(&format!("{}.dead", self.namespace)).await
    }

    /// The next dead letter, if there is one now.
    pub async fn try_dead_letter(&self) -> Option<Taken> {
        self.try_take(&format!("{}.dead", self.namespace)).await
    }

    pub async fn try_take(&self, queue: &str) -> Option<Taken> {
        let options = BasicGetOptions { no_ack: true };
        let message = self.channel.basic_get(queue.into(), options).await.expect("answers")?.delivery;
        let text = |value: &AMQPValue| match value {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            _ => None,
        };
        let headers = message.properties.headers().iter().flat_map(|headers| headers.inner());
        Some(Taken {
            message_id: message.properties.message_id().as_ref().map(ToString::to_string),
            correlation_id: message.properties.correlation_id().as_ref().map(ToString::to_string),
            headers: headers.filter_map(|(name, value)| Some((name.to_string(), text(value)?))).collect(),
            body: message.data,
        })
    }

    /// How many messages wait in a queue of the namespace.
    pub async fn depth(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let name = format!("{}.{queue}", self.namespace);
        self.channel
            .queue_declare(name.into(), options, FieldTable::default())
            .await
            .expect("it is there")
            .message_count()
    }
}
