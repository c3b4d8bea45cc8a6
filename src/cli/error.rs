//! How a command ends badly: a message, advice, and an exit code that a script can rely on.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::{
    app::{AppError, ServeError},
    config::InvalidConfig,
    domain::map::UnknownKind,
    store::{NOTHING_DONE, StoreError, migrate::MigrateError},
    trash::TrashError,
};

/// A command that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Wrong usage.
    #[error("{0}")]
    Usage(String),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// The export of traces, as the environment describes it.
    #[error("{0}")]
    Traces(String),
    /// Refused, not found, or the database.
    #[error(transparent)]
    Trash(#[from] TrashError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database, which was not reached, or was only looked at.
    #[error(transparent)]
    NothingDone(StoreError),
    /// A migration.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The service.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// `check` found so many problems, and has printed them.
    #[error("{}", if *.0 == 1 { "1 problem found".to_owned() } else { format!("{} problems found", .0) })]
    Check(usize),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<AppError> for CliError {
    fn from(error: AppError) -> Self {
        match error {
            AppError::Store(error) => Self::Store(error),
            error @ AppError::Certificates { .. } => Self::Failed(error.to_string()),
        }
    }
}

impl From<UnknownKind> for CliError {
    fn from(error: UnknownKind) -> Self {
        Self::Trash(error.into())
    }
}

impl CliError {
    /// As `--help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Config(_) | Self::Traces(_) | Self::Serve(ServeError::BrokenMap(_) | ServeError::NoBroker) => 6,
            Self::Check(_) => 7,
            Self::Trash(error) if error.is_malformed() => 2,
            Self::Trash(TrashError::RetentionTooShort { .. }) => 2,
            Self::Trash(TrashError::Refused { refusals, .. }) if !refusals.blockers.is_empty() => 3,
            Self::Trash(TrashError::NotFound(_) | TrashError::NotInTrash(_)) => 4,
            Self::Trash(
                TrashError::Refused { .. }
                | TrashError::PastReturn { .. }
                | TrashError::RowGone(_)
                | TrashError::NothingToRetry { .. }
                | TrashError::UnsafePlace { .. }
                | TrashError::ForeignBucket { .. },
            ) => 5,
            Self::Trash(_)
            | Self::Store(_)
            | Self::NothingDone(_)
            | Self::Migrate(_)
            | Self::Serve(_)
            | Self::Failed(_) => 1,
        }
    }

    /// What to do about it; empty where the message says it.
    pub fn advice(&self) -> Cow<'static, str> {
        let advice = match self {
            Self::Trash(error) => return error.advice(),
            Self::Serve(ServeError::BrokenMap(_)) => {
                "`reprieve check` tries the whole map; mend the map, the tables or the permissions"
            }
            Self::Config(_) => "correct the file, or override a key with REPRIEVE__SECTION__KEY",
            Self::NothingDone(StoreError::Unavailable(_)) => NOTHING_DONE,
            Self::Store(error) | Self::NothingDone(error) => error.advice(),
            Self::Migrate(MigrateError::Store(_)) => "check [database] and try again",
            _ => "",
        };
        advice.into()
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let (code, details) = match self {
            Self::Usage(_) => ("usage", Value::Null),
            Self::Config(error) => {
                let problems = error.problems.iter().map(|p| json!({ "key": p.key, "message": p.message }));
                ("invalid_config", problems.collect())
            }
            Self::Traces(_) => ("invalid_config", Value::Null),
            Self::Trash(error) => (error.code(), error.details()),
            Self::Check(_) => ("check", Value::Null),
            Self::Serve(ServeError::BrokenMap(broken)) => ("broken_map", json!(broken)),
            Self::Store(_) | Self::NothingDone(_) | Self::Migrate(_) | Self::Serve(_) | Self::Failed(_) => {
                ("failed", Value::Null)
            }
        };
        json!({ "ok": false, "error": { "code": code, "message": self.to_string(), "details": details } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_went_away_is_never_said_to_have_changed_nothing() {
        let broken = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let away = || StoreError::Unavailable(sqlx::Error::Io(broken()));
        for error in [CliError::Store(away()), CliError::Trash(away().into())] {
            assert!(error.advice().contains("not known") && error.advice().contains("reprieve show"), "{error}");
            assert!(!error.advice().contains("nothing was carried out"), "{error}");
        }
    }

    #[test]
    fn a_database_that_was_not_reached_or_only_looked_at_has_carried_out_nothing() {
        let broken = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        for error in [
            CliError::Store(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
            CliError::Trash(StoreError::Unavailable(sqlx::Error::PoolTimedOut).into()),
            CliError::NothingDone(StoreError::Unavailable(sqlx::Error::Io(broken()))),
        ] {
            assert!(error.advice().contains("nothing was carried out"), "{error}");
            assert_eq!(error.exit_code(), 1);
        }
    }
}
