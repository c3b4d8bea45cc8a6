//! Hears every event and every reply, on queues of its own that outlive the broker's crashes.
//!
//! Invariant: a message is written down before it is acknowledged. When the broker is wiped, the queues are drained before
//! and bound again before anybody else may speak to it, so no event is missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The queue for replies.
pub fn replies(namespace: &str) -> String {
    format!("{namespace}.heard.replies")
}

fn events(namespace: &str) -> String {
    format!("{namespace}.heard.events")
}

/// What was heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Of each event (tombstone, name), the different messages that told of it.
    pub events: BTreeMap<(String, String), BTreeSet<String>>,
    /// The correlation ids of replies, and what they said.
    pub replies: BTreeMap<String, BTreeSet<String>>,
    /// Messages in all.
    pub messages: u64,
}

/// Listens until it is dropped.
#[derive(Clone)]
pub struct Listener {
    url: String,
    namespace: String,
    pub heard: Arc<Mutex<Heard>>,
}

impl Listener {
    pub async fn start(url: &str, namespace: &str, stop: CancellationToken) -> Listener {
        let listener = Listener { url: url.to_owned(), namespace: namespace.to_owned(), heard: Arc::default() };
        listener.declare().await;
        let ear = listener.clone();
        tokio::spawn(async move { stop.run_until_cancelled(ear.listen()).await });
        listener
    }

    /// Declares and binds the queues, as soon as the broker lets it.
    pub async fn declare(&self) {
        let declared = async || -> Option<()> {
            let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.ok()?;
            let channel = connection.create_channel().await.ok()?;
            self.declare_on(&channel).await.ok()?;
            connection.close(200, "done".into()).await.ok()
        };
        crate::support::wait_until("the listener's queues are declared", crate::support::SOON, async || {
            timeout(Duration::from_secs(5), declared()).await.is_ok_and(|done| done.is_some())
        })
        .await;
    }

    /// Waits until its queues are empty and it has written down what it was handed. Silence alone says nothing: it may be
    /// about to connect again.
    pub async fn catch_up(&self) {
        const QUIET: u32 = 8;
        crate::support::wait_until("the listener has heard everything", crate::support::SOON, async || {
            for _ in 0..QUIET {
                let before = self.heard.lock().expect("counts").messages;
                sleep(Duration::from_millis(60)).await;
                if self.heard.lock().expect("counts").messages != before {
                    return false;
                }
            }
            timeout(Duration::from_secs(5), self.waiting()).await.ok().flatten() == Some(0)
        })
        .await;
    }

    /// Messages that wait to be handed out. `None`: the broker does not say.
    async fn waiting(&self) -> Option<u32> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.ok()?;
        let channel = connection.create_channel().await.ok()?;
        let mut waiting = 0;
        for queue in [events(&self.namespace), replies(&self.namespace)] {
            let look = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
            waiting += channel.queue_declare(queue.into(), look, FieldTable::default()).await.ok()?.message_count();
        }
        connection.close(200, "done".into()).await.ok()?;
        Some(waiting)
    }

    async fn declare_on(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let exchange = format!("{}.events", self.namespace);
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
        for queue in [events(&self.namespace), replies(&self.namespace)] {
            let durable = QueueDeclareOptions { durable: true, ..Default::default() };
            channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
        }
        let (queue, every) = (events(&self.namespace), "#");
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), exchange.into(), every.into(), options, FieldTable::default()).await
    }

    async fn listen(&self) {
        loop {
            // ends with the connection, and begins again
            let _ = self.hear().await;
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn hear(&self) -> Result<(), lapin::Error> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(500, BasicQosOptions::default()).await?;
        let consume = async |queue: String| {
            channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await
        };
        let (of_events, of_replies) =
            (consume(events(&self.namespace)).await?, consume(replies(&self.namespace)).await?);
        let mut both = futures_util::stream::select(of_events, of_replies);
        while let Some(delivery) = both.next().await {
            let delivery = delivery?;
            self.note(&delivery);
            delivery.acker.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    }

    fn note(&self, delivery: &lapin::message::Delivery) {
        let body: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let property = |property: &Option<lapin::types::ShortString>| property.as_ref().map(ToString::to_string);
        let mut heard = self.heard.lock().expect("counts");
        heard.messages += 1;
        let message_id = property(delivery.properties.message_id()).unwrap_or_default();
        if body["event"].is_string() {
            let about = (text(&body["tombstone_id"]), text(&body["event"]));
            heard.events.entry(about).or_default().insert(message_id);
        } else {
            let to = property(delivery.properties.correlation_id()).unwrap_or_default();
            heard.replies.entry(to).or_default().insert(said(&body));
        }
    }
}

/// What an answer comes to: its status or the code of its refusal, and the tombstone that it is about.
pub fn said(answer: &Value) -> String {
    let what = if answer["ok"] == true { &answer["status"] } else { &answer["error"]["code"] };
    format!("{what} {}", answer["result"]["tombstone"]["tombstone_id"])
}
