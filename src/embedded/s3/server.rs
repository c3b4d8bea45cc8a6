//! From the socket to `s3s` and back, with the faults in between.
//!
//! Invariant: a request is read whole before it is looked at, and then carried out in a task of its own. So a client
//! that dies in the middle does not undo it, which is how a real store behaves and what a purge has to survive.

use std::sync::{Arc, OnceLock};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::access::{S3Access, S3AccessContext};
use s3s::service::S3Service;
use s3s::{Body, HttpRequest, HttpResponse, S3Error, S3ErrorCode, S3Result};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::faults::{Faults, Refusal};
use super::requests::{LoggedRequest, Operation, Requests};

/// Bodies are held in memory; more than 1 GiB in one request is a mistake on this server.
const MAX_BODY: usize = 1 << 30;

/// What [`Gatekeeper`], which alone learns the operation, passes on to [`Server`], which alone holds the answer.
#[derive(Debug, Default)]
struct Passage {
    operation: OnceLock<Operation>,
    refusal: OnceLock<Refusal>,
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("connection cut")]
struct Cut;

/// Called by `s3s` once the signature is known and before the request is parsed: counts it and lets faults happen.
pub(super) struct Gatekeeper {
    faults: Arc<Faults>,
    requests: Arc<Requests>,
}

impl Gatekeeper {
    pub(super) fn new(faults: Arc<Faults>, requests: Arc<Requests>) -> Self {
        Self { faults, requests }
    }
}

#[async_trait::async_trait]
impl S3Access for Gatekeeper {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(S3Error::with_message(S3ErrorCode::AccessDenied, "a signature is required"));
        }
        let operation = Operation::named(context.s3_op().name());
        let path = context.s3_path();
        self.requests.note(LoggedRequest {
            operation,
            bucket: path.get_bucket_name().unwrap_or_default().to_owned(),
            key: path.get_object_key().map(str::to_owned),
        });
        let Err(refusal) = self.faults.before(operation).await else {
            if let Some(passage) = context.extensions_mut().get::<Arc<Passage>>() {
                passage.operation.get_or_init(|| operation);
            }
            return Ok(());
        };
        let error = refusal.to_error().unwrap_or_else(|| S3Error::new(S3ErrorCode::InternalError));
        if let Some(passage) = context.extensions_mut().get::<Arc<Passage>>() {
            passage.refusal.get_or_init(|| refusal);
        }
        Err(error)
    }
}

/// Accepts connections and carries out requests until told to stop.
#[derive(Clone)]
pub(super) struct Server {
    service: S3Service,
    faults: Arc<Faults>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    pub(super) fn new(
        service: S3Service,
        faults: Arc<Faults>,
        stopping: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        Self { service, faults, stopping, tasks }
    }

    pub(super) async fn run(self, listener: TcpListener) {
        while let Some(accepted) = self.stopping.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    self.tasks.spawn(self.clone().serve(stream));
                }
                // The peer gave up first, or descriptors ran out: let others get on before trying again.
                Err(error) => {
                    tracing::warn!(%error, "embedded s3 cannot accept a connection");
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    async fn serve(self, stream: TcpStream) {
        // Answers are small and come in two writes; waiting for the peer's delayed ack would cost 40 ms each.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "embedded s3 cannot set nodelay");
        }
        let stopping = self.stopping.clone();
        let handler = service_fn(move |request| self.clone().answer(request));
        let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), handler);
        if let Some(Err(error)) = stopping.run_until_cancelled(connection).await {
            tracing::debug!(%error, "embedded s3 connection ended");
        }
    }

    async fn answer(self, request: hyper::Request<Incoming>) -> Result<HttpResponse, Cut> {
        let (parts, body) = request.into_parts();
        let body = match Body::from(body).store_all_limited(MAX_BODY).await {
            Ok(body) => body,
            Err(error) => {
                return S3Error::with_source(S3ErrorCode::EntityTooLarge, error).to_http_response().map_err(|_| Cut);
            }
        };
        let stopping = self.stopping.clone();
        let tasks = self.tasks.clone();
        let work = self.carry_out(HttpRequest::from_parts(parts, Body::from(body)));
        let done = tasks.spawn(async move { stopping.run_until_cancelled(work).await }).await;
        // A panic in a handler and a stop look alike to the client: no answer.
        done.ok().flatten().unwrap_or(Err(Cut))
    }

    async fn carry_out(self, mut request: HttpRequest) -> Result<HttpResponse, Cut> {
        let passage = Arc::new(Passage::default());
        request.extensions_mut().insert(Arc::clone(&passage));
        let answer = self.service.call(request).await.map_err(|_| Cut)?;
        if passage.refusal.get() == Some(&Refusal::CutConnection) {
            return Err(Cut);
        }
        // Without an operation the request was refused before any work, and there is no answer to lose.
        let Some(operation) = passage.operation.get() else { return Ok(answer) };
        match self.faults.after(*operation).await {
            Ok(()) => Ok(answer),
            Err(loss) => match loss.to_error() {
                Some(error) => error.to_http_response().map_err(|_| Cut),
                None => Err(Cut),
            },
        }
    }
}
