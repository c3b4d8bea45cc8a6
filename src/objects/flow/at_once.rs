//! How many keys a store takes in one request, where it grants fewer at once than a batch has.
//!
//! Invariant: a request gets smaller only when several of its size in a row were refused as a whole, however long the
//! pauses between them. At the first one that is granted, twice as many are tried, and after a refused try again later: a
//! store that had refused everything is soon asked for whole batches again.

use std::time::Duration;

use tokio::time::Instant;

/// The protocol allows no more.
const MOST: usize = 1000;

/// Whole refusals in a row after which fewer keys are asked for, first and then.
const REFUSALS: u32 = 4;
const FURTHER: u32 = 2;

/// For how long nobody tries again what was refused right after half of it was granted. Doubles with each such try.
const HOLDS: Duration = Duration::from_secs(10);
/// The longest such time.
const HOLDS_AT_MOST: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct AtOnce {
    /// `None`: as many as a batch has.
    keys: Option<usize>,
    /// Whole refusals in a row, and of how many keys the last one was. What fewer keys meet meanwhile says nothing.
    refused: (u32, usize),
    /// So many are being tried, since half of them were granted.
    trying: Option<usize>,
    /// No such try before, and how long the last one that was refused has been held against it.
    held: Option<(Instant, Duration)>,
}

impl AtOnce {
    pub(super) fn keys(&self) -> Option<usize> {
        self.keys
    }

    /// All of a request was granted.
    pub(super) fn grant(&mut self, asked: usize, now: Instant) {
        if 2 * asked > self.refused.1 {
            self.refused = (0, 0);
        }
        if self.trying.is_some_and(|trying| asked >= trying) {
            (self.trying, self.held) = (None, None);
        }
        let is_held = self.held.is_some_and(|(until, _)| now < until);
        let Some(keys) = self.keys.filter(|keys| asked >= *keys && !is_held) else { return };
        self.trying = Some((2 * keys).min(MOST));
        self.keys = self.trying.filter(|keys| *keys < MOST);
    }

    /// All of a request was refused.
    pub(super) fn refuse(&mut self, asked: usize, now: Instant) {
        // sent before it was known, or as small as can be
        if self.keys.is_some_and(|keys| asked > keys) || asked == 1 {
            return;
        }
        if self.trying.take().is_some_and(|trying| asked >= trying) {
            let time = self.held.map_or(HOLDS, |(_, time)| (2 * time).min(HOLDS_AT_MOST));
            self.held = Some((now + time, time));
        } else {
            self.refused = (self.refused.0 + 1, asked);
            let enough = if self.keys.is_none() { REFUSALS } else { FURTHER };
            if self.refused.0 < enough {
                return;
            }
        }
        self.keys = Some(asked / 2);
        self.refused = (0, 0);
    }
}
