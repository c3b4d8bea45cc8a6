//! The claim: the point of no return, or the reason why not.
//!
//! Invariant: tombstone and resource row are locked, in this order, and the references are asked under these locks.
//! Either the one commit at the end raises the fence, or the resource stays restorable. A check that fails, a map that
//! no longer knows the kind, a mark that somebody took away: each means "not now".

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use super::{Purger, SliceEnd, checkpoint::Checkpoint};
use crate::{
    bystanders::{
        self, Leaving,
        named::{self, Records},
        rows,
    },
    domain::{
        ids::{IdType, TombstoneId},
        map::ResourceKind,
        progress::Progress,
        state::State,
        tombstone::{Blocker, Tombstone},
    },
    failpoint, history,
    places::{self, UnknownPlace},
    queue::message::PurgeTask,
    store::{
        StoreError, Tx,
        audit::Happened,
        commit,
        foreign_keys::Spared,
        holds,
        in_use::{self, InUse},
        outbox, pauses,
        platform::{self, Locking},
        tombstones::{
            self, Candidate,
            purging::{self, Beginning, Lease},
        },
    },
    telemetry::{metrics::RetriedBy, trace},
};

/// A purge that is ours to work on, past the point of no return.
#[derive(Debug, Clone)]
pub(super) struct Claimed {
    pub(super) lease: Lease,
    pub(super) tombstone: Tombstone,
    /// Where it goes on. The beginning, until it has been looked up under the lease: whoever dies of reading it is
    /// counted.
    pub(super) checkpoint: Checkpoint,
    pub(super) progress: Progress,
    /// Whether this delivery has deleted anything yet. However short its time, it does one step, or it would be no
    /// further when its time is over, for ever.
    pub(super) has_worked: bool,
}

impl Claimed {
    fn new(lease: Lease, tombstone: Tombstone) -> Self {
        let checkpoint = Checkpoint::default();
        Self { lease, progress: tombstone.progress, tombstone, checkpoint, has_worked: false }
    }
}

/// What a claim found.
#[derive(Debug)]
pub(super) enum Claim {
    /// Ours.
    Ours(Box<Claimed>),
    /// In use, by these; it is looked at again later.
    Blocked(Vec<Blocker>),
    /// Not now, for this reason; it is looked at again later.
    Deferred(String),
    /// Nothing to do: closed, stuck, or no such tombstone.
    Nothing(&'static str),
    /// Workers die over it: it waits, or is set aside.
    Ended(SliceEnd),
}

/// How those are asked who may use a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// All in one statement, which says whether anybody does at all.
    AtOnce,
    /// One after the other, so that the one that fails has a name.
    EachAlone,
}

/// What is known of a lease that ran out with its owner still on it. A worker that comes back to its own had lost the
/// database, and has not died.
const DIED: &str = "its worker died or fell silent";

impl Purger {
    /// Claims a tombstone, or says why not. A crash before the commit changes nothing; after it, the lease runs out
    /// and another worker takes over.
    pub(super) async fn claim(&self, id: TombstoneId) -> Result<Claim, super::PurgeError> {
        match self.claim_asking(id, Asking::AtOnce).await {
            // which of them it was, only they themselves can say
            Err(super::PurgeError::Store(StoreError::Platform { .. })) => {
                self.claim_asking(id, Asking::EachAlone).await
            }
            claim => claim,
        }
    }

    async fn claim_asking(&self, id: TombstoneId, asking: Asking) -> Result<Claim, super::PurgeError> {
        let mut tx = self.store.begin().await?;
        failpoint::at("claim.begun");
        let Some(candidate) = tombstones::lock_candidate(&mut tx, id).await? else {
            return Ok(Claim::Nothing("there is no such tombstone"));
        };
        failpoint::at("claim.locked");
        trace::works_on(&candidate.tombstone);
        match candidate.tombstone.state {
            State::Restored | State::Purged => Ok(Claim::Nothing("it is closed")),
            State::Stuck => self.thaw(tx, candidate.tombstone).await,
            State::Purging => self.resume(tx, candidate.tombstone).await,
            State::Trashed | State::Blocked => self.begin(tx, candidate, asking).await,
        }
    }

    /// Goes on with what was locked until a date that has come.
    async fn thaw(&self, mut tx: Tx, mut tombstone: Tombstone) -> Result<Claim, super::PurgeError> {
        if !purging::thaw(&mut tx, tombstone.id).await? {
            return Ok(Claim::Nothing("it is stuck and waits for a retry, or for its date"));
        }
        let details = json!({ "was": tombstone.last_error });
        history::record(&mut tx, Happened::Retried, &tombstone, &self.provenance(), details).await?;
        // attempts count anew, as after a retry by hand
        (tombstone.state, tombstone.attempts, tombstone.retry_at) = (State::Purging, 0, None);
        let kind = tombstone.resource.kind.clone();
        let claim = self.resume(tx, tombstone).await?;
        self.metrics.purges().retried(&kind, RetriedBy::Date);
        Ok(claim)
    }

    async fn resume(&self, mut tx: Tx, tombstone: Tombstone) -> Result<Claim, super::PurgeError> {
        if let Some(pause) = pauses::concerning(&mut tx, &tombstone).await? {
            let wait = self.recheck.delay_for(1);
            let reason = paused_by(&pause);
            return self.later(tx, &tombstone, wait, reason).await;
        }
        let lease = purging::take_over(&mut tx, tombstone.id, &self.owner, self.config.lease).await?;
        let Some(lease) = lease else {
            // a duplicate task, or the former owner has died and its lease has not run out yet: look again then
            let wait = tombstones::until_free(&mut tx, tombstone.id).await?;
            return self.later(tx, &tombstone, wait, "another worker holds the lease, or it is not due".into()).await;
        };
        if let Some(dead) = tombstone.lease_owner.as_ref().filter(|owner| **owner != self.owner) {
            let deaths = purging::deaths(&mut tx, tombstone.id).await?;
            tracing::warn!(tombstone.id = %tombstone.id, worker = dead, deaths, "{DIED}, taking over");
            // one death is an ordinary crash, and it goes on at once; more in a row may be this purge's doing
            if deaths > 1 || deaths >= self.config.max_attempts {
                return Ok(Claim::Ended(self.after_death(tx, &tombstone, &lease, DIED).await?));
            }
        }
        failpoint::at("resume.uncommitted");
        commit(tx).await?;
        failpoint::at("resume.committed");
        Ok(Claim::Ours(Box::new(Claimed::new(lease, tombstone))))
    }

    async fn begin(&self, mut tx: Tx, candidate: Candidate, asking: Asking) -> Result<Claim, super::PurgeError> {
        let Candidate { mut tombstone, waits, due_in, .. } = candidate;
        let wait = self.recheck.delay_for(waits.saturating_add(1));
        if !due_in.is_zero() {
            // early, or a duplicate: it changes nothing, not even how long the waits have grown
            return self.later(tx, &tombstone, due_in, "it is not time yet".into()).await;
        }
        tombstones::lock_ancestors(&mut tx, &tombstone).await?;
        let kept = tombstones::is_kept(&mut tx, &tombstone).await?;
        if kept && let Some(what) = keeper_of(&mut tx, &tombstone).await? {
            return self.defer(tx, &tombstone, wait, what).await;
        }
        let Ok(kind) = self.map.kind(tombstone.resource.kind.as_str()) else {
            let reason = format!("the resource map no longer has the kind {}", tombstone.resource.kind);
            return self.defer(tx, &tombstone, wait, reason).await;
        };
        // noticed before the point of no return, a mistake in the configuration costs nothing
        if let Some(error) = tombstone.locations.iter().find_map(|at| self.stores.at(at).err()) {
            return self.defer(tx, &tombstone, wait, error.to_string()).await;
        }
        let recorded = &tombstone.recorded;
        let astray = recorded.iter().find_map(|at| self.stores.at_keys(at).err().map(|error| error.to_string()));
        let untold = recorded.iter().find_map(|at| named::can_tell(&self.map, &tombstone.resource, at).err());
        if let Some(reason) = astray.or(untold.map(|error| error.to_string())) {
            return self.defer(tx, &tombstone, wait, reason).await;
        }
        let looked = self.look(&mut tx, kind, &tombstone, asking).await;
        failpoint::at("claim.looked");
        let (row_found, mut blockers) = match looked {
            Ok(looked) => looked,
            Err(UnknownPlace::Store(error @ StoreError::Unavailable(_))) => return Err(error.into()),
            Err(UnknownPlace::Store(error @ StoreError::Platform { .. })) if asking == Asking::AtOnce => {
                return Err(error.into());
            }
            Err(error) => {
                // the failed query has spoiled its transaction
                drop(tx);
                let tx = self.store.begin().await?;
                return self.defer(tx, &tombstone, wait, error.to_string()).await;
            }
        };
        if kept {
            blockers.extend(open_children(&mut tx, &tombstone).await?);
        }
        if !blockers.is_empty() {
            return self.block(tx, tombstone, blockers, wait).await;
        }
        let details = json!({ "row_found": row_found, "locations": tombstone.locations });
        let details = with_recorded(details, &tombstone);
        let told = &history::telling(Happened::PurgeBegun, &tombstone, &self.provenance(), details);
        let beginning = Beginning { owner: &self.owner, lease: self.config.lease, row_found, told };
        let begun = purging::begin(&mut tx, tombstone.id, beginning).await?;
        let Some(lease) = begun else { return Ok(Claim::Nothing("it was closed meanwhile")) };
        failpoint::at("claim.uncommitted");
        commit(tx).await?;
        failpoint::at("claim.committed");
        tombstone.row_found = Some(row_found);
        // attempts count anew past the point of no return
        tombstone.attempts = 0;
        Ok(Claim::Ours(Box::new(Claimed::new(lease, tombstone))))
    }

    /// Locks the resource's row and asks who uses it.
    async fn look(
        &self,
        tx: &mut Tx,
        kind: &ResourceKind,
        tombstone: &Tombstone,
        asking: Asking,
    ) -> Result<(bool, Vec<Blocker>), UnknownPlace> {
        let resource = &tombstone.resource;
        let row = platform::find(&mut *tx, kind, &resource.id, Locking::ForUpdate).await?;
        let in_use = match asking {
            Asking::AtOnce => {
                let keys = self.keys.keys(&mut *tx, &self.map).await?;
                in_use::look(&mut *tx, &self.map, &keys, kind, &resource.id).await?
            }
            Asking::EachAlone => InUse::PERHAPS,
        };
        let mut blockers = match in_use.by_reference {
            true => platform::blockers(&mut *tx, kind, &resource.id).await?,
            false => Vec::new(),
        };
        let circumstance = |reference: &str, label: &str| Blocker {
            resource: resource.to_string(),
            reference: reference.into(),
            id: tombstone.id.to_string(),
            label: label.into(),
        };
        match &row {
            Some(row) if !row.fits => {
                blockers.push(circumstance("changed kind", "its row no longer matches the map's `where`"));
            }
            Some(row) if row.marked == Some(false) => {
                blockers.push(circumstance("undeleted row", "somebody took the platform's deletion mark away"));
            }
            Some(row) if kind.id_type != IdType::Uuid && row.name != tombstone.name => {
                let name = row.name.as_deref().unwrap_or("nothing");
                let label = format!("its row is now called {name}: is it another, with the same id?");
                blockers.push(circumstance("another row", &label));
            }
            Some(_) | None => {}
        }
        if let Some(row) = &row {
            let now = places::resolve(&mut *tx, kind, &resource.id, row).await?;
            let new = now.iter().find(|place| !tombstone.locations.iter().any(|known| known.contains(place)));
            if let Some(place) = new {
                let label = format!("objects of it can lie below {place} now; restore it and trash it again");
                blockers.push(circumstance("moved objects", &label));
            }
        }
        let records = if in_use.by_records { Records::Perhaps } else { Records::NoneYet };
        let leaving = Leaving { kind, resource, locations: &tombstone.locations, records };
        blockers.extend(bystanders::of(&mut *tx, &self.map, &self.keys, leaving, &BTreeSet::new()).await?);
        if in_use.by_foreign_key {
            blockers.extend(rows::refusing(&mut *tx, &self.map, &self.keys, resource, Spared::Nobody).await?);
        }
        Ok((row.is_some(), blockers))
    }

    async fn block(
        &self,
        mut tx: Tx,
        tombstone: Tombstone,
        blockers: Vec<Blocker>,
        wait: Duration,
    ) -> Result<Claim, super::PurgeError> {
        tombstones::block(&mut tx, tombstone.id, &blockers, wait).await?;
        if tombstone.state != State::Blocked || !are_the_same(&tombstone.blockers, &blockers) {
            let details = json!({ "blockers": blockers });
            history::record(&mut tx, Happened::Blocked, &tombstone, &self.provenance(), details).await?;
        }
        outbox::schedule_purge(&mut tx, tombstone.id, &PurgeTask { tombstone: tombstone.id }.encode(), wait).await?;
        failpoint::at("block.uncommitted");
        commit(tx).await?;
        failpoint::at("block.committed");
        self.metrics.purges().blocked(&tombstone.resource.kind);
        Ok(Claim::Blocked(blockers))
    }

    /// Not now: notes the reason and looks again after `wait`.
    async fn defer(
        &self,
        mut tx: Tx,
        tombstone: &Tombstone,
        wait: Duration,
        reason: String,
    ) -> Result<Claim, super::PurgeError> {
        tombstones::defer(&mut tx, tombstone.id, &reason, wait).await?;
        self.later(tx, tombstone, wait, reason).await
    }

    /// Puts the task back into the outbox, to leave after `wait`.
    async fn later(
        &self,
        mut tx: Tx,
        tombstone: &Tombstone,
        wait: Duration,
        reason: String,
    ) -> Result<Claim, super::PurgeError> {
        outbox::schedule_purge(&mut tx, tombstone.id, &PurgeTask { tombstone: tombstone.id }.encode(), wait).await?;
        failpoint::at("defer.uncommitted");
        commit(tx).await?;
        failpoint::at("defer.committed");
        Ok(Claim::Deferred(reason))
    }
}

/// Whether these are who it was before, however they are described: rows that are counted come and go.
fn are_the_same(before: &[Blocker], now: &[Blocker]) -> bool {
    before.iter().map(|by| (&by.reference, &by.id)).eq(now.iter().map(|by| (&by.reference, &by.id)))
}

/// The hold or the pause that keeps a tombstone from being purged, in words.
async fn keeper_of(tx: &mut Tx, tombstone: &Tombstone) -> Result<Option<String>, StoreError> {
    if let Some(hold) = holds::concerning(&mut *tx, tombstone.id).await? {
        let why = hold.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let own = hold.kind == tombstone.resource.kind.as_str() && hold.resource_id == tombstone.resource.id.as_str();
        let along = if own { String::new() } else { format!(" with {} {}", hold.kind, hold.resource_id) };
        return Ok(Some(format!("held{along} by {}{why}", hold.actor)));
    }
    Ok(pauses::concerning(&mut *tx, tombstone).await?.as_ref().map(paused_by))
}

/// Names the places of recorded objects too, where there are some.
fn with_recorded(mut details: serde_json::Value, tombstone: &Tombstone) -> serde_json::Value {
    if !tombstone.recorded.is_empty() {
        details["recorded"] = json!(tombstone.recorded);
    }
    details
}

/// What a cascade of it brought into the trash goes first.
async fn open_children(tx: &mut Tx, tombstone: &Tombstone) -> Result<Vec<Blocker>, StoreError> {
    let children = tombstones::children_of(&mut *tx, tombstone.id).await?;
    let open = children.into_iter().filter(|child| child.state.is_open());
    let blocker = |child: Tombstone| Blocker {
        resource: tombstone.resource.to_string(),
        reference: "child in the trash".into(),
        id: child.id.to_string(),
        label: format!("{} ({})", child.resource, child.state),
    };
    Ok(open.map(blocker).collect())
}

fn paused_by(pause: &pauses::Pause) -> String {
    let name = if pause.name.is_empty() { String::new() } else { format!(" {}", pause.name) };
    let why = pause.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{}{name} is paused by {}{why}", pause.scope, pause.actor)
}
