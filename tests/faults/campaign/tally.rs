//! What happened how often, and what must never have happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts by name, and the broken promises. Shared by everything that acts in a campaign.
#[derive(Debug, Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<String, u64>>,
    broken: Mutex<Vec<String>>,
}

impl Tally {
    pub fn add(&self, what: impl Into<String>) {
        self.add_many(what, 1);
    }

    pub fn add_many(&self, what: impl Into<String>, times: u64) {
        *lock(&self.counts).entry(what.into()).or_default() += times;
    }

    /// How often anything happened whose name begins so.
    pub fn count_all(&self, prefix: &str) -> u64 {
        lock(&self.counts).iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    /// Notes a promise that was broken; the campaign goes on, so that all of them are seen.
    pub fn broken(&self, promise: impl Into<String>) {
        let promise = promise.into();
        eprintln!("BROKEN: {promise}");
        lock(&self.broken).push(promise);
    }

    /// Notes it unless `kept`.
    pub fn must(&self, kept: bool, promise: impl FnOnce() -> String) {
        if !kept {
            self.broken(promise());
        }
    }

    pub fn broken_promises(&self) -> Vec<String> {
        lock(&self.broken).clone()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.counts).iter().try_for_each(|(what, count)| writeln!(f, "{count:>8}  {what}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // counts and a list: whole after every statement
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
