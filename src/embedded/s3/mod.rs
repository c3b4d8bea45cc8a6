//! An S3 server in this process, on loopback: a real wire protocol over buckets in memory.
//!
//! Invariant: a client cannot tell it from S3 by the operations that it has. What it does not have answers
//! `NotImplemented`; nothing is accepted and ignored where a purge could be misled by it. Keys are names and never
//! paths: `a//b`, `..` and control characters are kept as sent.
//!
//! `s3s` brings the protocol (routing, XML, signature version 4); [`MemoryBuckets`] is the store behind it, and
//! [`Faults`] makes it fail on request, so that tests see what a bad day in production looks like. A request that has
//! arrived is carried out even when its client is gone meanwhile, as a real store would.
//!
//! It never touches a disk, and what it holds ends with the process.

mod bucket;
mod faults;
mod gate;
mod listing;
mod lock;
mod protocol;
mod requests;
mod server;
mod store;
#[cfg(test)]
mod tests;
mod uploads;
mod version;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::faults::{Effect, Fault, Faults, KeyAnswer, KeyFault, Keys, Refusal, Rule, Times};
pub use self::gate::Gate;
pub use self::lock::{LockMode, Retention};
pub use self::requests::{LoggedRequest, Operation, Requests};
pub use self::store::{MemoryBuckets, StoredVersion, Versioning};

/// The region that buckets report; any region is accepted in signatures.
pub const REGION: &str = "us-east-1";

/// How to start an [`EmbeddedS3`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The one access key that is let in.
    pub access_key: String,
    /// Its secret.
    pub secret_key: SecretString,
    /// The port on 127.0.0.1; `None` takes a free one.
    pub port: Option<u16>,
}

impl Default for Options {
    /// Credentials for a server that only this machine reaches and that holds nothing of worth.
    fn default() -> Self {
        Self { access_key: "reprieve".to_owned(), secret_key: "reprieve-secret".to_owned().into(), port: None }
    }
}

/// A running server. Dropping it cuts its connections and stops it.
#[derive(Debug)]
pub struct EmbeddedS3 {
    address: SocketAddr,
    store: Arc<MemoryBuckets>,
    faults: Arc<Faults>,
    requests: Arc<Requests>,
    /// Every task of the server races this token, so cancelling it is all that `Drop` has to do.
    stopping: CancellationToken,
    /// Knows every task of the server, so that [`EmbeddedS3::stop`] can wait for the last.
    tasks: TaskTracker,
}

impl EmbeddedS3 {
    /// Binds 127.0.0.1 and serves until dropped. Fails when the port is taken.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port.unwrap_or(0))).await?;
        let address = listener.local_addr()?;
        let store = Arc::new(MemoryBuckets::default());
        let faults = Arc::new(Faults::default());
        let requests = Arc::new(Requests::default());

        let mut builder = S3ServiceBuilder::new(protocol::Handlers::new(Arc::clone(&store), Arc::clone(&faults)));
        builder.set_auth(SimpleAuth::from_single(options.access_key, options.secret_key.expose_secret()));
        builder.set_access(server::Gatekeeper::new(Arc::clone(&faults), Arc::clone(&requests)));

        let stopping = CancellationToken::new();
        let tasks = TaskTracker::new();
        let server = server::Server::new(builder.build(), Arc::clone(&faults), stopping.clone(), tasks.clone());
        tasks.spawn(server.run(listener));
        Ok(Self { address, store, faults, requests, stopping, tasks })
    }

    /// Where clients connect, such as `http://127.0.0.1:40123`. Only path-style addresses work.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The buckets, to fill and to look at without HTTP. Faults do not apply here.
    pub fn store(&self) -> &Arc<MemoryBuckets> {
        &self.store
    }

    /// What goes wrong on request.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What clients have asked for so far.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Stops, and returns when the port is free again and no request is at work any more.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for EmbeddedS3 {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
