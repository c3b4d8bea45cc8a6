//! How many keys a store takes in one request, where it grants fewer at once than a batch has.
//!
//! Invariant: a request gets smaller only when several of its size in a row were refused as a whole, however long the
//! pauses between them. At the first one that is granted, twice as many are tried, and after a refused try again later: a
//! store that had refused everything is soon asked for whole batches again.

use std::time::Duration;

use tokio::time::Instant;

use super::FEW;

/// The protocol allows no more.
const MOST: usize = 1000;

/// Whole refusals in a row after which fewer keys are asked for, first and then.
const REFUSALS: u32 = 4;
const FURTHER: u32 = 2;

/// For how long nobody tries again what was refused right after half of it was granted. Doubles with each such try.
const HOLDS: Duration = Duration::from_secs(10);
/// The longest such time.
const HOLDS_AT_MOST: Duration = Duration::from_secs(600);

/// So long after the last refusal even requests with far fewer keys than they might have let more be tried.
const LULL: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct AtOnce {
    /// `None`: as many as a batch has.
    keys: Option<usize>,
    /// Whole refusals in a row, and of how many keys the largest was. What half as many keys are granted says nothing.
    refused: (u32, usize),
    /// So many are being tried, since half of them were granted.
    trying: Option<usize>,
    /// No such try before, and how long the last one that was refused has been held against it.
    held: Option<(Instant, Duration)>,
    /// The last refusal or try.
    changed_at: Option<Instant>,
}

/// Whether what became of so many keys says something of a request of this size. Batches are not always full: versions of a
/// key are not parted, and objects that are kept are left out.
fn speaks_for(asked: usize, size: usize) -> bool {
    2 * asked > size
}

/// Whether so many keys that were granted settle that a request of this size is.
fn settles(asked: usize, size: usize) -> bool {
    4 * asked > 3 * size
}

impl AtOnce {
    pub(super) fn keys(&self) -> Option<usize> {
        self.keys
    }

    /// So many keys that are refused are news of the bucket: [`FEW`], or fewer where requests have no more.
    pub(super) fn news(&self) -> usize {
        self.keys.map_or(FEW, |keys| keys.div_ceil(2).min(FEW))
    }

    /// All of a request was granted.
    pub(super) fn grant(&mut self, asked: usize, now: Instant) {
        if settles(asked, self.refused.1) {
            self.refused = (0, 0);
        }
        if self.trying.is_some_and(|trying| settles(asked, trying)) {
            (self.trying, self.held) = (None, None);
        }
        let is_held = self.held.is_some_and(|(until, _)| now < until);
        let is_calm = self.changed_at.is_none_or(|at| now - at >= LULL);
        let may_grow = |keys: &usize| !is_held && (is_calm || speaks_for(asked, *keys));
        let Some(keys) = self.keys.filter(may_grow) else { return };
        self.trying = Some((2 * keys).min(MOST));
        self.keys = self.trying.filter(|keys| *keys < MOST);
        self.changed_at = Some(now);
    }

    /// All of a request was refused. Whether fewer keys are asked for from here on.
    pub(super) fn refuse(&mut self, asked: usize, now: Instant) -> bool {
        // sent before it was known, or as small as can be
        if self.keys.is_some_and(|keys| asked > keys) || asked == 1 {
            return false;
        }
        self.changed_at = Some(now);
        let size = match self.trying.take_if(|trying| speaks_for(asked, *trying)) {
            Some(trying) => {
                let time = self.held.map_or(HOLDS, |(_, time)| (2 * time).min(HOLDS_AT_MOST));
                self.held = Some((now + time, time));
                trying
            }
            None => {
                // who is refused a few would be refused many
                let (times, size) = self.refused;
                self.refused = if asked > 2 * size { (1, asked) } else { (times + 1, size.max(asked)) };
                let enough = if self.keys.is_none() { REFUSALS } else { FURTHER };
                if self.refused.0 < enough {
                    return false;
                }
                self.refused.1
            }
        };
        let before = self.keys.replace(size / 2);
        (self.refused, self.trying) = ((0, 0), None);
        before.is_none_or(|before| size / 2 < before)
    }
}
