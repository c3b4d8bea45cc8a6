//! A whole platform in one process: a private PostgreSQL, an S3 server, a queue, and Heimdall's tables and map.
//!
//! Invariant: the same SQL and the same S3 client run as in production. The configuration is read from the files that
//! are written here and from nothing else, so no setting of the caller's can point the demo at his data.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use secrecy::ExposeSecret;
use sqlx::PgPool;
use tempfile::TempDir;

use super::{
    postgres::{self, PrivatePostgres},
    s3::{self, EmbeddedS3},
    sample,
};
use crate::{
    app::App,
    config::Config,
    queue::local::{LocalLimits, LocalQueue},
    store::{commit, guards, migrate},
};

const CONFIG: &str = include_str!("../../config/embedded.toml");
const MAP: &str = include_str!("../../config/maps/heimdall.toml");

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The restore window.
    pub retention: Duration,
    /// The API's port on loopback; 0 for a free one that nobody needs to know.
    pub api_port: u16,
}

/// A running platform; dropping it ends it and removes its files.
#[derive(Debug)]
pub struct Platform {
    /// The service's parts.
    pub app: App,
    /// The queue in place of RabbitMQ.
    pub queue: Arc<LocalQueue>,
    /// The S3 server.
    pub s3: EmbeddedS3,
    /// The platform's own connections to its database.
    pub pool: PgPool,
    dir: TempDir,
    _postgres: PrivatePostgres,
}

impl Platform {
    /// Starts the servers, loads the platform's tables, migrates, installs the guards.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or anything else that kept it from starting, with what to do about it.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let postgres = PrivatePostgres::start(postgres::Options::default()).await?;
        let database = postgres.create_database("heimdall").await.context("cannot create the sample database")?;
        let keys = s3::Options::default();
        let (access_key, secret_key) = (keys.access_key.clone(), keys.secret_key.clone());
        let s3 = EmbeddedS3::start(keys).await.context("cannot start the in-process S3 server")?;
        s3.store().create_bucket(sample::BUCKET).map_err(|error| anyhow::anyhow!("{error:?}"))?;

        let dir = tempfile::Builder::new().prefix("reprieve-").tempdir().context("cannot make a directory")?;
        let text = CONFIG
            .replace("@DATABASE@", &database)
            .replace("@S3@", &s3.endpoint())
            .replace("@ACCESS_KEY@", &access_key)
            .replace("@SECRET_KEY@", secret_key.expose_secret())
            .replace("@RETENTION@", &humantime::format_duration(options.retention).to_string())
            .replace("@API_PORT@", &options.api_port.to_string());
        let file = dir.path().join("reprieve.toml");
        fs::write(&file, text).and_then(|()| fs::write(dir.path().join("heimdall.toml"), MAP))?;
        let config = Config::load_isolated(&[file])?;

        migrate::run(&config.database).await?;
        let pool = PgPool::connect(&database).await?;
        sample::create_tables(&pool).await?;
        let app = App::new(config).await?;
        let mut tx = app.store.begin().await?;
        guards::install(&mut tx, &app.config.map).await?;
        commit(tx).await?;
        let queue = Arc::new(LocalQueue::new(LocalLimits::default()));
        Ok(Self { app, queue, s3, pool, dir, _postgres: postgres })
    }

    /// The configuration file, for commands in another terminal.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("reprieve.toml")
    }
}
