//! What a process is made of, from its configuration: one database, one client a store, one set of metrics.
//!
//! Invariant: this is the one place that turns configuration into parts; the parts know no configuration file.

use std::{str::FromStr, sync::Arc, time::Duration};

use secrecy::SecretString;
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
    store::{Store, StoreError, migrate},
    telemetry::Metrics,
    trash::TrashBin,
};

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
    /// Waits in the configuration that are no back-off.
    #[error(transparent)]
    Backoff(#[from] InvalidBackoff),
    /// The API's address is taken, or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
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
        let mut stores = Vec::new();
        for (name, store) in &config.stores {
            let objects = Arc::new(S3Store::new(&s3_settings(store)).await);
            let (buckets, address) = (store.buckets.clone(), store.address());
            // a request that is more than a second's share would keep all others waiting, and whoever stops a purge
            let share = store.ceiling.objects_per_second.map_or(usize::MAX, |most| most.get() as usize);
            let batch_size = store.batch_size.min(share);
            let named = NamedStore { objects, batch_size, buckets, address, flow: Flow::new(store.ceiling) };
            stores.push((name.clone(), named));
        }
        let trash = TrashBin::new(store.clone(), &config);
        Ok(Self { config: Arc::new(config), store, stores: Stores::new(stores), trash, metrics: Metrics::new() })
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
        if queue.is_none() && roles.iter().any(|role| matches!(role, Role::Intake | Role::Relay | Role::Worker)) {
            return Err(ServeError::NoBroker);
        }
        match migrate::pending(&self.store).await {
            Ok(0) => {}
            Ok(missing) => return Err(ServeError::NotMigrated(missing)),
            Err(error) => tracing::error!(%error, "database is away, every role waits for it"),
        }
        let tasks = TaskTracker::new();
        for role in roles {
            self.start(*role, queue.as_ref(), &tasks, &stop).await?;
        }
        tracing::info!(roles = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(","), "serving");
        shutdown::drain(tasks, &stop, self.config.service.shutdown_deadline).await;
        // the database's end of a connection that is cut off notices by itself
        let _ = tokio::time::timeout(Duration::from_secs(2), self.store.close()).await;
        tracing::info!("ended");
        Ok(())
    }

    async fn start(
        &self,
        role: Role,
        queue: Option<&Arc<dyn TaskQueue>>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<(), ServeError> {
        let stop = stop.clone();
        match role {
            Role::Api => {
                let address = self.config.api.listen;
                let listener = tokio::net::TcpListener::bind(address)
                    .await
                    .map_err(|source| ServeError::Listen { address, source })?;
                let (trash, stores) = (self.trash.clone(), self.stores.clone());
                let api = http::Api::new(trash, stores, self.metrics.clone(), self.config.api.token.clone());
                tasks.spawn(async move { http::serve(listener, api, stop).await });
            }
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
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(15))?;
        Ok(Keeper { role: role.as_str(), backoff, metrics: self.metrics.clone() })
    }
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
        let reconnects = || self.metrics.reconnect(self.role);
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
