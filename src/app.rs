//! What a process is made of, from its configuration: one database, one client a store, one set of metrics.
//!
//! Invariant: this is the one place that turns configuration into parts; the parts know no configuration file.

use std::{net::SocketAddr, ops::ControlFlow, str::FromStr, sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{BrokerConfig, Config, StoreConfig},
    http,
    intake::Intake,
    objects::{
        flow::Flow,
        s3::{S3Credentials, S3Settings, S3Store, VersionsPolicy},
        stores::{NamedStore, Stores},
    },
    purge::Purger,
    queue::{
        TaskQueue,
        rabbitmq::{RabbitQueue, RabbitSettings},
        supervise::supervise,
    },
    relay::{Relay, Sweeper},
    retry::{Backoff, InvalidBackoff},
    shutdown,
    store::{Store, StoreError, Usage, inspect, migrate},
    telemetry::{
        Metrics,
        metrics::{Metered, Pool},
        standing::Part,
    },
    trash::TrashBin,
};

/// The shortest and the longest pause before a server that was away is asked again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// A part of the service that runs by itself; each can run on many machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// HTTP: health, metrics, the API.
    Api,
    /// Takes other services' requests in.
    Intake,
    /// Publishes the outbox.
    Relay,
    /// Brings back what was lost.
    Sweeper,
    /// Purges.
    Worker,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Api, Self::Intake, Self::Relay, Self::Sweeper, Self::Worker];

    fn needs_broker(self) -> bool {
        matches!(self, Self::Intake | Self::Relay | Self::Worker)
    }

    /// Its name on the command line and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Intake => "intake",
            Self::Relay => "relay",
            Self::Sweeper => "sweeper",
            Self::Worker => "worker",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(raw: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|role| role.as_str() == raw).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("{raw:?} is not a role; there are: {known}")
        })
    }
}

/// Why a service did not start, or not end well.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No `[broker]`, and a role that needs one.
    #[error("the roles intake, relay and worker need a section [broker] in the configuration")]
    NoBroker,
    /// The schema is behind the program.
    #[error("the schema `reprieve` lacks {0} migrations: run `reprieve migrate` first")]
    NotMigrated(usize),
    /// The map does not fit the database: these of its queries can never work.
    #[error("the resource map does not fit the database:{}", .0.iter().map(|what| format!("\n  {what}")).collect::<String>())]
    BrokenMap(Vec<String>),
    /// Waits in the configuration that are no back-off.
    #[error(transparent)]
    Backoff(#[from] InvalidBackoff),
    /// The API's address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Signals could not be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// The parts of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App {
    /// The configuration that it was made from.
    pub config: Arc<Config>,
    /// The database.
    pub store: Store,
    /// The stores of objects.
    pub stores: Stores,
    /// Trash and restore.
    pub trash: TrashBin,
    /// Counters.
    pub metrics: Metrics,
}

impl App {
    /// Makes the parts; connects to nothing yet.
    ///
    /// # Errors
    /// The database's URL cannot be read.
    pub async fn new(config: Config) -> Result<Self, StoreError> {
        let store = Store::new(&config.database)?;
        let metrics = Metrics::new();
        metrics.expect_kinds(config.map.kinds().map(|kind| &kind.kind));
        watch_pool(&metrics, &store);
        let mut stores = Vec::new();
        for (name, store) in &config.stores {
            let client = Arc::new(S3Store::new(&s3_settings(store)).await);
            let of = metrics.of_store(name);
            let objects = Arc::new(Metered::new(client.clone(), of.clone()));
            metrics.at_each_scrape(move || of.client(client.attempts(), client.unlisted_codes()));
            let (buckets, address) = (store.buckets.clone(), store.address());
            // a request that is more than a second's share would keep all others waiting, and whoever stops a purge
            let share = store.ceiling.objects_per_second.map_or(usize::MAX, |most| most.get() as usize);
            let batch_size = store.batch_size.min(share);
            let flow = Flow::new(store.ceiling);
            for bucket in &buckets {
                let (of, gate) = (metrics.of_gate(name, bucket), flow.gate(bucket));
                metrics.at_each_scrape(move || of.stands(gate.open()));
            }
            let named = NamedStore { objects, batch_size, buckets, address, flow };
            stores.push((name.clone(), named));
        }
        let trash = TrashBin::new(store.clone(), &config);
        Ok(Self { config: Arc::new(config), store, stores: Stores::new(stores), trash, metrics })
    }

    /// The broker, where one is configured.
    pub fn rabbitmq(&self) -> Option<RabbitQueue> {
        self.config.broker.as_ref().map(|broker| RabbitQueue::new(rabbit_settings(broker)))
    }

    /// What works on purge tasks.
    ///
    /// # Errors
    /// Waits in the configuration that are no back-off.
    pub fn purger(&self) -> Result<Purger, InvalidBackoff> {
        let map = Arc::new(self.config.map.clone());
        Purger::new(self.store.clone(), map, self.stores.clone(), self.config.purge.clone(), self.metrics.clone())
    }

    /// Runs `roles` until `stop` is cancelled, and then until they have drained or the deadline has passed. Servers
    /// that are away, now or later, are waited for.
    ///
    /// # Errors
    /// [`ServeError`], before anything was begun.
    pub async fn serve(
        &self,
        queue: Option<Arc<dyn TaskQueue>>,
        roles: &[Role],
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        if queue.is_none() && roles.iter().any(|role| role.needs_broker()) {
            return Err(ServeError::NoBroker);
        }
        let stop = stop.child_token();
        let tasks = TaskTracker::new();
        let started = self.begin(queue.as_ref(), roles, &tasks, &stop).await;
        if started.is_err() {
            stop.cancel();
        }
        shutdown::drain(tasks, &stop, self.config.service.shutdown_deadline).await;
        // the database's end of a connection that is cut off notices by itself
        let _ = tokio::time::timeout(Duration::from_secs(2), self.store.close()).await;
        tracing::info!("ended");
        started
    }

    /// Listens first, so that probes are answered, and begins the roles as soon as the database is there and fits.
    async fn begin(
        &self,
        queue: Option<&Arc<dyn TaskQueue>>,
        roles: &[Role],
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), ServeError> {
        let standing = self.metrics.standing();
        standing.misses(Part::Start, "the start is not over: the database has not answered yet");
        for role in roles {
            self.metrics.process().runs(role.as_str());
            if role.needs_broker() {
                self.metrics.messages().expect(role.as_str());
            }
        }
        self.listen(roles, tasks, stop).await?;
        if self.until_it_fits(stop).await?.is_break() {
            return Ok(());
        }
        for role in roles {
            self.start(*role, queue, tasks, stop)?;
        }
        standing.has(Part::Start);
        tracing::info!(roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(","), "serving");
        Ok(())
    }

    async fn listen(&self, roles: &[Role], tasks: &TaskTracker, stop: &CancellationToken) -> Result<(), ServeError> {
        let is_api = roles.contains(&Role::Api);
        let api = || {
            let (trash, stores) = (self.trash.clone(), self.stores.clone());
            let api = http::Api::new(trash, stores, self.metrics.clone(), self.config.api.token.clone());
            if is_api { api } else { api.without_facts() }
        };
        if is_api {
            let (listener, api, stop) = (bind(self.config.api.listen).await?, api(), stop.clone());
            tasks.spawn(async move { http::serve(listener, api, stop).await });
        }
        if let Some(address) = self.config.service.listen {
            let (listener, api, stop) = (bind(address).await?, api(), stop.clone());
            tasks.spawn(async move { http::serve_probes(listener, api, stop).await });
        }
        Ok(())
    }

    /// Waits for the database with a back-off, and holds its schema and the map against it. `Break`: told to stop.
    async fn until_it_fits(&self, stop: &CancellationToken) -> Result<ControlFlow<()>, ServeError> {
        let mut delays = Backoff::new(RECONNECT.0, RECONNECT.1)?.delays();
        let mut is_told = false;
        loop {
            let error = match self.try_map().await {
                Ok(fits) => return fits.map(ControlFlow::Continue),
                Err(error) => error,
            };
            if std::mem::replace(&mut is_told, true) {
                tracing::debug!(%error, "database is still away");
            } else {
                tracing::error!(%error, "database is away, every role waits for it");
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(ControlFlow::Break(())),
                () = tokio::time::sleep(delays.next().unwrap_or(RECONNECT.1)) => {}
            }
        }
    }

    /// Whether schema and map fit the database, if it answers.
    async fn try_map(&self) -> Result<Result<(), ServeError>, StoreError> {
        match self.store.within(1, migrate::pending(&self.store)).await? {
            0 => {}
            missing => return Ok(Err(ServeError::NotMigrated(missing))),
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

    fn start(
        &self,
        role: Role,
        queue: Option<&Arc<dyn TaskQueue>>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), ServeError> {
        let stop = stop.clone();
        match role {
            // it listens already
            Role::Api => {}
            Role::Sweeper => {
                let sweeper = Sweeper::new(self.store.clone(), self.config.sweeper.clone(), self.metrics.clone());
                tasks.spawn(async move { sweeper.run(&stop).await });
            }
            Role::Intake => {
                let intake = Intake::new(self.trash.clone(), self.metrics.clone())?;
                let (queue, keeper) = (need(queue)?, self.keeper(role)?);
                tasks.spawn(async move {
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
                tasks.spawn(async move { keeper.keep(&stop, || relay.run(&*queue, &stop)).await });
            }
            Role::Worker => {
                let purger = self.purger()?;
                let (queue, keeper) = (need(queue)?, self.keeper(role)?);
                tasks.spawn(async move {
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
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

fn watch_pool(metrics: &Metrics, store: &Store) {
    let (process, store) = (metrics.process().clone(), store.clone());
    metrics.at_each_scrape(move || {
        let Usage { idle, in_use, most, acquired, failed, waited } = store.usage();
        process.pool(Pool { idle, in_use, most, acquired, failed, waited });
    });
}

/// Consumers may come up before any relay has declared their queue.
async fn prepared(queue: &dyn TaskQueue) -> Result<(), crate::queue::QueueError> {
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
        F: Future<Output = Result<(), crate::queue::QueueError>>,
    {
        let reconnects = || self.metrics.messages().reconnect(self.role);
        supervise(self.role, stop, || self.backoff.delays(), reconnects, run).await;
    }
}

fn s3_settings(store: &StoreConfig) -> S3Settings {
    let credentials = store.credentials.as_ref().map(|credentials| S3Credentials {
        access_key_id: credentials.access_key.clone(),
        secret_access_key: credentials.secret_key.clone(),
        session_token: credentials.session_token.clone(),
    });
    S3Settings {
        endpoint: store.endpoint.clone(),
        credentials,
        path_style: store.path_style,
        connect_timeout: store.connect_timeout,
        read_timeout: store.attempt_timeout,
        attempt_timeout: store.attempt_timeout,
        operation_timeout: store.operation_timeout,
        checksum: store.checksum,
        delete: store.delete,
        governance_bypass: store.governance_bypass,
        versions: if store.all_versions { VersionsPolicy::All } else { VersionsPolicy::Current },
        ..S3Settings::new(store.region.clone())
    }
}

fn rabbit_settings(broker: &BrokerConfig) -> RabbitSettings {
    let url: SecretString = broker.url.clone();
    RabbitSettings {
        namespace: broker.namespace.clone(),
        declare: broker.declare,
        delivery_limit: broker.delivery_limit,
        connect_timeout: broker.connect_timeout,
        confirm_timeout: broker.confirm_timeout,
        ..RabbitSettings::new(url)
    }
}
