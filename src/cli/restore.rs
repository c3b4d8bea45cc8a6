//! `reprieve restore`.

use clap::Args;

use super::{CliError, Target, Who, output::Output};
use crate::{
    app::App,
    trash::{IfChildrenLost, how_far},
};

#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    target: Target,
    /// Restore what can be, although some of its children are past the point of no return
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    who: Who,
}

impl Restore {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let if_lost = if self.partial { IfChildrenLost::RestoreTheRest } else { IfChildrenLost::Refuse };
        let restored = app.trash.restore(&self.target.resolve(&app)?, if_lost, &self.who.provenance()?).await?;
        output.print(&restored, |restored| {
            if restored.already {
                return format!("{} had been restored before; nothing to do", restored.tombstone.resource);
            }
            let mut lines = vec![format!("restored {}", restored.tombstone.resource)];
            lines.extend(restored.children.iter().map(|child| format!("restored {} along with it", child.resource)));
            let lost = restored.lost.iter();
            lines.extend(lost.map(|child| format!("lost {}: {}, {}", child.resource, child.state, how_far(child))));
            lines.join("\n")
        })
    }
}
