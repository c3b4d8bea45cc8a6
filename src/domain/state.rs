//! The life of a tombstone as a state machine.
//!
//! ```text
//!  live ──trash──▶ trashed ──due, unused, not held (one commit)──▶ purging ──verified, rows gone──▶ purged
//!                   │   ▲                                             │   ▲
//!           restore │   │ re-check with back-off                      │   │ retry
//!                   ▼   ▼                                             ▼   │
//!               restored  blocked (due, but in use: names who)        stuck
//! ```
//! Invariant: `purging` is entered from `trashed` or `blocked` alone and never left backwards, so what is `restored`
//! has lost no object. Every SQL statement that changes a state repeats the guard of [`State::on`] in its `where`.

use std::fmt;

/// Where a tombstone stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// In the trash, restorable; not yet due, or due and not yet looked at.
    Trashed,
    /// Due, restorable, but still in use; checked again later.
    Blocked,
    /// Past the point of no return: objects, then rows, are being destroyed.
    Purging,
    /// Past the point of no return, and unable to go on without help, or before a date that is known. Its reason is on the
    /// tombstone.
    Stuck,
    /// Taken back. Final.
    Restored,
    /// Objects verified gone, rows deleted. Final.
    Purged,
}

/// What can happen to a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody takes the deletion back.
    Restore,
    /// Due, but a reference check found users.
    FoundInUse,
    /// Due and unused: the point of no return; or, in `purging`, another worker takes over.
    Begin,
    /// Attempts used up, or a failure that no attempt can mend.
    GiveUp,
    /// A stuck purge goes on: an operator says so, or the date has come until which the rest was locked.
    Retry,
    /// Everything is gone.
    Finish,
}

/// A transition that the machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tombstone that is {state} cannot {event}")]
pub struct Refused {
    /// Where it stands.
    pub state: State,
    /// What was asked.
    pub event: Event,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Trashed, Self::Blocked, Self::Purging, Self::Stuck, Self::Restored, Self::Purged];

    /// The next state.
    ///
    /// # Errors
    /// [`Refused`] where the diagram has no such arrow.
    pub fn on(self, event: Event) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Trashed | Self::Blocked, Event::Restore) => Ok(Self::Restored),
            (Self::Trashed | Self::Blocked, Event::FoundInUse) => Ok(Self::Blocked),
            (Self::Trashed | Self::Blocked | Self::Purging, Event::Begin) | (Self::Stuck, Event::Retry) => {
                Ok(Self::Purging)
            }
            (Self::Purging, Event::GiveUp) => Ok(Self::Stuck),
            (Self::Purging, Event::Finish) => Ok(Self::Purged),
            (state, event) => Err(Refused { state, event }),
        }
    }

    /// Whether the tombstone is still in force: a resource has at most one such.
    pub fn is_open(self) -> bool {
        !matches!(self, Self::Restored | Self::Purged)
    }

    /// Whether the deletion can be taken back.
    pub fn is_restorable(self) -> bool {
        self.on(Event::Restore).is_ok()
    }

    /// As the database and the messages spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trashed => "trashed",
            Self::Blocked => "blocked",
            Self::Purging => "purging",
            Self::Stuck => "stuck",
            Self::Restored => "restored",
            Self::Purged => "purged",
        }
    }

    /// The inverse of [`State::as_str`].
    pub fn parse(raw: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == raw)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restore => "be restored",
            Self::FoundInUse => "become blocked",
            Self::Begin => "begin its purge",
            Self::GiveUp => "give up",
            Self::Retry => "be retried",
            Self::Finish => "finish",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let one = prop_oneof![
            Just(Event::Restore),
            Just(Event::FoundInUse),
            Just(Event::Begin),
            Just(Event::GiveUp),
            Just(Event::Retry),
            Just(Event::Finish),
        ];
        prop::collection::vec(one, 0..40)
    }

    proptest! {
        #[test]
        fn whatever_happens_the_point_of_no_return_is_passed_once_and_never_backwards(events in events()) {
            let mut state = State::Trashed;
            let mut past_no_return = false;
            for event in events {
                let Ok(next) = state.on(event) else { continue };
                past_no_return |= next == State::Purging;
                prop_assert_eq!(past_no_return, !next.is_restorable() && next != State::Restored);
                if next == State::Restored {
                    prop_assert!(!past_no_return, "a restored resource has lost nothing");
                }
                if next == State::Purged {
                    prop_assert_eq!(state, State::Purging);
                }
                state = next;
            }
        }

        #[test]
        fn final_states_refuse_every_event(events in events()) {
            for event in events {
                prop_assert!(State::Purged.on(event).is_err());
                prop_assert!(State::Restored.on(event).is_err());
            }
        }
    }

    #[test]
    fn every_open_state_has_a_way_to_a_final_one() {
        assert_eq!(State::Stuck.on(Event::Retry).and_then(|s| s.on(Event::Finish)), Ok(State::Purged));
        assert_eq!(State::Blocked.on(Event::Begin).and_then(|s| s.on(Event::Finish)), Ok(State::Purged));
        assert_eq!(State::Trashed.on(Event::Restore), Ok(State::Restored));
    }

    #[test]
    fn the_spelling_of_a_state_reads_back() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse("Trashed"), None);
    }
}
