//! What a process is made of, from its configuration: one database, one client a store, one set of metrics.
//!
//! Invariant: this is the one place that turns configuration into parts; the parts know no configuration file.

mod crew;
mod serve;

use std::{net::SocketAddr, str::FromStr, sync::Arc};

use secrecy::SecretString;

use crate::{
    config::{BrokerConfig, Config, StoreConfig},
    domain::location::StoreName,
    objects::{
        flow::Flow,
        s3::{NoCertificates, S3Credentials, S3Settings, S3Store, VersionsPolicy},
        stores::{NamedStore, Stores},
    },
    purge::Purger,
    queue::rabbitmq::{RabbitQueue, RabbitSettings},
    retry::InvalidBackoff,
    store::{Store, StoreError, Usage},
    telemetry::{
        Metrics,
        metrics::{Metered, Pool},
    },
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
    /// Schema and program do not fit together, for this reason.
    #[error("{0}")]
    Schema(String),
    /// The map does not fit the database: these of its queries can never work.
    #[error("the resource map does not fit the database:{}", .0.iter().map(|what| format!("\n  {what}")).collect::<String>())]
    BrokenMap(Vec<String>),
    /// Waits in the configuration that are no back-off.
    #[error(transparent)]
    Backoff(#[from] InvalidBackoff),
    /// The API's address is taken, or not ours.
    #[error("cannot listen on {address} (api.listen, service.listen): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// A role, or a listener, panicked or ended by itself.
    #[error("the role {0} ended by itself, and the process with it; the log says why")]
    Lost(&'static str),
    /// Signals could not be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// Why the parts cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The database's URL cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A store needs what this machine has not got.
    #[error("store {store}: {error}")]
    Certificates {
        /// Which.
        store: StoreName,
        /// What.
        error: NoCertificates,
    },
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
    /// [`AppError`].
    pub async fn new(config: Config) -> Result<Self, AppError> {
        let store = Store::new(&config.database)?;
        let metrics = Metrics::new();
        metrics.expect_kinds(config.map.kinds().map(|kind| &kind.kind));
        watch_pool(&metrics, &store);
        let mut stores = Vec::new();
        for (name, store) in &config.stores {
            let settings = s3_settings(store);
            settings.can_trust().map_err(|error| AppError::Certificates { store: name.clone(), error })?;
            let client = Arc::new(S3Store::new(&settings).await);
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
                metrics.at_each_scrape(move || of.stands(gate.open(), batch_size));
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
}

fn watch_pool(metrics: &Metrics, store: &Store) {
    let (process, store) = (metrics.process().clone(), store.clone());
    metrics.at_each_scrape(move || {
        let Usage { idle, in_use, most, acquired, failed, waited } = store.usage();
        process.pool(Pool { idle, in_use, most, acquired, failed, waited });
    });
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
