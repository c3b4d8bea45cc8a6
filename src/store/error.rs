//! What can go wrong at the database, sorted by what to do about it.
//!
//! Invariant: an error of the platform's own tables or of a query from the map is told apart from one of ours, so
//! that a map that no longer fits delays the purge of its own kind and of nothing else.

/// What to do when the connection broke, perhaps in a commit, or nobody waited for the end: it may have taken place.
pub const ASK_AGAIN: &str = "whether it was carried out is not known: check [database], and look with `reprieve show` \
                             before you ask again; what has been done already is answered as such";

/// What to do when the database was not reached, or was only looked at.
pub const NOTHING_DONE: &str = "nothing was carried out: check [database] and try again";

/// A failed statement.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection, or it broke. Try again when the database is back.
    #[error("the database cannot be reached: {}", said(.0))]
    Unavailable(#[source] sqlx::Error),
    /// A lock was not to be had in time, or the transaction lost against another. Try again.
    #[error("the database is busy: {}", said(.0))]
    Busy(#[source] sqlx::Error),
    /// The schema `reprieve` is not there, or older than this program.
    #[error("the schema `reprieve` is missing or outdated: run `reprieve migrate` ({})", said(.0))]
    NotMigrated(#[source] sqlx::Error),
    /// A query from the map, or a statement on a table that it names, failed: the map does not fit the database.
    #[error("{what} failed: {}; `reprieve check` tries the whole map", said(source))]
    Platform {
        /// Which query of which kind.
        what: String,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// What the map's query returned cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Any other failure.
    #[error("the database refused: {}", said(.0))]
    Other(#[source] sqlx::Error),
}

/// What the database said, in its own words: the client adds a line number to them, which is one of PostgreSQL's own
/// source and reads like one of the query.
pub(super) fn said(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

impl StoreError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_))
    }

    /// Whether there was no connection, so that nothing can have been carried out on it.
    pub fn was_never_asked(&self) -> bool {
        let Self::Unavailable(error) = self else { return false };
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            // invalid_authorization, cannot_connect_now, too_many_connections
            Some(code) => code.starts_with("28") || ["57P03", "53300"].contains(&code),
            None => matches!(error, sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed),
        }
    }

    /// Whether a right is missing (insufficient_privilege).
    pub fn is_refused(&self) -> bool {
        let (Self::Platform { source, .. } | Self::Other(source)) = self else { return false };
        source.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("42501")
    }

    /// What to do about it, for people; empty where the message says it.
    pub fn advice(&self) -> &'static str {
        match self {
            _ if self.was_never_asked() => NOTHING_DONE,
            Self::Unavailable(_) => ASK_AGAIN,
            _ => "",
        }
    }

    /// Names the query of the map that failed. Outages and lost races stay what they are.
    pub fn of_platform(error: sqlx::Error, what: impl FnOnce() -> String) -> Self {
        match Self::from(error) {
            Self::NotMigrated(source) | Self::Other(source) => Self::Platform { what: what(), source },
            // a query that is too slow for `statement_timeout` is a matter of the map, or of an index
            Self::Busy(source) if is_timeout(&source) => Self::Platform { what: what(), source },
            other => other,
        }
    }
}

/// query_canceled
fn is_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() == Some("57014")
}

/// PostgreSQL's class or code (Appendix A of its manual) says which it is.
impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match (&error, code.as_deref()) {
            // serialization_failure, deadlock_detected, lock_not_available, query_canceled (a time-out)
            (_, Some("40001" | "40P01" | "55P03" | "57014")) => Self::Busy(error),
            // read_only_sql_transaction: a standby, which is what a failover leaves us with until the address follows;
            // time-outs of a transaction (idle, or as a whole): a process that stood still
            (_, Some("25006" | "25P03" | "25P04")) => Self::Unavailable(error),
            // undefined_table, invalid_schema_name, undefined_column, of our own tables
            (_, Some("42P01" | "3F000" | "42703")) => Self::NotMigrated(error),
            // connection exceptions, out of resources (a full disk too), shutting down
            // protocol_violation: a query of the map with parameters that it does not get
            (_, Some("08P01")) => Self::Other(error),
            (_, Some(code)) if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => {
                Self::Unavailable(error)
            }
            // invalid_authorization: rotated passwords come back
            (_, Some(code)) if code.starts_with("28") => Self::Unavailable(error),
            (_, Some(_)) => Self::Other(error),
            (
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::BeginFailed
                | sqlx::Error::WorkerCrashed,
                None,
            ) => Self::Unavailable(error),
            (_, None) => Self::Other(error),
        }
    }
}
