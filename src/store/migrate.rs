//! Migrations of the schema `reprieve`.
//!
//! Invariant: safe to run twice and from several processes at once (an advisory lock orders them), and apart from the
//! platform's own migrations: ours are recorded in `reprieve.migrations`.

use sqlx::{Connection, migrate::Migrator};

use super::{Store, StoreError, single_connection};
use crate::config::DatabaseConfig;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A migration, or what is recorded of them.
    #[error("cannot migrate the schema `reprieve`: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

fn migrator() -> Migrator {
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.create_schema("reprieve");
    migrator.dangerous_set_table_name("reprieve.migrations");
    migrator
}

/// Applies what is missing. Runs on a connection of its own, which is dropped at the end: a migration that fails
/// leaves its advisory lock on the connection.
///
/// # Errors
/// The database is away, or a migration failed (it was rolled back).
pub async fn run(config: &DatabaseConfig) -> Result<(), MigrateError> {
    let mut connection = single_connection(config).await?;
    migrator().run(&mut connection).await?;
    connection.close().await.map_err(StoreError::from)?;
    Ok(())
}

/// How many migrations this program has that the database has not.
///
/// # Errors
/// The database is away.
pub async fn pending(store: &Store) -> Result<usize, StoreError> {
    let applied: Result<i64, _> =
        sqlx::query_scalar("select count(*) from reprieve.migrations where success").fetch_one(&store.pool).await;
    let applied = match applied.map_err(StoreError::from) {
        Ok(applied) => usize::try_from(applied).unwrap_or(0),
        Err(StoreError::NotMigrated(_)) => 0,
        Err(error) => return Err(error),
    };
    Ok(MIGRATIONS.iter().count().saturating_sub(applied))
}
