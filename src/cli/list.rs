//! `reprieve list`.

use clap::Args;

use super::{
    CliError,
    output::{Output, at, distance, table},
};
use crate::{
    app::App,
    domain::{cause::CorrelationId, state::State},
    store::{holds, pauses, tombstones},
};

#[derive(Debug, Args)]
pub(super) struct List {
    /// Only of these states: trashed, blocked, purging, stuck, restored, purged [default: the first four]
    #[arg(long, value_delimiter = ',', value_parser = parse_state)]
    state: Vec<State>,
    /// Of every state
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only what this request has put there
    #[arg(long, value_name = "ID", value_parser = CorrelationId::parse)]
    correlation_id: Option<CorrelationId>,
    /// The holds instead
    #[arg(long, conflicts_with_all = ["state", "all", "kind", "correlation_id", "pauses"])]
    holds: bool,
    /// The pauses instead
    #[arg(long, conflicts_with_all = ["state", "all", "kind", "correlation_id"])]
    pauses: bool,
    /// At most so many, newest first
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

fn parse_state(raw: &str) -> Result<State, String> {
    State::parse(raw).ok_or_else(|| format!("there are: {}", State::ALL.map(State::as_str).join(", ")))
}

impl List {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        if self.holds {
            return list_holds(&app, output).await;
        }
        if self.pauses {
            return list_pauses(&app, output).await;
        }
        if let Some(kind) = &self.kind {
            app.trash.map().kind(kind)?;
        }
        let states = match (self.all, self.state.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => State::ALL.into_iter().filter(|state| state.is_open()).collect(),
            (false, false) => self.state,
        };
        let filter =
            tombstones::Filter { states, kind: self.kind, correlation_id: self.correlation_id, limit: self.limit };
        let mut conn = app.store.conn().await?;
        let found = tombstones::list(&mut conn, &filter).await?;
        output.print(&found, |found| {
            if found.is_empty() {
                return "the trash is empty".into();
            }
            let rows = found.iter().map(|tombstone| {
                let next = match tombstone.state {
                    State::Trashed => format!("due {}", distance(tombstone.purge_after)),
                    State::Blocked => tombstone.blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
                    State::Purging => format!("{} objects gone", tombstone.progress.objects_gone()),
                    State::Stuck => String::new(),
                    State::Restored | State::Purged => tombstone.closed_at.map(distance).unwrap_or_default(),
                };
                let error = tombstone.last_error.clone().unwrap_or_default();
                vec![
                    tombstone.resource.to_string(),
                    tombstone.name.clone().unwrap_or_default(),
                    tombstone.state.to_string(),
                    at(tombstone.trashed_at),
                    tombstone.actor.clone(),
                    [next, error].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "),
                ]
            });
            table(&["resource", "name", "state", "trashed", "by", "next"], rows)
        })
    }
}

async fn list_holds(app: &App, output: Output) -> Result<(), CliError> {
    let found = holds::list(&mut *app.store.conn().await?).await?;
    output.print(&found, |found| {
        if found.is_empty() {
            return "nothing is held".into();
        }
        let rows = found.iter().map(|hold| {
            let resource = format!("{} {}", hold.kind, hold.resource_id);
            vec![resource, hold.actor.clone(), at(hold.created_at), hold.reason.clone().unwrap_or_default()]
        });
        table(&["resource", "held by", "since", "reason"], rows)
    })
}

async fn list_pauses(app: &App, output: Output) -> Result<(), CliError> {
    let found = pauses::list(&mut *app.store.conn().await?).await?;
    output.print(&found, |found| {
        if found.is_empty() {
            return "nothing is paused".into();
        }
        let rows = found.iter().map(|pause| {
            let scope = format!("{} {}", pause.scope, pause.name);
            vec![scope, pause.actor.clone(), at(pause.created_at), pause.reason.clone().unwrap_or_default()]
        });
        table(&["what", "paused by", "since", "reason"], rows)
    })
}
