//! Where a purge goes on after this delivery, this process or this machine.
//!
//! Invariant: a batch is written down before it is sent. Whoever resumes sends it again (deleting twice is deleting
//! once) and counts it then, so every object is counted exactly once, whenever a worker died.

use serde::{Deserialize, Serialize};

use crate::{
    domain::outcome::{EntryKind, FailureClass, KeyFailure, ObjectRef},
    objects::{Cursor, ObjectEntry},
};

/// Different reasons that are kept of a pass; more are counted under the last.
const MOST_REASONS: usize = 20;

/// The position in a pass over the locations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Which of the tombstone's locations.
    pub(super) location: usize,
    /// The last entry there that is settled.
    pub(super) after: Option<Cursor>,
    /// The batch that was sent, or was about to be.
    pub(super) in_hand: Vec<Entry>,
    /// What the pass has left behind so far.
    pub(super) leftovers: Vec<Leftover>,
}

/// One object of the batch in hand, short, since a thousand of them are written at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "k")]
    key: String,
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(rename = "s")]
    pub(super) size: u64,
    #[serde(rename = "t", default, skip_serializing_if = "EntryKind::is_current")]
    pub(super) kind: EntryKind,
}

/// Objects that could not be deleted, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leftover {
    /// The store's code.
    pub(super) code: String,
    /// The store's message for the first of them.
    pub(super) message: String,
    /// Whether another try cannot help before somebody changes something.
    pub(super) permanent: bool,
    /// Whether it says nothing about these objects: the store asked for less, or did not answer.
    #[serde(default)]
    pub(super) outage: bool,
    /// How many.
    pub(super) objects: u64,
    /// The first of them.
    pub(super) example: String,
}

/// Why an object stays behind.
#[derive(Debug, Clone, Copy)]
pub(super) enum Staying<'a> {
    /// The store says why.
    Failed(&'a KeyFailure),
    /// The answer to the whole request was lost.
    Unanswered(&'a KeyFailure),
    /// The answer does not mention it.
    Unmentioned,
}

impl Checkpoint {
    /// Whether a pass begins here.
    pub(super) fn is_fresh(&self) -> bool {
        *self == Self::default()
    }

    /// Notes an object that stays behind.
    pub(super) fn leave(&mut self, object: &ObjectRef, why: Staying<'_>) {
        let (code, message, permanent, outage) = match why {
            Staying::Failed(why) => {
                let (permanent, outage) = (why.class == FailureClass::Permanent, why.class == FailureClass::Throttled);
                (why.code.as_str(), why.message.as_str(), permanent, outage)
            }
            Staying::Unanswered(why) => (&*why.code, &*why.message, false, why.class != FailureClass::Permanent),
            Staying::Unmentioned => ("NoAnswer", "no answer of the store mentions it", false, false),
        };
        tracing::debug!(s3.key = object.key, code, "object stays behind");
        let full = self.leftovers.len() >= MOST_REASONS;
        let known = self.leftovers.iter_mut().find(|known| known.code == code && known.outage == outage);
        match known {
            Some(known) => known.objects += 1,
            None if full => self.leftovers.iter_mut().for_each(|last| last.objects += u64::from(last.code == "other")),
            None => self.leftovers.push(Leftover {
                code: if self.leftovers.len() + 1 == MOST_REASONS { "other".into() } else { code.to_owned() },
                message: message.to_owned(),
                permanent,
                outage,
                objects: 1,
                example: object.key.clone(),
            }),
        }
    }

    /// What stays behind and why, for people.
    pub(super) fn describe_leftovers(&self) -> String {
        let each = self.leftovers.iter().map(|left| {
            let message = if left.message.is_empty() { String::new() } else { format!(", {}", left.message) };
            format!("{} objects: {}{message} (such as {:?})", left.objects, left.code, left.example)
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

impl From<&ObjectEntry> for Entry {
    fn from(entry: &ObjectEntry) -> Self {
        Self {
            key: entry.object.key.clone(),
            version: entry.object.version.clone(),
            size: entry.size,
            kind: entry.kind,
        }
    }
}

impl Entry {
    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef { key: self.key.clone(), version: self.version.clone() }
    }

    pub(super) fn cursor(&self) -> Cursor {
        Cursor { key: self.key.clone(), version: self.version.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_reasons_there_are_every_object_left_is_counted() {
        let mut checkpoint = Checkpoint::default();
        for n in 0..100 {
            let why = KeyFailure { code: format!("Code{n}"), message: String::new(), class: FailureClass::Permanent };
            checkpoint.leave(&ObjectRef { key: format!("k{n}"), version: None }, Staying::Failed(&why));
        }
        assert_eq!(checkpoint.leftovers.len(), MOST_REASONS);
        assert_eq!(checkpoint.leftovers.iter().map(|left| left.objects).sum::<u64>(), 100);
    }
}
