//! `[database]`: the PostgreSQL that holds the platform's tables and, beside them, the schema `reprieve`.

use std::time::Duration;

use secrecy::SecretString;

use super::reader::{Reader, UNREADABLE_URL};

/// The database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// `postgres://user:password@host/database`. Both the platform's and Reprieve's tables have to be there: the point
    /// of no return is one commit over both.
    pub url: SecretString,
    /// Connections of one process; by default one for each purge at once, and six.
    pub max_connections: u32,
    /// To get a connection.
    pub acquire_timeout: Duration,
    /// For one statement; row locks included.
    pub statement_timeout: Duration,
}

/// The parameters of a URL that the client knows; it would log any other with its value, and ignore it.
const PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// What is wrong with a URL, in words that show nothing of it but a parameter's name.
fn unreadable(url: &SecretString) -> Option<String> {
    use secrecy::ExposeSecret;
    let url = url.expose_secret();
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let names = parameters.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    for name in names.filter(|name| !name.is_empty()) {
        let known = PARAMETERS.contains(&name) || name.starts_with("options[") || name.starts_with("options%5B");
        if !known {
            return Some(format!("has the parameter {name:?}, which is not one that the client knows"));
        }
    }
    let readable = url.parse::<sqlx::postgres::PgConnectOptions>().is_ok();
    (!readable).then(|| UNREADABLE_URL.to_owned())
}

/// Beside the connections of the purges: relay, sweeper, intake, API and probes.
const OTHERS: u32 = 6;

/// Reads the section. By default each of so many purges at once has a connection: one that waits for another's is told
/// that the database is away.
pub fn read(section: Reader<'_>, purges: u16) -> Option<DatabaseConfig> {
    let url = section.secret("url", "url_file");
    let is_postgres = |url: &SecretString| {
        use secrecy::ExposeSecret;
        ["postgres://", "postgresql://"].iter().any(|scheme| url.expose_secret().starts_with(scheme))
    };
    match &url {
        None if !section.has("url") && !section.has("url_file") => {
            section.problem("url", "is missing: expected postgres://user:password@host:5432/database, or `url_file`");
        }
        Some(url) if !is_postgres(url) => {
            section.problem("url", "must begin with postgres:// (its value is not shown)");
        }
        _ => {}
    }
    if let Some(error) = url.as_ref().filter(|url| is_postgres(url)).and_then(unreadable) {
        section.problem("url", error);
    }
    let second = Duration::from_secs(1);
    let max_connections = section.count("max_connections", u32::from(purges) + OTHERS, 2..=1000);
    let acquire_timeout = section.duration("acquire_timeout", 10 * second, second..=300 * second);
    let statement_timeout = section.duration("statement_timeout", 60 * second, second..=3600 * second);
    section.finish();
    url.map(|url| DatabaseConfig { url, max_connections, acquire_timeout, statement_timeout })
}
