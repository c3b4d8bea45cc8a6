//! `reprieve migrate`.

use clap::Args;
use serde_json::json;

use super::{
    CliError,
    output::{Output, counted},
};
use crate::{
    config::Config,
    store::{Store, commit, guards, migrate},
};

/// Whose right a guard takes.
const WHOSE_GUARDS: &str =
    "guards are installed by the owner of the platform's tables: a trigger can be replaced by nobody else";

#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// Also install the guards of the resource map: triggers that refuse new uses of what is in the trash
    #[arg(long)]
    guards: bool,
}

impl Migrate {
    pub(super) async fn run(self, config: Config, output: Output) -> Result<(), CliError> {
        migrate::run(&config.database).await?;
        let mut installed = 0;
        if self.guards {
            let store = Store::new(&config.database)?;
            let mut tx = store.begin().await?;
            installed = guards::install(&mut tx, &config.map).await.map_err(|error| match error.is_refused() {
                true => CliError::Failed(format!("{error}\n  {WHOSE_GUARDS}")),
                false => error.into(),
            })?;
            commit(tx).await?;
        }
        output.print(&json!({ "ok": true, "guards_installed": installed }), |_| {
            let guards =
                if self.guards { format!("; {} installed", counted(installed as u64, "guard")) } else { String::new() };
            format!("the schema `reprieve` is up to date{guards}")
        })
    }
}
