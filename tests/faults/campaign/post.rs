//! Messages to the requests queue, as another service sends them: with publisher confirms and an id of their own.
//!
//! Invariant: a message counts as sent when the broker has confirmed it, and then it is written down. One that was not
//! confirmed may have arrived all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::dice::Dice;
use super::land::Land;

/// For connecting, publishing and the confirm together.
const PATIENCE: Duration = Duration::from_secs(5);

/// A message that the broker has.
#[derive(Debug, Clone)]
pub struct Sent {
    pub message_id: String,
    /// How often the broker had lost everything before.
    pub wipes_before: u64,
}

/// What somebody was told of a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    Trashed,
    Restored,
}

/// What was confirmed and acknowledged, to be found again in the end.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sent: std::sync::Mutex<Vec<Sent>>,
    /// By the library and by HTTP.
    pub acknowledged: std::sync::Mutex<Vec<(Uuid, Acknowledged)>>,
    pub wipes: AtomicU64,
}

impl Ledger {
    pub fn acknowledge(&self, tombstone: Uuid, as_what: Acknowledged) {
        self.acknowledged.lock().expect("a list").push((tombstone, as_what));
    }
}

/// One sender.
pub struct Post {
    land: Arc<Land>,
    name: String,
    count: u64,
    line: Option<(Connection, Channel)>,
    last: Option<(String, String)>,
}

impl Post {
    pub fn new(land: &Arc<Land>, name: &str) -> Post {
        Post { land: Arc::clone(land), name: name.to_owned(), count: 0, line: None, last: None }
    }

    /// Sends it; now and then the last message once more.
    pub async fn send(&mut self, message: &Value, dice: &mut Dice) -> &'static str {
        if dice.chance(10)
            && let Some((id, body)) = self.last.clone()
        {
            self.land.tally.add("asked: the same message again");
            return self.publish(&id, &body).await;
        }
        self.count += 1;
        let (id, body) = (format!("{}-{}", self.name, self.count), message.to_string());
        self.last = Some((id.clone(), body.clone()));
        self.publish(&id, &body).await
    }

    async fn publish(&mut self, id: &str, body: &str) -> &'static str {
        let wipes_before = self.land.ledger.wipes.load(Ordering::SeqCst);
        match timeout(PATIENCE, self.try_publish(id, body)).await {
            Ok(Some(Confirmation::Ack(None))) => {
                let sent = Sent { message_id: id.to_owned(), wipes_before };
                self.land.ledger.sent.lock().expect("a list").push(sent);
                "confirmed"
            }
            Ok(Some(Confirmation::Ack(Some(_)))) => "returned",
            Ok(Some(_)) => "refused",
            Ok(None) | Err(_) => {
                self.line = None;
                "not confirmed"
            }
        }
    }

    async fn try_publish(&mut self, id: &str, body: &str) -> Option<Confirmation> {
        if self.line.is_none() {
            let connection = Connection::connect(&self.land.broker_url, ConnectionProperties::default()).await.ok()?;
            let channel = connection.create_channel().await.ok()?;
            channel.confirm_select(ConfirmSelectOptions::default()).await.ok()?;
            self.line = Some((connection, channel));
        }
        let (_, channel) = self.line.as_ref().expect("just opened");
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(id.into())
            .with_correlation_id(id.into())
            .with_reply_to(super::listener::replies(&self.land.world.namespace).into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let exchange = self.land.world.namespace.as_str().into();
        let sent = channel.basic_publish(exchange, "requests".into(), options, body.as_bytes(), properties).await;
        sent.ok()?.await.ok()
    }
}
