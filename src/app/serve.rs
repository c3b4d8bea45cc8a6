//! The life of a service: it listens, waits for its database, begins its roles, and drains.
//!
//! Invariant: no role begins before schema and map were held against the database, and a probe is answered from the first
//! moment to the last: while roles drain, the process is not ready and shows what it counts. What is not there yet is waited for; what cannot become right by waiting ends the service.

use std::{net::SocketAddr, ops::ControlFlow, sync::Arc, time::Duration};

use tokio::{net::TcpListener, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{App, Role, ServeError, crew::Crew};
use crate::{
    http,
    intake::Intake,
    queue::{QueueError, TaskQueue, supervise::supervise},
    relay::{Relay, Sweeper},
    retry::{Backoff, InvalidBackoff},
    store::{StoreError, inspect, migrate},
    telemetry::{Metrics, standing::Part},
};

/// The shortest and the longest pause before a server that was away is asked again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// For requests under way when the roles have used up the deadline of the shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

impl App {
    /// Runs `roles` until `stop` is cancelled, and then until they have drained or the deadline has passed. Servers
    /// that are away, now or later, are waited for.
    ///
    /// # Errors
    /// [`ServeError`]: before any role was begun, or when one of them ended by itself.
    pub async fn serve(
        &self,
        queue: Option<Arc<dyn TaskQueue>>,
        roles: &[Role],
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        if queue.is_none() && roles.iter().any(|role| role.needs_broker()) {
            return Err(ServeError::NoBroker);
        }
        let (stop, closed) = (stop.child_token(), CancellationToken::new());
        let (crew, listeners) = (Crew::new(&stop, &stop), Crew::new(&closed, &stop));
        let started = self.begin(queue.as_ref(), roles, &crew, &listeners).await;
        if started.is_err() {
            stop.cancel();
        }
        stop.cancelled().await;
        self.metrics.standing().misses(Part::Stay, "it is being shut down");
        let (began, deadline) = (Instant::now(), self.config.service.shutdown_deadline);
        let lost = crew.drain(deadline).await;
        closed.cancel();
        let lost = listeners.drain(deadline.saturating_sub(began.elapsed()).max(LAST_ANSWERS)).await.or(lost);
        // the database's end of a connection that is cut off notices by itself
        let _ = tokio::time::timeout(Duration::from_secs(2), self.store.close()).await;
        tracing::info!("ended");
        started.and_then(|()| lost.map_or(Ok(()), |role| Err(ServeError::Lost(role))))
    }

    /// Listens first, so that probes are answered, and begins the roles as soon as the database is there and fits.
    async fn begin(
        &self,
        queue: Option<&Arc<dyn TaskQueue>>,
        roles: &[Role],
        crew: &Crew,
        listeners: &Crew,
    ) -> Result<(), ServeError> {
        let standing = self.metrics.standing();
        standing.misses(Part::Start, "the start is not over: the database has not answered yet");
        for role in roles {
            self.metrics.process().runs(role.as_str());
            if role.needs_broker() {
                self.metrics.messages().expect(role.as_str());
            }
        }
        self.listen(roles, listeners).await?;
        if self.until_it_fits(&crew.until).await?.is_break() {
            return Ok(());
        }
        for role in roles {
            self.start(*role, queue, crew)?;
        }
        standing.has(Part::Start);
        tracing::info!(roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(","), "serving");
        Ok(())
    }

    async fn listen(&self, roles: &[Role], listeners: &Crew) -> Result<(), ServeError> {
        let is_api = roles.contains(&Role::Api);
        let (trash, stores) = (self.trash.clone(), self.stores.clone());
        let api = http::Api::new(trash, stores, self.metrics.clone(), self.config.api.token.clone());
        let api = if is_api { api } else { api.without_facts() };
        if is_api {
            let (listener, api, closed) = (bind(self.config.api.listen).await?, api.clone(), listeners.until.clone());
            listeners.spawn("api", async move { http::serve(listener, api, closed).await });
        }
        if let Some(address) = self.config.service.listen {
            let (listener, closed) = (bind(address).await?, listeners.until.clone());
            listeners.spawn("probes", async move { http::serve_probes(listener, api, closed).await });
        }
        Ok(())
    }

    /// Waits for the database with a back-off, and holds its schema and the map against it. `Break`: told to stop.
    async fn until_it_fits(&self, stop: &CancellationToken) -> Result<ControlFlow<()>, ServeError> {
        let mut delays = Backoff::new(RECONNECT.0, RECONNECT.1)?.delays();
        let mut told = String::new();
        loop {
            let tried = tokio::select! {
                () = stop.cancelled() => return Ok(ControlFlow::Break(())),
                tried = self.try_map() => tried,
            };
            let error = match tried {
                Ok(fits) => return fits.map(ControlFlow::Continue),
                Err(error) => error.to_string(),
            };
            if error == told {
                tracing::debug!(error, "database is still away");
            } else {
                tracing::error!(error, "database is away, every role waits for it");
                told = error;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(ControlFlow::Break(())),
                () = tokio::time::sleep(delays.next().unwrap_or(RECONNECT.1)) => {}
            }
        }
    }

    /// Whether schema and map fit the database, if it answers.
    async fn try_map(&self) -> Result<Result<(), ServeError>, StoreError> {
        if let Some(why) = self.store.within(1, migrate::compare(&self.store)).await?.mismatch() {
            return Ok(Err(ServeError::Schema(why)));
        }
        let mut broken = Vec::new();
        for (kind, failure) in inspect::try_map(&self.store, &self.config.map).await? {
            let what = format!("{kind}: {}", failure.what);
            if failure.is_lasting {
                broken.push(what);
            } else {
                tracing::warn!(what, "the map could not be tried, its purges wait until it can");
            }
        }
        Ok(if broken.is_empty() { Ok(()) } else { Err(ServeError::BrokenMap(broken)) })
    }

    fn start(&self, role: Role, queue: Option<&Arc<dyn TaskQueue>>, crew: &Crew) -> Result<(), ServeError> {
        let (stop, name) = (crew.until.clone(), role.as_str());
        match role {
            // it listens already
            Role::Api => {}
            Role::Sweeper => {
                let sweeper = Sweeper::new(self.store.clone(), self.config.sweeper.clone(), self.metrics.clone());
                crew.spawn(name, async move { sweeper.run(&stop).await });
            }
            Role::Intake => {
                let intake = Intake::new(self.trash.clone(), self.metrics.clone())?;
                let (queue, keeper) = (need(queue)?, self.keeper(role)?);
                crew.spawn(name, async move {
                    keeper
                        .keep(&stop, || async {
                            prepared(&*queue).await?;
                            intake.run(&*queue, &stop).await
                        })
                        .await;
                });
            }
            Role::Relay => {
                let relay = Relay::new(self.store.clone(), self.config.relay.clone(), self.metrics.clone())?;
                let (queue, keeper) = (need(queue)?, self.keeper(role)?);
                crew.spawn(name, async move { keeper.keep(&stop, || relay.run(&*queue, &stop)).await });
            }
            Role::Worker => {
                let purger = self.purger()?;
                let (queue, keeper) = (need(queue)?, self.keeper(role)?);
                crew.spawn(name, async move {
                    keeper
                        .keep(&stop, || async {
                            prepared(&*queue).await?;
                            purger.work(&*queue, &stop).await
                        })
                        .await;
                });
            }
        }
        Ok(())
    }

    fn keeper(&self, role: Role) -> Result<Keeper, InvalidBackoff> {
        let backoff = Backoff::new(RECONNECT.0, RECONNECT.1)?;
        Ok(Keeper { role: role.as_str(), backoff, metrics: self.metrics.clone() })
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|error| ServeError::Listen { address, error })
}

/// Consumers may come up before any relay has declared their queue.
async fn prepared(queue: &dyn TaskQueue) -> Result<(), QueueError> {
    queue.prepare().await
}

fn need(queue: Option<&Arc<dyn TaskQueue>>) -> Result<Arc<dyn TaskQueue>, ServeError> {
    queue.cloned().ok_or(ServeError::NoBroker)
}

/// Connects a role anew whenever its connection ends.
struct Keeper {
    role: &'static str,
    backoff: Backoff,
    metrics: Metrics,
}

impl Keeper {
    async fn keep<F>(&self, stop: &CancellationToken, run: impl FnMut() -> F)
    where
        F: Future<Output = Result<(), QueueError>>,
    {
        let reconnects = || self.metrics.messages().reconnect(self.role);
        supervise(self.role, stop, || self.backoff.delays(), reconnects, run).await;
    }
}
