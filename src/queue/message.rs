//! What the messages say. The formats are public (`docs/messages.md`) and versioned by `v`; golden files pin them.
//!
//! Invariant: nothing from outside gets past [`Request::decode`] unchecked, and a message that cannot be understood is
//! an error that says why, never a guess. A field that we do not know is refused: it may have meant "keep this".

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::{
    ids::TombstoneId,
    tombstone::{Provenance, Tombstone},
};

/// The version of every format here.
pub const VERSION: u64 = 1;

/// The largest request that is read, in bytes. A request names one resource; this is plenty.
pub const MAX_REQUEST: usize = 64 * 1024;

/// "Look at this tombstone." Nothing in it decides anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgeTask {
    /// Which one.
    pub tombstone: TombstoneId,
}

/// Why a message was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not of the expected shape.
    #[error("not a valid message: {0}")]
    Shape(String),
    /// Another version.
    #[error("unknown version {0}; this program speaks version {VERSION}")]
    Version(String),
    /// Too large.
    #[error("{0} bytes are too large for a message; at most {MAX_REQUEST}")]
    TooLarge(usize),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTask {
    #[serde(rename = "v")]
    _v: u64,
    tombstone_id: Uuid,
}

impl PurgeTask {
    /// As JSON.
    pub fn encode(self) -> Value {
        json!({ "v": VERSION, "tombstone_id": self.tombstone })
    }

    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let raw: RawTask = decode(body)?;
        Ok(Self { tombstone: TombstoneId(raw.tombstone_id) })
    }
}

/// What another service asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    #[serde(rename = "v")]
    _v: u64,
    /// What to do.
    pub op: Op,
    /// The resource's kind.
    pub kind: String,
    /// The resource's id; a number is taken as its digits.
    #[serde(deserialize_with = "text_or_number")]
    pub id: String,
    /// Who asks.
    pub actor: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// `trash`: kinds of children to trash along.
    #[serde(default)]
    pub with: Vec<String>,
    /// `trash`: a restore window of its own, such as `30d`.
    #[serde(default)]
    pub retention: Option<String>,
    /// `restore`: restore what can be, although some of the children are past the point of no return.
    #[serde(default)]
    pub partial: bool,
}

/// What a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Put it into the trash.
    Trash,
    /// Take it back.
    Restore,
    /// The platform has soft-deleted it: see that it is purged when its window has passed.
    Purge,
}

impl Op {
    /// As messages spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trash => "trash",
            Self::Restore => "restore",
            Self::Purge => "purge",
        }
    }
}

impl Request {
    /// # Errors
    /// [`Malformed`].
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let request: Self = decode(body)?;
        let meaningless: &[&str] = match request.op {
            Op::Trash => &["partial"],
            Op::Restore => &["with", "retention"],
            Op::Purge => &["with", "retention", "partial"],
        };
        // by name and not by value: `[]` and `false` are as meaningless there as anything else; null is as good as absent
        let given: serde_json::Map<String, Value> =
            serde_json::from_slice(body).map_err(|error| Malformed::Shape(error.to_string()))?;
        let misplaced = meaningless.iter().find(|field| given.get(**field).is_some_and(|value| !value.is_null()));
        match misplaced {
            Some(field) => Err(Malformed::Shape(format!("`{field}` has no meaning with op {:?}", request.op.as_str()))),
            None => Ok(request),
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    if body.len() > MAX_REQUEST {
        return Err(Malformed::TooLarge(body.len()));
    }
    let value: Value =
        serde_json::from_slice(body).map_err(|error| Malformed::Shape(format!("it is not JSON ({error})")))?;
    match value.get("v") {
        None => return Err(Malformed::Shape("the field `v`, the version, is missing".into())),
        Some(v) if v.as_u64() == Some(VERSION) => {}
        Some(v) => return Err(Malformed::Version(v.to_string().chars().take(40).collect())),
    }
    if holds_nul(&value) {
        return Err(Malformed::Shape("it holds the character NUL (\\u0000), which cannot be stored".into()));
    }
    // from the text and not from the value, which has lost a field that was there twice
    serde_json::from_slice(body).map_err(|error| Malformed::Shape(error.to_string()))
}

/// Whether a text or a field's name in it holds what PostgreSQL stores neither as text nor as json.
fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(serde::de::Error::custom("`id` must be a text or a number")),
    }
}

/// A life-cycle event, as published to `{namespace}.events` with the routing key `{kind}.{event}`.
pub fn event(name: &str, tombstone: &Tombstone, by: &Provenance, details: &Value) -> Value {
    json!({
        "v": VERSION,
        "event": name,
        "tombstone_id": tombstone.id,
        "kind": tombstone.resource.kind,
        "id": tombstone.resource.id,
        "name": tombstone.name,
        "actor": by.actor,
        "correlation_id": by.cause.correlation_id,
        "details": details,
    })
}

/// An answer to a request that was carried out, or needed not to be.
pub fn reply_ok(op: Op, status: &str, result: Value) -> Value {
    json!({ "v": VERSION, "ok": true, "op": op, "status": status, "result": result })
}

/// An answer to a request that was refused.
pub fn reply_refused(op: Option<Op>, code: &str, message: &str, details: Value) -> Value {
    json!({ "v": VERSION, "ok": false, "op": op, "error": { "code": code, "message": message, "details": details } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_the_documented_form_is_understood() {
        let body = br#"{"v":1,"op":"trash","kind":"dataset","id":"7","actor":"alice","reason":"old","with":["sample"],"retention":"30d"}"#;
        let request = Request::decode(body).unwrap();
        assert_eq!((request.op, request.kind.as_str(), request.id.as_str()), (Op::Trash, "dataset", "7"));
        assert_eq!(Request::decode(br#"{"v":1,"op":"restore","kind":"run","id":7,"actor":"a"}"#).unwrap().id, "7");
        // some write down every field that may be absent
        let body = br#"{"v":1,"op":"restore","kind":"run","id":7,"actor":"a","retention":null}"#;
        assert_eq!(Request::decode(body).unwrap().op, Op::Restore);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_reason() {
        for (body, reason) in [
            (&b"\xff\xfe"[..], "not a valid message"),
            (b"{}", "`v`"),
            (br#"{"v":2,"op":"trash"}"#, "unknown version 2"),
            (br#"{"v":1,"op":"shred","kind":"a","id":"1","actor":"a"}"#, "shred"),
            (br#"{"v":1,"op":"trash","kind":"a","id":"1"}"#, "actor"),
            (br#"{"v":1,"op":"trash","kind":"a","id":"1","actor":"a","dry_run":true}"#, "dry_run"),
            (br#"{"v":1,"op":"restore","kind":"a","id":"1","actor":"a","with":["b"]}"#, "with"),
            (br#"{"v":1,"op":"restore","kind":"a","id":"1","actor":"a","with":[]}"#, "with"),
            (br#"{"v":1,"op":"purge","kind":"a","id":"1","actor":"a","with":[]}"#, "with"),
            (br#"{"v":1,"op":"trash","kind":"a","id":"1","actor":"a","partial":false}"#, "partial"),
            (br#"{"v":1,"op":"trash","kind":"a","id":["1"],"actor":"a"}"#, "id"),
            (br#"{"v":1,"op":"restore","op":"trash","kind":"a","id":"1","actor":"a"}"#, "duplicate field"),
            (br#"{"v":1,"op":"trash","kind":"a","id":"1","actor":"a","reason":"x\u0000"}"#, "NUL"),
            (br#"{"v":1,"op":"trash","kind":"a","id":"1","actor":"a","x\u0000":[{}]}"#, "NUL"),
        ] {
            let error = Request::decode(body).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} should mention {reason}");
        }
        assert_eq!(Request::decode(&vec![b' '; MAX_REQUEST + 1]), Err(Malformed::TooLarge(MAX_REQUEST + 1)));
    }

    #[test]
    fn a_purge_task_reads_back() {
        let task = PurgeTask { tombstone: TombstoneId::new() };
        assert_eq!(PurgeTask::decode(task.encode().to_string().as_bytes()), Ok(task));
    }
}
