//! `reprieve dev`: a platform with sample data that keeps running, to try the commands against.

use std::{sync::Arc, time::Duration};

use clap::Args;

use crate::{
    app::Role,
    embedded::{
        platform::{Options, Platform},
        sample,
    },
    queue::TaskQueue,
    shutdown, telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Dev {
    /// The restore window of the sample data
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    window: Duration,
    /// The API's port on loopback
    #[arg(long, default_value_t = 8320)]
    port: u16,
}

impl Dev {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        telemetry::start_logging("reprieve=info,lapin=off,s3s=off,warn", None).map_err(anyhow::Error::msg)?;
        let stop = shutdown::on_signal()?;
        let platform = Platform::start(Options { retention: self.window, api_port: self.port }).await?;
        let sample = sample::load(&platform.pool, &platform.s3, |_| ()).await?;
        let config = platform.config_file();
        let reprieve = format!("reprieve --config {}", config.display());
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
            self.port,
        );
        let queue = platform.queue.clone() as Arc<dyn TaskQueue>;
        Ok(platform.app.serve(Some(queue), &Role::ALL, stop).await?)
    }
}
