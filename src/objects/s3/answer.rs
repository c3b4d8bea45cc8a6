//! Whose outcome an entry of a DeleteObjects answer is.
//!
//! Invariant: an entry is credited to an object only when no other object asked for could be meant. Stores differ in
//! what they echo: some send a version for a key that was asked for without one (garage does, without versioning),
//! some leave out the version that was asked for. An entry that could mean several is credited to none, which makes
//! them unknown and costs a listing.

use std::collections::HashMap;

use crate::domain::outcome::{BatchOutcome, KeyOutcome, ObjectRef};

/// One entry of the answer, deleted or failed, as sent.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) version: Option<String>,
    pub(super) outcome: KeyOutcome,
}

/// Credits the entries of an answer to the objects asked for.
pub(super) fn attribute(asked: &[ObjectRef], entries: Vec<Entry>) -> BatchOutcome {
    let mut by_key: HashMap<&str, Vec<&ObjectRef>> = HashMap::with_capacity(asked.len());
    for object in asked {
        by_key.entry(&object.key).or_default().push(object);
    }
    let (mut deleted, mut failed) = (Vec::new(), Vec::new());
    for entry in entries {
        let Some(meant) = by_key.get(entry.key.as_str()).and_then(|objects| meant(objects, entry.version.as_deref()))
        else {
            continue;
        };
        match entry.outcome {
            KeyOutcome::Deleted => deleted.push(meant.clone()),
            other => failed.push((meant.clone(), other)),
        }
    }
    BatchOutcome::reconcile(asked, deleted, failed)
}

/// The one object of those of a key that an entry with this version is about.
fn meant<'a>(objects: &[&'a ObjectRef], version: Option<&str>) -> Option<&'a ObjectRef> {
    match version.filter(|version| !version.is_empty()) {
        Some(version) => {
            let exact = objects.iter().find(|object| object.version.as_deref() == Some(version));
            exact.or_else(|| objects.iter().find(|object| object.version.is_none())).copied()
        }
        None if objects.len() == 1 => Some(objects[0]),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &str, version: Option<&str>) -> ObjectRef {
        ObjectRef { key: key.into(), version: version.map(Into::into) }
    }

    fn deleted(key: &str, version: Option<&str>) -> Entry {
        Entry { key: key.into(), version: version.map(Into::into), outcome: KeyOutcome::Deleted }
    }

    fn outcomes(asked: &[ObjectRef], entries: Vec<Entry>) -> Vec<KeyOutcome> {
        attribute(asked, entries).into_outcomes().into_iter().map(|(_, outcome)| outcome).collect()
    }

    const DELETED: KeyOutcome = KeyOutcome::Deleted;
    const UNKNOWN: KeyOutcome = KeyOutcome::Unknown;

    #[test]
    fn a_version_sent_for_a_plain_key_does_not_hide_it() {
        assert_eq!(outcomes(&[object("a", None)], vec![deleted("a", Some("v9"))]), [DELETED]);
        assert_eq!(outcomes(&[object("a", None)], vec![deleted("a", Some(""))]), [DELETED]);
    }

    #[test]
    fn the_only_version_asked_for_is_meant_when_the_answer_has_none() {
        assert_eq!(outcomes(&[object("a", Some("v1"))], vec![deleted("a", None)]), [DELETED]);
    }

    #[test]
    fn an_answer_that_could_mean_two_versions_means_neither() {
        let asked = [object("a", Some("v1")), object("a", Some("v2"))];
        assert_eq!(outcomes(&asked, vec![deleted("a", None), deleted("a", None)]), [UNKNOWN, UNKNOWN]);
    }

    #[test]
    fn another_version_than_the_one_asked_for_is_not_it() {
        assert_eq!(outcomes(&[object("a", Some("v1"))], vec![deleted("a", Some("v2"))]), [UNKNOWN]);
    }

    #[test]
    fn versions_are_told_apart() {
        let asked = [object("a", Some("v1")), object("a", Some("null")), object("a", None)];
        assert_eq!(outcomes(&asked, vec![deleted("a", Some("null"))]), [UNKNOWN, DELETED, UNKNOWN]);
    }

    #[test]
    fn keys_that_nobody_asked_for_are_ignored() {
        assert_eq!(outcomes(&[object("a", None)], vec![deleted("b", None)]), [UNKNOWN]);
    }
}
