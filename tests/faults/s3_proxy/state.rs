//! What the proxy was told to do, and what it has seen and done.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::watch;

use super::fault::{Fault, On, Op, Weather};
use super::request::{Answer, Asked};
use super::xml;

/// Bytes of listings that are kept, to be shown again.
const LISTINGS_KEPT: usize = 64 << 20;

/// A rule that was given, and how often it was met.
#[derive(Debug, Clone)]
pub struct Rule(Arc<RuleState>);

#[derive(Debug)]
struct RuleState {
    on: On,
    fault: Fault,
    left: AtomicU64,
    met: AtomicU64,
}

impl Rule {
    pub(super) fn new(on: On, times: u64, fault: Fault) -> Rule {
        Rule(Arc::new(RuleState { on, fault, left: AtomicU64::new(times), met: AtomicU64::new(0) }))
    }

    /// How many requests it has happened to.
    pub fn met(&self) -> u64 {
        self.0.met.load(Ordering::SeqCst)
    }

    /// It happens no more.
    pub fn end(&self) {
        self.0.left.store(0, Ordering::SeqCst);
    }

    /// Takes one of the times that are left.
    fn take(&self) -> bool {
        let one = |left: u64| (left > 0).then(|| if left == u64::MAX { left } else { left - 1 });
        self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one).is_ok()
    }

    /// Gives it back: the request was not one that it can happen to.
    fn untake(&self) {
        let one = |left: u64| (left != u64::MAX).then(|| left + 1);
        let _ = self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one);
    }
}

/// A fault that was chosen for a request. To be [`Chosen::happened`] or [`Chosen::could_not`].
pub struct Chosen {
    pub fault: Fault,
    rule: Option<Rule>,
}

impl Chosen {
    pub fn could_not(self) {
        if let Some(rule) = self.rule {
            rule.untake();
        }
    }
}

/// Shared by every connection.
pub struct State {
    /// Counts up when it becomes calm.
    calms: watch::Sender<u64>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    rules: Vec<Rule>,
    storm: Option<(StdRng, Weather)>,
    injected: BTreeMap<&'static str, u64>,
    requests: BTreeMap<Op, u64>,
    first_deleted: HashMap<(String, String), SystemTime>,
    largest_batch: usize,
    first_listings: HashMap<String, Answer>,
    first_listings_bytes: usize,
    upstream_failures: u64,
}

impl State {
    pub fn new() -> State {
        State { calms: watch::Sender::new(0), seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_rule(&self, rule: Rule) {
        self.seen().rules.push(rule);
    }

    pub fn storm(&self, seed: u64, weather: Weather) {
        self.seen().storm = Some((StdRng::seed_from_u64(seed), weather));
    }

    pub fn calm(&self) {
        let mut seen = self.seen();
        seen.storm = None;
        seen.rules.drain(..).for_each(|rule| rule.end());
        drop(seen);
        self.calms.send_modify(|calms| *calms += 1);
    }

    /// Ends when it becomes calm.
    pub fn until_calm(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut calms = self.calms.subscribe();
        calms.mark_unchanged();
        async move {
            // an error means that the proxy ends
            let _ = calms.changed().await;
        }
    }

    /// Notes a request, and chooses what happens to it: by the first rule that means it, or by the weather.
    pub fn choose(&self, asked: &Asked) -> Option<Chosen> {
        let mut seen = self.seen();
        *seen.requests.entry(asked.op).or_default() += 1;
        seen.largest_batch = seen.largest_batch.max(asked.objects.len());
        let mut rules = seen.rules.iter();
        let meant = rules.find(|rule| {
            rule.0.fault.fits(asked.op) && rule.0.on.matches(asked.op, &asked.bucket, &asked.subjects) && rule.take()
        });
        if let Some(rule) = meant {
            return Some(Chosen { fault: rule.0.fault.clone(), rule: Some(rule.clone()) });
        }
        let (rng, weather) = seen.storm.as_mut()?;
        weather.draw(rng, asked.op).map(|fault| Chosen { fault, rule: None })
    }

    pub fn happened(&self, chosen: &Chosen) {
        *self.seen().injected.entry(chosen.fault.name()).or_default() += 1;
        if let Some(rule) = &chosen.rule {
            rule.0.met.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The store has confirmed that these are deleted.
    pub fn deleted<'a>(&self, bucket: &str, keys: impl IntoIterator<Item = &'a str>) {
        let now = SystemTime::now();
        let mut seen = self.seen();
        for key in keys {
            seen.first_deleted.entry((bucket.to_owned(), key.to_owned())).or_insert(now);
        }
    }

    /// The first answer to this listing that showed anything, which is this one if there was none.
    pub fn first_listing(&self, identity: &str, answer: &Answer) -> Answer {
        let mut seen = self.seen();
        if let Some(first) = seen.first_listings.get(identity) {
            return first.clone();
        }
        let shows_something = !xml::page_entries(&answer.text()).is_empty();
        if shows_something && seen.first_listings_bytes < LISTINGS_KEPT {
            seen.first_listings_bytes += answer.body.len();
            seen.first_listings.insert(identity.to_owned(), answer.clone());
        }
        answer.clone()
    }

    pub fn upstream_failed(&self) {
        self.seen().upstream_failures += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.seen().injected.clone()
    }

    pub fn requests(&self) -> BTreeMap<Op, u64> {
        self.seen().requests.clone()
    }

    pub fn first_deleted(&self) -> HashMap<(String, String), SystemTime> {
        self.seen().first_deleted.clone()
    }

    pub fn largest_batch(&self) -> usize {
        self.seen().largest_batch
    }

    pub fn upstream_failures(&self) -> u64 {
        self.seen().upstream_failures
    }
}
