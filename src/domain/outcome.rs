//! What became of each key of a delete request.
//!
//! Invariant: every key asked for has exactly one [`KeyOutcome`], in the order of asking. A key that the answer does
//! not mention is [`KeyOutcome::Unknown`], and a key that it mentions as both deleted and failed counts as failed:
//! in doubt an object is taken to be still there, which costs another look and never a lost row.
//! An object that is asked for twice is one object: it counts once, where it was first named.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// One stored object, or one version of it: what a delete request names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// The whole key, decoded, as the store holds it.
    pub key: String,
    /// The version to delete, for buckets that keep versions; without it the store writes a delete marker there.
    pub version: Option<String>,
}

/// What an entry of a listing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// An object; where versions are kept, the version that a reader gets.
    #[default]
    Current,
    /// A version behind a newer one or behind a delete marker.
    Older,
    /// A delete marker, which holds no data and hides the versions behind it.
    Marker,
}

impl EntryKind {
    /// Whether it is what most entries are.
    pub fn is_current(&self) -> bool {
        *self == Self::Current
    }
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

/// The time for which a store asks to be left alone, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetryAfter(u16);

impl RetryAfter {
    /// No store is left alone for longer, whatever it asks: a proxy's mistake must not stop a purge for days.
    const LONGEST: u16 = 60 * 60;

    /// So many seconds, or the longest that is granted.
    pub fn seconds(asked: u64) -> Self {
        Self(u16::try_from(asked).unwrap_or(u16::MAX).min(Self::LONGEST))
    }

    /// As a wait.
    pub fn wait(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
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

impl KeyOutcome {
    /// Whether the store says that there is nothing left of it.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Deleted | Self::AlreadyAbsent)
    }
}

/// The outcomes of one delete request, one for each object asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a batch can succeed in part: look at every outcome"]
pub struct BatchOutcome {
    outcomes: Vec<(ObjectRef, KeyOutcome)>,
    lost_answer: Option<KeyFailure>,
    retry_after: Option<RetryAfter>,
}

/// The objects asked for, each once, in the order of their first naming.
pub fn distinct(asked: &[ObjectRef]) -> Vec<ObjectRef> {
    let mut seen = HashSet::with_capacity(asked.len());
    asked.iter().filter(|object| seen.insert(*object)).cloned().collect()
}

impl BatchOutcome {
    /// Every object of `asked` with one and the same outcome, for a request that succeeded or failed as a whole.
    pub fn uniform(asked: &[ObjectRef], outcome: &KeyOutcome) -> Self {
        let outcomes = distinct(asked).into_iter().map(|object| (object, outcome.clone())).collect();
        Self { outcomes, lost_answer: None, retry_after: None }
    }

    /// Every object of `asked` unknown, for a request whose answer was lost, and why it was lost.
    pub fn lost(asked: &[ObjectRef], why: KeyFailure) -> Self {
        Self::uniform(asked, &KeyOutcome::Unknown).with_lost_answer(Some(why))
    }

    /// Matches what the store answered with what was asked.
    ///
    /// `deleted` and `failed` are as the answer lists them, in any order, possibly with repetitions or with keys that
    /// nobody asked for (those are ignored). Where `failed` names an object twice, the first that is a failure counts.
    /// The request must not be a quiet one, where silence would mean success.
    pub fn reconcile(
        asked: &[ObjectRef],
        deleted: impl IntoIterator<Item = ObjectRef>,
        failed: impl IntoIterator<Item = (ObjectRef, KeyOutcome)>,
    ) -> Self {
        let mut answers: HashMap<ObjectRef, KeyOutcome> =
            deleted.into_iter().map(|object| (object, KeyOutcome::Deleted)).collect();
        for (object, outcome) in failed {
            let said = answers.entry(object).or_insert_with(|| outcome.clone());
            if !matches!(said, KeyOutcome::Failed(_)) {
                *said = outcome;
            }
        }
        let outcomes = distinct(asked)
            .into_iter()
            .map(|object| {
                let outcome = answers.remove(&object).unwrap_or(KeyOutcome::Unknown);
                (object, outcome)
            })
            .collect();
        Self { outcomes, lost_answer: None, retry_after: None }
    }

    /// Joins two outcomes of disjoint parts of one request. Of two lost answers the first is kept, of two waits the
    /// longer.
    pub fn merge(mut self, other: Self) -> Self {
        self.outcomes.extend(other.outcomes);
        self.lost_answer = self.lost_answer.or(other.lost_answer);
        self.retry_after = self.retry_after.max(other.retry_after);
        self
    }

    /// The same outcomes, in the order of asking: what was merged is in that of the parts.
    pub fn in_order_of(self, asked: &[ObjectRef]) -> Self {
        let Self { outcomes, lost_answer, retry_after } = self;
        Self { lost_answer, retry_after, ..Self::reconcile(asked, [], outcomes) }
    }

    /// The same outcomes, with the reason why an answer was lost.
    pub fn with_lost_answer(mut self, why: Option<KeyFailure>) -> Self {
        self.lost_answer = why;
        self
    }

    /// The same outcomes, with the time for which the store asks to be left alone.
    pub fn with_retry_after(mut self, wait: Option<RetryAfter>) -> Self {
        self.retry_after = wait;
        self
    }

    /// The time for which the store asks to be left alone, where it names one.
    pub fn retry_after(&self) -> Option<RetryAfter> {
        self.retry_after
    }

    /// Why an answer was lost, where one was: a time-out asks for smaller batches, throttling for fewer. `None` with
    /// unknown keys means that the store answered and left them out.
    pub fn lost_answer(&self) -> Option<&KeyFailure> {
        self.lost_answer.as_ref()
    }

    /// The outcomes with their objects, in the order of asking.
    pub fn iter(&self) -> impl Iterator<Item = &(ObjectRef, KeyOutcome)> {
        self.outcomes.iter()
    }

    /// As [`BatchOutcome::iter`], by value.
    pub fn into_outcomes(self) -> Vec<(ObjectRef, KeyOutcome)> {
        self.outcomes
    }

    /// How many different objects were asked for.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn plain(key: &str) -> ObjectRef {
        ObjectRef { key: key.into(), version: None }
    }

    fn denied() -> KeyOutcome {
        let (code, message) = ("AccessDenied".into(), String::new());
        KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Permanent })
    }

    fn outcomes(batch: BatchOutcome) -> Vec<KeyOutcome> {
        batch.into_outcomes().into_iter().map(|(_, outcome)| outcome).collect()
    }

    #[test]
    fn a_key_that_the_answer_leaves_out_is_unknown() {
        let batch = BatchOutcome::reconcile(&[plain("a"), plain("b")], [plain("b")], []);
        assert_eq!(outcomes(batch), [KeyOutcome::Unknown, KeyOutcome::Deleted]);
    }

    #[test]
    fn a_key_both_deleted_and_failed_counts_as_failed() {
        let batch = BatchOutcome::reconcile(&[plain("a")], [plain("a")], [(plain("a"), denied())]);
        assert_eq!(outcomes(batch), [denied()]);
    }

    #[test]
    fn a_failure_is_not_talked_away_by_a_later_mention() {
        for failed in [[denied(), KeyOutcome::AlreadyAbsent], [KeyOutcome::AlreadyAbsent, denied()]] {
            let failed = failed.map(|outcome| (plain("a"), outcome));
            assert_eq!(outcomes(BatchOutcome::reconcile(&[plain("a")], [], failed)), [denied()]);
        }
    }

    #[test]
    fn an_object_asked_for_twice_counts_once_where_it_was_first_named() {
        let asked = [plain("b"), plain("a"), plain("b")];
        let batch = BatchOutcome::reconcile(&asked, [plain("a"), plain("b"), plain("b")], []);
        let keys: Vec<_> = batch.iter().map(|(object, _)| object.key.as_str()).collect();
        assert_eq!(keys, ["b", "a"]);
        assert_eq!(BatchOutcome::uniform(&asked, &KeyOutcome::Unknown).len(), 2);
    }

    #[test]
    fn versions_of_one_key_are_different_objects() {
        let version = |v: &str| ObjectRef { key: "a".into(), version: Some(v.into()) };
        let asked = [version("1"), version("2"), plain("a")];
        let batch = BatchOutcome::reconcile(&asked, [version("2")], []);
        assert_eq!(outcomes(batch), [KeyOutcome::Unknown, KeyOutcome::Deleted, KeyOutcome::Unknown]);
    }

    #[test]
    fn a_lost_answer_says_why_and_survives_a_merge() {
        let why = KeyFailure { code: "Timeout".into(), message: String::new(), class: FailureClass::Transient };
        let answered = BatchOutcome::uniform(&[plain("a")], &KeyOutcome::Deleted);
        let merged = answered.merge(BatchOutcome::lost(&[plain("b")], why.clone()));
        assert_eq!(merged.lost_answer(), Some(&why));
        assert_eq!(outcomes(merged), [KeyOutcome::Deleted, KeyOutcome::Unknown]);
    }

    #[test]
    fn a_store_is_left_alone_as_long_as_it_asks_but_not_for_ever() {
        assert_eq!(RetryAfter::seconds(7).wait(), Duration::from_secs(7));
        assert_eq!(RetryAfter::seconds(u64::MAX).wait(), Duration::from_secs(3600));
    }

    #[test]
    fn of_two_waits_the_longer_counts_and_survives_the_sorting() {
        let part = |key, wait| {
            let part = BatchOutcome::uniform(&[plain(key)], &KeyOutcome::Deleted);
            part.with_retry_after(wait).with_lost_answer(None)
        };
        let [short, long] = [1, 2].map(|seconds| Some(RetryAfter::seconds(seconds)));
        let merged = part("b", short).merge(part("a", long)).merge(part("c", None));
        let sorted = merged.in_order_of(&[plain("a"), plain("b"), plain("c")]);
        assert_eq!(sorted.retry_after(), long);
        assert_eq!(sorted.into_outcomes()[0].0, plain("a"));
    }

    /// Few keys, so that repetitions and collisions are common.
    fn object() -> impl Strategy<Value = ObjectRef> {
        let version = prop_oneof![Just(None), Just(Some("null".to_owned())), Just(Some("v1".to_owned()))];
        ("[a-e]", version).prop_map(|(key, version)| ObjectRef { key, version })
    }

    fn answer() -> impl Strategy<Value = (ObjectRef, KeyOutcome)> {
        (object(), prop_oneof![Just(denied()), Just(KeyOutcome::AlreadyAbsent)])
    }

    proptest! {
        #[test]
        fn every_object_has_exactly_one_outcome_and_no_other_has_any(
            asked in prop::collection::vec(object(), 0..20),
            deleted in prop::collection::vec(object(), 0..20),
            failed in prop::collection::vec(answer(), 0..20),
        ) {
            let batch = BatchOutcome::reconcile(&asked, deleted.clone(), failed.clone());
            let named: Vec<_> = batch.iter().map(|(object, _)| object.clone()).collect();
            prop_assert_eq!(&named, &distinct(&asked), "in order, each once");
            prop_assert_eq!(named.iter().collect::<BTreeSet<_>>().len(), batch.len());

            for (object, outcome) in batch.into_outcomes() {
                let refused = failed.iter().any(|(o, f)| *o == object && matches!(f, KeyOutcome::Failed(_)));
                let absent = failed.iter().any(|(o, f)| *o == object && *f == KeyOutcome::AlreadyAbsent);
                let expected = if refused {
                    denied()
                } else if absent {
                    KeyOutcome::AlreadyAbsent
                } else if deleted.contains(&object) {
                    KeyOutcome::Deleted
                } else {
                    KeyOutcome::Unknown
                };
                prop_assert_eq!(outcome, expected);
            }
        }

        #[test]
        fn the_order_of_the_answer_does_not_matter(
            asked in prop::collection::vec(object(), 0..20),
            deleted in prop::collection::vec(object(), 0..20),
            failed in prop::collection::vec(answer(), 0..20),
        ) {
            let forward = BatchOutcome::reconcile(&asked, deleted.clone(), failed.clone());
            let backward = BatchOutcome::reconcile(
                &asked, deleted.into_iter().rev(), failed.into_iter().rev());
            prop_assert_eq!(forward, backward);
        }
    }
}
