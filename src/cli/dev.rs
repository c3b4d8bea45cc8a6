//! `reprieve dev`: a platform with sample data that keeps running, to try the commands against.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use clap::Args;

use crate::{
    app::{Role, ServeError},
    embedded::{
        keeper::free_port,
        platform::{Options, Platform},
        sample,
    },
    queue::TaskQueue,
    shutdown,
    telemetry::{self, standing::Part},
};

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// The restore window of the sample data
    #[arg(long, default_value = "1m", value_parser = window)]
    window: Duration,
    /// The API's port on loopback
    #[arg(long, default_value_t = 8320)]
    port: u16,
}

/// Between two looks whether the service has started, or has failed to.
const LOOK: Duration = Duration::from_millis(20);

fn window(raw: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(raw).ok().filter(|window| *window >= Duration::from_secs(1));
    parsed.ok_or_else(|| "expected a duration of 1s or more, such as 30s or 5m".into())
}

/// What was typed to start this program, so that it can be typed again.
fn program() -> String {
    let typed = std::env::args_os().next().unwrap_or_default().to_string_lossy().into_owned();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    match typed.as_str() {
        "" => "reprieve".into(),
        plain if plain.chars().all(is_plain) => typed,
        _ => format!("'{}'", typed.replace('\'', r"'\''")),
    }
}

impl Dev {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        telemetry::start_logging("reprieve=info,lapin=off,s3s=off,warn", None).map_err(anyhow::Error::msg)?;
        let stop = shutdown::on_signal()?;
        let port = if self.port == 0 { free_port()? } else { self.port };
        let platform = Platform::start(Options { retention: self.window, api_port: port }).await?;
        let sample = sample::load(&platform.pool, &platform.s3, |_| ()).await?;
        let config = platform.config_file();
        let reprieve = format!("{} --config {}", program(), config.display());
        let queue = platform.queue.clone() as Arc<dyn TaskQueue>;
        let (app, standing) = (platform.app.clone(), platform.app.metrics.standing().clone());
        standing.misses(Part::Start, "the start is not over");
        let mut service = tokio::spawn(async move { app.serve(Some(queue), &Role::ALL, stop).await });
        while !standing.has_started() {
            if let Ok(ended) = tokio::time::timeout(LOOK, &mut service).await {
                // its port is taken, or somebody has stopped it already
                return match ended? {
                    Err(ServeError::Listen { address, error }) => bail!("cannot listen on {address} (--port): {error}"),
                    ended => Ok(ended?),
                };
            }
        }
        println!(
            "A private platform is running, with sample data; Ctrl-C ends it and removes it. In another terminal:\n
  {reprieve} check
  {reprieve} trash dataset {}            # in use: refused
  {reprieve} trash dataset {} --execute  # {} objects, purged after {}
  {reprieve} list
  {reprieve} restore dataset {}
  {reprieve} trash job {} --with dataset
  curl http://127.0.0.1:{}/v1/tombstones\n",
            sample.used.id,
            sample.unused.id,
            sample.unused.objects,
            humantime::format_duration(self.window),
            sample.unused.id,
            sample.job,
            port,
        );
        Ok(service.await??)
    }
}
