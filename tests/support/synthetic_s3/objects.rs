//! Which objects there are: rules that name them, and bitmaps of those that are deleted.
//!
//! Invariant: the keys of a rule are in the order of their numbers, and no rule's prefix begins with another's, so the
//! order of the rules is the order of the keys.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};

use super::names::Names;

/// The objects below a prefix: `{prefix}{before}{name}{after}` for each number below `count`.
#[derive(Debug, Clone)]
pub struct Rule {
    pub prefix: String,
    pub before: String,
    pub after: String,
    pub names: Names,
    pub count: u64,
    /// Of each.
    pub bytes: u64,
}

impl Rule {
    /// Objects such as `{prefix}000000017.npy`, of 80 bytes.
    pub fn new(prefix: impl Into<String>, count: u64) -> Rule {
        Rule {
            prefix: prefix.into(),
            before: String::new(),
            after: ".npy".into(),
            names: Names::Padded,
            count,
            bytes: 80,
        }
    }
}

impl Rule {
    /// Every key, in order.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        (0..self.count).map(|number| self.key(number))
    }

    fn key(&self, number: u64) -> String {
        let Rule { prefix, before, after, names, count, .. } = self;
        let mut key = String::with_capacity(prefix.len() + before.len() + LONGEST_NAME + after.len());
        key.push_str(prefix);
        key.push_str(before);
        names.write(number, *count, &mut key);
        key.push_str(after);
        key
    }

    fn number(&self, key: &str) -> Option<u64> {
        let rest = key.strip_prefix(self.prefix.as_str())?.strip_prefix(self.before.as_str())?;
        let name = rest.strip_suffix(self.after.as_str())?;
        self.names.number(name, self.count)
    }
}

/// The longest name there is, for one allocation a key.
const LONGEST_NAME: usize = 24;

/// What became of a key that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Deleted,
    Absent,
    Stranger,
}

/// What a listing asks for.
#[derive(Debug, Clone)]
pub(super) struct Range<'a> {
    pub(super) prefix: &'a str,
    /// Only keys beyond this one; with a common prefix here, only those that do not begin with it.
    pub(super) after: &'a str,
    pub(super) delimiter: &'a str,
    pub(super) most: usize,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Key and bytes.
    pub(super) objects: Vec<(String, u64)>,
    pub(super) common: Vec<String>,
    /// Where the next one begins.
    pub(super) next: Option<String>,
}

#[derive(Debug)]
struct Objects {
    rule: Rule,
    /// A bit is set for each deleted one.
    gone: Vec<AtomicU64>,
    left: AtomicU64,
}

impl Objects {
    fn new(rule: Rule) -> Self {
        assert!(rule.names.hold(rule.count), "more numbers than names");
        let words = rule.count.div_ceil(64);
        Objects { gone: (0..words).map(|_| AtomicU64::new(0)).collect(), left: AtomicU64::new(rule.count), rule }
    }

    /// The first number whose key is beyond `after`.
    fn first_beyond(&self, after: &str) -> u64 {
        if after < self.rule.prefix.as_str() {
            return 0;
        }
        if let Some(number) = self.rule.number(after) {
            return number + 1;
        }
        let (mut low, mut high) = (0, self.rule.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.rule.key(middle).as_str() > after { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// The first one from `number` on that is not deleted.
    fn next_left(&self, mut number: u64) -> Option<u64> {
        while number < self.rule.count {
            let word = self.gone[(number / 64) as usize].load(Ordering::Acquire);
            let present = !word & (u64::MAX << (number % 64));
            if present == 0 {
                number = (number / 64 + 1) * 64;
                continue;
            }
            number = number / 64 * 64 + u64::from(present.trailing_zeros());
            return (number < self.rule.count).then_some(number);
        }
        None
    }

    fn delete(&self, number: u64) -> Found {
        let bit = 1_u64 << (number % 64);
        if self.gone[(number / 64) as usize].fetch_or(bit, Ordering::AcqRel) & bit != 0 {
            return Found::Absent;
        }
        self.left.fetch_sub(1, Ordering::AcqRel);
        Found::Deleted
    }
}

/// Rules by bucket and prefix.
#[derive(Debug, Default)]
pub(super) struct Buckets(BTreeMap<String, BTreeMap<String, Objects>>);

impl Buckets {
    pub(super) fn create(&mut self, bucket: &str) {
        self.0.entry(bucket.to_owned()).or_default();
    }

    pub(super) fn add(&mut self, bucket: &str, rule: Rule) {
        let rules = self.0.entry(bucket.to_owned()).or_default();
        let above =
            rules.range(..=rule.prefix.clone()).next_back().is_some_and(|(known, _)| rule.prefix.starts_with(known));
        let below = rules.range(rule.prefix.clone()..).next().is_some_and(|(known, _)| known.starts_with(&rule.prefix));
        assert!(!above && !below, "{:?} overlaps another rule", rule.prefix);
        rules.insert(rule.prefix.clone(), Objects::new(rule));
    }

    pub(super) fn has(&self, bucket: &str) -> bool {
        self.0.contains_key(bucket)
    }

    pub(super) fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    pub(super) fn left(&self, bucket: &str, prefix: &str) -> u64 {
        self.0[bucket][prefix].left.load(Ordering::Acquire)
    }

    pub(super) fn left_in(&self, bucket: &str) -> u64 {
        self.0[bucket].values().map(|objects| objects.left.load(Ordering::Acquire)).sum()
    }

    pub(super) fn delete(&self, bucket: &str, key: &str) -> Found {
        let rules = self.0.get(bucket);
        let nearest =
            rules.and_then(|rules| rules.range::<str, _>((Bound::Unbounded, Bound::Included(key))).next_back());
        let known = nearest.and_then(|(_, objects)| objects.rule.number(key).map(|number| objects.delete(number)));
        known.unwrap_or(Found::Stranger)
    }

    pub(super) fn page(&self, bucket: &str, range: &Range<'_>) -> Page {
        let mut page = Page::default();
        let Some(rules) = self.0.get(bucket) else { return page };
        let from = rules.range::<str, _>((Bound::Unbounded, Bound::Included(range.prefix))).next_back();
        let from = from
            .filter(|(prefix, _)| range.prefix.starts_with(prefix.as_str()))
            .map_or(range.prefix, |(prefix, _)| prefix);
        for (prefix, objects) in rules.range::<str, _>((Bound::Included(from), Bound::Unbounded)) {
            let related = prefix.starts_with(range.prefix) || range.prefix.starts_with(prefix.as_str());
            if !related || !objects.add_to(&mut page, range) {
                break;
            }
        }
        page
    }
}

impl Objects {
    /// `false`: the page is full, or the prefix has come to its end.
    fn add_to(&self, page: &mut Page, range: &Range<'_>) -> bool {
        let in_common = page.common.last().is_some_and(|common| self.rule.prefix.starts_with(common.as_str()));
        if in_common || self.all_skipped(range) {
            return true;
        }
        let mut number = self.first_beyond(range.after);
        if range.prefix > self.rule.prefix.as_str() {
            // keys that begin with the prefix are beyond it, or it
            let least = self.rule.number(range.prefix).unwrap_or_else(|| self.first_beyond(range.prefix));
            number = number.max(least);
        }
        while let Some(next) = self.next_left(number) {
            let key = self.rule.key(next);
            if !key.starts_with(range.prefix) {
                return false;
            }
            number = next + 1;
            let common = common_prefix(&key, range);
            let shown = |common: &str| page.common.last().is_some_and(|last| last == common);
            if common.is_some_and(|common| shown(common) || range.after.starts_with(common)) {
                continue;
            }
            if page.objects.len() + page.common.len() >= range.most {
                let last_object = page.objects.last().map(|(key, _)| key.as_str());
                let last = last_object.max(page.common.last().map(String::as_str));
                page.next = last.map(ToOwned::to_owned);
                return false;
            }
            let Some(common) = common.map(ToOwned::to_owned) else {
                page.objects.push((key, self.rule.bytes));
                continue;
            };
            let holds_all = self.rule.prefix.starts_with(common.as_str());
            page.common.push(common);
            if holds_all {
                return true;
            }
        }
        true
    }

    /// Whether the last page ended with a common prefix that holds all of it.
    fn all_skipped(&self, range: &Range<'_>) -> bool {
        let ended_with_common = !range.delimiter.is_empty() && range.after.ends_with(range.delimiter);
        ended_with_common && self.rule.prefix.starts_with(range.after) && range.after.len() > range.prefix.len()
    }
}

fn common_prefix<'k>(key: &'k str, range: &Range<'_>) -> Option<&'k str> {
    if range.delimiter.is_empty() {
        return None;
    }
    let at = key[range.prefix.len()..].find(range.delimiter)?;
    Some(&key[..range.prefix.len() + at + range.delimiter.len()])
}
