//! A tombstone: one resource's stay in the trash, from trash to its end.
//!
//! Invariant: the places to empty are fixed when it is written. Whatever happens to the platform's rows or to the map
//! afterwards, a purge empties these and nothing else. Of the buckets where objects are recorded by key, the keys that the
//! platform's rows named at that time or later.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    cause::Cause,
    ids::{Actor, Fence, InvalidName, ResourceRef, TombstoneId},
    location::{KeyPlace, Location},
    progress::Progress,
    state::State,
};

/// A row that still uses a resource, or a circumstance that keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The resource in use, as `kind id`: with a cascade it can be a child.
    pub resource: String,
    /// The reference's name from the map, such as `active model`.
    pub reference: String,
    /// The id of the row that uses it.
    pub id: String,
    /// What people call that row.
    pub label: String,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} ({}) uses {}", self.reference, self.label, self.id, self.resource)
    }
}

/// Where a request came from: recorded with each audit entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Provenance {
    /// Who asked.
    pub actor: Actor,
    /// By which way: `cli`, `api`, `message`, or a role's name.
    pub origin: String,
    /// Why, in the asker's words.
    pub reason: Option<String>,
    /// What the request belongs to elsewhere.
    #[serde(flatten)]
    pub cause: Cause,
}

/// The longest reason, in characters: it goes into every listing and event.
pub const MOST_REASON: usize = 2000;

impl Provenance {
    /// Reads who asks and why from outside.
    ///
    /// # Errors
    /// An actor without a name; a reason that is too long, or holds the character NUL, which no database text can.
    pub fn parse(actor: &str, origin: &str, reason: Option<String>) -> Result<Self, InvalidName> {
        let actor = Actor::parse(actor)?;
        if reason.as_ref().is_some_and(|reason| reason.contains('\0') || reason.chars().count() > MOST_REASON) {
            let raw = reason.unwrap_or_default().chars().take(80).collect();
            return Err(InvalidName { what: "reason", raw, rule: "at most 2000 characters, without NUL" });
        }
        Ok(Self { actor, origin: origin.into(), reason, cause: Cause::default() })
    }

    /// The same, as part of `cause`.
    #[must_use]
    pub fn within(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

/// One resource's stay in the trash.
#[derive(Debug, Clone, Serialize)]
pub struct Tombstone {
    /// Its id. Written as in events: `id` beside `kind` is the resource's.
    #[serde(rename = "tombstone_id")]
    pub id: TombstoneId,
    /// What was trashed.
    #[serde(flatten)]
    pub resource: ResourceRef,
    /// Its name when it was trashed, where the kind has names.
    pub name: Option<String>,
    /// Where it stands.
    pub state: State,
    /// Who trashed it.
    pub actor: String,
    /// By which way.
    pub origin: String,
    /// Why.
    pub reason: Option<String>,
    /// What the request that wrote it belongs to elsewhere.
    #[serde(flatten)]
    pub cause: Cause,
    /// When; the database's clock, as all times here.
    #[serde(with = "time::serde::rfc3339")]
    pub trashed_at: OffsetDateTime,
    /// The end of the restore window.
    #[serde(with = "time::serde::rfc3339")]
    pub purge_after: OffsetDateTime,
    /// The tombstone whose cascade wrote this one.
    pub parent: Option<TombstoneId>,
    /// What a purge empties.
    pub locations: Vec<Location>,
    /// Where objects are that a purge deletes one by one, as they are recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<KeyPlace>,
    /// Who used it at the last check.
    pub blockers: Vec<Blocker>,
    /// Failed attempts since it was trashed or last retried.
    pub attempts: u32,
    /// When it will be looked at next.
    #[serde(with = "time::serde::rfc3339")]
    pub next_attempt_at: OffsetDateTime,
    /// Of what is stuck: when it tries again by itself. `None` when it needs somebody's help.
    #[serde(with = "time::serde::rfc3339::option")]
    pub retry_at: Option<OffsetDateTime>,
    /// Why the last attempt did not finish.
    pub last_error: Option<String>,
    /// The current owner's fence.
    #[serde(skip)]
    pub fence: Fence,
    /// Who purges it now.
    pub lease_owner: Option<String>,
    /// Until when that worker may be silent.
    #[serde(with = "time::serde::rfc3339::option")]
    pub lease_until: Option<OffsetDateTime>,
    /// How far the purge is.
    pub progress: Progress,
    /// Whether the resource's row was still there at the point of no return; `None` before it.
    pub row_found: Option<bool>,
    /// When the point of no return was passed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub purging_at: Option<OffsetDateTime>,
    /// When it was restored or purged.
    #[serde(with = "time::serde::rfc3339::option")]
    pub closed_at: Option<OffsetDateTime>,
}

impl Tombstone {
    /// When it is tried again by itself, of what waits for that. `None`: somebody is at it or about to be, its purge has
    /// not begun, or it needs somebody's help.
    pub fn tries_again_at(&self, now: OffsetDateTime) -> Option<OffsetDateTime> {
        match self.state {
            State::Purging => Some(self.next_attempt_at).filter(|at| *at > now && self.lease_owner.is_none()),
            State::Stuck => self.retry_at,
            State::Trashed | State::Blocked | State::Restored | State::Purged => None,
        }
    }

    /// The names of the stores that its objects are in.
    pub fn stores(&self) -> Vec<String> {
        let prefixes = self.locations.iter().map(|at| &at.store);
        prefixes.chain(self.recorded.iter().map(|at| &at.store)).map(ToString::to_string).collect()
    }
}
