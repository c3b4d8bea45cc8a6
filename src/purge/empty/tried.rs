//! What tries have come to: what is settled, what another try may change, and whether they get further.
//!
//! Invariant: what an answer does not name stays as it was, with the reason why it was not answered. Getting further is to
//! settle something, or to ask for fewer keys at once than ever before; going back and forth is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef, RetryAfter};

/// For how long a store that takes nothing of what is tried again, and only asks for less, is asked again: others may get
/// all that it grants. After that it is met as one that fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries so far of some objects: what is settled, and what another try may change.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) settled: BTreeMap<ObjectRef, KeyOutcome>,
    pub(super) passing: BTreeMap<ObjectRef, KeyOutcome>,
    /// Of those, the ones that the store has refused while it granted others of the same request.
    singled_out: BTreeSet<ObjectRef>,
    pub(super) lost_answer: Option<KeyFailure>,
    pub(super) retry_after: Option<RetryAfter>,
    /// Whether any request did anything.
    pub(super) anything_done: bool,
}

/// How tries at a store get further, if they do.
#[derive(Debug)]
pub(super) struct Headway {
    at: Instant,
    /// The fewest keys at once so far; they may get more again in between, by what others are granted.
    fewest: usize,
}

impl Headway {
    pub(super) fn new(at_once: usize) -> Self {
        Self { at: Instant::now(), fewest: at_once }
    }

    /// After a try that has settled something, or nothing: whether it got further, or fewer keys are asked for than ever.
    pub(super) fn look(&mut self, at_once: usize, has_settled: bool) -> bool {
        let is_further = has_settled || at_once < self.fewest;
        self.fewest = self.fewest.min(at_once);
        if is_further {
            self.at = Instant::now();
        }
        is_further
    }

    /// Whether that was a short while ago.
    pub(super) fn is_recent(&self) -> bool {
        self.at.elapsed() < PATIENCE
    }
}

impl Tried {
    /// What an answer says. Later tries take the place of earlier ones; what it does not name stays as it was.
    pub(super) fn take(&mut self, answer: BatchOutcome) {
        let names_all = answer.len() >= self.passing.len();
        self.retry_after = answer.retry_after();
        self.lost_answer = answer.lost_answer().cloned().or(self.lost_answer.take().filter(|_| !names_all));
        answer.iter().for_each(|(object, _)| drop(self.passing.remove(object)));
        self.sort(answer);
    }

    /// Hears why the answer to the first try of some objects was lost, and when to come back.
    pub(super) fn hear(&mut self, answer: &BatchOutcome) {
        self.retry_after = self.retry_after.max(answer.retry_after());
        self.lost_answer = answer.lost_answer().cloned().or(self.lost_answer.take());
        self.anything_done |= answer.iter().any(|(_, outcome)| !is_passing(outcome));
    }

    /// Keeps an object that the first try has not settled, though perhaps others of its request.
    pub(super) fn keep(&mut self, object: ObjectRef, outcome: KeyOutcome, others_went: bool) {
        if others_went {
            self.singled_out.insert(object.clone());
        }
        self.passing.insert(object, outcome);
    }

    pub(super) fn are_singled_out(&self, objects: &[ObjectRef]) -> bool {
        objects.iter().all(|object| self.singled_out.contains(object))
    }

    pub(super) fn is_flow_control(&self) -> bool {
        is_flow_control(self.passing.values(), self.lost_answer.as_ref())
    }

    pub(super) fn sort(&mut self, answer: BatchOutcome) {
        let others_went = has_gone(&answer);
        for (object, outcome) in answer.into_outcomes() {
            if is_passing(&outcome) {
                self.keep(object, outcome, others_went);
            } else {
                self.anything_done = true;
                self.settled.insert(object, outcome);
            }
        }
    }
}

/// Whether all that came of these is a store that asks for less.
pub(super) fn is_flow_control<'a>(
    mut outcomes: impl Iterator<Item = &'a KeyOutcome>,
    lost_answer: Option<&KeyFailure>,
) -> bool {
    let is_lost_so = lost_answer.is_some_and(|why| why.class == FailureClass::Throttled);
    outcomes.all(|outcome| match outcome {
        KeyOutcome::Failed(why) => why.class == FailureClass::Throttled,
        KeyOutcome::Unknown => is_lost_so,
        KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent => false,
    })
}

/// Whether anything that it names is gone.
pub(super) fn has_gone(answer: &BatchOutcome) -> bool {
    answer.iter().any(|(_, outcome)| outcome.is_gone())
}

/// Whether another try may change it.
pub(super) fn is_passing(outcome: &KeyOutcome) -> bool {
    match outcome {
        KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent => false,
        KeyOutcome::Failed(why) => why.class != FailureClass::Permanent,
        KeyOutcome::Unknown => true,
    }
}
