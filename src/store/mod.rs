//! PostgreSQL: all SQL lives here, one file an aggregate.
//!
//! Invariant: every statement that changes a tombstone repeats the state machine's guard (and, past the point of no
//! return, the fence) in its `where`, and says how many rows it touched. Callers hold no transaction across network
//! I/O other than the database's own. All times are the database's.
//!
//! The server's own time-outs end a statement that waits; of a connection that has died without a word (a firewall that
//! forgot it, a machine that stands still) nothing comes any more, not even an error. So no wait here is without an end
//! of our own: for a connection, and for whatever runs [`Store::within`] a number of statements. Whoever is cut off, there
//! or anywhere else, leaves no transaction behind on a connection that is used again.

mod acquires;
pub mod audit;
mod cut_off;
pub mod error;
pub mod facts;
pub mod foreign_keys;
pub mod guards;
pub mod holds;
pub mod in_use;
pub mod inspect;
pub mod migrate;
pub mod outbox;
pub mod pauses;
pub mod platform;
pub mod recorded;
pub mod requests;
pub mod tombstones;

use std::{borrow::Cow, str::FromStr, time::Duration};

use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::{
    PgConnection, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use self::{acquires::Acquires, cut_off::CutOff};
pub use self::{
    acquires::Usage,
    error::{ASK_AGAIN, NOTHING_DONE, StoreError},
};
use crate::config::DatabaseConfig;

/// A transaction; rolled back when it is dropped.
pub type Tx = Transaction<'static, Postgres>;

/// How long a statement waits for a row lock before it counts as busy: longer than any transaction of ours.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection that has answered is taken for one that does.
const FRESH: Duration = Duration::from_secs(1);

/// The database. Cheap to clone; connects when first used and again whenever it has to.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    cut_off: CutOff,
    acquires: Acquires,
    most_connections: u32,
    /// For an answer that costs the server nothing.
    acquire_timeout: Duration,
    statement_timeout: Duration,
}

impl Store {
    /// Prepares a pool; connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] for a URL that cannot be read.
    pub fn new(config: &DatabaseConfig) -> Result<Self, StoreError> {
        let options = connect_options(config)?;
        let (acquire_timeout, statement_timeout) = (config.acquire_timeout, config.statement_timeout);
        let cut_off = CutOff::default();
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(acquire_timeout)
            // the pool's own tests wait without an end: one dead connection would use up the time for getting another,
            // and one that is given back dead would be missing from the pool for ever; nor do they look for a transaction
            .test_before_acquire(false)
            .before_acquire(move |conn, meta| {
                // given back just now, it has answered just now
                let is_fresh = meta.idle_for < FRESH;
                Box::pin(async move { Ok(is_fresh || answers(conn, acquire_timeout / 3).await.is_ok()) })
            })
            .after_release({
                let cut_off = cut_off.clone();
                move |conn, _| Box::pin(is_clear(conn, acquire_timeout, cut_off.has_happened()))
            })
            .connect_lazy_with(options);
        let (acquires, most_connections) = (Acquires::default(), config.max_connections);
        Ok(Self { pool, cut_off, acquires, most_connections, acquire_timeout, statement_timeout })
    }

    /// Begins a READ COMMITTED transaction, whatever the database's default: the claim relies on a statement after a
    /// lock seeing what was committed before the lock was given.
    ///
    /// # Errors
    /// The database is away, or the pool is exhausted.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        // twice: to get a connection, and for its answer
        let begin = self.pool.begin_with("begin isolation level read committed");
        Ok(self.acquires.count(in_time(2 * self.acquire_timeout, self.cut_off.watch(begin))).await?)
    }

    /// Begins a transaction that changes nothing and sees the database as it is at its first question, for an answer that
    /// takes several: what is moved from one table to another meanwhile is in one of them.
    ///
    /// # Errors
    /// The database is away, or the pool is exhausted.
    pub async fn begin_snapshot(&self) -> Result<Tx, StoreError> {
        let begin = self.pool.begin_with("begin isolation level repeatable read read only");
        Ok(self.acquires.count(in_time(2 * self.acquire_timeout, self.cut_off.watch(begin))).await?)
    }

    /// A connection for single statements.
    ///
    /// # Errors
    /// The database is away, or the pool is exhausted.
    pub async fn conn(&self) -> Result<sqlx::pool::PoolConnection<Postgres>, StoreError> {
        Ok(self.acquires.count(self.pool.acquire()).await?)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        in_time(2 * self.acquire_timeout, sqlx::query("select 1").execute(&self.pool)).await?;
        Ok(())
    }

    /// Does a unit of work, in no more time than `statements` of its statements may take at the longest; the others
    /// take milliseconds. What a dead connection would hold up for ever ends here, and its connection goes.
    ///
    /// # Errors
    /// Those of the work, or [`StoreError::Busy`] when the time is over; whether a commit took place is unknown then.
    pub async fn within<T, E: From<StoreError>>(
        &self,
        statements: u32,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let limit = self.acquire_timeout + statements * self.statement_timeout;
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_) => Err(StoreError::Busy(silent(limit)).into()),
        }
    }

    /// Why no connection is to be had: the pool only says that none was, in time.
    pub async fn why_away(&self, error: StoreError) -> StoreError {
        use sqlx::ConnectOptions;
        if !matches!(error, StoreError::Unavailable(sqlx::Error::PoolTimedOut)) {
            return error;
        }
        let options = self.pool.connect_options();
        match tokio::time::timeout(LOCK_TIMEOUT, options.connect()).await {
            Ok(Err(cause)) => cause.into(),
            Ok(Ok(_)) | Err(_) => error,
        }
    }

    /// A connection outside of the pool, for what must leave no traces on one that is used again.
    ///
    /// # Errors
    /// The database is away.
    pub async fn own_conn(&self) -> Result<PgConnection, StoreError> {
        use sqlx::ConnectOptions;
        let options = self.pool.connect_options();
        Ok(in_time(2 * self.acquire_timeout, options.connect()).await?)
    }

    /// Where it is, without who asks there.
    pub fn address(&self) -> String {
        let options = self.pool.connect_options();
        let host = options.get_socket().map_or_else(|| options.get_host().into(), |path| path.display().to_string());
        format!("{host}:{}", options.get_port())
    }

    /// How the pool is used.
    pub fn usage(&self) -> Usage {
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX);
        self.acquires.with(idle, self.pool.size().saturating_sub(idle), self.most_connections)
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

async fn in_time<T>(limit: Duration, asked: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(silent(limit)))
}

/// What a server says that says nothing.
pub(crate) fn silent(limit: Duration) -> sqlx::Error {
    let limit = humantime::format_duration(limit);
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {limit}")))
}

/// Whether a connection is still one; an error closes it without asking its other end.
async fn answers(conn: &mut PgConnection, limit: Duration) -> Result<bool, sqlx::Error> {
    use sqlx::Connection;
    in_time(limit, conn.ping()).await?;
    Ok(true)
}

/// Ends the transaction that somebody may have left behind who was cut off. The client rolls back those that it knows
/// of, and does not know of one whose `begin` was sent and not answered: single statements on that connection would be
/// taken for done (a lease for extended, a batch for written down) and never be committed.
async fn is_clear(conn: &mut PgConnection, limit: Duration, was_cut_off: bool) -> Result<bool, sqlx::Error> {
    use sqlx::Executor;
    if was_cut_off {
        // a `rollback` alone draws a warning where there is none, which is nearly always
        in_time(limit, conn.execute(sqlx::raw_sql("begin; rollback"))).await?;
        return Ok(true);
    }
    // the pool's own question has no end
    answers(conn, limit).await
}

/// Lets the statements of this transaction wait so long for a lock, and no longer.
///
/// # Errors
/// The statement failed.
pub async fn impatient(tx: &mut Tx, limit: Duration) -> Result<(), StoreError> {
    let limit = format!("{}ms", limit.as_millis());
    sqlx::query("select set_config('lock_timeout', $1, true)").bind(limit).execute(&mut **tx).await?;
    Ok(())
}

/// Lets the statements of this transaction take so long each, and no longer.
///
/// # Errors
/// The statement failed.
pub async fn brief(tx: &mut Tx, limit: Duration) -> Result<(), StoreError> {
    let limit = format!("{}ms", limit.as_millis().max(1));
    sqlx::query("select set_config('statement_timeout', $1, true)").bind(limit).execute(&mut **tx).await?;
    Ok(())
}

/// A text for people, as the database takes it: keys in it may hold the character NUL, which shows as the sign for it.
pub(crate) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{2400}").into() } else { text.into() }
}

/// Every text of it [`storable`].
pub(crate) fn storable_json(mut value: Value) -> Value {
    fn clean(value: &mut Value) {
        match value {
            Value::String(text) if text.contains('\0') => *text = storable(text).into_owned(),
            Value::Array(values) => values.iter_mut().for_each(clean),
            Value::Object(fields) => fields.values_mut().for_each(clean),
            _ => {}
        }
    }
    clean(&mut value);
    value
}

/// Commits, with the store's error.
///
/// # Errors
/// The commit failed; whether it took place is unknown when the connection broke.
pub async fn commit(tx: Tx) -> Result<(), StoreError> {
    Ok(tx.commit().await?)
}

fn connect_options(config: &DatabaseConfig) -> Result<PgConnectOptions, StoreError> {
    let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
    PgConnectOptions::from_str(config.url.expose_secret())
        .map(|options| {
            options.application_name("reprieve").options([
                ("statement_timeout", milliseconds(config.statement_timeout)),
                ("lock_timeout", milliseconds(LOCK_TIMEOUT)),
                ("idle_in_transaction_session_timeout", milliseconds(2 * LOCK_TIMEOUT)),
            ])
        })
        // the parser's message can quote parts of the URL, which holds a password
        .map_err(|_| StoreError::Unusable("database.url is not a PostgreSQL URL that can be read".into()))
}

/// A connection outside of any pool, for what must not leave traces on one that is used again.
async fn single_connection(config: &DatabaseConfig) -> Result<PgConnection, StoreError> {
    use sqlx::ConnectOptions;
    let connecting = connect_options(config)?.connect().await;
    Ok(connecting?)
}
