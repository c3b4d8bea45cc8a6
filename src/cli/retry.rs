//! `reprieve retry`: lets a stuck purge go on, which destroys; so it is a dry run until `--execute`.

use clap::Args;
use serde_json::json;

use super::{CliError, Target, Who, output::Output};
use crate::{app::App, trash::how_far};

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
            app.trash.stuck(&resource).await?
        };
        output.print(&json!({ "dry_run": !self.execute, "tombstone": tombstone }), |_| {
            let was = tombstone.last_error.as_deref().unwrap_or("no reason kept");
            let progress = how_far(&tombstone);
            if self.execute {
                format!("the purge of {resource} goes on; it was stuck because of: {was}")
            } else {
                format!(
                    "would go on with the purge of {resource}: {progress}\nit is stuck because of: {was}\n\n\
                     This was a dry run: nothing has changed. Add --execute to do it."
                )
            }
        })
    }
}
