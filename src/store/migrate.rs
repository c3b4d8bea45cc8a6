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
    /// Rights are missing.
    #[error(
        "cannot migrate the schema `reprieve`: {said}. The user {user:?} needs `create` on the database {database:?} \
         (grant create on database \"{database}\" to \"{user}\"), and must own the schema `reprieve` and its tables \
         where they exist"
    )]
    NotAllowed {
        /// In PostgreSQL's words.
        said: String,
        /// Who asked.
        user: String,
        /// Where.
        database: String,
    },
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
    let (user, database): (String, String) = sqlx::query_as("select current_user::text, current_database()::text")
        .fetch_one(&mut connection)
        .await
        .map_err(StoreError::from)?;
    migrator().run(&mut connection).await.map_err(|error| match refused(&error) {
        Some(said) => MigrateError::NotAllowed { said, user, database },
        None => error.into(),
    })?;
    connection.close().await.map_err(StoreError::from)?;
    Ok(())
}

/// What PostgreSQL said, where it refused for want of a right (insufficient_privilege).
fn refused(error: &sqlx::migrate::MigrateError) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(sqlx::Error::Database(said)) = error.downcast_ref::<sqlx::Error>()
            && said.code().as_deref() == Some("42501")
        {
            return Some(said.message().to_owned());
        }
        next = error.source();
    }
    None
}

/// How this program and the schema of the database fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Schema {
    /// They do.
    Fits,
    /// The database lacks so many migrations of this program.
    Behind(usize),
    /// The database has this migration, of a newer program. What that one has written, this one may not know to delete.
    Ahead(i64),
}

impl Schema {
    /// Why they do not fit, and what to do.
    pub fn mismatch(self) -> Option<String> {
        match self {
            Self::Fits => None,
            Self::Behind(1) => Some("the schema `reprieve` lacks 1 migration: run `reprieve migrate` first".into()),
            Self::Behind(n) => {
                Some(format!("the schema `reprieve` lacks {n} migrations: run `reprieve migrate` first"))
            }
            Self::Ahead(version) => Some(format!(
                "the schema `reprieve` has the migration {version} of a newer program: run that one, or restore the database \
                 from before its migration"
            )),
        }
    }
}

/// Compares the migrations of this program with those of the database.
///
/// # Errors
/// The database is away.
pub async fn compare(store: &Store) -> Result<Schema, StoreError> {
    let applied: Result<Vec<i64>, _> =
        sqlx::query_scalar("select version from reprieve.migrations where success").fetch_all(&store.pool).await;
    let applied = match applied.map_err(StoreError::from) {
        Ok(applied) => applied,
        Err(StoreError::NotMigrated(_)) => Vec::new(),
        Err(error) => return Err(error),
    };
    let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    if let Some(newer) = applied.iter().filter(|version| !known.contains(version)).max() {
        return Ok(Schema::Ahead(*newer));
    }
    Ok(match known.iter().filter(|version| !applied.contains(version)).count() {
        0 => Schema::Fits,
        missing => Schema::Behind(missing),
    })
}
