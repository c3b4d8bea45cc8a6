//! Asks the store why it denies what a pass has left: until when it is locked, and what is under legal hold.
//!
//! Invariant: it only looks, and what it cannot tell it says so. It is bounded: so many objects, so many at a time, so
//! long. When all that it asked about is locked until a date, the purge can try again by itself then; whatever else is
//! left needs somebody's help.

use std::{fmt, time::Duration};

use futures_util::future::join_all;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, timeout_at};

use super::{Purger, checkpoint::Leftover, claim::Claimed};
use crate::objects::{LockMode, ObjectEntry, ObjectLock, Retention, stores::NamedStore};

/// Objects of a pass that are asked about.
const MOST_ASKED: usize = 1000;

/// Objects asked about at a time. When none of the first so many is locked, it is something else.
const IN_FLIGHT: usize = 8;

/// For how long.
const LONGEST: Duration = Duration::from_secs(60);

/// Keys that are named of each sort.
const EXAMPLES: usize = 3;

/// What the store says of the objects that it denies to delete.
#[derive(Debug, Default)]
pub(super) struct Locks {
    governance: Sort,
    compliance: Sort,
    held: Sort,
    /// Not locked, or nobody can tell.
    other: u64,
    /// The first date of all.
    earliest: Option<OffsetDateTime>,
    /// The first of those that are under no legal hold as well: something is free then.
    next_free: Option<OffsetDateTime>,
    /// The last.
    latest: Option<OffsetDateTime>,
}

/// How many are locked in one way.
#[derive(Debug, Default)]
struct Sort {
    objects: u64,
    examples: Vec<String>,
}

/// Whether stores deny a locked object with this code (S3, Ceph: AccessDenied; MinIO: InvalidRequest).
pub(super) fn may_be_locked(left: &Leftover) -> bool {
    matches!(left.code.as_str(), "AccessDenied" | "InvalidRequest" | "ObjectLocked" | "other")
}

impl Purger {
    /// Asks about what is left below the tombstone's prefixes, and of what is recorded by key.
    pub(super) async fn ask_locks(&self, claimed: &Claimed) -> Locks {
        let deadline = Instant::now() + LONGEST;
        let (mut locks, mut asked) = (Locks::default(), 0);
        for location in &claimed.tombstone.locations {
            let Ok(store) = self.stores.at(location) else { continue };
            let mut after = None;
            loop {
                let page = store.objects.list(&location.bucket, location.prefix.as_str(), after.as_ref());
                let Ok(Ok(page)) = timeout_at(deadline, page).await else { return locks.cut_short() };
                if let Asked::Enough = locks.ask(store, &location.bucket, &page.entries, &mut asked, deadline).await {
                    return locks;
                }
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
        }
        for (at, recorded) in claimed.tombstone.recorded.iter().enumerate() {
            let Ok(store) = self.stores.at_keys(recorded) else { continue };
            let mut after = None;
            loop {
                let page = timeout_at(deadline, self.recorded_left(claimed, at, recorded, after.as_ref())).await;
                let Ok(Ok((left, next))) = page else { return locks.cut_short() };
                if let Asked::Enough = locks.ask(store, &recorded.bucket, &left, &mut asked, deadline).await {
                    return locks;
                }
                match next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
        }
        locks
    }
}

/// Whether to ask about more.
enum Asked {
    More,
    Enough,
}

impl Locks {
    /// Asks about some objects, as far as the bounds let it.
    async fn ask(
        &mut self,
        store: &NamedStore,
        bucket: &str,
        entries: &[ObjectEntry],
        asked: &mut usize,
        deadline: Instant,
    ) -> Asked {
        for chunk in entries.chunks(IN_FLIGHT) {
            if *asked >= MOST_ASKED || (*asked > 0 && self.is_nothing()) {
                return Asked::Enough;
            }
            let asks = chunk.iter().map(|entry| store.objects.lock_of(bucket, &entry.object));
            let Ok(answers) = timeout_at(deadline, join_all(asks)).await else {
                self.other += 1;
                return Asked::Enough;
            };
            *asked += chunk.len();
            for (entry, answer) in chunk.iter().zip(answers) {
                let lock = answer.inspect_err(|error| tracing::debug!(%error, "lock not told"));
                self.count(&entry.object.key, lock.ok(), OffsetDateTime::now_utc());
            }
        }
        Asked::More
    }

    fn count(&mut self, key: &str, lock: Option<ObjectLock>, now: OffsetDateTime) {
        let Some(ObjectLock { retention, legal_hold }) = lock else {
            self.other += 1;
            return;
        };
        let retention = retention.filter(|retention| retention.until > now);
        if let Some(Retention { mode, until }) = retention {
            match mode {
                LockMode::Governance => self.governance.count(key),
                LockMode::Compliance => self.compliance.count(key),
            }
            self.earliest = Some(self.earliest.map_or(until, |earliest| earliest.min(until)));
            self.latest = self.latest.max(Some(until));
            if !legal_hold {
                self.next_free = Some(self.next_free.map_or(until, |next| next.min(until)));
            }
        }
        if legal_hold {
            self.held.count(key);
        }
        self.other += u64::from(retention.is_none() && !legal_hold);
    }

    /// Time was up: there are some of which nothing is known.
    fn cut_short(mut self) -> Self {
        self.other += 1;
        self
    }

    /// Whether no lock was found.
    pub(super) fn is_nothing(&self) -> bool {
        self.governance.objects + self.compliance.objects + self.held.objects == 0
    }

    /// When the next of them is free by itself, where all that is in the way was told. What is under legal hold is not, whatever
    /// its date.
    pub(super) fn free_at(&self) -> Option<OffsetDateTime> {
        self.next_free.filter(|_| self.other == 0)
    }
}

impl Sort {
    fn count(&mut self, key: &str) {
        self.objects += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(key.to_owned());
        }
    }
}

impl fmt::Display for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorts = [
            (&self.compliance, "locked in compliance mode"),
            (&self.governance, "locked in governance mode"),
            (&self.held, "under legal hold"),
        ];
        let found = sorts.iter().filter(|(sort, _)| sort.objects > 0);
        let parts = found.map(|(sort, how)| format!("{} {how} (such as {})", sort.objects, sort.examples.join(", ")));
        write!(f, "of those asked about: {}", parts.collect::<Vec<_>>().join(", "))?;
        let date = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_else(|_| at.to_string());
        match (self.earliest, self.latest) {
            (Some(earliest), Some(latest)) if earliest == latest => write!(f, "; locked until {}", date(latest)),
            (Some(earliest), Some(latest)) => {
                write!(f, "; the first is locked until {}, the last until {}", date(earliest), date(latest))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).expect("a date")
    }

    fn until(seconds: i64, mode: LockMode, legal_hold: bool) -> Option<ObjectLock> {
        Some(ObjectLock { retention: Some(Retention { mode, until: at(seconds) }), legal_hold })
    }

    #[test]
    fn the_first_date_counts_where_every_object_has_one() {
        let mut locks = Locks::default();
        locks.count("a", until(200, LockMode::Compliance, false), at(100));
        locks.count("b", until(150, LockMode::Governance, false), at(100));
        assert_eq!((locks.free_at(), locks.latest), (Some(at(150)), Some(at(200))));
        let told = locks.to_string();
        for part in ["1 locked in compliance mode (such as a)", "1 locked in governance", "1970-01-01T00:03:20Z"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn what_has_no_date_to_come_needs_help() {
        let free = Some(ObjectLock { retention: None, legal_hold: false });
        for other in [None, free, until(50, LockMode::Compliance, false)] {
            let mut locks = Locks::default();
            locks.count("a", until(200, LockMode::Compliance, false), at(100));
            locks.count("b", other, at(100));
            assert_eq!(locks.free_at(), None, "{other:?}");
        }
        assert_eq!(Locks::default().free_at(), None);
    }

    #[test]
    fn a_legal_hold_keeps_what_it_is_on_and_nothing_else_from_its_date() {
        let held = Some(ObjectLock { retention: None, legal_hold: true });
        let mut locks = Locks::default();
        locks.count("a", until(150, LockMode::Governance, true), at(100));
        locks.count("b", held, at(100));
        assert_eq!(locks.free_at(), None);
        locks.count("c", until(200, LockMode::Compliance, false), at(100));
        assert_eq!(locks.free_at(), Some(at(200)));
    }
}
