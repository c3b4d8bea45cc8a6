//! Where a purge goes on after this delivery, this process or this machine.
//!
//! Invariant: what is sent is written down before: how many objects of which range of keys, or, where a store lists in
//! another order, which objects. So every object is counted exactly once, whenever a worker died.
//!
//! A key may hold the character NUL, and JSON in PostgreSQL may not: text with one is written as its parts.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::empty::range::Range;
use crate::{
    domain::{
        outcome::{EntryKind, FailureClass, KeyFailure, KeyOutcome, ObjectRef},
        words::counted,
    },
    objects::{Cursor, ObjectEntry},
};

/// Different reasons that are kept of a pass; more are counted under the last.
const MOST_REASONS: usize = 20;

/// Names the parts of a text between its NULs. No field of a checkpoint is called so.
const PARTS: &str = "nul";

/// The position in a pass over the locations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checkpoint {
    /// Which of the tombstone's locations.
    pub(super) location: usize,
    /// What is left to list there; nothing: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ranges: Vec<Range>,
    /// Whether several ranges of it were listed, and one listing of the whole goes over it now.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) is_swept: bool,
    /// Whether its store was found to list in another order than that of the keys. Then nothing goes by ranges.
    #[serde(default, skip_serializing_if = "is_false")]
    is_careful: bool,
    /// The last entry that is settled, where nothing goes by ranges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Cursor>,
    /// The batch that was sent, or was about to be, where nothing goes by ranges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) in_hand: Vec<Entry>,
    /// How far the last look at recorded objects has come, where one slice was too short for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) looked: Option<Looked>,
    /// What the pass has left behind so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) leftovers: Vec<Leftover>,
}

/// Recorded objects up to here were found gone, or needed by others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Looked {
    /// Which of the places of recorded objects.
    pub(super) place: usize,
    /// The last of its keys; none: at its beginning.
    pub(super) after: Option<Cursor>,
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
    /// As the database takes it.
    pub(super) fn to_json(&self) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        part(&mut value);
        Ok(value)
    }

    /// From what the database holds.
    pub(super) fn from_json(mut value: Value) -> Result<Self, serde_json::Error> {
        join(&mut value);
        serde_json::from_value(value)
    }

    /// Whether a pass begins here.
    pub(super) fn is_fresh(&self) -> bool {
        *self == self.anew()
    }

    /// A pass from the beginning, after one that has come to `self`.
    pub(super) fn anew(&self) -> Self {
        Self { is_careful: self.is_careful, ..Self::default() }
    }

    /// On to the next location.
    pub(super) fn next_location(&mut self) {
        let leftovers = std::mem::take(&mut self.leftovers);
        *self = Self { location: self.location + 1, leftovers, ..self.anew() };
    }

    /// Goes over the location once more, in one listing.
    pub(super) fn sweep(&mut self) {
        self.ranges = Vec::new();
        self.is_swept = true;
    }

    /// Whether to go one batch at a time.
    pub(super) fn is_careful(&self) -> bool {
        self.is_careful || !self.in_hand.is_empty()
    }

    /// Goes over the location again, one batch at a time, unless something stays behind there: that would be counted
    /// again, and the next pass is for it.
    pub(super) fn go_carefully(&mut self) {
        let leftovers = std::mem::take(&mut self.leftovers);
        let location = self.location + usize::from(!leftovers.is_empty());
        *self = Self { location, leftovers, is_careful: true, ..Self::default() };
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
            format!("{}: {}{message} (such as {:?})", counted(left.objects, "object"), left.code, left.example)
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

/// Parts every text with a NUL in it.
fn part(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => {
            *value = json!({ PARTS: text.split('\0').collect::<Vec<_>>() });
        }
        Value::Array(values) => values.iter_mut().for_each(part),
        Value::Object(fields) => fields.values_mut().for_each(part),
        _ => {}
    }
}

/// Undoes [`part`].
fn join(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(join),
        Value::Object(fields) => match fields.get(PARTS).and_then(Value::as_array) {
            Some(parts) => {
                *value = Value::String(parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\0"))
            }
            None => fields.values_mut().for_each(join),
        },
        _ => {}
    }
}

impl<'a> Staying<'a> {
    /// Why an object with this outcome stays behind; `None`: it is gone.
    pub(super) fn of(outcome: &'a KeyOutcome, lost_answer: Option<&'a KeyFailure>) -> Option<Self> {
        match (outcome, lost_answer) {
            (KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent, _) => None,
            (KeyOutcome::Failed(why), _) => Some(Self::Failed(why)),
            (KeyOutcome::Unknown, Some(why)) => Some(Self::Unanswered(why)),
            (KeyOutcome::Unknown, None) => Some(Self::Unmentioned),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
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

    #[test]
    fn a_reason_names_how_many_objects_what_came_and_one_of_them() {
        let mut checkpoint = Checkpoint::default();
        for (key, code, message) in [("a", "Http500", "nothing said"), ("b", "SlowDown", ""), ("c", "SlowDown", "")] {
            let why = KeyFailure { code: code.into(), message: message.into(), class: FailureClass::Transient };
            checkpoint.leave(&ObjectRef { key: key.into(), version: None }, Staying::Unanswered(&why));
        }
        let told = r#"1 object: Http500, nothing said (such as "a"); 2 objects: SlowDown (such as "b")"#;
        assert_eq!(checkpoint.describe_leftovers(), told);
    }

    #[test]
    fn a_key_with_nul_is_written_without_it_and_comes_back() {
        let cursor = |key: &str| Cursor { key: key.into(), version: None };
        let entry = |key: &str| Entry { key: key.into(), version: Some("v".into()), size: 1, kind: EntryKind::Older };
        let range = json!({ "after": { "key": "\0" }, "until": "a\0\0b" });
        let mut checkpoint = Checkpoint {
            ranges: vec![serde_json::from_value(range).expect("a range")],
            after: Some(cursor("plain")),
            in_hand: vec![entry("\0a"), entry("nul"), entry("a\0")],
            ..Checkpoint::default()
        };
        checkpoint.leave(&ObjectRef { key: "b\0".into(), version: None }, Staying::Unmentioned);
        let written = checkpoint.to_json().expect("json");
        assert!(!written.to_string().contains("\\u0000"), "{written}");
        assert_eq!(written["after"], json!({ "key": "plain" }), "as before");
        assert_eq!(Checkpoint::from_json(written).expect("a checkpoint"), checkpoint);
    }

    #[test]
    fn a_checkpoint_of_an_earlier_release_is_read() {
        let written =
            json!({ "location": 1, "ranges": [{ "after": { "key": "a" }, "owed": { "objects": 2, "bytes": 3 } }] });
        let checkpoint = Checkpoint::from_json(written).expect("a checkpoint");
        assert_eq!((checkpoint.location, checkpoint.ranges.len()), (1, 1));
    }
}
