//! `reprieve health`: asks the service of this configuration, on this machine, how it is. For containers: there is no
//! other client in the image.
//!
//! Invariant: it asks one address and waits seconds. Nothing but an answer that all is well is exit code 0.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::body::{Body, to_bytes};
use clap::Args;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tokio::time::timeout;

use super::{CliError, output::Output};
use crate::config::Config;

/// The service itself gives its database two seconds, twice at most.
const ANSWER: Duration = Duration::from_secs(6);

/// Of an answer.
const MOST_BYTES: usize = 64 * 1024;

#[derive(Debug, Args)]
pub(super) struct Health {
    /// Only whether the process lives, whatever its servers do
    #[arg(long, conflicts_with = "startup")]
    live: bool,
    /// Only whether its start is over
    #[arg(long)]
    startup: bool,
}

impl Health {
    pub(super) async fn run(self, config: Config, output: Output) -> Result<(), CliError> {
        let (path, well) = match (self.live, self.startup) {
            (true, _) => ("/health/live", "live"),
            (_, true) => ("/health/startup", "started"),
            _ => ("/health/ready", "ready"),
        };
        // every role listens there; the other is the role `api` alone
        let address = here(config.service.listen.unwrap_or(config.api.listen));
        let asked = timeout(ANSWER, ask(address, path, well)).await;
        let (is_well, answer) = match asked {
            Ok(Ok(Some(answered))) => answered,
            Ok(Ok(None)) => {
                let why = format!(
                    "what answers at {address} is not a service of reprieve: another server listens there, or \
                     service.listen or api.listen is not the address of this one"
                );
                return Err(CliError::Failed(why));
            }
            Ok(Err(error)) => return Err(CliError::Failed(format!("{address} does not answer: {error:#}"))),
            Err(_) => {
                let limit = humantime::format_duration(ANSWER);
                return Err(CliError::Failed(format!("{address} did not answer within {limit}")));
            }
        };
        let text = |of: &str| answer[of].as_str().map(str::to_owned);
        if !is_well {
            let why = text("detail").unwrap_or_else(|| answer.to_string());
            return Err(CliError::Failed(format!("not {}: {why}", path.trim_start_matches("/health/"))));
        }
        let missing = answer["missing"].as_array().into_iter().flatten().filter_map(|missing| missing["part"].as_str());
        let missing = missing.collect::<Vec<_>>().join(", ");
        let missing = if missing.is_empty() { missing } else { format!("; missing: {missing}") };
        output.print(&answer, |_| text("status").unwrap_or_else(|| answer.to_string()) + &missing)
    }
}

/// The address at which this machine reaches what listens there.
fn here(listens: SocketAddr) -> SocketAddr {
    let ip = match listens.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listens.port())
}

/// Whether all is well, and what was answered. `None`: nothing that a service of ours would answer.
async fn ask(address: SocketAddr, path: &str, well: &str) -> anyhow::Result<Option<(bool, Value)>> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let answer = client.get(format!("http://{address}{path}").parse()?).await?;
    let is_well = answer.status().is_success();
    let body = to_bytes(Body::new(answer.into_body()), MOST_BYTES).await?;
    let Ok(answer) = serde_json::from_slice::<Value>(&body) else { return Ok(None) };
    let is_problem = |answer: &Value| answer["type"].as_str().is_some_and(|of| of.starts_with("urn:reprieve:"));
    let is_ours = if is_well { answer["status"] == well } else { is_problem(&answer) };
    Ok(is_ours.then_some((is_well, answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_on_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:8320", "127.0.0.1:8320"),
            ("[::]:8320", "[::1]:8320"),
            ("127.0.0.2:1", "127.0.0.2:1"),
            ("10.0.0.7:9320", "10.0.0.7:9320"),
        ] {
            assert_eq!(here(listens.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
