//! How many keys a store takes in one request, where it grants fewer at once than a batch has.
//!
//! Invariant: a request gets smaller only when several in a row were refused as a whole, however long the pauses between
//! them. At the first one that is granted, twice as many are tried: a store that had refused everything is soon asked for
//! whole batches again.

use std::time::Duration;

use tokio::time::Instant;

/// The protocol allows no more.
const MOST: usize = 1000;

/// For how long nobody tries again what was refused right after half of it was granted.
const HOLDS: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct AtOnce {
    /// `None`: as many as a batch has.
    keys: Option<usize>,
    /// So many are being tried, since half of them were granted.
    trying: Option<usize>,
    /// When such a try was refused.
    refused_at: Option<Instant>,
}

impl AtOnce {
    pub(super) fn keys(&self) -> Option<usize> {
        self.keys
    }

    /// All of a request was granted.
    pub(super) fn grant(&mut self, asked: usize, now: Instant) {
        if self.trying.is_some_and(|trying| asked >= trying) {
            self.trying = None;
        }
        let is_known = self.refused_at.is_some_and(|at| now - at < HOLDS);
        let Some(keys) = self.keys.filter(|keys| asked >= *keys && !is_known) else { return };
        self.trying = Some((2 * keys).min(MOST));
        self.keys = self.trying.filter(|keys| *keys < MOST);
    }

    /// All of a request was refused; `again`: and all of several before it.
    pub(super) fn refuse(&mut self, asked: usize, again: bool, now: Instant) {
        // sent before it was known
        let is_old = self.keys.is_some_and(|keys| asked > keys);
        let is_too_many = self.trying.is_some_and(|trying| asked >= trying);
        if is_old || !(again || is_too_many) {
            return;
        }
        if is_too_many {
            (self.trying, self.refused_at) = (None, Some(now));
        }
        self.keys = Some((asked / 2).max(1));
    }
}
