//! Where a resource's objects lie: a bucket of a store and a prefix in it.
//!
//! Invariant: a [`Prefix`] is never empty, never begins with `/`, ends in `/`, and has no empty, `.` or `..` segment.
//! So it is never a bucket's root, and `a/1/` never reaches `a/10/`.

use serde::{Deserialize, Serialize};

use super::ids::{IdType, ResourceId, is_safe_segment, text_newtype};

text_newtype!(
    /// A `[stores.NAME]` section's name.
    StoreName
);
text_newtype!(
    /// A prefix below which everything belongs to one resource.
    Prefix
);

impl StoreName {
    /// # Errors
    /// Anything but 1 to 63 of `a-z 0-9 _ -`.
    pub fn parse(raw: &str) -> Result<Self, super::ids::InvalidName> {
        super::ids::Kind::parse(raw).map(|kind| Self(kind.to_string())).map_err(|mut error| {
            error.what = "store name";
            error
        })
    }
}

/// A stored name or prefix is checked again when it is read: what was changed in the table must not become a wide delete.
macro_rules! checked_when_read {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
checked_when_read!(StoreName, Prefix);

/// A prefix, an address or a template that cannot be trusted with a delete.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsafePlace {
    /// The prefix breaks the invariant.
    #[error(
        "unsafe prefix {0:?}: it must not be empty or start with `/`, must end in `/`, and have no empty, `.` or `..` part"
    )]
    Prefix(String),
    /// What a query names cannot be the key of an object.
    #[error(
        "the keys query returned {0}, which is no object's name: expected a key of 1 to 1024 bytes, or s3://bucket/key \
         (needed where several buckets are meant)"
    )]
    Key(String),
    /// A key without what it is to be compared by.
    #[error("the keys query returned no etag for {0:?}, which only_if_unchanged needs")]
    NoEtag(String),
    /// Not `s3://bucket/prefix/`.
    #[error("{0:?} is not an address of the form s3://bucket/prefix/")]
    Address(String),
    /// A template that would give several resources one prefix.
    #[error("prefix template {0:?} must hold {{id}}, or two resources would share their objects")]
    NoId(String),
    /// Braces that do not match, or hold no column name.
    #[error("prefix template {0:?} has a brace without a column name in it; write {{id}} or {{some_column}}")]
    Braces(String),
    /// A template in which two places have no slash between them.
    #[error(
        "prefix template {0:?} has several places between two slashes, such as {{a}}-{{id}}: (x-1, 2) and (x, 1-2) would \
         share their objects; put a slash between them"
    )]
    Crowded(String),
    /// A column of the row that a template needs is null or holds what cannot stand in a prefix.
    #[error(
        "column {column} holds {value}, which cannot stand in a prefix: expected 1 to 200 of A-Z, a-z, 0-9 and ._:@=+-"
    )]
    Value {
        /// The column.
        column: String,
        /// Its value, quoted, or `null`.
        value: String,
    },
}

impl Prefix {
    /// # Errors
    /// [`UnsafePlace::Prefix`] where the invariant does not hold.
    pub fn parse(raw: &str) -> Result<Self, UnsafePlace> {
        let refuse = || UnsafePlace::Prefix(raw.chars().take(200).collect());
        let body = raw.strip_suffix('/').ok_or_else(refuse)?;
        let fine = raw.len() <= 1000
            && !raw.chars().any(char::is_control)
            && body.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if fine { Ok(Self(raw.to_owned())) } else { Err(refuse()) }
    }
}

/// One place to empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Location {
    /// The store.
    pub store: StoreName,
    /// The bucket.
    pub bucket: String,
    /// What to empty in it.
    pub prefix: Prefix,
    /// Where the store was when this was resolved; a name alone can come to stand for another server. `None` in
    /// tombstones of before it was kept. Last, so that it has no say in the order of places in one store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl Location {
    /// A place in a store that is at `address` now.
    pub fn new(store: StoreName, bucket: String, prefix: Prefix, address: impl Into<String>) -> Self {
        Self { store, bucket, prefix, endpoint: Some(address.into()) }
    }
}

impl Location {
    /// Whether everything below `inner` lies below this.
    pub fn contains(&self, inner: &Self) -> bool {
        self.store == inner.store
            && self.bucket == inner.bucket
            && inner.prefix.as_str().starts_with(self.prefix.as_str())
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s3://{}/{} (store {})", self.bucket, self.prefix, self.store)
    }
}

/// A bucket in which a resource's objects are recorded one by one, by their keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPlace {
    /// The store.
    pub store: StoreName,
    /// The bucket.
    pub bucket: String,
    /// Where the store was when the keys were recorded.
    pub endpoint: String,
    /// How many were recorded when the resource was trashed; more may have been since.
    pub keys: u64,
}

impl std::fmt::Display for KeyPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = if self.keys == 1 { "" } else { "s" };
        write!(f, "{} key{s} in s3://{}/ (store {})", self.keys, self.bucket, self.store)
    }
}

/// Reads `s3://bucket/prefix/`.
///
/// # Errors
/// [`UnsafePlace::Address`] or [`UnsafePlace::Prefix`].
pub fn parse_address(raw: &str) -> Result<(String, Prefix), UnsafePlace> {
    let address = || UnsafePlace::Address(raw.chars().take(200).collect());
    let (bucket, prefix) = raw.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).ok_or_else(address)?;
    if bucket.is_empty() {
        return Err(address());
    }
    Ok((bucket.to_owned(), Prefix::parse(prefix)?))
}

/// A prefix with places for the id and for columns of the row: `synthetic/{id}/`, `{experiment_id}/{id}/`.
///
/// Invariant: at most one place between two slashes, so two resources never get one prefix, or one inside the other's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixTemplate {
    raw: String,
    parts: Vec<Part>,
}

/// A part of a template between two slashes.
enum Segment {
    Fixed(String),
    /// Anything of this type between two fixed ends.
    Any {
        head: String,
        tail: String,
        of: IdType,
    },
}

impl Segment {
    fn may_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed(a), Self::Fixed(b)) => a == b,
            (Self::Any { head, tail, of }, Self::Fixed(text)) | (Self::Fixed(text), Self::Any { head, tail, of }) => {
                let middle = text.strip_prefix(head.as_str()).and_then(|rest| rest.strip_suffix(tail.as_str()));
                middle.is_some_and(|middle| of.parse(middle).is_ok_and(|id| id.as_str() == middle))
            }
            (Self::Any { head: a, tail: c, of }, Self::Any { head: b, tail: d, of: other_of }) => {
                let begins = a.starts_with(b.as_str()) || b.starts_with(a.as_str());
                let ends = c.ends_with(d.as_str()) || d.ends_with(c.as_str());
                // what one has as fixed text, the other must be able to have in its id
                let able = |of: &IdType, own: usize, fixed: &str| fixed.bytes().skip(own).all(|byte| of.may_hold(byte));
                begins && ends && able(of, a.len(), b) && able(other_of, b.len(), a)
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Id,
    Column(String),
}

impl PrefixTemplate {
    /// # Errors
    /// [`UnsafePlace`]: braces that do not match, no `{id}`, two places between two slashes, or a fixed text that
    /// could not be part of a safe prefix.
    pub fn parse(raw: &str) -> Result<Self, UnsafePlace> {
        let braces = || UnsafePlace::Braces(raw.to_owned());
        let mut parts = Vec::new();
        let mut rest = raw;
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or_else(braces)?;
            let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !named || text.contains('}') {
                return Err(braces());
            }
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
            parts.push(if name == "id" { Part::Id } else { Part::Column(name.to_owned()) });
            rest = after;
        }
        if rest.contains('}') {
            return Err(braces());
        }
        parts.push(Part::Text(rest.to_owned()));
        if !parts.contains(&Part::Id) {
            return Err(UnsafePlace::NoId(raw.to_owned()));
        }
        if raw.split('/').any(|part| part.matches('{').count() > 1) {
            return Err(UnsafePlace::Crowded(raw.to_owned()));
        }
        let template = Self { raw: raw.to_owned(), parts };
        // any safe value in the places shows whether the fixed text around them is safe
        template.fill("x", |_| Some("x".to_owned())).map_err(|_| UnsafePlace::Prefix(raw.to_owned()))?;
        Ok(template)
    }

    /// The columns of the row that it needs besides the id.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) | Part::Id => None,
        })
    }

    /// Whether a prefix from `other` can lie inside of one from this template: then purging a resource of this kind
    /// also deletes objects of that one. The types say what can stand in place of each `{id}`.
    pub fn may_contain(&self, ids: IdType, other: &Self, other_ids: IdType) -> bool {
        let (outer, inner) = (self.segments(ids), other.segments(other_ids));
        outer.len() <= inner.len() && outer.iter().zip(&inner).all(|(a, b)| a.may_equal(b))
    }

    /// The parts between slashes, each with the fixed text at its ends.
    fn segments(&self, ids: IdType) -> Vec<Segment> {
        let body = self.raw.trim_end_matches('/');
        body.split('/')
            .map(|part| match (part.find('{'), part.rfind('}')) {
                (Some(open), Some(close)) => Segment::Any {
                    head: part[..open].to_owned(),
                    tail: part[close + 1..].to_owned(),
                    // a column can hold any text
                    of: if &part[open..=close] == "{id}" { ids } else { IdType::Text },
                },
                _ => Segment::Fixed(part.to_owned()),
            })
            .collect()
    }

    /// The id of the one resource below whose prefix the key may lie; `None`: below none of this template.
    pub fn id_in(&self, key: &str, ids: IdType) -> Option<ResourceId> {
        let mut parts = key.split('/');
        let mut found = None;
        for own in self.raw.trim_end_matches('/').split('/') {
            let part = parts.next()?;
            match (own.find('{'), own.rfind('}')) {
                (Some(open), Some(close)) => {
                    let value = part.strip_prefix(&own[..open])?.strip_suffix(&own[close + 1..])?;
                    if &own[open..=close] == "{id}" {
                        found = Some(ids.parse(value).ok()?);
                    }
                }
                _ if own == part => {}
                _ => return None,
            }
        }
        // a key that is the prefix but for its slash does not lie below it
        parts.next().and(found)
    }

    /// The prefix of one resource. `column` gives a column's value as text, `None` for null.
    ///
    /// # Errors
    /// [`UnsafePlace::Value`] for a value that could change the prefix's shape.
    pub fn render(&self, id: &ResourceId, column: impl Fn(&str) -> Option<String>) -> Result<Prefix, UnsafePlace> {
        self.fill(id.as_str(), column)
    }

    fn fill(&self, id: &str, column: impl Fn(&str) -> Option<String>) -> Result<Prefix, UnsafePlace> {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Id => filled.push_str(id),
                Part::Column(name) => {
                    let value = column(name);
                    match value.as_deref() {
                        Some(value) if is_safe_segment(value) => filled.push_str(value),
                        other => {
                            let value = other.map_or_else(|| "null".to_owned(), |value| format!("{value:?}"));
                            return Err(UnsafePlace::Value { column: name.clone(), value });
                        }
                    }
                }
            }
        }
        Prefix::parse(&filled)
    }
}

impl std::fmt::Display for PrefixTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.raw)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ids::IdType;
    use super::*;

    #[test]
    fn prefixes_that_reach_too_far_are_refused() {
        for raw in ["", "/", "a", "/a/", "a//b/", "../a/", "a/../b/", "a/./", "a\n/"] {
            assert!(Prefix::parse(raw).is_err(), "{raw:?}");
        }
        assert!(Prefix::parse("synthetic/1/").is_ok());
    }

    #[test]
    fn templates_that_reach_too_far_are_refused() {
        for raw in [
            "",
            "/",
            "synthetic/",
            "{id}",
            "synthetic/{id}",
            "{}/{id}/",
            "{id/",
            "id}/",
            "/{id}/",
            "a/../{id}/",
            "{a b}/{id}/",
        ] {
            assert!(PrefixTemplate::parse(raw).is_err(), "{raw:?}");
        }
    }

    #[test]
    fn two_places_between_two_slashes_are_refused() {
        for raw in ["runs/{experiment_id}-{id}/", "{owner}{id}/", "{id}/x/{a}.{b}/", "{id}{id}/"] {
            let refused = PrefixTemplate::parse(raw).unwrap_err();
            assert!(matches!(refused, UnsafePlace::Crowded(_)), "{raw:?}");
            assert!(refused.to_string().contains("put a slash between them"), "{refused}");
        }
    }

    #[test]
    fn a_stored_location_is_checked_when_it_is_read() {
        let stored = |store: &str, prefix: &str| {
            serde_json::from_value::<Location>(serde_json::json!({ "store": store, "bucket": "b", "prefix": prefix }))
        };
        assert!(stored("main", "a/1/").is_ok());
        for prefix in ["", "/", "a", "a//", "../"] {
            assert!(stored("main", prefix).unwrap_err().to_string().contains("unsafe prefix"), "{prefix:?}");
        }
        assert!(stored("Ma in", "a/1/").is_err());
    }

    #[test]
    fn a_template_is_filled_from_id_and_row() {
        let template = PrefixTemplate::parse("{experiment_id}/run-{id}/").unwrap();
        let id = IdType::Text.parse("r1").unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), ["experiment_id"]);
        assert_eq!(template.render(&id, |_| Some("7".to_owned())).unwrap().as_str(), "7/run-r1/");
    }

    #[test]
    fn a_null_or_a_slash_in_a_column_is_refused_and_named() {
        let template = PrefixTemplate::parse("{owner}/{id}/").unwrap();
        let id = IdType::Text.parse("r1").unwrap();
        for value in [None, Some("a/b"), Some(""), Some("..")] {
            let error = template.render(&id, |_| value.map(str::to_owned)).unwrap_err();
            assert!(error.to_string().contains("owner"), "{error}");
        }
    }

    #[test]
    fn templates_that_can_reach_into_each_other_are_known() {
        let may = |outer: &str, inner: &str| {
            let (outer, inner) = (PrefixTemplate::parse(outer).unwrap(), PrefixTemplate::parse(inner).unwrap());
            (
                outer.may_contain(IdType::Text, &inner, IdType::Text),
                outer.may_contain(IdType::Uuid, &inner, IdType::Uuid),
            )
        };
        assert_eq!(may("{id}/", "{experiment}/{id}/"), (true, true));
        assert_eq!(may("things/{id}/", "things/{id}/"), (true, true));
        assert_eq!(may("synthetic/{id}/", "synthetic/fixed/{id}/"), (true, false), "no UUID is called fixed");
        assert_eq!(may("synthetic/{id}/", "synthetic/dataset-{id}/"), (true, false));
        assert_eq!(may("{experiment}/{id}/", "{id}/"), (false, false));
        assert_eq!(may("synthetic/{id}/", "raw/{id}/"), (false, false));
        assert_eq!(may("a-{id}/", "b-{id}/x/"), (false, false));
        assert_eq!(may("a/{id}-x/", "a/{id}-y/"), (false, false));
    }

    #[test]
    fn a_key_tells_the_one_resource_below_whose_prefix_it_may_lie() {
        let id = |template: &str, key: &str| {
            let template = PrefixTemplate::parse(template).unwrap();
            template.id_in(key, IdType::Text).map(|id| id.to_string())
        };
        assert_eq!(id("sets/set-{id}/", "sets/set-7/a/b").as_deref(), Some("7"));
        assert_eq!(id("{owner}/{id}/", "anna/7/").as_deref(), Some("7"));
        for key in ["sets/set-7", "sets/7/a", "set/set-7/a", "sets/set-/a", "sets", "sets/set-a b/c", "/sets/set-7/a"] {
            assert_eq!(id("sets/set-{id}/", key), None, "{key}");
        }
    }

    #[test]
    fn addresses_are_read_whole_or_refused() {
        assert_eq!(parse_address("s3://b/x/y/").unwrap().1.as_str(), "x/y/");
        for raw in ["b/x/", "s3://b", "s3://b/", "s3:///x/", "s3://b/x", "https://b/x/"] {
            assert!(parse_address(raw).is_err(), "{raw:?}");
        }
    }

    const TEMPLATES: [&str; 4] = ["synthetic/dataset-{id}/", "{owner}/{id}/", "{id}/{owner}/", "a-{owner}/b/{id}-c/"];

    proptest! {
        #[test]
        fn two_resources_never_share_or_nest_their_prefixes(
            template in proptest::sample::select(&TEMPLATES[..]),
            a in ("[a1.-]{1,3}", "[a1.-]{1,3}"),
            b in ("[a1.-]{1,3}", "[a1.-]{1,3}"),
        ) {
            let template = PrefixTemplate::parse(template).unwrap();
            let render = |(id, owner): &(String, String)| {
                template.render(&IdType::Text.parse(id).ok()?, |_| Some(owner.clone())).ok()
            };
            let (Some(of_a), Some(of_b)) = (render(&a), render(&b)) else { return Ok(()) };
            prop_assume!(a.0 != b.0);
            prop_assert!(!of_a.as_str().starts_with(of_b.as_str()) && !of_b.as_str().starts_with(of_a.as_str()));
        }

        #[test]
        fn every_template_that_is_taken_keeps_two_resources_apart(
            raw in "(\\{id\\}|\\{owner\\}|a|1|-|/){1,6}/",
            a in ("[a1-]{1,3}", "[a1-]{1,3}"),
            b in ("[a1-]{1,3}", "[a1-]{1,3}"),
        ) {
            let Ok(template) = PrefixTemplate::parse(&raw) else { return Ok(()) };
            prop_assume!(a.0 != b.0);
            let render = |(id, owner): &(String, String)| {
                template.render(&IdType::Text.parse(id).unwrap(), |_| Some(owner.clone())).unwrap()
            };
            let (of_a, of_b) = (render(&a), render(&b));
            prop_assert!(!of_a.as_str().starts_with(of_b.as_str()) && !of_b.as_str().starts_with(of_a.as_str()));
        }
    }
}
