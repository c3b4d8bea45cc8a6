//! `reprieve serve`.

use std::sync::Arc;

use clap::Args;

use super::CliError;
use crate::{
    app::{App, Role, ServeError},
    queue::TaskQueue,
    shutdown,
};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Roles to run in this process, of: api, intake, relay, sweeper, worker [default: all]
    #[arg(long, value_delimiter = ',')]
    roles: Vec<Role>,
}

impl Serve {
    pub(super) async fn run(self, app: App) -> Result<(), CliError> {
        let mut roles = if self.roles.is_empty() { Role::ALL.to_vec() } else { self.roles };
        let mut seen = std::collections::HashSet::new();
        roles.retain(|role| seen.insert(*role));
        let stop = shutdown::on_signal().map_err(ServeError::Signals)?;
        let queue = app.rabbitmq().map(|queue| Arc::new(queue) as Arc<dyn TaskQueue>);
        Ok(app.serve(queue, &roles, stop).await?)
    }
}
