//! `[service]`: what concerns the process as a whole.

use std::{net::SocketAddr, time::Duration};

use super::reader::Reader;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For collectors, one JSON object a line.
    Json,
}

/// The process's settings.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Where health and metrics are served, whatever the roles. `None`: by the role `api` alone, at its own address.
    pub listen: Option<SocketAddr>,
    /// How long a shutdown may take before it is cut off; what is cut off resumes elsewhere.
    pub shutdown_deadline: Duration,
    /// The form of log lines; `None`: pretty on a terminal, JSON elsewhere.
    pub log_format: Option<LogFormat>,
    /// Which log lines, in `tracing`'s filter syntax.
    pub log: String,
}

/// Reads the section.
pub fn read(section: Reader<'_>) -> ServiceConfig {
    let second = Duration::from_secs(1);
    let shutdown_deadline = section.duration("shutdown_deadline", 30 * second, second..=600 * second);
    let log_format = section.parsed("log_format", |raw| match raw {
        "pretty" => Ok(LogFormat::Pretty),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{other:?} is neither \"pretty\" nor \"json\"")),
    });
    let log = section
        .parsed("log", |raw| {
            raw.parse::<tracing_subscriber::filter::targets::Targets>().map(|_| raw.to_owned()).map_err(|error| {
                format!("{raw:?} is not a log filter such as \"info\" or \"reprieve=debug,info\": {error}")
            })
        })
        .unwrap_or_else(|| "reprieve=info,lapin=off,s3s=off,warn".to_owned());
    let listen = section
        .parsed("listen", |raw| raw.parse().map_err(|_| format!("{raw:?} is not an address such as 127.0.0.1:9320")));
    section.finish();
    ServiceConfig { listen, shutdown_deadline, log_format, log }
}
