//! What this process needs and has not got, and since when.
//!
//! Invariant: a part that is missing keeps the time at which it was first missed until it is there again. Nobody waits
//! here, and nothing is asked: whoever finds out says so.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use time::OffsetDateTime;

/// Something that the process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// That the start is over.
    Start,
    /// That it stays: it is being shut down.
    Stay,
    /// The database.
    Database,
    /// Its schema, as new as this program.
    Schema,
    /// The connection of a role to the broker.
    Broker(&'static str),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Stay => f.write_str("stay"),
            Self::Database => f.write_str("database"),
            Self::Schema => f.write_str("schema"),
            Self::Broker(role) => write!(f, "broker ({role})"),
        }
    }
}

/// A part that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub part: Part,
    /// Since when, by this machine's clock.
    pub since: OffsetDateTime,
    /// What is known of it; open to everybody, so no address and nothing that a server said.
    pub why: String,
}

/// Shared by the parts of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<Mutex<BTreeMap<Part, (OffsetDateTime, String)>>>);

impl Standing {
    /// It is missing, for this reason.
    pub fn misses(&self, part: Part, why: impl Into<String>) {
        let why = why.into();
        self.parts().entry(part).or_insert_with(|| (OffsetDateTime::now_utc(), String::new())).1 = why;
    }

    /// It is there, or it is not known to be missing.
    pub fn has(&self, part: Part) {
        self.parts().remove(&part);
    }

    /// What is missing.
    pub fn missing(&self) -> Vec<Missing> {
        let missing = |(part, (since, why)): (&Part, &(OffsetDateTime, String))| Missing {
            part: *part,
            since: *since,
            why: why.clone(),
        };
        self.parts().iter().map(missing).collect()
    }

    /// Whether the start is over.
    pub fn has_started(&self) -> bool {
        !self.parts().contains_key(&Part::Start)
    }

    /// Every step is a single change, so a poisoned lock is as good as any.
    fn parts(&self) -> MutexGuard<'_, BTreeMap<Part, (OffsetDateTime, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_keeps_its_time_until_it_is_there_again() {
        let standing = Standing::default();
        assert!(standing.has_started() && standing.missing().is_empty());
        standing.misses(Part::Database, "away");
        let first = standing.missing();
        standing.misses(Part::Database, "still away");
        let second = standing.missing();
        assert_eq!((first[0].since, second[0].why.as_str()), (second[0].since, "still away"));
        standing.misses(Part::Start, "the map");
        assert!(!standing.has_started());
        standing.has(Part::Database);
        assert_eq!(standing.missing().iter().map(|missing| missing.part).collect::<Vec<_>>(), [Part::Start]);
    }
}
