//! `reprieve pause` and `reprieve resume`.

use clap::Args;
use serde_json::json;

use super::{CliError, Who, output::Output};
use crate::{
    app::App,
    domain::{ids::Kind, location::StoreName},
    store::pauses::Scope,
};

/// What to pause: exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// All purging
    #[arg(long)]
    all: bool,
    /// Purging of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Purging of whatever has objects in this store
    #[arg(long)]
    store: Option<String>,
}

impl Which {
    fn scope(&self, app: &App) -> Result<Scope, CliError> {
        if let Some(kind) = &self.kind {
            return Ok(Scope::Kind(app.trash.map().kind(kind)?.kind.clone()));
        }
        let Some(asked) = &self.store else { return Ok(Scope::All) };
        let known = || app.stores.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let found = app.stores.iter().find(|(name, _)| name.as_str() == asked);
        found
            .map(|(name, _)| Scope::Store(name.clone()))
            .ok_or_else(|| CliError::Usage(format!("there is no store {asked:?}; there are: {}", known())))
    }
}

impl Which {
    /// As [`Which::scope`]; what has left the configuration since it was paused can still be resumed.
    async fn paused_scope(&self, app: &App) -> Result<Scope, CliError> {
        let unknown = match self.scope(app) {
            Ok(scope) => return Ok(scope),
            Err(unknown) => unknown,
        };
        let asked = match (&self.kind, &self.store) {
            (Some(kind), _) => Scope::Kind(Kind::from_stored(kind.clone())),
            (None, Some(store)) => match StoreName::parse(store) {
                Ok(store) => Scope::Store(store),
                Err(_) => return Err(unknown),
            },
            (None, None) => Scope::All,
        };
        let pauses = app.trash.pauses().await?;
        if pauses.iter().any(|pause| pause.is_of(&asked)) {
            return Ok(asked);
        }
        let paused: Vec<String> = pauses.iter().map(ToString::to_string).collect();
        let paused = if paused.is_empty() { "nothing".to_owned() } else { paused.join(", ") };
        Err(CliError::Usage(format!("{unknown}; paused is: {paused}")))
    }
}

#[derive(Debug, Args)]
pub(super) struct Pause {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    who: Who,
}

impl Pause {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let scope = self.which.scope(&app)?;
        let changed = app.trash.pause(&scope, &self.who.provenance()?).await?;
        output.print(&json!({ "scope": scope.to_string(), "paused": true, "changed": changed }), |_| {
            if changed { format!("{scope} is paused") } else { format!("{scope} was paused already") }
        })
    }
}

impl Resume {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let scope = self.which.paused_scope(&app).await?;
        let changed = app.trash.resume(&scope, &self.who.provenance()?).await?;
        output.print(&json!({ "scope": scope.to_string(), "paused": false, "changed": changed }), |_| {
            if changed { format!("{scope} goes on") } else { format!("{scope} was not paused; nothing to do") }
        })
    }
}
