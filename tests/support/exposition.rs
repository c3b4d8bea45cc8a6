//! What `/metrics` answers, read strictly, and what `docs/metrics.md` promises.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Labels and their values.
pub type Labels = BTreeMap<String, String>;

/// Every sample of a scrape, and the type of each family.
#[derive(Debug, Default)]
pub struct Exposition {
    pub text: String,
    pub types: BTreeMap<String, String>,
    pub samples: BTreeMap<(String, Labels), f64>,
}

impl Exposition {
    /// Reads the text format. Panics where it is not well-formed, or shows anything twice.
    pub fn read(text: &str) -> Exposition {
        let mut this = Exposition { text: text.to_owned(), ..Exposition::default() };
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                if let Some(family) = comment.strip_prefix("TYPE ") {
                    let (name, kind) = family.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
                    assert!(this.types.insert(name.to_owned(), kind.to_owned()).is_none(), "one family twice: {line}");
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("open: {line}"))),
                None => (series, ""),
            };
            assert!(this.types.contains_key(family_of(name, &this.types)), "a sample without a type: {line}");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
            let key = (name.to_owned(), labels_of(labels));
            assert!(this.samples.insert(key, value).is_none(), "one sample twice: {line}");
        }
        assert!(text.ends_with('\n'));
        this
    }

    /// Asks a process.
    pub async fn scrape(address: SocketAddr) -> Exposition {
        let (status, text) = get(address, "/metrics").await;
        assert_eq!(status, 200, "{text}");
        Exposition::read(&text)
    }

    /// The value of one series. Panics where it is not shown.
    #[track_caller]
    pub fn one(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let owned = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let found = self.samples.get(&(name.to_owned(), owned));
        *found.unwrap_or_else(|| panic!("no {name} {labels:?} in {}", self.text))
    }

    /// The sum of every series that has these labels among its own. Panics where there is none.
    #[track_caller]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |of: &Labels| labels.iter().all(|(name, value)| of.get(*name).is_some_and(|found| found == value));
        let found: Vec<f64> =
            self.samples.iter().filter(|((of, has), _)| of == name && fits(has)).map(|(_, value)| *value).collect();
        assert!(!found.is_empty(), "no {name} {labels:?} in {}", self.text);
        found.into_iter().sum()
    }

    /// The label sets of each family, those of a histogram without its buckets.
    pub fn families(&self) -> BTreeMap<String, BTreeSet<Labels>> {
        let mut found: BTreeMap<String, BTreeSet<Labels>> = BTreeMap::new();
        for (name, labels) in self.samples.keys() {
            let labels = labels.iter().filter(|(name, _)| *name != "le");
            let labels = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
            found.entry(family_of(name, &self.types).to_owned()).or_default().insert(labels);
        }
        found
    }
}

fn family_of<'a>(name: &'a str, types: &BTreeMap<String, String>) -> &'a str {
    if types.contains_key(name) {
        return name;
    }
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// No value of ours holds a quote or a backslash.
fn labels_of(text: &str) -> Labels {
    let mut labels = Labels::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {text}"));
        let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("no end: {text}"));
        assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "one label twice: {text}");
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    labels
}

/// A GET, its status and body.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, "GET", path, "").await
}

/// A request with a JSON body, its status and the answer's.
pub async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// The address that a process logged with these words, such as `api listens`.
pub fn address_in(log: &str, words: &str) -> SocketAddr {
    let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words:?} in {log}"));
    let address = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(['"', ' ', ',']).next()).expect("there");
    format!("127.0.0.1:{address}").parse().expect("an address")
}

/// A line of the tables of `docs/metrics.md`.
#[derive(Debug)]
pub struct Promised {
    pub name: String,
    pub kind: String,
    /// Each group of labels with the values that they have together, one for each label.
    pub labels: Vec<(Vec<String>, Values)>,
}

/// The values of a group of labels.
#[derive(Debug)]
pub enum Values {
    Listed(Vec<String>),
    /// Those that the configuration gives, by what the page calls them.
    Given(String),
}

/// Every metric of the page, in its order.
pub fn promised() -> Vec<Promised> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let rows = page.lines().filter(|line| line.starts_with("| `reprieve_"));
    let promised: Vec<Promised> = rows.map(read_row).collect();
    assert!(promised.len() > 50, "only {} metrics were found on the page", promised.len());
    promised
}

fn read_row(row: &str) -> Promised {
    let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
    assert_eq!(cells.len(), 7, "{row}");
    let labels = cells[3].split(';').map(str::trim).filter(|group| !group.is_empty()).map(|group| {
        let (names, values) = group.split_once(": ").unwrap_or_else(|| panic!("no values: {row}"));
        let quoted = |text: &str| text.split(", ").map(|word| word.trim_matches('`').to_owned()).collect::<Vec<_>>();
        let given = values.strip_prefix('*').and_then(|rest| rest.strip_suffix('*'));
        let values = given.map_or_else(|| Values::Listed(quoted(values)), |given| Values::Given(given.to_owned()));
        (quoted(names), values)
    });
    Promised { name: cells[0].trim_matches('`').to_owned(), kind: cells[1].to_owned(), labels: labels.collect() }
}

/// What the page calls the routes.
pub fn routes() -> Vec<Vec<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(page).expect("the page is there").replace('\n', " ");
    let (_, list) = page.split_once("*routes*: ").expect("the page lists them");
    let (list, _) = list.split_once("`none`.").expect("ends with none");
    let routes = list.split(", ").map(|route| vec![route.trim().trim_matches('`').to_owned()]);
    let routes: Vec<_> = routes.filter(|route| !route[0].is_empty()).chain([vec!["none".to_owned()]]).collect();
    assert_eq!(routes.len(), 12, "{routes:?}");
    routes
}

impl Promised {
    /// Every label set, where `given` says what the configuration gives.
    pub fn label_sets(&self, given: impl Fn(&str) -> Vec<Vec<String>>) -> BTreeSet<Labels> {
        let mut sets = vec![Labels::new()];
        for (names, values) in &self.labels {
            let values = match values {
                Values::Listed(values) => values.iter().map(|value| vec![value.clone()]).collect(),
                Values::Given(what) => given(what),
            };
            let with = |set: &Labels, value: &Vec<String>| {
                let mut set = set.clone();
                assert_eq!(value.len(), names.len(), "{self:?}");
                set.extend(names.iter().cloned().zip(value.iter().cloned()));
                set
            };
            sets = sets.iter().flat_map(|set| values.iter().map(move |value| with(set, value))).collect();
        }
        sets.into_iter().collect()
    }
}
