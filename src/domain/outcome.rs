//! What became of each key of a delete request.
//!
//! Invariant: every key asked for has exactly one [`KeyOutcome`], in the order of asking. A key that the answer does
//! not mention is [`KeyOutcome::Unknown`], and a key that it mentions as both deleted and failed counts as failed:
//! in doubt an object is taken to be still there, which costs another look and never a lost row.

use std::collections::HashMap;

/// One stored object, or one version of it: what a delete request names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// The whole key, decoded, as the store holds it.
    pub key: String,
    /// The version to delete, for buckets that keep versions; without it the store writes a delete marker there.
    pub version: Option<String>,
}

/// How a failure is to be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// Trying again may help: internal errors, time-outs, connections cut.
    Transient,
    /// The store asks for less: `SlowDown`, 429, 503.
    Throttled,
    /// Trying again cannot help before somebody changes something: access denied, no such bucket, object lock.
    Permanent,
}

/// Why a key, or a whole request, failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFailure {
    /// The store's error code as sent, such as `AccessDenied`.
    pub code: String,
    /// The store's message as sent; may be empty.
    pub message: String,
    /// How to meet it.
    pub class: FailureClass,
}

/// What became of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyOutcome {
    /// The store says that this request deleted it (most stores say so for a key that was not there, too).
    Deleted,
    /// The store says that there was nothing to delete.
    AlreadyAbsent,
    /// The store says that it is still there, and why.
    Failed(KeyFailure),
    /// The answer was lost, or did not mention the key. Only a fresh listing tells.
    Unknown,
}

/// The outcomes of one delete request, one for each key asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a batch can succeed in part: look at every outcome"]
pub struct BatchOutcome {
    outcomes: Vec<(ObjectRef, KeyOutcome)>,
}

impl BatchOutcome {
    /// Every key of `asked` with one and the same outcome, for a request that succeeded or failed as a whole.
    pub fn uniform(asked: &[ObjectRef], outcome: &KeyOutcome) -> Self {
        Self { outcomes: asked.iter().map(|object| (object.clone(), outcome.clone())).collect() }
    }

    /// Matches what the store answered with what was asked.
    ///
    /// `deleted` and `failed` are as the answer lists them, in any order, possibly with repetitions or with keys that
    /// nobody asked for (those are ignored). The request must not be a quiet one, where silence would mean success.
    pub fn reconcile(
        asked: &[ObjectRef],
        deleted: impl IntoIterator<Item = ObjectRef>,
        failed: impl IntoIterator<Item = (ObjectRef, KeyOutcome)>,
    ) -> Self {
        let mut answers: HashMap<ObjectRef, KeyOutcome> =
            deleted.into_iter().map(|object| (object, KeyOutcome::Deleted)).collect();
        answers.extend(failed);
        let outcomes = asked
            .iter()
            .map(|object| (object.clone(), answers.get(object).cloned().unwrap_or(KeyOutcome::Unknown)))
            .collect();
        Self { outcomes }
    }

    /// Joins two outcomes of disjoint parts of one request.
    pub fn merge(mut self, other: Self) -> Self {
        self.outcomes.extend(other.outcomes);
        self
    }

    /// The outcomes with their keys, in the order of asking.
    pub fn iter(&self) -> impl Iterator<Item = &(ObjectRef, KeyOutcome)> {
        self.outcomes.iter()
    }

    /// As [`BatchOutcome::iter`], by value.
    pub fn into_outcomes(self) -> Vec<(ObjectRef, KeyOutcome)> {
        self.outcomes
    }

    /// How many keys were asked for.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }
}
