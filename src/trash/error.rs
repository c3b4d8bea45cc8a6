//! Why a request was not carried out. Each has a stable code, for programs.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use serde::Serialize;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    bystanders::{child_kind, rows::FOREIGN_KEY},
    domain::{
        ids::{InvalidId, InvalidName, Kind, ResourceRef},
        location::UnsafePlace,
        map::UnknownKind,
        retention::{InvalidRetention, Retention},
        state::State,
        tombstone::{Blocker, Tombstone},
        words::counted,
    },
    places::UnknownPlace,
    store::{StoreError, holds::Hold, pauses::Pause},
};

/// What stands against trashing, of the resource and of everything that would go with it. Never empty in an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Refusals {
    /// Who uses them.
    pub blockers: Vec<Blocker>,
    /// Which are protected by the configuration.
    pub protected: Vec<ResourceRef>,
    /// Which are held, and by whom.
    pub holds: Vec<Hold>,
}

impl Refusals {
    /// Whether nothing stands against it.
    pub fn is_empty(&self) -> bool {
        self.blockers.is_empty() && self.protected.is_empty() && self.holds.is_empty()
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = (self.blockers.iter().map(ToString::to_string))
            .chain(self.protected.iter().map(|resource| format!("{resource} is protected by the configuration")))
            .chain(self.holds.iter().map(|hold| {
                let reason = hold.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("{} {} is held by {}{reason}", hold.kind, hold.resource_id, hold.actor)
            }));
        lines.enumerate().try_for_each(|(at, line)| write!(f, "{}{line}", if at == 0 { "" } else { "; " }))
    }
}

/// A request that was not carried out. Nothing has changed, with one exception: when the database goes away in a commit,
/// nobody knows whether that took place.
#[derive(Debug, thiserror::Error)]
pub enum TrashError {
    /// The map has no such kind.
    #[error(transparent)]
    UnknownKind(#[from] UnknownKind),
    /// The id cannot be one of this kind.
    #[error("{kind}: {error}")]
    MalformedId {
        /// The kind.
        kind: Kind,
        /// What is wrong with it.
        error: InvalidId,
    },
    /// An actor without a name.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// No window.
    #[error(transparent)]
    InvalidRetention(#[from] InvalidRetention),
    /// No row has this id.
    #[error("there is no {0}")]
    NotFound(ResourceRef),
    /// A cascade to a kind that is no child of this one.
    #[error("{kind} has no children of the kind {asked:?}{}", if known.is_empty() { String::new() } else { format!("; it has: {known}") })]
    NoSuchChildren {
        /// The kind asked about.
        kind: Kind,
        /// What was asked for.
        asked: String,
        /// The child kinds it has.
        known: String,
    },
    /// A window that is shorter than allowed.
    #[error(
        "a retention of {asked} for {resource} is too short: at least {least} (its kind's own window, or retention.minimum)"
    )]
    RetentionTooShort {
        /// The resource.
        resource: ResourceRef,
        /// What was asked.
        asked: Retention,
        /// The least.
        least: Retention,
    },
    /// In use, protected or held.
    #[error("{resource} cannot be trashed: {refusals}")]
    Refused {
        /// What was to be trashed.
        resource: ResourceRef,
        /// Everything that stands against it.
        refusals: Box<Refusals>,
    },
    /// The place of its objects cannot be told safely.
    #[error("the objects of {resource} cannot be placed: {error}")]
    UnsafePlace {
        /// The resource.
        resource: ResourceRef,
        /// Why.
        error: UnsafePlace,
    },
    /// An objects query named a bucket that its store does not list.
    #[error("the objects query of {resource} names the bucket {bucket:?}, which its store does not list")]
    ForeignBucket {
        /// The resource.
        resource: ResourceRef,
        /// The bucket.
        bucket: String,
    },
    /// A restore, retry or purge of something that is not in the trash.
    #[error("{0} is not in the trash")]
    NotInTrash(ResourceRef),
    /// Past the point of no return.
    #[error("{} is past the point of no return: it is {}, {}", tombstone.resource, tombstone.state, how_far(tombstone))]
    PastReturn {
        /// As it stands.
        tombstone: Box<Tombstone>,
    },
    /// The platform has removed the row itself, so there is nothing to bring back.
    #[error(
        "{0} cannot be restored: its row has been removed by somebody else; its objects are untouched until purge_after"
    )]
    RowGone(ResourceRef),
    /// A retry of what neither is stuck nor waits for its next try.
    #[error("{} is {}, not stuck: {}", tombstone.resource, tombstone.state, instead(tombstone, why))]
    NothingToRetry {
        /// As it stands.
        tombstone: Box<Tombstone>,
        /// What it does instead.
        why: NoRetry,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why there is nothing to retry.
#[derive(Debug, Clone)]
pub enum NoRetry {
    /// It is not past the point of no return.
    NotBegun,
    /// A worker has it, or had it until a moment ago.
    WorkedOn,
    /// It is due.
    Due,
    /// It waits for the end of this pause.
    Paused(Pause),
}

/// What a tombstone does of which nothing is to be retried, for people.
fn instead(tombstone: &Tombstone, why: &NoRetry) -> String {
    match why {
        NoRetry::NotBegun => {
            let next = timestamp(tombstone.next_attempt_at.max(tombstone.purge_after));
            let error = tombstone.last_error.as_deref().map(|error| format!("; the last time: {error}"));
            let blockers: String = tombstone.blockers.iter().map(|blocker| format!("; {blocker}")).collect();
            let why = error.unwrap_or(blockers);
            format!("its purge has not begun, and it is looked at by itself at {next}{why}")
        }
        NoRetry::WorkedOn => {
            let worker = tombstone.lease_owner.as_deref().map(|worker| format!(" {worker}")).unwrap_or_default();
            format!("the worker{worker} is at it right now, {}", how_far(tombstone))
        }
        NoRetry::Due => {
            format!("it is due since {}, and goes on when a worker is free", timestamp(tombstone.next_attempt_at))
        }
        NoRetry::Paused(pause) => {
            let why = pause.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("it waits for the end of a pause by {}{why}", pause.actor)
        }
    }
}

/// A time for people and for programs, to the second.
pub fn timestamp(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// How far a purge got, for people.
pub fn how_far(tombstone: &Tombstone) -> String {
    let progress = &tombstone.progress;
    format!(
        "{} of {} ({}) and {} have gone",
        progress.objects_gone(),
        counted(progress.objects_listed, "listed object"),
        counted(progress.bytes_freed, "byte"),
        counted(progress.rows_deleted, "row")
    )
}

impl TrashError {
    pub(super) fn of_place(resource: &ResourceRef, error: UnknownPlace) -> Self {
        let resource = resource.clone();
        match error {
            UnknownPlace::Unsafe(error) => Self::UnsafePlace { resource, error },
            UnknownPlace::ForeignBucket(bucket) => Self::ForeignBucket { resource, bucket },
            UnknownPlace::Store(error) => Self::Store(error),
        }
    }

    /// A stable name, for replies and problem documents.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownKind(_) => "unknown_kind",
            Self::MalformedId { .. } => "malformed_id",
            Self::InvalidName(_) | Self::InvalidRetention(_) => "invalid_request",
            Self::NotFound(_) => "not_found",
            Self::NoSuchChildren { .. } => "no_such_children",
            Self::RetentionTooShort { .. } => "retention_too_short",
            Self::Refused { refusals, .. } if !refusals.blockers.is_empty() => "in_use",
            Self::Refused { refusals, .. } if !refusals.protected.is_empty() => "protected",
            Self::Refused { .. } => "held",
            Self::UnsafePlace { .. } | Self::ForeignBucket { .. } => "unsafe_place",
            Self::NotInTrash(_) => "not_in_trash",
            Self::PastReturn { .. } => "past_return",
            Self::RowGone(_) => "row_gone",
            Self::NothingToRetry { .. } => "not_stuck",
            Self::Store(_) => "unavailable",
        }
    }

    /// Whether the request can never succeed as it is written, whatever the platform's state.
    pub fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::UnknownKind(_)
                | Self::MalformedId { .. }
                | Self::InvalidName(_)
                | Self::InvalidRetention(_)
                | Self::NoSuchChildren { .. }
        )
    }

    /// What stands against it, for programs.
    pub fn details(&self) -> Value {
        match self {
            Self::Refused { refusals, .. } => json!(refusals),
            Self::PastReturn { tombstone } | Self::NothingToRetry { tombstone, .. } => {
                json!({ "tombstone": tombstone })
            }
            _ => Value::Null,
        }
    }

    /// What to do about it, for people; empty where the message says it.
    pub fn advice(&self) -> Cow<'static, str> {
        let advice = match self {
            Self::Refused { refusals, .. } if !refusals.blockers.is_empty() => return end_uses(&refusals.blockers),
            Self::Refused { refusals, .. } if !refusals.protected.is_empty() => {
                "what is protected is never trashed; change `protect` in the resource map if it should be"
            }
            Self::Refused { refusals, .. } => {
                let releases =
                    refusals.holds.iter().map(|hold| format!("reprieve release {} {}", hold.kind, hold.resource_id));
                let releases = releases.collect::<Vec<_>>().join("; ");
                return format!("release the hold first: {releases}").into();
            }
            Self::PastReturn { tombstone } => {
                let resource = &tombstone.resource;
                return format!(
                    "it can no longer be restored or held; reprieve show {resource} tells what has happened"
                )
                .into();
            }
            Self::NotInTrash(_) => "reprieve list shows what is in the trash",
            Self::NothingToRetry { tombstone, why } => return wait_for(tombstone, why).into(),
            Self::Store(error) => error.advice(),
            _ => "",
        };
        advice.into()
    }
}

/// What to do where nothing is to be retried.
fn wait_for(tombstone: &Tombstone, why: &NoRetry) -> String {
    let resource = &tombstone.resource;
    match (why, tombstone.state) {
        (NoRetry::NotBegun, State::Blocked) => {
            format!("end these uses, and its purge begins by itself; reprieve restore {resource} takes it back")
        }
        (NoRetry::NotBegun, _) => {
            format!("nothing: retry is for a purge that has begun; reprieve restore {resource} takes it back")
        }
        (NoRetry::WorkedOn, _) => {
            let until = tombstone.lease_until.map(|until| format!(" after {}", timestamp(until))).unwrap_or_default();
            format!(
                "nothing: reprieve show {resource} tells how far it is; should the worker have died, another takes \
                 over{until}"
            )
        }
        (NoRetry::Due, _) => {
            "nothing; if it stays so, see whether workers, relay and broker are there: reprieve health \
                              on their machines"
                .into()
        }
        (NoRetry::Paused(pause), _) => format!("reprieve resume {pause}"),
    }
}

const END_USES: &str = "end these uses first (deactivate or delete the models, stop the jobs), then try again";

const DELETE_ROWS: &str = "delete these rows first, or name their table in the map: under [[resource.rows]] what goes along, under \
                           [[resource.references]] what keeps it alive, as a kind and [[resource.children]] what can be \
                           trashed with it (--with KIND)";

/// What to do about these blockers.
fn end_uses(blockers: &[Blocker]) -> Cow<'static, str> {
    let children: BTreeSet<&str> = blockers.iter().filter_map(child_kind).collect();
    let is_row = |blocker: &Blocker| blocker.reference == FOREIGN_KEY;
    if children.is_empty() {
        return if blockers.iter().all(is_row) { DELETE_ROWS } else { END_USES }.into();
    }
    let mut advice = "trash the children along with it:".to_owned();
    advice.extend(children.iter().map(|kind| format!(" --with {kind}")));
    if blockers.iter().any(is_row) {
        advice += "; rows of theirs that a foreign key keeps go with them, and others have to be deleted first, or their table \
                   named in the map";
    }
    if blockers.iter().any(|blocker| child_kind(blocker).is_none() && !is_row(blocker)) {
        advice += "; and end the other uses first";
    }
    advice.into()
}
