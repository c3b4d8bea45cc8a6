//! How far a purge has got, in objects, bytes and rows.
//!
//! Invariant: `listed = deleted + absent + failed + unknown`, always; the database checks it too. Every object that a
//! listing showed is counted once, by what became of it: `deleted` and `absent` only grow, `failed` and `unknown` are
//! what the running pass over the prefixes has left, and a new pass looks at those objects afresh. An older version and a
//! delete marker are listed, and so are objects here; how many of those that have gone were such is counted beside.

use serde::{Deserialize, Serialize};

use super::outcome::{EntryKind, KeyOutcome};

/// The counters of one purge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Objects seen in listings.
    pub objects_listed: u64,
    /// Objects that the store said it deleted on our request.
    pub objects_deleted: u64,
    /// Objects found gone: the store said so, or the answer was lost and a fresh listing did not show them.
    pub objects_absent: u64,
    /// Of those deleted or absent, versions that were not current when they were listed.
    pub versions_gone: u64,
    /// Of those deleted or absent, delete markers.
    pub markers_gone: u64,
    /// Objects still there, with a reason from the store.
    pub objects_failed: u64,
    /// Objects asked for and not yet accounted for.
    pub objects_unknown: u64,
    /// Unfinished multipart uploads aborted. No listing of objects shows them, so they are in none of the figures above.
    pub uploads_aborted: u64,
    /// Objects that stay, since another resource names them too; in none of the figures above either.
    #[serde(skip_serializing_if = "is_zero")]
    pub objects_kept: u64,
    /// Bytes of the objects deleted or found gone.
    pub bytes_freed: u64,
    /// Child rows and resource rows deleted.
    pub rows_deleted: u64,
}

impl Progress {
    /// Counts one listed object of `size` bytes by its outcome.
    pub fn count(&mut self, outcome: &KeyOutcome, size: u64, kind: EntryKind) {
        self.objects_listed += 1;
        match kind {
            EntryKind::Older if outcome.is_gone() => self.versions_gone += 1,
            EntryKind::Marker if outcome.is_gone() => self.markers_gone += 1,
            EntryKind::Current | EntryKind::Older | EntryKind::Marker => {}
        }
        match outcome {
            KeyOutcome::Deleted => {
                self.objects_deleted += 1;
                self.bytes_freed += size;
            }
            KeyOutcome::AlreadyAbsent => {
                self.objects_absent += 1;
                self.bytes_freed += size;
            }
            KeyOutcome::Failed(_) => self.objects_failed += 1,
            KeyOutcome::Unknown => self.objects_unknown += 1,
        }
    }

    /// Counts listed objects that were found gone, with as many older versions and delete markers among them.
    pub fn count_absent(&mut self, objects: u64, versions: u64, markers: u64, bytes: u64) {
        self.objects_listed += objects;
        self.objects_absent += objects;
        self.versions_gone += versions;
        self.markers_gone += markers;
        self.bytes_freed += bytes;
    }

    /// What was counted since then.
    pub fn since(&self, then: &Self) -> Self {
        Self {
            objects_listed: self.objects_listed - then.objects_listed,
            objects_deleted: self.objects_deleted - then.objects_deleted,
            objects_absent: self.objects_absent - then.objects_absent,
            objects_failed: self.objects_failed - then.objects_failed,
            objects_unknown: self.objects_unknown - then.objects_unknown,
            versions_gone: self.versions_gone - then.versions_gone,
            markers_gone: self.markers_gone - then.markers_gone,
            uploads_aborted: self.uploads_aborted - then.uploads_aborted,
            objects_kept: self.objects_kept - then.objects_kept,
            bytes_freed: self.bytes_freed - then.bytes_freed,
            rows_deleted: self.rows_deleted - then.rows_deleted,
        }
    }

    /// A new pass lists anew: what failed, stayed unknown or was kept will be seen and counted again.
    pub fn begin_pass(&mut self) {
        self.objects_listed -= self.objects_failed + self.objects_unknown;
        self.objects_failed = 0;
        self.objects_unknown = 0;
        self.objects_kept = 0;
    }

    /// Whether the last pass has left objects behind.
    pub fn has_leftovers(&self) -> bool {
        self.objects_failed + self.objects_unknown > 0
    }

    /// Objects known to be gone.
    pub fn objects_gone(&self) -> u64 {
        self.objects_deleted + self.objects_absent
    }

    /// Whether the law of the counters holds; in production the table checks it.
    pub fn adds_up(&self) -> bool {
        self.objects_listed == self.objects_deleted + self.objects_absent + self.objects_failed + self.objects_unknown
            && self.versions_gone + self.markers_gone <= self.objects_gone()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::outcome::{FailureClass, KeyFailure};
    use super::*;

    fn outcome() -> impl Strategy<Value = KeyOutcome> {
        prop_oneof![
            Just(KeyOutcome::Deleted),
            Just(KeyOutcome::AlreadyAbsent),
            Just(KeyOutcome::Unknown),
            Just(KeyOutcome::Failed(KeyFailure {
                code: "InternalError".into(),
                message: String::new(),
                class: FailureClass::Transient
            })),
        ]
    }

    fn kind() -> impl Strategy<Value = EntryKind> {
        prop_oneof![Just(EntryKind::Current), Just(EntryKind::Older), Just(EntryKind::Marker)]
    }

    proptest! {
        #[test]
        fn the_counters_add_up_through_any_passes(passes in prop::collection::vec(prop::collection::vec((outcome(), 0..10_000u64, kind()), 0..50), 0..5)) {
            let mut progress = Progress::default();
            for pass in passes {
                let gone = progress.objects_gone();
                progress.begin_pass();
                prop_assert_eq!(progress.objects_gone(), gone);
                for (outcome, size, kind) in pass {
                    progress.count(&outcome, size, kind);
                    prop_assert!(progress.adds_up());
                }
            }
        }
    }
}
