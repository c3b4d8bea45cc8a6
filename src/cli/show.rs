//! `reprieve show`: a resource's tombstone, what happened to it, and its receipt.

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::{
    CliError, Target,
    output::{Output, at, below, bytes, counted, distance, plain, table},
};
use crate::{
    app::App,
    domain::{state::State, tombstone::Tombstone},
    store::{
        audit::{self, Entry},
        holds::{self, Hold},
        tombstones,
    },
    trash::{self, Count, TrashError},
};

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    target: Target,
    /// Ask the stores how much lies below its prefixes now, for at most ten seconds
    #[arg(long)]
    count: bool,
}

#[derive(Serialize)]
struct Shown {
    tombstone: Tombstone,
    hold: Option<Hold>,
    /// What lies below its prefixes now, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<Vec<Count>>,
    /// Over all of its stays in the trash.
    history: Vec<Entry>,
    /// The receipt, once it is purged.
    receipt: Option<Value>,
    /// Failed attempts after which a purge is stuck.
    #[serde(skip)]
    max_attempts: u32,
}

impl Show {
    pub(super) async fn run(self, app: App, output: Output) -> Result<(), CliError> {
        let resource = self.target.resolve(&app)?;
        let mut conn = app.store.conn().await?;
        let tombstone = tombstones::newest_of(&mut conn, &resource).await?;
        let tombstone = tombstone.ok_or_else(|| TrashError::NotInTrash(resource.clone()))?;
        let hold = holds::find(&mut conn, &resource).await?;
        let history = audit::of_resource(&mut conn, &resource).await?;
        let of_this = audit::of_tombstone(&mut conn, tombstone.id).await?;
        let receipt = of_this.iter().find(|entry| entry.event == "purged").map(|entry| entry.details.clone());
        // none while the stores are asked
        drop(conn);
        let counts = if self.count { Some(trash::count(&app.stores, tombstone.locations.clone()).await) } else { None };
        let max_attempts = app.config.purge.max_attempts;
        output.print(&Shown { tombstone, hold, counts, history, receipt, max_attempts }, text)
    }
}

/// An entry's reason and circumstances, without what stands elsewhere on the page.
fn details(entry: &Entry) -> String {
    let mut details = entry.details.clone();
    if let Some(members) = details.as_object_mut() {
        let is_told = |key: &str, value: &Value| match key {
            "locations" | "purge_after" => false,
            // of what uses up none
            "attempt" => *value != 0,
            _ => !value.is_null(),
        };
        members.retain(|key, value| is_told(key, value));
    }
    let empty = entry.event == "purged" || details.as_object().is_some_and(serde_json::Map::is_empty);
    let figures = (!empty).then(|| details.to_string());
    entry.reason.clone().into_iter().chain(figures).collect::<Vec<_>>().join(" ")
}

/// The last of a worker's entries in a row that tell the same, each with how many more there were right before it: who
/// waits for a store for a night has the same line every hour.
fn alike(history: &[Entry]) -> Vec<(&Entry, usize)> {
    let is_alike = |one: &Entry, next: &Entry| {
        let told = |entry: &Entry| (entry.event.clone(), entry.reason.clone(), entry.details.clone());
        // of people, each asked
        one.origin == "worker" && next.origin == "worker" && told(one) == told(next)
    };
    let runs = history.chunk_by(is_alike);
    runs.filter_map(|run| run.last().map(|last| (last, run.len() - 1))).collect()
}

/// How near it is to being stuck. What waits for a store is not, and whoever sees its error should know that.
fn attempts(tombstone: &Tombstone, most: u32) -> String {
    let waits = tombstone.tries_again_at(OffsetDateTime::now_utc()).is_some();
    match (tombstone.state, tombstone.attempts) {
        (State::Purging, failed) if waits || failed > 0 => {
            format!("{failed} of {most} have failed; a store that is away or asks for less uses up none")
        }
        _ => String::new(),
    }
}

fn text(shown: &Shown) -> String {
    let tombstone = &shown.tombstone;
    let progress = &tombstone.progress;
    let mut facts = vec![
        ("resource", tombstone.resource.to_string()),
        ("name", tombstone.name.clone().unwrap_or_default()),
        ("state", tombstone.state.to_string()),
        ("tombstone", tombstone.id.to_string()),
        ("trashed", format!("{} by {}", at(tombstone.trashed_at), tombstone.actor)),
        ("reason", tombstone.reason.clone().unwrap_or_default()),
        ("correlation", tombstone.cause.correlation_id().unwrap_or_default().to_owned()),
        ("purge after", format!("{} ({})", at(tombstone.purge_after), distance(tombstone.purge_after))),
        ("last error", tombstone.last_error.clone().unwrap_or_default()),
        (
            "tries again",
            tombstone
                .tries_again_at(OffsetDateTime::now_utc())
                .map(|when| format!("{} ({}), by itself", at(when), distance(when)))
                .unwrap_or_default(),
        ),
        ("attempts", attempts(tombstone, shown.max_attempts)),
    ];
    if let Some(hold) = &shown.hold {
        facts.push(("held", format!("by {}: {}", hold.actor, hold.reason.as_deref().unwrap_or("no reason given"))));
    }
    facts.extend(tombstone.blockers.iter().map(|blocker| ("blocked", blocker.to_string())));
    facts.extend(tombstone.locations.iter().map(|location| ("objects", location.to_string())));
    facts.extend(tombstone.recorded.iter().filter(|at| at.keys > 0).map(|at| ("objects", at.to_string())));
    if progress.objects_kept > 0 {
        let kept = counted(progress.objects_kept, "object");
        facts.push(("kept", format!("{kept}, since another resource names the same")));
    }
    if tombstone.purging_at.is_some() {
        facts.push((
            "progress",
            format!(
                "{} listed = {} deleted + {} absent + {} failed + {} unknown; of those gone {} and {}; {} aborted; {} freed; {} deleted",
                progress.objects_listed,
                progress.objects_deleted,
                progress.objects_absent,
                progress.objects_failed,
                progress.objects_unknown,
                counted(progress.versions_gone, "older version"),
                counted(progress.markers_gone, "delete marker"),
                counted(progress.uploads_aborted, "upload"),
                bytes(progress.bytes_freed),
                counted(progress.rows_deleted, "row")
            ),
        ));
    }
    let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
    let width = "purge after".len();
    let mut text: String = facts.map(|(name, value)| format!("{name:width$}  {}\n", plain(&value))).collect();
    if let Some(counts) = &shown.counts {
        text += &format!("\nnow below its prefixes:\n{}\n", below(counts));
    }
    let rows = alike(&shown.history).into_iter().map(|(entry, before)| {
        let event = match before {
            0 => entry.event.clone(),
            _ => format!("{} ({} times)", entry.event, before + 1),
        };
        vec![at(entry.at), event, entry.actor.clone(), entry.origin.clone(), details(entry)]
    });
    text += &format!("\n{}\n", table(&["at", "event", "by", "way", "details"], rows));
    if let Some(receipt) = &shown.receipt {
        text += &format!("\nreceipt\n{receipt:#}\n");
    }
    text
}
