//! Parts of what lies below a prefix, by key, so that several can be listed at a time.
//!
//! Invariant: splitting a range leaves nothing out and nothing twice. Where it is cut is a guess at how keys go on, made
//! from one page of them; a wrong guess costs a listing that shows nothing.

use serde::{Deserialize, Serialize};

use crate::{
    domain::outcome::EntryKind,
    objects::{Cursor, ObjectEntry},
};

/// Cuts that one page suggests at most.
const MOST_CUTS: usize = 32;

/// What lies after one entry, up to one key and with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::purge) struct Range {
    /// `None`: from the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<Cursor>,
    /// `None`: to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<String>,
    /// What was announced here and is not settled.
    #[serde(skip_serializing_if = "Owed::is_none")]
    pub(super) owed: Owed,
}

/// Objects that somebody may have deleted without having counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::purge) struct Owed {
    pub(super) objects: u64,
    pub(super) bytes: u64,
    /// Of them, older versions and delete markers.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) versions: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) markers: u64,
}

/// What one object counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Weight {
    pub(super) bytes: u64,
    pub(super) kind: EntryKind,
}

impl From<&ObjectEntry> for Weight {
    fn from(entry: &ObjectEntry) -> Self {
        Self { bytes: entry.size, kind: entry.kind }
    }
}

impl From<Weight> for Owed {
    fn from(Weight { bytes, kind }: Weight) -> Self {
        let is = |other| u64::from(kind == other);
        Self { objects: 1, bytes, versions: is(EntryKind::Older), markers: is(EntryKind::Marker) }
    }
}

impl Owed {
    pub(super) fn is_none(&self) -> bool {
        self.objects == 0
    }

    pub(super) fn and(self, other: Owed) -> Self {
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
            versions: self.versions + other.versions,
            markers: self.markers + other.markers,
        }
    }

    /// What is left when these have shown up. More may show than were owed: somebody still writes.
    pub(super) fn less(self, shown: Owed) -> Self {
        let objects = self.objects.saturating_sub(shown.objects);
        if objects == 0 {
            return Self::default();
        }
        let versions = self.versions.saturating_sub(shown.versions).min(objects);
        Self {
            objects,
            bytes: self.bytes.saturating_sub(shown.bytes),
            versions,
            markers: self.markers.saturating_sub(shown.markers).min(objects - versions),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Keys after `last` and before `until` at which to cut, in order. `first` and `last` are the ends of a page below a
/// prefix of `prefix` bytes: where they differ keys go on counting, and before that as far as they have digits.
pub(super) fn cuts(prefix: usize, first: &str, last: &str, until: Option<&str>) -> Vec<String> {
    let differ = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    let at = |index: usize| last.get(index..).and_then(|rest| rest.chars().next());
    let Some(varying) = at(differ).filter(|_| differ >= prefix) else { return Vec::new() };
    let is_hex = last.get(differ..).is_some_and(is_hex_name);
    let mut cuts = Vec::new();
    let mut cut = |index: usize, next: char| cuts.push(format!("{}{next}", &last[..index]));
    followers(varying, is_hex).for_each(|next| cut(differ, next));
    let mut outermost = (differ, varying);
    for index in (prefix..differ).rev() {
        if let Some(digit) = at(index).filter(|c| c.is_ascii_digit() || (is_hex && c.is_ascii_hexdigit())) {
            followers(digit, is_hex).for_each(|next| cut(index, next));
            outermost = (index, digit);
        }
    }
    // what is beyond all of them, which is mostly nothing
    if let Some(beyond) = end_of_class(outermost.1, is_hex) {
        cut(outermost.0, beyond);
    }
    cuts.retain(|cut| cut.as_str() > last && until.is_none_or(|until| cut.as_str() < until));
    cuts.sort_unstable();
    cuts.dedup();
    cuts.truncate(MOST_CUTS);
    cuts
}

/// Whether the name that goes on here, up to the next slash or dot, is made of hexadecimal digits with a letter among them.
fn is_hex_name(rest: &str) -> bool {
    let name = rest.split(['/', '.', '-', '_']).next().unwrap_or_default();
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    name.chars().all(is_hex) && name.chars().any(|c| c.is_ascii_alphabetic())
}

/// The characters of the same class that follow, and letters after the digits of hexadecimal names.
fn followers(c: char, is_hex: bool) -> impl Iterator<Item = char> {
    let (rest, letters) = match c {
        '0'..='9' => (next_of(c)..='9', is_hex.then_some('a'..='f')),
        'a'..='f' if is_hex => (next_of(c)..='f', None),
        'a'..='z' => (next_of(c)..='z', None),
        'A'..='Z' => (next_of(c)..='Z', None),
        _ => ('1'..='0', None),
    };
    rest.chain(letters.into_iter().flatten())
}

/// The first character after the class.
fn end_of_class(c: char, is_hex: bool) -> Option<char> {
    match c {
        '0'..='9' | 'a'..='f' if is_hex => Some('g'),
        '0'..='9' => Some(':'),
        'a'..='z' => Some('{'),
        'A'..='Z' => Some('['),
        _ => None,
    }
}

fn next_of(c: char) -> char {
    // only ASCII letters and digits come here
    char::from_u32(u32::from(c) + 1).unwrap_or(c)
}

/// A key right before this one: with nothing in between that a platform would use as a name. `None`: nothing is before it.
pub(super) fn just_before(key: &str) -> Option<String> {
    let last = key.chars().next_back()?;
    let rest = &key[..key.len() - last.len_utf8()];
    let Some(before) = u32::from(last).checked_sub(1) else {
        // before the first of all characters comes none at all
        return (!rest.is_empty()).then(|| rest.to_owned());
    };
    // below the surrogates' gap comes its lower end
    let before = char::from_u32(before).unwrap_or('\u{d7ff}');
    Some(format!("{rest}{before}{}", char::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_with_leading_zeros_are_cut_at_every_place() {
        let cuts = cuts(2, "d/000000", "d/000999", None);
        assert_eq!(cuts.len(), 28, "{cuts:?}");
        assert_eq!((cuts[0].as_str(), cuts[8].as_str(), cuts[27].as_str()), ("d/001", "d/009", "d/:"));
        assert!(cuts.contains(&"d/01".to_owned()) && cuts.contains(&"d/9".to_owned()));
    }

    #[test]
    fn numbers_without_them_are_cut_by_their_first_digit() {
        let cuts = cuts(2, "d/0/RX_000.npy", "d/137/RX_003.npy", None);
        assert_eq!(cuts, ["d/2", "d/3", "d/4", "d/5", "d/6", "d/7", "d/8", "d/9", "d/:"]);
    }

    #[test]
    fn hexadecimal_names_go_on_with_letters() {
        let cuts = cuts(2, "d/00a3f1", "d/0a91bc", None);
        assert!(
            ["d/0b", "d/0f", "d/1", "d/9", "d/a", "d/f", "d/g"].iter().all(|c| cuts.contains(&(*c).to_owned())),
            "{cuts:?}"
        );
        assert!(!cuts.contains(&"d/h".to_owned()));
    }

    #[test]
    fn a_name_that_all_keys_share_is_not_cut() {
        let cuts = cuts(2, "d/chunk_0000", "d/chunk_0999", None);
        assert_eq!(cuts.last().map(String::as_str), Some("d/chunk_:"));
        assert_eq!(cuts.len(), 10);
    }

    #[test]
    fn a_page_of_one_key_is_not_cut() {
        assert_eq!(cuts(2, "d/a", "d/a", None), Vec::<String>::new());
    }

    #[test]
    fn right_before_a_key_is_before_it_and_after_its_neighbours() {
        for (key, earlier) in [("d/10", "d/1"), ("d/b", "d/azzz"), ("d/\u{e000}", "d/\u{d7ff}"), ("a", "Z")] {
            let before = just_before(key).expect("not empty");
            assert!(earlier < before.as_str() && before.as_str() < key, "{before:?}");
        }
        assert_eq!(just_before("d/x\0").as_deref(), Some("d/x"));
        assert_eq!([just_before(""), just_before("\0")], [None, None]);
    }

    proptest! {
        #[test]
        fn cuts_are_in_order_and_inside(
            a in "[0-9a-g_é/]{0,6}", b in "[0-9a-g_é/]{0,6}", until in prop::option::of("[0-9a-g_é/]{0,6}"),
        ) {
            let (first, last) = if a <= b { (a, b) } else { (b, a) };
            let [first, last] = [first, last].map(|key| format!("d/{key}"));
            let until = until.map(|key| format!("d/{key}"));
            let cuts = cuts(2, &first, &last, until.as_deref());
            prop_assert!(cuts.len() <= MOST_CUTS);
            prop_assert!(cuts.is_sorted_by(|a, b| a < b));
            for cut in &cuts {
                prop_assert!(*cut > last && until.as_ref().is_none_or(|until| cut < until));
                prop_assert!(cut.starts_with("d/"), "below the prefix");
            }
        }

        #[test]
        fn right_before_any_key_is_before_it(key in "[\\PC\0]{1,8}") {
            if let Some(before) = just_before(&key) {
                prop_assert!(before < key);
            } else {
                prop_assert_eq!(key, "\0");
            }
        }
    }
}
