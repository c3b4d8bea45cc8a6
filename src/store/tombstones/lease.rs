//! The right to work on one purge, and for how long it is certain by the clocks of this process.
//!
//! Invariant: a lease that is certain has not run out in the database. It is counted from before the statement was sent
//! that extended it, and the database counts from when it carried that out, so we always give up first. The database
//! decides who has a lease; this only says when to ask it again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use crate::domain::ids::{Fence, TombstoneId};

/// The last share of a lease (a quarter of it) in which nothing new is begun: a request that was just sent has this
/// long to arrive before another worker can take over.
const MARGIN: u32 = 4;

/// An instant by two clocks. The monotonic one runs on while the process is stopped, and no one sets it; the other runs
/// on while the whole machine is suspended, too, or is set right when a frozen virtual machine goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// The longest that may have passed. A wall clock that jumps ahead makes it too long, which costs a question.
    fn elapsed(&self) -> Duration {
        self.monotonic.elapsed().max(self.wall.elapsed().unwrap_or(Duration::ZERO))
    }
}

/// The right to work on one purge. Clones are the same lease.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Of which tombstone.
    pub id: TombstoneId,
    /// As long as the tombstone still has it.
    pub fence: Fence,
    /// How long it is good for after each write.
    pub duration: Duration,
    /// When the statement was sent that extended it last. The heartbeat writes it too.
    asked: Arc<Mutex<Moment>>,
}

impl Lease {
    /// A lease of somebody who claims to have this fence, as of now.
    pub fn new(id: TombstoneId, fence: Fence, duration: Duration) -> Self {
        Self::since(Moment::now(), id, fence, duration)
    }

    pub(super) fn since(asked: Moment, id: TombstoneId, fence: Fence, duration: Duration) -> Self {
        Self { id, fence, duration, asked: Arc::new(Mutex::new(asked)) }
    }

    /// Whether nobody can have taken over yet, and will not for a while. `false` says nothing but "ask the database".
    pub fn is_certain(&self) -> bool {
        self.age() < self.duration - self.duration / MARGIN
    }

    /// How long ago it was extended, at the longest.
    pub fn age(&self) -> Duration {
        // two instants, so a poisoned lock is as good as any
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// A statement that was sent at `asked` has extended it.
    pub(super) fn extended(&self, asked: Moment) {
        let mut last = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.monotonic > last.monotonic {
            *last = asked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn ago(monotonic: Duration, wall: Duration) -> Moment {
        let now = Moment::now();
        Moment { monotonic: now.monotonic.checked_sub(monotonic).expect("up for that long"), wall: now.wall - wall }
    }

    fn lease(asked: Moment) -> Lease {
        Lease::since(asked, TombstoneId::new(), Fence(1), MINUTE)
    }

    #[test]
    fn a_lease_is_certain_until_a_quarter_is_left_by_either_clock() {
        let (short, long) = (Duration::from_secs(44), Duration::from_secs(46));
        assert!(lease(ago(Duration::ZERO, Duration::ZERO)).is_certain());
        assert!(lease(ago(short, short)).is_certain());
        assert!(!lease(ago(long, short)).is_certain(), "the process was stopped, and its wall clock set back");
        assert!(!lease(ago(short, long)).is_certain(), "the machine was suspended");
    }

    #[test]
    fn a_wall_clock_that_was_set_back_lengthens_nothing() {
        let future = Moment { wall: SystemTime::now() + 10 * MINUTE, ..ago(MINUTE, Duration::ZERO) };
        assert!(!lease(future).is_certain());
    }

    #[test]
    fn an_answer_that_comes_late_does_not_shorten_what_a_later_question_has_extended() {
        let lease = lease(ago(MINUTE, MINUTE));
        let (early, late) = (ago(MINUTE / 2, MINUTE / 2), Moment::now());
        let heartbeat = lease.clone();
        heartbeat.extended(late);
        lease.extended(early);
        assert!(lease.is_certain());
        let last = *lease.asked.lock().expect("no panic");
        assert_eq!(last.monotonic, late.monotonic);
    }
}
