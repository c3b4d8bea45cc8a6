//! Names and ids, each a type of its own, each checked where it enters.
//!
//! Invariant: a [`ResourceId`] never holds `/`, a control character or white space and is never `.` or `..`, so that
//! it can stand in a prefix template without reaching into a neighbour's objects.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

/// The most characters of a resource id. An S3 key has at most 1024 bytes, and the template needs room.
pub const MAX_ID_LEN: usize = 200;

/// Declares a text newtype whose only way in is a checking constructor. It cannot be deserialized: a type that
/// is read back from JSON says so itself, and how it is checked then.
macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use text_newtype;

/// Names that are kept in columns of their own, and lead to nothing that could be emptied.
macro_rules! from_stored {
    ($($name:ident),*) => {$(
        impl $name {
            /// Takes a value back that the store has kept since it was checked on the way in.
            pub fn from_stored(text: String) -> Self {
                Self(text)
            }
        }
    )*};
}
from_stored!(Kind, ResourceId, Actor);

text_newtype!(
    /// A kind of resource from the map, such as `dataset`.
    Kind
);
text_newtype!(
    /// A resource's id as canonical text: UUIDs in lower case with hyphens, integers without leading zeros.
    ResourceId
);
text_newtype!(
    /// Who asks: a person, a service. Never empty, at most 200 characters, no control characters.
    Actor
);

impl Kind {
    /// # Errors
    /// Anything but 1 to 63 of `a-z 0-9 _ -`, beginning with a letter. (Kinds appear in routing keys and metrics.)
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        let well_formed = raw.len() <= 63
            && raw.starts_with(|c: char| c.is_ascii_lowercase())
            && raw.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
        if well_formed {
            Ok(Self(raw.to_owned()))
        } else {
            Err(InvalidName { what: "kind", raw: raw.to_owned(), rule: "1 to 63 of a-z, 0-9, _ and -, a letter first" })
        }
    }
}

impl Actor {
    /// # Errors
    /// Empty or white space alone, over 200 characters, or with control characters.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        let trimmed = raw.trim();
        if trimmed.is_empty() || trimmed.chars().count() > 200 || trimmed.chars().any(char::is_control) {
            return Err(InvalidName {
                what: "actor",
                raw: raw.chars().take(80).collect(),
                rule: "1 to 200 characters, no control characters",
            });
        }
        Ok(Self(trimmed.to_owned()))
    }
}

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{raw:?} is no {what}: {rule}")]
pub struct InvalidName {
    /// What it should have been.
    pub what: &'static str,
    /// What came.
    pub raw: String,
    /// The rule.
    pub rule: &'static str,
}

/// What the ids of a kind look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdType {
    /// A `uuid` column.
    Uuid,
    /// A `text` or `varchar` column.
    Text,
    /// A `bigint`, `integer` or `smallint` column.
    Integer,
}

impl IdType {
    /// Whether an id of this type can have that character.
    pub fn may_hold(self, byte: u8) -> bool {
        match self {
            Self::Uuid => byte.is_ascii_hexdigit() || byte == b'-',
            Self::Integer => byte.is_ascii_digit() || byte == b'-',
            Self::Text => true,
        }
    }

    /// Reads an id from outside.
    ///
    /// # Errors
    /// An id that is not of this type. This is a different error from an id that no row has.
    pub fn parse(self, raw: &str) -> Result<ResourceId, InvalidId> {
        let invalid = |rule| InvalidId { raw: raw.chars().take(80).collect(), rule };
        match self {
            Self::Uuid => Uuid::parse_str(raw)
                .map(|id| ResourceId(id.to_string()))
                .map_err(|_| invalid("a UUID such as 3f2b8c1e-9a4d-4e6f-8b7a-0c1d2e3f4a5b")),
            Self::Integer => raw
                .parse::<i64>()
                .map(|id| ResourceId(id.to_string()))
                .map_err(|_| invalid("an integer that fits 64 bits")),
            Self::Text => is_safe_segment(raw)
                .then(|| ResourceId(raw.to_owned()))
                .ok_or_else(|| invalid("1 to 200 of A-Z, a-z, 0-9 and ._:@=+-, and not . or ..")),
        }
    }
}

/// Whether `raw` can stand between two slashes of a key: the safe alphabet, not empty, not too long, not `.` or `..`
/// (which some stores resolve as paths).
pub fn is_safe_segment(raw: &str) -> bool {
    (1..=MAX_ID_LEN).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@=+-".contains(&b))
        && raw != "."
        && raw != ".."
}

/// An id that cannot be one of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed id {raw:?}: expected {rule}")]
pub struct InvalidId {
    /// What came, at most 80 characters of it.
    pub raw: String,
    /// What an id looks like.
    pub rule: &'static str,
}

/// A resource: what is trashed, restored and purged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ResourceRef {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: ResourceId,
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

/// A tombstone's id: a UUID v7, so that they sort by the time of trashing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TombstoneId(pub Uuid);

impl TombstoneId {
    /// A new id, from this machine's clock (used for order in listings, never for deciding what is due).
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl Default for TombstoneId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for TombstoneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the owners of a purge. A write that carries an old fence touches no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub i64);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn uuids_are_kept_in_one_spelling() {
        let id = IdType::Uuid.parse("3F2B8C1E-9A4D-4E6F-8B7A-0C1D2E3F4A5B").unwrap();
        assert_eq!(id.as_str(), "3f2b8c1e-9a4d-4e6f-8b7a-0c1d2e3f4a5b");
    }

    #[test]
    fn ids_that_could_leave_their_prefix_are_malformed() {
        for raw in ["", ".", "..", "a/b", "a b", "a\n", "a%2Fb", "ä", &"x".repeat(201)] {
            assert!(IdType::Text.parse(raw).is_err(), "{raw:?}");
        }
        for raw in ["run-1", "2024.01.01", "user@example", "a:b=c+d"] {
            assert!(IdType::Text.parse(raw).is_ok(), "{raw:?}");
        }
    }

    #[test]
    fn a_trailing_newline_is_not_part_of_any_name() {
        assert!(Kind::parse("dataset\n").is_err());
        assert!(IdType::Uuid.parse("3f2b8c1e-9a4d-4e6f-8b7a-0c1d2e3f4a5b\n").is_err());
        assert!(IdType::Integer.parse("7\n").is_err());
    }

    proptest! {
        #[test]
        fn no_text_id_holds_a_slash_or_a_control_character(raw in any::<String>()) {
            if let Ok(id) = IdType::Text.parse(&raw) {
                prop_assert!(!id.as_str().contains('/') && !id.as_str().chars().any(|c| c.is_control() || c.is_whitespace()));
            }
        }
    }
}
