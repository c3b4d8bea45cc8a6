//! What the race has counted. Every attempt ends in exactly one of [`Outcome`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use super::actors::{Isolation, Use};

/// How one attempt to use a dataset ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Committed; and at the end of the use everything was still there.
    Used,
    /// The guard refused it: the dataset is in the trash.
    InTheTrash,
    /// The dataset, or the row that would have used it, had gone with a finished purge.
    Gone,
    /// The platform's transaction lost against another (40001), as these isolation levels do.
    Serialization,
    /// The database ended a circle of waits (40P01).
    Deadlock,
}

impl Outcome {
    /// Of an attempt that was refused. Anything else than these fails the test.
    pub fn of(error: &sqlx::Error) -> Outcome {
        let database = error.as_database_error().unwrap_or_else(|| panic!("{error}"));
        match database.code().unwrap_or_default().as_ref() {
            "23503" if database.message().contains("is in the trash") => Outcome::InTheTrash,
            // the platform's own foreign key
            "23503" => Outcome::Gone,
            "40001" => Outcome::Serialization,
            "40P01" => Outcome::Deadlock,
            _ => panic!("{error}"),
        }
    }
}

/// What became of the datasets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lives {
    pub trashed: u64,
    /// A trash that found the dataset in use.
    pub trash_refused: u64,
    pub restored: u64,
    pub purged: u64,
    /// A claim that found the dataset in use: with guards, never.
    pub blocked: u64,
    /// A trash, restore or purge that the database called busy.
    pub busy: u64,
}

#[derive(Debug, Default)]
struct Counts {
    attempts: u64,
    by: BTreeMap<(Isolation, Use, Outcome), u64>,
    lives: Lives,
    violations: Vec<String>,
}

#[derive(Debug, Default)]
pub struct Tally(Mutex<Counts>);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("no panic")
    }

    /// Begins an attempt; `false` once there were `most`.
    pub fn begin(&self, most: u64) -> bool {
        let mut counts = self.counts();
        let more = counts.attempts < most;
        counts.attempts += u64::from(more);
        more
    }

    /// An attempt that could not be made: what it would have used had gone before.
    pub fn call_off(&self) {
        self.counts().attempts -= 1;
    }

    pub fn end(&self, isolation: Isolation, way: Use, outcome: Outcome) {
        *self.counts().by.entry((isolation, way, outcome)).or_default() += 1;
    }

    pub fn live(&self, count: impl FnOnce(&mut Lives)) {
        count(&mut self.counts().lives);
    }

    pub fn violation(&self, what: String) {
        self.counts().violations.push(what);
    }

    /// The first few.
    pub fn violations(&self) -> Vec<String> {
        self.counts().violations.iter().take(10).cloned().collect()
    }

    pub fn attempts(&self) -> u64 {
        self.counts().attempts
    }

    pub fn lives(&self) -> Lives {
        self.counts().lives
    }

    fn sum(&self, which: impl Fn(&(Isolation, Use, Outcome)) -> bool) -> u64 {
        self.counts().by.iter().filter(|(key, _)| which(key)).map(|(_, count)| count).sum()
    }

    pub fn outcomes(&self) -> u64 {
        self.sum(|_| true)
    }

    pub fn committed(&self, isolation: Isolation) -> u64 {
        self.sum(|(level, _, outcome)| *level == isolation && *outcome == Outcome::Used)
    }

    pub fn refused(&self, isolation: Isolation) -> u64 {
        self.sum(|(level, _, outcome)| *level == isolation && *outcome == Outcome::InTheTrash)
    }

    pub fn committed_by(&self, way: Use) -> u64 {
        self.sum(|(_, by, outcome)| *by == way && *outcome == Outcome::Used)
    }

    pub fn refused_by(&self, way: Use) -> u64 {
        self.sum(|(_, by, outcome)| *by == way && *outcome == Outcome::InTheTrash)
    }

    pub fn deadlocks(&self) -> u64 {
        self.sum(|(_, _, outcome)| *outcome == Outcome::Deadlock)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts();
        writeln!(f, "{} attempts; {:?}", counts.attempts, counts.lives)?;
        for isolation in Isolation::ALL {
            let of = counts.by.iter().filter(|((level, ..), _)| *level == isolation);
            let mut outcomes: BTreeMap<Outcome, u64> = BTreeMap::new();
            of.for_each(|((_, _, outcome), count)| *outcomes.entry(*outcome).or_default() += count);
            writeln!(f, "  {isolation:?}: {outcomes:?}")?;
        }
        write!(f, "  violations: {}", counts.violations.len())
    }
}
