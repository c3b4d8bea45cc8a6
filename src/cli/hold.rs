//! `reprieve hold` and `reprieve release`.

use clap::Args;
use serde_json::json;

use super::{CliError, Target, Who, output::Output};
use crate::app::App;

#[derive(Debug, Args)]
pub(super) struct Hold {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Args)]
pub(super) struct Release {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    who: Who,
}

impl Hold {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let resource = self.target.resolve(&app)?;
        let changed = app.trash.hold(&resource, &self.who.provenance()?).await?;
        output.print(&json!({ "resource": resource, "held": true, "changed": changed }), |_| {
            if changed { format!("{resource} is held") } else { format!("{resource} was held already") }
        })
    }
}

impl Release {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let resource = app.trash.held_resource(&self.target.kind, &self.target.id).await?;
        let changed = app.trash.release(&resource, &self.who.provenance()?).await?;
        output.print(&json!({ "resource": resource, "held": false, "changed": changed }), |_| {
            if changed { format!("{resource} is released") } else { format!("{resource} was not held; nothing to do") }
        })
    }
}
