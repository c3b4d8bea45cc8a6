//! RabbitMQ behind [`TaskQueue`]: settings, connections, and the one place that explains the broker's errors.
//!
//! Invariant: every connection serves one purpose and is thrown away on its first failure. The client's automatic
//! recovery stays off (after a channel error it leaves consumers pending for ever); whoever uses a publisher or a
//! consumer rebuilds it, see [`super::supervise`]. Publishing and consuming never share a connection, because a broker
//! that is short of memory or disk stops reading from every connection that publishes. No wait is without a deadline,
//! and the password of the address never leaves this module, not in an error either.

mod consumer;
mod copies;
mod publisher;
mod topology;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind,
    types::{LongString, ShortString},
    uri::AMQPUri,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout_at};

use self::{consumer::RabbitConsumer, publisher::RabbitPublisher, topology::Topology};
use super::{Consumer, Depths, Publisher, QueueError, Source, TaskQueue};

/// Where the broker is, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct RabbitSettings {
    /// `amqp://user:password@host:port/vhost`, or `amqps` for TLS. Without a vhost: `/`.
    pub url: SecretString,
    /// Prefix of every exchange and queue; two installations on one vhost need two.
    pub namespace: String,
    /// Whether `prepare` declares exchanges and queues. If not, it only verifies that they exist, which needs no
    /// `configure` permission.
    pub declare: bool,
    /// How often a message may be handed out again before the broker itself sets it aside in the dead-letter queue
    /// (`x-delivery-limit`). Requeues and lost consumers count, so this must leave room for restarts.
    pub delivery_limit: u32,
    /// Limit for opening a connection: address look-up, TCP, TLS, log-in, channel.
    pub connect_timeout: Duration,
    /// Limit for one window of publishes, from the first byte to the last confirm.
    pub confirm_timeout: Duration,
    /// Limit for any other single step: a declaration, an ack, a cancel.
    pub step_timeout: Duration,
    /// Interval of heartbeats; a silent broker is given up after two. Whole seconds, at least one.
    pub heartbeat: Duration,
}

impl RabbitSettings {
    /// The defaults for a broker at `url`.
    pub fn new(url: impl Into<SecretString>) -> Self {
        Self {
            url: url.into(),
            namespace: "reprieve".to_owned(),
            declare: true,
            delivery_limit: 20,
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(30),
            step_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(20),
        }
    }

    /// The address in parts, with our time-outs where it sets none of its own.
    fn uri(&self) -> Result<AMQPUri, QueueError> {
        // The parser's own message can quote the whole address, so it is dropped.
        let mut uri: AMQPUri = self.url.expose_secret().parse().map_err(|_| {
            QueueError::new(
                "read the broker's address",
                "it is not of the form amqp(s)://user:password@host:port/vhost",
            )
        })?;
        let heartbeat = u16::try_from(self.heartbeat.as_secs()).unwrap_or(u16::MAX).max(1);
        uri.query.heartbeat.get_or_insert(heartbeat);
        Ok(uri)
    }
}

/// A RabbitMQ broker, 3.10 or later (quorum queues). Cheap to clone; holds no connection.
#[derive(Clone)]
pub struct RabbitQueue {
    settings: Arc<RabbitSettings>,
    topology: Arc<Topology>,
}

impl RabbitQueue {
    /// Connects to nothing yet.
    pub fn new(settings: RabbitSettings) -> Self {
        let topology = Arc::new(Topology::new(&settings.namespace, settings.delivery_limit));
        Self { settings: Arc::new(settings), topology }
    }

    /// Where it is, without who asks there.
    pub fn address(&self) -> String {
        let parts = self.settings.uri().map(|uri| uri.authority);
        parts.map_or_else(|error| error.to_string(), |at| format!("{}:{}", at.host, at.port))
    }
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitQueue").field("namespace", &self.settings.namespace).finish_non_exhaustive()
    }
}

#[async_trait]
impl TaskQueue for RabbitQueue {
    async fn prepare(&self) -> Result<(), QueueError> {
        let session = Session::open(&self.settings, "topology", Headers::Ours).await?;
        if self.settings.declare {
            self.topology.declare(&session).await?;
        } else {
            self.topology.verify(&session).await?;
        }
        session.close().await
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError> {
        Ok(Box::new(RabbitPublisher::open(&self.settings, &self.topology).await?))
    }

    async fn consumer(&self, source: Source, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(RabbitConsumer::open(&self.settings, &self.topology, source, prefetch).await?))
    }

    async fn depths(&self) -> Result<Depths, QueueError> {
        let session = Session::open(&self.settings, "depths", Headers::Ours).await?;
        let depths = self.topology.depths(&session).await?;
        session.close().await?;
        Ok(depths)
    }
}

/// Whose headers a connection has to carry. They are never split, and the broker ends a connection over a message whose
/// headers are longer than a frame: on each delivery of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Headers {
    /// Short ones of our own. The client has buffers for 64 frames on each connection, which is 8 MiB with RabbitMQ's 128 KiB.
    Ours,
    /// Anybody's, as long as the broker takes them.
    Anybodys,
}

/// Bytes of a frame for our own headers, where the URL does not say it. A longer body is several frames.
const OUR_FRAME_MAX: u32 = 16 * 1024;

/// One connection with one channel on it. Dropping it closes both, in the background.
#[derive(Debug)]
struct Session {
    connection: Connection,
    channel: Channel,
    step_timeout: Duration,
}

impl Session {
    /// Connects; `purpose` shows in the broker's list of connections.
    async fn open(settings: &RabbitSettings, purpose: &str, headers: Headers) -> Result<Self, QueueError> {
        let mut uri = settings.uri()?;
        if headers == Headers::Ours {
            uri.query.frame_max.get_or_insert(OUR_FRAME_MAX);
        }
        let (host, port, vhost) = (uri.authority.host.clone(), uri.authority.port, uri.vhost.clone());
        let doing = format!("connect to {host}:{port}, vhost `{vhost}`, as `{}`", uri.authority.userinfo.username);
        let name = format!("{} {purpose}", settings.namespace);
        let properties = ConnectionProperties::default().with_connection_name(LongString::from(name));
        let deadline = Instant::now() + settings.connect_timeout;
        let opened = async {
            let connection = Connection::connect_uri(uri, properties).await?;
            let channel = connection.create_channel().await?;
            Ok((connection, channel))
        };
        let (connection, channel) =
            until(deadline, &doing, opened).await.map_err(|error| connect_hint(error, &vhost))?;
        Ok(Self { connection, channel, step_timeout: settings.step_timeout })
    }

    /// One request on the channel, within the limit for a step.
    async fn step<T>(&self, doing: &str, step: impl Future<Output = lapin::Result<T>>) -> Result<T, QueueError> {
        until(Instant::now() + self.step_timeout, doing, step).await
    }

    async fn close(self) -> Result<(), QueueError> {
        self.step("close the connection", self.connection.close(200, short("done")?)).await
    }
}

/// Adds to a failed log-in what the broker's words leave out.
fn connect_hint(mut error: QueueError, vhost: &str) -> QueueError {
    if error.reason.contains("Login was refused") {
        error.reason.push_str(" (wrong user or password, or the user may not log in from this host)");
    } else if error.reason.contains("NOT_ALLOWED") && vhost.is_empty() {
        error
            .reason
            .push_str(" (an address that ends in `/` names the empty vhost: leave the `/` out, or write `/%2f`)");
    }
    error
}

/// Waits for `step` until `deadline`, and explains its failure.
async fn until<T>(
    deadline: Instant,
    doing: &str,
    step: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    match timeout_at(deadline, step).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(explain(doing, &error)),
        Err(_) => Err(QueueError::new(doing, "no answer from the broker in time")),
    }
}

/// The one place where the client's errors become ours: the broker's own words, and what to do about them.
fn explain(doing: &str, error: &lapin::Error) -> QueueError {
    let ErrorKind::ProtocolError(refused) = error.kind() else { return QueueError::new(doing, error.to_string()) };
    let said = refused.get_message().as_str();
    let advice = match refused.get_id() {
        403 if !said.contains("Login was refused") => {
            "; grant the broker user `configure`, `write` and `read` on the names of Reprieve's namespace, or, where it \
             may not configure, create them beforehand and set `declare = false`"
        }
        404 => "; start once with `declare = true`, or have the broker's operator create what is missing",
        406 if said.contains("inequivalent arg") => {
            "; what exists was declared with another value: drain it and delete it so that it can be declared anew, or \
             keep it as it is and set `declare = false`"
        }
        _ => "",
    };
    QueueError::new(doing, format!("{said}{advice}"))
}

/// A name on the wire holds at most 255 bytes; the client panics on longer ones.
fn short(name: &str) -> Result<ShortString, QueueError> {
    ShortString::try_new(name).map_err(|error| QueueError::new(format!("use the name `{name}`"), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_address_is_not_quoted() {
        for url in
            ["mailto:user:hunter2@host", "http://user:hunter2@host", "user:hunter2@host", "amqp://user:hunter2@host:x"]
        {
            let error = RabbitSettings::new(url).uri().expect_err("not an address").to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn settings_and_queue_do_not_show_the_password() {
        let settings = RabbitSettings::new("amqp://user:hunter2@host");
        assert!(!format!("{settings:?} {:?}", RabbitQueue::new(settings.clone())).contains("hunter2"));
    }

    #[test]
    fn a_heartbeat_in_the_address_wins() {
        let heartbeat = |url: &str| RabbitSettings::new(url).uri().expect("an address").query.heartbeat;
        assert_eq!(heartbeat("amqp://host"), Some(20));
        assert_eq!(heartbeat("amqp://host?heartbeat=7"), Some(7));
    }
}
