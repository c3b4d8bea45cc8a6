//! Reads one table of the configuration, key by key, and collects what is wrong with it.
//!
//! Invariant: nothing stops at the first mistake. A key that is missing, malformed or unknown becomes a [`Problem`]
//! that names the key and says what would be right, and reading goes on with a default or without. A value read as a
//! secret appears in no problem.

use std::{cell::RefCell, collections::BTreeSet, fmt, ops::RangeInclusive, path::Path, time::Duration};

use secrecy::SecretString;
use serde_json::{Map, Value};

/// For a URL with a password in it, which no message may show.
pub const UNREADABLE_URL: &str =
    "cannot be read as a URL (its value is not shown): in a password, write / as %2F, # as %23 and @ as %40";

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, such as `stores.main.region` or `resource[0] (dataset).table`; a file's name for a file that cannot be read.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// Collects problems while reading.
#[derive(Debug, Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Adds one.
    pub fn add(&self, key: impl Into<String>, message: impl fmt::Display) {
        self.0.borrow_mut().push(Problem { key: key.into(), message: message.to_string() });
    }

    /// Whether nothing was wrong so far.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// All of them, in the order of reading.
    pub fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// One table.
pub struct Reader<'a> {
    path: String,
    table: Option<&'a Map<String, Value>>,
    known: RefCell<BTreeSet<&'static str>>,
    problems: &'a Problems,
}

impl<'a> Reader<'a> {
    /// Reads `table`, whose key is `path` (empty for the whole file).
    pub fn new(path: impl Into<String>, table: &'a Map<String, Value>, problems: &'a Problems) -> Self {
        Self { path: path.into(), table: Some(table), known: RefCell::default(), problems }
    }

    /// The full name of a key of this table.
    pub fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reports a problem with a key of this table.
    pub fn problem(&self, key: &str, message: impl fmt::Display) {
        self.problems.add(self.key(key), message);
    }

    /// Whether the key is there.
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The raw value.
    pub fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().insert(key);
        self.table.and_then(|table| table.get(key)).filter(|value| !value.is_null())
    }

    /// A text.
    pub fn text(&self, key: &'static str) -> Option<String> {
        match self.value(key)? {
            Value::String(text) => Some(text.clone()),
            // the environment cannot say what is a text
            Value::Number(number) => Some(number.to_string()),
            other => {
                self.problem(key, format_args!("expected a text, found {}", describe(other)));
                None
            }
        }
    }

    /// A text that `parse` accepts.
    pub fn parsed<T, E: fmt::Display>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        parse(&self.text(key)?).map_err(|error| self.problem(key, error)).ok()
    }

    /// As [`Reader::parsed`], and the key has to be there; `hint` says what belongs there.
    pub fn required<T, E: fmt::Display>(
        &self,
        key: &'static str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problem(key, format_args!("is missing: {hint}"));
            return None;
        }
        self.parsed(key, parse)
    }

    /// A duration such as `250ms`, `30s`, `15m`, within `range`.
    pub fn duration(&self, key: &'static str, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        self.parsed(key, |raw| {
            let show = |d: &Duration| humantime::format_duration(*d).to_string();
            humantime::parse_duration(raw).ok().filter(|d| range.contains(d)).ok_or_else(|| {
                format!("{raw:?} is not a duration from {} to {}", show(range.start()), show(range.end()))
            })
        })
        .unwrap_or(default)
    }

    /// A whole number within `range`.
    pub fn count<N>(&self, key: &'static str, default: N, range: RangeInclusive<N>) -> N
    where
        N: Copy + PartialOrd + fmt::Display + std::str::FromStr,
    {
        self.parsed(key, |raw| {
            raw.parse()
                .ok()
                .filter(|n| range.contains(n))
                .ok_or_else(|| format!("{raw:?} is not a whole number from {} to {}", range.start(), range.end()))
        })
        .unwrap_or(default)
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        match self.value(key) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(Value::String(text)) if text == "true" || text == "false" => text == "true",
            Some(other) => {
                self.problem(key, format_args!("expected true or false, found {}", describe(other)));
                default
            }
        }
    }

    /// A secret: the value of `key`, or the first line of the file that `key_file` names (as containers mount them).
    pub fn secret(&self, key: &'static str, key_file: &'static str) -> Option<SecretString> {
        match (self.value(key), self.value(key_file)) {
            (Some(_), Some(_)) => {
                self.problem(key, format_args!("is given twice, as {key} and as {key_file}: keep one"));
                None
            }
            (Some(Value::String(secret)), None) if !secret.is_empty() => Some(secret.clone().into()),
            (Some(_), None) => {
                self.problem(key, "expected a text that is not empty (its value is not shown)");
                None
            }
            (None, Some(_)) => self.parsed(key_file, |path| {
                let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
                match text.lines().next() {
                    Some(line) if !line.is_empty() => Ok(SecretString::from(line.to_owned())),
                    _ => Err(format!("{path} is empty")),
                }
            }),
            (None, None) => None,
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &'static str) -> Vec<String> {
        let texts = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            // the environment knows no lists
            Some(Value::String(text)) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
            Some(_) => None,
        };
        texts.unwrap_or_else(|| {
            self.problem(key, "expected a list of texts, such as [\"a\", \"b\"]");
            Vec::new()
        })
    }

    /// A table below this one; an empty one where it is missing.
    pub fn section(&self, key: &'static str) -> Reader<'a> {
        let table = match self.value(key) {
            None => None,
            Some(Value::Object(table)) => Some(table),
            Some(other) => {
                self.problem(key, format_args!("expected a section [{}], found {}", self.key(key), describe(other)));
                None
            }
        };
        Reader { path: self.key(key), table, known: RefCell::default(), problems: self.problems }
    }

    /// The tables below `key`, with their names: `[stores.NAME]`.
    pub fn named_sections(&self, key: &'static str) -> Vec<(&'a str, Reader<'a>)> {
        let Some(table) = self.section(key).table else { return Vec::new() };
        let mut sections = Vec::new();
        for (name, value) in table {
            let path = format!("{}.{name}", self.key(key));
            match value {
                Value::Object(table) => sections.push((name.as_str(), Reader::new(path, table, self.problems))),
                other => self.problems.add(path, format_args!("expected a section, found {}", describe(other))),
            }
        }
        sections
    }

    /// The tables of a list: `[[resource]]`.
    pub fn list(&self, key: &'static str) -> Vec<Reader<'a>> {
        let items = match self.value(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                let key_name = self.key(key);
                self.problem(key, format_args!("expected sections [[{key_name}]], found {}", describe(other)));
                return Vec::new();
            }
        };
        let mut readers = Vec::new();
        for (at, value) in items.iter().enumerate() {
            let path = format!("{}[{at}]", self.key(key));
            match value {
                Value::Object(table) => readers.push(Reader::new(path, table, self.problems)),
                other => self.problems.add(path, format_args!("expected a section, found {}", describe(other))),
            }
        }
        readers
    }

    /// Adds a name to this table's path, for messages that say which of several is meant.
    pub fn name(&mut self, name: &str) {
        self.path = format!("{} ({name})", self.path);
    }

    /// Reports the keys that nobody read.
    pub fn finish(self) {
        let known = self.known.borrow();
        let unknown = self.table.into_iter().flatten().map(|(key, _)| key).filter(|key| !known.contains(key.as_str()));
        for key in unknown {
            let keys = known.iter().copied().collect::<Vec<_>>().join(", ");
            // one of the commonest slips: `[store.main]`
            let singular = known.iter().find(|known| known.strip_suffix('s') == Some(key));
            let meant = singular.map(|plural| format!("; `{plural}` is meant")).unwrap_or_default();
            self.problem(key, format_args!("is not a key of this section; it has: {keys}{meant}"));
        }
    }
}

/// Problems name what they found by its type; the value might be a secret in the wrong place.
fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a section",
    }
}

/// Makes a path of a file absolute as seen from the directory of the file that names it.
pub fn beside(file: &Path, named: &str) -> std::path::PathBuf {
    file.parent().unwrap_or_else(|| Path::new(".")).join(named)
}
