//! `[broker]`: RabbitMQ.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::reader::{Reader, UNREADABLE_URL};

/// The broker.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// `amqp://user:password@host/vhost`, or `amqps://`.
    pub url: SecretString,
    /// What the names of exchanges and queues begin with.
    pub namespace: String,
    /// Whether to declare them; without it they are only verified.
    pub declare: bool,
    /// How often the broker hands a message out before it sets it aside.
    pub delivery_limit: u32,
    /// To connect.
    pub connect_timeout: Duration,
    /// For a confirm or an acknowledgement.
    pub confirm_timeout: Duration,
}

/// Reads the section.
pub fn read(section: Reader<'_>) -> Option<BrokerConfig> {
    let url = section.secret("url", "url_file");
    let is_amqp = |url: &SecretString| ["amqp://", "amqps://"].iter().any(|s| url.expose_secret().starts_with(s));
    match &url {
        None if !section.has("url") && !section.has("url_file") => {
            section.problem("url", "is missing: expected amqp://user:password@host:5672/%2f, or `url_file`");
        }
        Some(url) if !is_amqp(url) => {
            section.problem("url", "must begin with amqp:// or amqps:// (its value is not shown)")
        }
        _ => {}
    }
    if let Some(url) = url.as_ref().filter(|url| is_amqp(url))
        && url.expose_secret().parse::<lapin::uri::AMQPUri>().is_err()
    {
        section.problem("url", UNREADABLE_URL);
    }
    let namespace = section
        .parsed("namespace", |raw| {
            let fine = (1..=100).contains(&raw.len())
                && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && !raw.starts_with("amq.");
            if fine { Ok(raw.to_owned()) } else { Err("expected 1 to 100 of A-Z, a-z, 0-9 and ._- (and not amq.)") }
        })
        .unwrap_or_else(|| "reprieve".to_owned());
    let declare = section.flag("declare", true);
    let delivery_limit = section.count("delivery_limit", 20, 1..=10_000);
    let second = Duration::from_secs(1);
    let connect_timeout = section.duration("connect_timeout", 10 * second, second..=300 * second);
    let confirm_timeout = section.duration("confirm_timeout", 30 * second, second..=300 * second);
    section.finish();
    url.map(|url| BrokerConfig { url, namespace, declare, delivery_limit, connect_timeout, confirm_timeout })
}
