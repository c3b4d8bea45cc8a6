//! Publishing in windows with confirms.
//!
//! Invariant: `Confirmed` is said of a message only after the broker has confirmed it, and of a mandatory one only
//! when every confirm and every return of its window is in. The client hands a `basic.return` to whichever confirm is
//! resolved next, so a plain ack proves nothing about the message it belongs to: returns are collected from the whole
//! window and matched by `message_id`.
//!
//! A publisher whose window stayed unanswered, or was dropped while in flight, is broken for good: late returns would
//! be taken for those of the next.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use lapin::{
    BasicProperties, Confirmation, ErrorKind,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Headers, QueueError, RabbitSettings, Session, explain, short,
    topology::{PURGE_KEY, Topology},
    until,
};
use crate::queue::{Outgoing, PublishOutcome, Publisher, Target};

/// Messages in flight at once. Beyond 256 the throughput of quorum queues hardly grows (20,000 messages: 1.2 s).
const WINDOW: usize = 256;

const PUBLISH: &str = "publish";

/// [`Publisher`] on a connection of its own.
#[derive(Debug)]
pub(super) struct RabbitPublisher {
    wire: ConfirmChannel,
    topology: Arc<Topology>,
    settings: Arc<RabbitSettings>,
    /// Looks at the purge queue, from the first look on; taken out while it does. A broker that is short of memory stops
    /// reading from connections that publish, so it is one of its own.
    looks: Option<Session>,
}

impl RabbitPublisher {
    pub(super) async fn open(settings: &Arc<RabbitSettings>, topology: &Arc<Topology>) -> Result<Self, QueueError> {
        Ok(Self {
            wire: ConfirmChannel::open(settings, "publisher", Headers::Ours).await?,
            topology: Arc::clone(topology),
            settings: Arc::clone(settings),
            looks: None,
        })
    }

    /// The message as it goes out, or what is to be said of it without sending it.
    fn address<'a>(&self, message: &'a Outgoing) -> Result<Wire<'a>, PublishOutcome> {
        let (exchange, key) = match &message.target {
            Target::Purge => (self.topology.exchange.as_str(), PURGE_KEY),
            Target::Events(key) => (self.topology.events.as_str(), key.as_str()),
            Target::Reply(queue) if unfit_for_replies(queue, &self.topology) => {
                tracing::warn!(message.id = %message.id, reply_to = queue, "reply dropped, no requester can have that queue");
                return Err(PublishOutcome::Confirmed);
            }
            Target::Reply(queue) => ("", queue.as_str()),
        };
        let name = |text: &str| short(text).map_err(|error| PublishOutcome::Refused(error.to_string()));
        Ok(Wire {
            exchange: name(exchange)?,
            routing_key: name(key)?,
            mandatory: message.target.is_mandatory(),
            body: &message.body,
            properties: properties(message).map_err(|error| PublishOutcome::Refused(error.to_string()))?,
        })
    }
}

/// `reply_to` comes from outside: a name that no queue can have is nobody's, and our own queues want no replies, which
/// would come back to us as requests.
fn unfit_for_replies(queue: &str, topology: &Topology) -> bool {
    queue.is_empty() || short(queue).is_err() || topology.owns(queue)
}

fn properties(message: &Outgoing) -> Result<BasicProperties, QueueError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let properties = BasicProperties::default()
        .with_content_type(short("application/json")?)
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&message.id.to_string())?)
        .with_timestamp(seconds)
        .with_app_id(short("reprieve")?);
    let properties = match &message.correlation_id {
        Some(id) => properties.with_correlation_id(short(id)?),
        None => properties,
    };
    let Some(trace) = &message.trace else { return Ok(properties) };
    let mut headers = FieldTable::default();
    for (name, value) in trace.headers() {
        headers.insert(short(name)?, AMQPValue::LongString(value.into()));
    }
    Ok(properties.with_headers(headers))
}

/// AMQP delivery mode: survives a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

#[async_trait]
impl Publisher for RabbitPublisher {
    async fn publish(&mut self, window: &[Outgoing]) -> Result<Vec<PublishOutcome>, QueueError> {
        self.wire.usable()?;
        let mut outcomes = Vec::with_capacity(window.len());
        for chunk in window.chunks(WINDOW) {
            let addressed: Vec<_> = chunk.iter().map(|message| self.address(message)).collect();
            let (mut settled, mut wires) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
            for wire in addressed {
                settled.push(wire.as_ref().err().cloned());
                wires.extend(wire.ok());
            }
            match self.wire.publish(&wires).await {
                Ok(sent) => {
                    let mut sent = sent.into_iter();
                    let known = settled.into_iter().map(|known| known.or_else(|| sent.next()));
                    outcomes.extend(known.map(|outcome| outcome.expect("one outcome for each wire")));
                }
                // Of the windows before, the outcomes are known and must not be lost with the connection.
                Err(error) if !outcomes.is_empty() => {
                    outcomes.resize(window.len(), PublishOutcome::Unconfirmed(error.to_string()));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    async fn tasks_waiting(&mut self) -> Result<u64, QueueError> {
        let session = match self.looks.take().filter(|session| session.connection.status().connected()) {
            Some(session) => session,
            None => Session::open(&self.settings, "depth", Headers::Ours).await?,
        };
        let waiting = self.topology.tasks_waiting(&session).await?;
        self.looks = Some(session);
        Ok(waiting)
    }
}

/// A message with its address and properties.
#[derive(Debug)]
pub(super) struct Wire<'a> {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) mandatory: bool,
    pub(super) body: &'a [u8],
    pub(super) properties: BasicProperties,
}

/// A connection whose channel is in confirm mode.
#[derive(Debug)]
pub(super) struct ConfirmChannel {
    session: Session,
    settings: Arc<RabbitSettings>,
    purpose: &'static str,
    headers: Headers,
    /// Why nothing more goes out here.
    broken: Option<String>,
    /// A confirm did not come in time.
    unanswered: bool,
}

/// Why a window failed as a whole.
enum Failed {
    /// The broker refused one of the messages and closed the channel, or the connection, over it.
    Refused(QueueError),
    /// The channel was found closed, which the first of these two brings about as well as the other.
    Closed(QueueError),
    /// The connection is gone or of no use.
    Lost(QueueError),
}

impl From<&lapin::Error> for Failed {
    fn from(error: &lapin::Error) -> Self {
        /// The broker shuts down, or its operator closed the connection.
        const CONNECTION_FORCED: u16 = 320;
        let explained = explain(PUBLISH, error);
        match error.kind() {
            ErrorKind::ProtocolError(refused) if refused.get_id() != CONNECTION_FORCED => Self::Refused(explained),
            ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_) => Self::Closed(explained),
            _ => Self::Lost(explained),
        }
    }
}

impl ConfirmChannel {
    pub(super) async fn open(
        settings: &Arc<RabbitSettings>,
        purpose: &'static str,
        headers: Headers,
    ) -> Result<Self, QueueError> {
        let session = Self::connect(settings, purpose, headers).await?;
        Ok(Self { session, settings: Arc::clone(settings), purpose, headers, broken: None, unanswered: false })
    }

    async fn connect(settings: &RabbitSettings, purpose: &str, headers: Headers) -> Result<Session, QueueError> {
        let session = Session::open(settings, purpose, headers).await?;
        let select = session.channel.confirm_select(ConfirmSelectOptions::default());
        session.step("turn on publisher confirms", select).await?;
        Ok(session)
    }

    /// Fails on a connection that is known to be lost.
    pub(super) fn usable(&self) -> Result<(), QueueError> {
        match &self.broken {
            Some(reason) => Err(QueueError::new(PUBLISH, reason.clone())),
            None if !self.session.connection.status().connected() => {
                Err(QueueError::new(PUBLISH, "the connection is closed"))
            }
            None => Ok(()),
        }
    }

    /// One outcome for each message, in order. At most [`WINDOW`] messages.
    pub(super) async fn publish(&mut self, window: &[Wire<'_>]) -> Result<Vec<PublishOutcome>, QueueError> {
        self.usable()?;
        // Stands if the caller drops us at one of the waits below.
        self.broken = Some("an earlier window was abandoned in flight".to_owned());
        let deadline = Instant::now() + self.settings.confirm_timeout;
        let result = match self.attempt(window, deadline).await {
            Err(Failed::Refused(_) | Failed::Closed(_)) => self.one_by_one(window, deadline).await,
            Err(Failed::Lost(error)) => Err(error),
            Ok(outcomes) => Ok(outcomes),
        };
        self.broken = match &result {
            Err(error) => Some(error.reason.clone()),
            Ok(_) if self.unanswered => Some("an earlier window was not confirmed in time".to_owned()),
            Ok(_) => None,
        };
        result
    }

    /// A message that the broker refuses by closing the channel (a reply to where we may not write, an exchange that
    /// is gone) must not take its neighbours along, now or at the next attempt: each on its own. Those that had
    /// arrived before the channel was closed go out twice. With the connection lost, the first step here says so.
    async fn one_by_one(&mut self, window: &[Wire<'_>], deadline: Instant) -> Result<Vec<PublishOutcome>, QueueError> {
        let mut outcomes = Vec::with_capacity(window.len());
        let mut usable = false;
        for wire in window {
            if self.unanswered || Instant::now() >= deadline {
                outcomes.resize(window.len(), PublishOutcome::Unconfirmed("not sent: no time left".to_owned()));
                break;
            }
            if !usable {
                self.renew().await?;
            }
            match self.attempt(std::slice::from_ref(wire), deadline).await {
                Ok(outcome) => {
                    outcomes.extend(outcome);
                    usable = true;
                }
                Err(Failed::Refused(error)) => {
                    outcomes.push(PublishOutcome::Refused(error.reason));
                    usable = false;
                }
                Err(Failed::Closed(error) | Failed::Lost(error)) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    /// A new connection, not just a channel: frames that were under way to the old one could reach the new one, which
    /// gets the same number, before it is open, and the broker would take the connection down for that.
    async fn renew(&mut self) -> Result<(), QueueError> {
        self.session = Self::connect(&self.settings, self.purpose, self.headers).await?;
        Ok(())
    }

    async fn attempt(&mut self, window: &[Wire<'_>], deadline: Instant) -> Result<Vec<PublishOutcome>, Failed> {
        let channel = &self.session.channel;
        let send = async {
            let mut confirms = Vec::with_capacity(window.len());
            for Wire { exchange, routing_key, mandatory, body, properties } in window {
                let options = BasicPublishOptions { mandatory: *mandatory, ..Default::default() };
                let (exchange, key) = (exchange.clone(), routing_key.clone());
                confirms.push(channel.basic_publish(exchange, key, options, body, properties.clone()).await?);
            }
            Ok(confirms)
        };
        let confirms = match timeout_at(deadline, send).await {
            Ok(sent) => sent.map_err(|error| Failed::from(&error))?,
            Err(_) => {
                let reason = "the broker takes no messages (does it block publishers for want of memory or disk?)";
                return Err(Failed::Lost(QueueError::new(PUBLISH, reason)));
            }
        };
        let mut window_confirms = WindowConfirms::default();
        for confirm in confirms {
            match timeout_at(deadline, confirm).await {
                Ok(answer) => window_confirms.add(answer.map_err(|error| Failed::from(&error))?),
                Err(_) => window_confirms.answers.push(Answered::Not),
            }
        }
        self.unanswered = window_confirms.answers.contains(&Answered::Not);
        if !self.unanswered {
            let leftovers = until(deadline, PUBLISH, channel.wait_for_confirms()).await.map_err(Failed::Lost)?;
            leftovers.iter().for_each(|message| window_confirms.returned(message));
        }
        let asked = window.iter().map(|wire| Asked {
            id: wire.properties.message_id().as_ref().map(ShortString::as_str),
            mandatory: wire.mandatory,
        });
        Ok(window_confirms.settle(&asked.collect::<Vec<_>>()))
    }
}

/// What a confirm said, without the return that came with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answered {
    Ack,
    Nack,
    Not,
}

/// What was published, as far as the matching needs it.
#[derive(Debug, Clone, Copy)]
struct Asked<'a> {
    id: Option<&'a str>,
    mandatory: bool,
}

/// Everything that came back for one window.
#[derive(Debug, Default)]
struct WindowConfirms {
    answers: Vec<Answered>,
    /// `message_id` and the reason.
    returns: Vec<(Option<String>, String)>,
}

impl WindowConfirms {
    fn add(&mut self, confirmation: Confirmation) {
        self.answers.push(match &confirmation {
            Confirmation::Ack(_) => Answered::Ack,
            Confirmation::Nack(_) => Answered::Nack,
            Confirmation::NotRequested => Answered::Not,
        });
        if let Some(message) = confirmation.take_message() {
            self.returned(&message);
        }
    }

    fn returned(&mut self, message: &BasicReturnMessage) {
        let id = message.delivery.properties.message_id().as_ref().map(ToString::to_string);
        self.returns.push((id, format!("{} {}", message.reply_code, message.reply_text)));
    }

    fn settle(&self, window: &[Asked<'_>]) -> Vec<PublishOutcome> {
        let returned = |id: Option<&str>| {
            let own = self.returns.iter().find(|(of, _)| window.len() == 1 || (id.is_some() && of.as_deref() == id));
            own.map(|(_, reason)| reason.clone())
        };
        // A return that is missing or that fits no message may belong to any mandatory one of the window.
        let complete = !self.answers.contains(&Answered::Not);
        let matched = window.iter().filter(|asked| returned(asked.id).is_some()).count() == self.returns.len();
        let settled = window.iter().zip(&self.answers).map(|(asked, answer)| match (returned(asked.id), answer) {
            (Some(reason), _) => PublishOutcome::Returned(reason),
            (None, Answered::Nack) => PublishOutcome::Unconfirmed("refused by the broker (nack)".to_owned()),
            (None, Answered::Not) => PublishOutcome::Unconfirmed("no confirm in time".to_owned()),
            (None, Answered::Ack) if asked.mandatory && !(complete && matched) => {
                PublishOutcome::Unconfirmed("confirms or returns of its window are missing".to_owned())
            }
            (None, Answered::Ack) => PublishOutcome::Confirmed,
        });
        settled.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(answers: &[Answered], returns: &[Option<&str>], window: &[(&str, bool)]) -> Vec<&'static str> {
        let returns = returns.iter().map(|id| (id.map(ToOwned::to_owned), "312 NO_ROUTE".to_owned())).collect();
        let asked: Vec<_> = window.iter().map(|&(id, mandatory)| Asked { id: Some(id), mandatory }).collect();
        let settled = WindowConfirms { answers: answers.to_vec(), returns }.settle(&asked);
        let name = |outcome| match outcome {
            PublishOutcome::Confirmed => "confirmed",
            PublishOutcome::Returned(_) => "returned",
            PublishOutcome::Refused(_) => "refused",
            PublishOutcome::Unconfirmed(_) => "unconfirmed",
        };
        settled.into_iter().map(name).collect()
    }

    use Answered::{Ack, Nack, Not};
    const WINDOW: [(&str, bool); 3] = [("a", true), ("b", true), ("c", false)];

    #[test]
    fn a_return_belongs_to_the_message_it_names() {
        assert_eq!(settle(&[Ack, Ack, Ack], &[Some("b")], &WINDOW), ["confirmed", "returned", "confirmed"]);
    }

    #[test]
    fn a_window_with_a_missing_confirm_proves_nothing_about_mandatory_messages() {
        assert_eq!(settle(&[Ack, Not, Ack], &[], &WINDOW), ["unconfirmed", "unconfirmed", "confirmed"]);
        assert_eq!(settle(&[Ack, Nack, Ack], &[], &WINDOW), ["confirmed", "unconfirmed", "confirmed"]);
    }

    #[test]
    fn a_return_that_fits_no_message_makes_every_mandatory_one_doubtful() {
        assert_eq!(settle(&[Ack, Ack, Ack], &[None], &WINDOW), ["unconfirmed", "unconfirmed", "confirmed"]);
    }

    #[test]
    fn the_only_message_of_a_window_owns_its_return_with_or_without_an_id() {
        assert_eq!(settle(&[Ack], &[None], &WINDOW[..1]), ["returned"]);
    }
}
