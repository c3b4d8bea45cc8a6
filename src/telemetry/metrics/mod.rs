//! What this process did, in numbers. Facts of the database are read when they are asked for and are not kept here.
//! `docs/metrics.md` lists every name with its labels, and a test holds this to it.
//!
//! Invariant: no label holds an id or a text from outside: kinds, stores and buckets are those of the configuration, all
//! else is listed here. Every series is there before anything is counted, so that its first increase is seen. Counting
//! takes no lock and allocates nothing for a single key.

mod make;
mod messages;
mod process;
mod purges;
mod requests;
mod stores;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{Encoder, IntCounter, Registry, TextEncoder, process_collector::ProcessCollector};

pub use self::{
    make::Make,
    messages::{Connected, Messages, NotTaken},
    process::{Pool, Process},
    purges::{InProgress, Purges, RetriedBy},
    requests::{Operation, Origin, Requests},
    stores::{Metered, OfGate, OfStore},
};
use super::standing::Standing;
use crate::domain::{ids::Kind, location::StoreName};

/// The registry and what is in it. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    /// The process itself.
    process: Arc<Process>,
    /// Requests, over HTTP and by message.
    requests: Requests,
    /// Purges.
    purges: Purges,
    /// The broker and the outbox.
    messages: Messages,
    stores: stores::Vectors,
    standing: Standing,
    /// What is looked at when somebody scrapes, and not counted before. One scrape at a time.
    looks: Mutex<Vec<Look>>,
}

/// Brings figures up to date that somebody else keeps.
type Look = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let registry = Registry::new();
        let make = Make::on(&registry);
        let standing = Standing::default();
        let inner = Inner {
            process: Arc::new(Process::new(&make)),
            requests: Requests::new(&make),
            purges: Purges::new(&make),
            messages: Messages::new(&make, &standing),
            stores: stores::Vectors::new(&make),
            standing,
            looks: Mutex::default(),
            registry,
        };
        inner.registry.register(Box::new(ProcessCollector::for_self())).expect("there is one");
        Self(Arc::new(inner))
    }

    /// Shows every series of these kinds from now on.
    pub fn expect_kinds<'a>(&self, kinds: impl IntoIterator<Item = &'a Kind>) {
        for kind in kinds {
            self.0.requests.expect(kind);
            self.0.purges.expect(kind);
        }
    }

    /// What is counted for a store. Its series are shown from now on.
    pub fn of_store(&self, store: &StoreName) -> Arc<OfStore> {
        self.0.purges.expect_store(store);
        Arc::new(self.0.stores.of(store))
    }

    /// Figures of a bucket's gate, for [`Metrics::at_each_scrape`].
    pub fn of_gate(&self, store: &StoreName, bucket: &str) -> OfGate {
        self.0.stores.of_gate(store, bucket)
    }

    /// Has something looked at with each scrape. It must not wait.
    pub fn at_each_scrape(&self, look: impl Fn() + Send + Sync + 'static) {
        self.0.looks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// Of the process itself.
    pub fn process(&self) -> &Arc<Process> {
        &self.0.process
    }

    /// Of requests.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// Of purges.
    pub fn purges(&self) -> &Purges {
        &self.0.purges
    }

    /// Of messages.
    pub fn messages(&self) -> &Messages {
        &self.0.messages
    }

    /// What is up and what is not, for health.
    pub fn standing(&self) -> &Standing {
        &self.0.standing
    }

    /// In Prometheus's text format.
    pub fn render(&self) -> String {
        let looks = self.0.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.iter().for_each(|look| look());
        self.0.process.started(self.0.standing.has_started());
        text_of(&self.0.registry)
    }
}

/// What is in a registry, in Prometheus's text format.
pub fn text_of(registry: &Registry) -> String {
    let mut text = Vec::new();
    // writing into memory does not fail
    let _ = TextEncoder::new().encode(&registry.gather(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Brings a counter to what somebody else has counted; with nobody else who does, see [`Metrics::at_each_scrape`].
fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
