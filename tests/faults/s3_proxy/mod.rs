//! An S3 store that misbehaves as told: an HTTP proxy between the program and a real store.
//!
//! ```ignore
//! let proxy = S3Proxy::start(&seaweedfs.endpoint(), ACCESS_KEY, SECRET_KEY).await;
//! let lost = proxy.next(Op::DeleteObjects.below("synthetic/1/"), Fault::AnswerLost); // one request
//! let slow = proxy.rule(On::deletes(), ALWAYS, Fault::SlowDown);                     // until it is calm, or `end`ed
//! proxy.storm(7, Weather::passing());                                               // at random, from the seed
//! proxy.calm();
//! assert!(lost.met() == 1 && slow.met() > 0, "{:?}", proxy.counts());
//! ```
//! Invariants: what is no fault passes through as it was signed. A fault that was chosen and could not happen to a
//! request (no such key in the batch, nothing stale to show) is not counted and waits for the next one. Once it is
//! calm, what was held is let go and nothing goes wrong any more.
//!
//! It runs on a thread of its own, so that a test that blocks does not hold it up, and ends when it is dropped.

#![allow(dead_code, reason = "a kit: each test takes what it needs")]

mod body;
mod fault;
mod request;
mod serve;
mod state;
#[cfg(test)]
mod tests;
mod xml;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use reprieve::objects::MAX_BATCH;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

#[allow(unused_imports, reason = "a kit")]
pub use self::fault::{ALWAYS, Fault, KeyFault, On, Op, Weather, Which, Work};
pub use self::state::Rule;
use self::{serve::Proxy, state::State};

/// Shorter than the store keeps an idle connection, so that none is found closed.
const IDLE: Duration = Duration::from_secs(5);

/// The proxy. Dropping it ends it.
pub struct S3Proxy {
    state: Arc<State>,
    endpoint: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Proxy {
    /// Before the store at this endpoint, whose clients all have these credentials.
    pub async fn start(upstream: &str, access_key: &str, secret_key: &str) -> S3Proxy {
        let state = Arc::new(State::new());
        let (ready, address) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let host = upstream.strip_prefix("http://").expect("a plain endpoint").trim_end_matches('/').to_owned();
        let s3 = crate::support::seaweedfs::client(upstream, access_key, secret_key);
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
                let http = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build_http();
                let proxy = Proxy { state: shared, upstream: host, http, s3 };
                ready.send(listener.local_addr().expect("it is bound")).expect("it is waited for");
                tokio::select! {
                    () = proxy.run(listener) => {}
                    // the proxy is dropped
                    _ = stopped => {}
                }
            });
        });
        let address = address.await.expect("it starts");
        S3Proxy { state, endpoint: format!("http://{address}"), stop: Some(stop), thread: Some(thread) }
    }

    /// Where to send requests instead.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The next such request meets this fault.
    pub fn next(&self, on: impl Into<On>, fault: Fault) -> Rule {
        self.rule(on, 1, fault)
    }

    /// The next so many such requests meet this fault. Of several rules the one given first goes first.
    pub fn rule(&self, on: impl Into<On>, times: u64, fault: Fault) -> Rule {
        let rule = Rule::new(on.into(), times, fault);
        self.state.add_rule(rule.clone());
        rule
    }

    /// From now on every request that no rule is about may meet a fault, drawn from the seed.
    pub fn storm(&self, seed: u64, weather: Weather) {
        self.state.storm(seed, weather);
    }

    /// No more faults: rules and storm end, and everything that is held is let go.
    pub fn calm(&self) {
        self.state.calm();
    }

    /// The faults that have happened, by their names.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.state.counts()
    }

    /// The requests that came, faults or not.
    pub fn requests(&self) -> BTreeMap<Op, u64> {
        self.state.requests()
    }

    /// For each key when the store first confirmed that it is deleted, by bucket and key.
    pub fn first_deleted(&self) -> HashMap<(String, String), SystemTime> {
        self.state.first_deleted()
    }

    /// The most keys that a DeleteObjects has named.
    pub fn largest_batch(&self) -> usize {
        self.state.largest_batch()
    }

    /// Requests that failed because the store itself was away. Not faults of ours.
    pub fn upstream_failures(&self) -> u64 {
        self.state.upstream_failures()
    }
}

impl Drop for S3Proxy {
    fn drop(&mut self) {
        self.state.calm();
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(ended.is_none_or(|ended| ended.is_ok()), "the proxy panicked");
            let largest = self.largest_batch();
            assert!(largest <= MAX_BATCH, "a DeleteObjects named {largest} keys");
        }
    }
}
