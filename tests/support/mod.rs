//! What the test binaries share: private servers, fresh places in them, and waiting. Include it with
//! `#[path = "../support/mod.rs"] mod support;`.
//!
//! Each server is started at most once a test binary, when a test first asks, and ends with the process, even by
//! `kill -9` (see `reprieve::embedded::keeper`); a test that stops or kills a server starts one of its own. Tests run
//! at the same time, so each takes a fresh database, bucket or queue name and never looks at what it did not make.
//! A server that is not installed fails the test, with what to do: nothing here skips.
//!
//! Every test has its own runtime, so nothing that belongs to one is shared: no pool, no client, no connection.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]

pub mod heimdall;
pub mod keys;
pub mod moto;
pub mod rabbitmq;
pub mod seaweedfs;
pub mod synthetic_s3;

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reprieve::embedded::keeper::{Charge, Keeper, Signal};
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// Long enough for a busy machine, short enough to notice. For anything that takes less than a few seconds alone.
pub const SOON: Duration = Duration::from_secs(30);

/// This binary's PostgreSQL, on a unix socket.
pub async fn postgres() -> &'static PrivatePostgres {
    static SERVER: OnceCell<PrivatePostgres> = OnceCell::const_new();
    SERVER
        .get_or_init(async || match PrivatePostgres::start(Options::default()).await {
            Ok(server) => server,
            Err(error) => panic!("{error}\n(`scripts/setup test` installs all that the tests need)"),
        })
        .await
}

/// The address of a new, empty database of [`postgres`].
pub async fn fresh_database() -> String {
    postgres().await.create_database(&unique("test")).await.expect("a new name in a server of our own")
}

/// A name that no other test has: letters, digits and `-`, usable for queues, buckets and databases.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// Waits until `condition` holds, looking again every few milliseconds; panics with `what` after `limit`.
pub async fn wait_until(what: impl Display, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    const POLL: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + limit;
    // The condition itself may hang, and then it is not met either.
    let met = tokio::time::timeout(limit, async {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    });
    assert!(met.await.is_ok() && Instant::now() <= deadline + POLL, "not within {limit:?}: {what}");
}

/// A new directory that is gone soon after this process is, however it ends; dropping it removes it.
pub struct PrivateDirectory {
    path: PathBuf,
    _keeper: Keeper,
}

impl PrivateDirectory {
    /// Its name begins with `prefix`.
    pub fn new(prefix: &str) -> PrivateDirectory {
        let path = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory can be made").keep();
        // a keeper whose server is never started
        let keeper = Keeper::hire(&Charge {
            program: "/bin/false".into(),
            args: Vec::new(),
            env: Vec::new(),
            account: None,
            log: path.join("log"),
            dir: path.clone(),
            ending: Signal::Kill,
            grace: Duration::ZERO,
        });
        PrivateDirectory { path, _keeper: keeper.expect("/bin/sh starts") }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A new directory for a server, removed by its keeper.
fn server_directory(name: &str) -> PathBuf {
    let prefix = format!("reprieve-test-{name}-");
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary directory can be made").keep()
}

/// Whether something listens on that port of 127.0.0.1; the connection, if so.
async fn connect(port: u16) -> Option<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()
}
