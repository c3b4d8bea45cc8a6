//! `reprieve list`.

use clap::Args;
use time::OffsetDateTime;

use super::{
    CliError,
    output::{Output, at, counted, distance, table},
};
use crate::{
    app::App,
    domain::{cause::CorrelationId, state::State, tombstone::Blocker},
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
    /// Only what should have been purged by now, oldest first
    #[arg(long, conflicts_with = "all")]
    overdue: bool,
    /// The holds instead
    #[arg(long, conflicts_with_all = ["state", "all", "kind", "correlation_id", "overdue", "pauses"])]
    holds: bool,
    /// The pauses instead
    #[arg(long, conflicts_with_all = ["state", "all", "kind", "correlation_id", "overdue"])]
    pauses: bool,
    /// At most so many, newest first unless they are overdue
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
        let is_narrowed = self.kind.is_some() || self.correlation_id.is_some() || !self.state.is_empty();
        let states = match (self.all, self.state.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => State::ALL.into_iter().filter(|state| state.is_open()).collect(),
            (false, false) => self.state,
        };
        let (kind, correlation_id, overdue, limit) = (self.kind, self.correlation_id, self.overdue, self.limit);
        let filter = tombstones::Filter { states, kind, correlation_id, overdue, limit };
        let mut conn = app.store.conn().await?;
        let found = tombstones::list(&mut conn, &filter).await?;
        output.print(&found, |found| {
            if found.is_empty() {
                return match () {
                    () if self.overdue => "nothing is overdue",
                    () if is_narrowed => "nothing in the trash is like that",
                    () => "the trash is empty",
                }
                .into();
            }
            let now = OffsetDateTime::now_utc();
            let rows = found.iter().map(|tombstone| {
                let next = match tombstone.state {
                    State::Trashed => format!("due {}", distance(tombstone.purge_after)),
                    State::Blocked => blocked_by(&tombstone.blockers),
                    State::Purging => format!("{} gone", counted(tombstone.progress.objects_gone(), "object")),
                    State::Stuck => String::new(),
                    State::Restored | State::Purged => tombstone.closed_at.map(distance).unwrap_or_default(),
                };
                let again = tombstone.tries_again_at(now).map(|when| format!("tries again {}", distance(when)));
                let error = tombstone.last_error.as_deref().map(short).unwrap_or_default();
                vec![
                    tombstone.resource.to_string(),
                    tombstone.name.clone().unwrap_or_default(),
                    tombstone.state.to_string(),
                    at(tombstone.trashed_at),
                    tombstone.actor.clone(),
                    [next, again.unwrap_or_default(), error]
                        .into_iter()
                        .filter(|text| !text.is_empty())
                        .collect::<Vec<_>>()
                        .join("; "),
                ]
            });
            table(&["resource", "name", "state", "trashed", "by", "next"], rows)
        })
    }
}

/// Characters of a reason; `show` has the whole.
const MOST_REASON: usize = 100;

fn short(reason: &str) -> String {
    match reason.char_indices().nth(MOST_REASON) {
        Some((end, _)) => format!("{}…", reason[..end].trim_end()),
        None => reason.to_owned(),
    }
}

/// The first of them, and how many more there are.
fn blocked_by(blockers: &[Blocker]) -> String {
    let Some((first, rest)) = blockers.split_first() else { return String::new() };
    let first = short(&format!("{} {:?}", first.reference, first.label));
    if rest.is_empty() { first } else { format!("{first} and {} more", rest.len()) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::outcome::FailureClass, objects::ObjectsError};

    #[test]
    fn what_the_store_said_is_in_the_part_of_its_error_that_a_list_shows() {
        let error = ObjectsError {
            operation: "ListMultipartUploads",
            bucket: "b".repeat(63),
            prefix: "p".repeat(900),
            code: "ServiceUnavailable".into(),
            message: "Please reduce your request rate.".into(),
            class: FailureClass::Throttled,
            retry_after: None,
        };
        let shown = short(&error.to_string());
        assert!(shown.contains("ServiceUnavailable: Please reduce your request rate."), "{shown}");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters_and_of_many_blockers_the_first_is_named() {
        let cut = short(&"é".repeat(MOST_REASON + 1));
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (MOST_REASON + 1, true));
        assert_eq!(short("locked until tomorrow"), "locked until tomorrow");
        let blocker = |label: &str| Blocker {
            resource: "dataset 1".into(),
            reference: "active model".into(),
            id: "7".into(),
            label: label.into(),
        };
        assert_eq!(blocked_by(&[blocker("first")]), "active model \"first\"");
        assert_eq!(blocked_by(&[blocker("first"), blocker("second")]), "active model \"first\" and 1 more");
    }
}
