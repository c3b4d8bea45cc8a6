//! A synthetic S3: a store of objects that nobody wrote, for tests and benchmarks with millions of them.
//!
//! A [`Rule`] says which keys lie below a prefix, and a bitmap which of them are deleted; there is no body, no signature
//! check and no versioning. It answers as fast as one core formats XML, or after a fixed latency, fails or throttles as
//! often as it is told to, and counts what it is asked. Invariant: what a listing shows exists at that moment, and a deleted key never comes back.
//!
//! It is strict where a client could do harm: a DeleteObjects of more than 1000 keys is refused, and a delete of a key
//! that no rule knows succeeds, as on S3, but is kept in [`Counts::strangers`].

mod names;
mod objects;
mod trouble;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use axum::body::{self, Body};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

#[allow(unused_imports, reason = "each test binary uses its own part of this")]
pub use self::names::Names;
pub use self::objects::Rule;
use self::objects::{Buckets, Found};
#[allow(unused_imports, reason = "each test binary uses its own part of this")]
pub use self::trouble::Faults;
use self::trouble::{Fate, Trouble};
use self::wire::{Listing, Query, Refusal};

/// Keys of one DeleteObjects, as on S3.
const MOST_KEYS: usize = 1000;

/// More than 1000 keys of 1024 bytes, each byte as an entity.
const MOST_BYTES: usize = 16 << 20;

/// Strangers that are kept by name.
const MOST_STRANGERS: usize = 100;

/// How it behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Before each answer.
    pub latency: Duration,
    /// Threads that answer.
    pub threads: usize,
    pub faults: Faults,
    /// Deletes above this are refused with SlowDown; a second's worth may come at once.
    pub keys_a_second: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options { latency: Duration::ZERO, threads: 1, faults: Faults::default(), keys_a_second: None }
    }
}

/// What it was asked so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub lists: AtomicU64,
    pub batch_deletes: AtomicU64,
    pub single_deletes: AtomicU64,
    pub others: AtomicU64,
    /// Requests that it refused, throttled ones and random faults among them.
    pub refused: AtomicU64,
    /// Requests that it refused with SlowDown: they came faster than the limit.
    pub throttled: AtomicU64,
    /// Requests that it carried out and did not answer.
    pub cut: AtomicU64,
    /// Keys that it failed to delete on purpose.
    pub failed_keys: AtomicU64,
    /// Keys of all listings.
    pub listed_keys: AtomicU64,
    /// Keys that existed until they were deleted.
    pub deleted_keys: AtomicU64,
    /// Deletes of keys that were deleted before: no error, but no use either.
    pub deleted_again: AtomicU64,
    running: AtomicU64,
    /// The most requests at the same time.
    pub peak: AtomicU64,
    /// Keys that somebody wanted deleted and that no rule knows; the first of them.
    pub strangers: Mutex<Vec<String>>,
}

impl Counts {
    pub fn requests(&self) -> u64 {
        [&self.lists, &self.batch_deletes, &self.single_deletes, &self.others]
            .map(|n| n.load(Ordering::Relaxed))
            .iter()
            .sum()
    }

    fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }

    fn deleted(&self, found: Found, key: &str) {
        match found {
            Found::Deleted => Counts::add(&self.deleted_keys, 1),
            Found::Absent => Counts::add(&self.deleted_again, 1),
            Found::Stranger => {
                let mut strangers = self.strangers.lock().expect("no panic under it");
                if strangers.len() < MOST_STRANGERS {
                    strangers.push(key.to_owned());
                }
            }
        }
    }
}

/// A server on a port of its own on loopback, on threads of its own, until it is dropped.
pub struct SyntheticS3 {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A request whose connection is closed instead of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on purpose")]
struct Cut;

struct Shared {
    options: Options,
    trouble: Trouble,
    buckets: RwLock<Buckets>,
    counts: Counts,
}

impl SyntheticS3 {
    /// Listens, with no bucket yet.
    pub fn start(options: Options) -> SyntheticS3 {
        let trouble = Trouble::new(options.faults, options.keys_a_second);
        let shared = Arc::new(Shared { options, trouble, buckets: RwLock::default(), counts: Counts::default() });
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        listener.set_nonblocking(true).expect("our own socket");
        let address = listener.local_addr().expect("it is bound");
        let (serving, stopping) = (Arc::clone(&shared), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(options.threads).enable_all().build();
            let runtime = runtime.expect("threads can be started");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("it does not block");
                stopping.run_until_cancelled(accept(listener, serving)).await;
            });
            runtime.shutdown_background();
        });
        SyntheticS3 { address, shared, stop, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Adds objects; the bucket exists from then on.
    pub fn add(&self, bucket: &str, rule: Rule) {
        self.shared.buckets.write().expect("no panic under it").add(bucket, rule);
    }

    /// How many objects of the rule at this prefix are left.
    pub fn left(&self, bucket: &str, prefix: &str) -> u64 {
        self.shared.buckets.read().expect("no panic under it").left(bucket, prefix)
    }

    /// How many objects of a bucket are left.
    pub fn left_in(&self, bucket: &str) -> u64 {
        self.shared.buckets.read().expect("no panic under it").left_in(bucket)
    }

    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }
}

impl Drop for SyntheticS3 {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let handler = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), handler);
    // a client may close its connection whenever it likes
    let _ = connection.await;
}

impl Shared {
    /// An error closes the connection.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let running = self.counts.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.counts.peak.fetch_max(running, Ordering::Relaxed);
        if !self.options.latency.is_zero() {
            tokio::time::sleep(self.options.latency).await;
        }
        let fate = self.trouble.fate();
        let answer = match fate {
            Fate::Unavailable => {
                // read, or the connection would have to be closed
                let _ = body::to_bytes(Body::new(request.into_body()), MOST_BYTES).await;
                Err(Refusal::unavailable())
            }
            Fate::Answered | Fate::Cut => self.carry_out(request).await,
        };
        self.counts.running.fetch_sub(1, Ordering::Relaxed);
        if fate == Fate::Cut {
            Counts::add(&self.counts.cut, 1);
            return Err(Cut);
        }
        Ok(answer.unwrap_or_else(|refusal| {
            Counts::add(&self.counts.refused, 1);
            xml(refusal.status, refusal.body())
        }))
    }

    async fn carry_out(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (parts, incoming) = request.into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let (bucket, key) = wire::bucket_and_key(parts.uri.path());
        let body = body::to_bytes(Body::new(incoming), MOST_BYTES).await.map_err(|_| Refusal::malformed("too long"))?;
        match (parts.method, key.is_empty()) {
            (Method::POST, true) if query.has("delete") => self.delete_objects(&bucket, &body),
            (Method::DELETE, false) => self.delete_object(&bucket, &key),
            (Method::GET, true) if bucket.is_empty() => self.other(wire::buckets(&self.read().names())),
            (Method::GET, true) => self.get_bucket(&bucket, &query),
            (Method::HEAD, true) => self.exists(&bucket).and_then(|()| self.other(String::new())),
            (Method::PUT, true) => {
                self.buckets.write().expect("no panic under it").create(&bucket);
                self.other(String::new())
            }
            (method, _) => Err(Refusal::not_implemented(&format!("{method} {}", parts.uri))),
        }
    }

    fn get_bucket(&self, bucket: &str, query: &Query) -> Result<Response<Body>, Refusal> {
        self.exists(bucket)?;
        match query.subresource() {
            Some("versioning") => self.other(wire::NO_VERSIONING.to_owned()),
            Some("location") => self.other(wire::LOCATION.to_owned()),
            Some("uploads") => self.other(wire::no_uploads(bucket)),
            Some("object-lock") => Err(Refusal::no_lock()),
            Some(other) if other != "versions" => Err(Refusal::not_implemented(other)),
            asked => {
                let listing = Listing::asked(bucket, query, asked.is_some())?;
                let page = self.read().page(bucket, &listing.range());
                Counts::add(&self.counts.lists, 1);
                Counts::add(&self.counts.listed_keys, page.objects.len());
                Ok(xml(StatusCode::OK, listing.body(&page)))
            }
        }
    }

    fn delete_objects(&self, bucket: &str, body: &[u8]) -> Result<Response<Body>, Refusal> {
        let asked = wire::keys_to_delete(body)?;
        if asked.keys.len() > MOST_KEYS {
            return Err(Refusal::malformed("more than 1000 keys"));
        }
        self.exists(bucket)?;
        self.admit(asked.keys.len())?;
        let failing = self.trouble.failing(asked.keys.len());
        {
            let buckets = self.read();
            for (key, fails) in asked.keys.iter().zip(&failing) {
                if *fails {
                    Counts::add(&self.counts.failed_keys, 1);
                } else {
                    self.counts.deleted(buckets.delete(bucket, key), key);
                }
            }
        }
        Counts::add(&self.counts.batch_deletes, 1);
        Ok(xml(StatusCode::OK, asked.answer(&failing)))
    }

    fn delete_object(&self, bucket: &str, key: &str) -> Result<Response<Body>, Refusal> {
        self.admit(1)?;
        self.counts.deleted(self.read().delete(bucket, key), key);
        Counts::add(&self.counts.single_deletes, 1);
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        Ok(answer)
    }

    fn admit(&self, keys: usize) -> Result<(), Refusal> {
        if self.trouble.admits(keys) {
            return Ok(());
        }
        Counts::add(&self.counts.throttled, 1);
        Err(Refusal::slow_down())
    }

    fn other(&self, body: String) -> Result<Response<Body>, Refusal> {
        Counts::add(&self.counts.others, 1);
        Ok(xml(StatusCode::OK, body))
    }

    fn exists(&self, bucket: &str) -> Result<(), Refusal> {
        if self.read().has(bucket) { Ok(()) } else { Err(Refusal::no_bucket()) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Buckets> {
        self.buckets.read().expect("no panic under it")
    }
}

fn xml(status: StatusCode, body: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/xml");
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    answer
}
