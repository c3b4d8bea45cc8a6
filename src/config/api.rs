//! `[api]`: the HTTP interface.
//!
//! Invariant: beyond loopback it listens only with a token set.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use secrecy::{ExposeSecret, SecretString};

use super::reader::Reader;

/// The API's settings.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The bearer token that requests must carry; health and metrics are open.
    pub token: Option<SecretString>,
}

/// Reads the section.
pub fn read(section: Reader<'_>) -> ApiConfig {
    let listen = section
        .parsed("listen", |raw| raw.parse().map_err(|_| format!("{raw:?} is not an address such as 127.0.0.1:8320")))
        .unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8320));
    let token = section.secret("token", "token_file");
    if token.as_ref().is_some_and(|token| token.expose_secret().len() < 16) {
        section.problem("token", "must have at least 16 characters");
    }
    if !listen.ip().is_loopback() && !section.has("token") && !section.has("token_file") {
        section.problem("token", "is missing: listening beyond loopback needs `token` or `token_file`");
    }
    section.finish();
    ApiConfig { listen, token }
}
