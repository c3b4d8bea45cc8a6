//! `reprieve retry`: lets a purge go on that is stuck, or waits for its next try. That destroys; so it is a dry run
//! until `--execute`.

use clap::Args;
use serde_json::json;

use super::{CliError, Target, Who, output::Output};
use crate::{
    app::App,
    domain::state::State,
    trash::{how_far, timestamp},
};

#[derive(Debug, Args)]
pub(super) struct Retry {
    #[command(flatten)]
    target: Target,
    /// Do it; without this it is only shown what would go on
    #[arg(long)]
    execute: bool,
    #[command(flatten)]
    who: Who,
}

impl Retry {
    pub(super) fn is_dry_run(&self) -> bool {
        !self.execute
    }

    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let resource = self.target.resolve(&app)?;
        let tombstone = if self.execute {
            app.trash.retry(&resource, &self.who.provenance()?).await?
        } else {
            app.trash.retriable(&resource).await?
        };
        output.print(&json!({ "dry_run": !self.execute, "tombstone": tombstone }), |_| {
            let was = tombstone.last_error.as_deref().unwrap_or("no reason kept");
            let progress = how_far(&tombstone);
            let waits = tombstone.state == State::Purging;
            let until = timestamp(tombstone.next_attempt_at);
            if self.execute {
                let was_to = if waits { format!("to wait until {until}") } else { "stuck".into() };
                format!("the purge of {resource} goes on; it was {was_to} because of: {was}")
            } else {
                let now = if waits { format!("waits until {until}") } else { "is stuck".into() };
                format!(
                    "would go on with the purge of {resource}: {progress}\nit {now} because of: {was}\n\n\
                     This was a dry run: nothing has changed. Add --execute to do it."
                )
            }
        })
    }
}
