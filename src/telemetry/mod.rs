//! What the process says of itself: log lines, metrics, traces, and what it misses.

pub mod metrics;
pub mod standing;
pub mod trace;

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

pub use self::metrics::Metrics;
use crate::config::LogFormat;

/// Starts logging to standard error. `filter` and `format` come from the configuration; `REPRIEVE_LOG` overrides the
/// filter.
///
/// # Errors
/// The filter cannot be read, or logging was started before.
pub fn start_logging(filter: &str, format: Option<LogFormat>) -> Result<(), String> {
    let filter = std::env::var("REPRIEVE_LOG").unwrap_or_else(|_| filter.to_owned());
    let filter = EnvFilter::try_new(&filter).map_err(|error| format!("REPRIEVE_LOG or service.log: {error}"))?;
    let terminal = std::io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format.unwrap_or(if terminal { LogFormat::Pretty } else { LogFormat::Json }) {
        LogFormat::Pretty => {
            let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
            registry.with(layer).try_init()
        }
        LogFormat::Json => {
            // the innermost span is in the list of all
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
            let layer = layer.with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    started.map_err(|error| error.to_string())
}
