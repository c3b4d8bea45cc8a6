//! Tombstones past the point of no return.
//!
//! Invariant: every statement here but [`begin`], [`take_over`], [`thaw`] and [`retry`] carries the fence. Zero rows touched
//! means that the lease is lost and somebody else has taken over: the caller stops at once, without another request
//! to any store. A lease is counted from when the statement is carried out (`clock_timestamp()`); `now()` is when its
//! transaction began, which may have waited for locks since.

use std::time::Duration;

use serde_json::Value;
use sqlx::{PgConnection, Row as _, types::Json};
use time::OffsetDateTime;

pub use super::lease::Lease;
use super::{StoreError, lease::Moment};
use crate::domain::{
    ids::{Fence, TombstoneId},
    progress::Progress,
};
use crate::store::{
    audit::{Telling, told},
    storable,
};

/// What the fenced write found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a lost lease means: stop"]
pub enum Fenced {
    /// Still ours.
    Ours {
        /// Somebody has paused this purge meanwhile.
        paused: bool,
    },
    /// Somebody else's.
    Lost,
}

/// Whether a pause concerns the tombstone `t`, asked in the write that fences the next step.
macro_rules! is_paused {
    () => {
        "exists (
             select from reprieve.pauses p
             where p.scope = 'all' or (p.scope = 'kind' and p.name = t.kind)
                or (p.scope = 'store' and t.locations @> jsonb_build_array(jsonb_build_object('store', p.name))))"
    };
}

/// Who goes past the point of no return, and what is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Beginning<'a> {
    /// The worker.
    pub owner: &'a str,
    /// For how long it has the lease.
    pub lease: Duration,
    /// Whether the resource still had its row.
    pub row_found: bool,
    /// Written along with it.
    pub told: &'a Telling<'a>,
}

/// The point of no return: `trashed`/`blocked` and due → `purging`, with a new fence and a lease, told in the same statement.
/// `None`: no longer so, and nothing is told.
///
/// # Errors
/// The statement failed.
pub async fn begin(
    conn: &mut PgConnection,
    id: TombstoneId,
    beginning: Beginning<'_>,
) -> Result<Option<Lease>, StoreError> {
    let Beginning { owner, lease, row_found, told } = beginning;
    let asked = Moment::now();
    let sql = told!(
        "update reprieve.tombstones
         set state = 'purging', purging_at = now(), fence = fence + 1, lease_owner = $16,
             lease_until = clock_timestamp() + $17 * interval '1 second', row_found = $18, blockers = '[]', last_error = null,
             attempts = 0, deaths = 0, waits = 0, next_attempt_at = now()
         where id = $15 and state in ('trashed', 'blocked') and purge_after <= now() returning id, fence",
        "fence"
    );
    let query = told.bind_to(sqlx::query(sql)).bind(id.0).bind(owner).bind(lease.as_secs_f64()).bind(row_found);
    let begun = query.fetch_optional(conn).await?;
    begun.map(|row| Ok(Lease::since(asked, id, Fence(row.try_get(0)?), lease))).transpose()
}

/// Takes over a purge that nobody works on: a new fence, which the former owner has not. One who is another and has not
/// given the lease back has died with it, and that is counted. `None`: it is not purging, not due, or in living hands.
///
/// # Errors
/// The statement failed.
pub async fn take_over(
    conn: &mut PgConnection,
    id: TombstoneId,
    owner: &str,
    lease: Duration,
) -> Result<Option<Lease>, StoreError> {
    let asked = Moment::now();
    let fence: Option<i64> = sqlx::query_scalar(
        "update reprieve.tombstones
         set fence = fence + 1, lease_owner = $2, lease_until = clock_timestamp() + $3 * interval '1 second',
             deaths = deaths + (coalesce(lease_owner, $2) <> $2)::int
         where id = $1 and state = 'purging' and next_attempt_at <= now()
           and (lease_until is null or lease_until < now()) returning fence",
    )
    .bind(id.0)
    .bind(owner)
    .bind(lease.as_secs_f64())
    .fetch_optional(conn)
    .await?;
    Ok(fence.map(|fence| Lease::since(asked, id, Fence(fence), lease)))
}

/// How many workers have died over it, or panicked, since it last got further.
///
/// # Errors
/// The statement failed.
pub async fn deaths(conn: &mut PgConnection, id: TombstoneId) -> Result<u32, StoreError> {
    let deaths: Option<i32> = sqlx::query_scalar("select deaths from reprieve.tombstones where id = $1")
        .bind(id.0)
        .fetch_optional(conn)
        .await?;
    Ok(deaths.and_then(|deaths| u32::try_from(deaths).ok()).unwrap_or(0))
}

/// Counts a panic as a death.
///
/// # Errors
/// The statement failed.
pub async fn count_death(conn: &mut PgConnection, lease: &Lease) -> Result<Fenced, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones set deaths = deaths + 1 where id = $1 and fence = $2 and state = 'purging'",
    )
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .execute(conn)
    .await?;
    Ok(ours(done.rows_affected()))
}

/// Where the purge goes on.
///
/// # Errors
/// The statement failed.
pub async fn load_checkpoint(conn: &mut PgConnection, id: TombstoneId) -> Result<Option<Value>, StoreError> {
    let checkpoint: Option<Option<Json<Value>>> =
        sqlx::query_scalar("select checkpoint from reprieve.tombstones where id = $1")
            .bind(id.0)
            .fetch_optional(conn)
            .await?;
    Ok(checkpoint.flatten().map(|json| json.0))
}

/// Writes progress and where to go on, and extends the lease. A crash after it repeats nothing that it counted. Objects
/// that have gone since, and nothing else, forget the deaths before: there are only so many objects, so a purge that
/// kills its workers comes to an end.
///
/// # Errors
/// The statement failed.
pub async fn checkpoint(
    conn: &mut PgConnection,
    lease: &Lease,
    progress: &Progress,
    checkpoint: &Value,
) -> Result<Fenced, StoreError> {
    let n = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let asked = Moment::now();
    let paused: Option<bool> = sqlx::query_scalar(concat!(
        "update reprieve.tombstones t
             set objects_listed = $3, objects_deleted = $4, objects_absent = $5, objects_failed = $6,
                 objects_unknown = $7, versions_gone = $11, markers_gone = $12, objects_kept = $13, bytes_freed = $8, checkpoint = $9,
                 lease_until = clock_timestamp() + $10 * interval '1 second',
                 deaths = case when $4 + $5 > t.objects_deleted + t.objects_absent then 0 else t.deaths end
             where id = $1 and fence = $2 and state = 'purging' returning ",
        is_paused!()
    ))
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .bind(n(progress.objects_listed))
    .bind(n(progress.objects_deleted))
    .bind(n(progress.objects_absent))
    .bind(n(progress.objects_failed))
    .bind(n(progress.objects_unknown))
    .bind(n(progress.bytes_freed))
    .bind(Json(checkpoint))
    .bind(lease.duration.as_secs_f64())
    .bind(n(progress.versions_gone))
    .bind(n(progress.markers_gone))
    .bind(n(progress.objects_kept))
    .fetch_optional(conn)
    .await?;
    Ok(extended(lease, asked, paused))
}

/// Extends the lease while a long request runs. A purge that has just finished is not a lost one: the heartbeat runs
/// beside the stages, and can come between the last one's commit and its return. A lease that was given back stays so:
/// an extension whose caller is gone may arrive after that, and would keep the next worker away.
///
/// # Errors
/// The statement failed.
pub async fn renew(conn: &mut PgConnection, lease: &Lease) -> Result<Fenced, StoreError> {
    let asked = Moment::now();
    let done = sqlx::query(
        "update reprieve.tombstones
         set lease_until = case when state = 'purging' then clock_timestamp() + $3 * interval '1 second' end
         where id = $1 and fence = $2 and (lease_owner is not null or state = 'purged')",
    )
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .bind(lease.duration.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(extended(lease, asked, (done.rows_affected() == 1).then_some(false)))
}

/// A tombstone under its lock, still ours.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Locked {
    /// Somebody has paused this purge meanwhile.
    pub paused: bool,
    /// When it began.
    pub began: OffsetDateTime,
    /// When the transaction began, and, by our books, the purge ends.
    pub ends: OffsetDateTime,
}

/// Locks the tombstone until the transaction ends, and changes nothing. `None`: the lease is lost.
///
/// # Errors
/// The statement failed, or the lock was not to be had in time.
pub async fn lock(conn: &mut PgConnection, lease: &Lease) -> Result<Option<Locked>, StoreError> {
    Ok(sqlx::query_as(concat!(
        "select ",
        is_paused!(),
        " as paused, purging_at as began, now() as ends
         from reprieve.tombstones t where id = $1 and fence = $2 and state = 'purging' for update"
    ))
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .fetch_optional(conn)
    .await?)
}

/// Counts deleted rows; runs in the transaction that deletes them.
///
/// # Errors
/// The statement failed.
pub async fn count_rows(conn: &mut PgConnection, lease: &Lease, rows: u64) -> Result<Fenced, StoreError> {
    let asked = Moment::now();
    let paused: Option<bool> = sqlx::query_scalar(concat!(
        "update reprieve.tombstones t
         set rows_deleted = rows_deleted + $3, deaths = case when $3 > 0 then 0 else t.deaths end,
             lease_until = clock_timestamp() + $4 * interval '1 second'
         where id = $1 and fence = $2 and state = 'purging' returning ",
        is_paused!()
    ))
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .bind(i64::try_from(rows).unwrap_or(i64::MAX))
    .bind(lease.duration.as_secs_f64())
    .fetch_optional(conn)
    .await?;
    Ok(extended(lease, asked, paused))
}

/// Counts aborted uploads, extends the lease and asks for pauses. Uploads that have gone forget the deaths before, as
/// objects do.
///
/// # Errors
/// The statement failed.
pub async fn count_uploads(conn: &mut PgConnection, lease: &Lease, aborted: u64) -> Result<Fenced, StoreError> {
    let asked = Moment::now();
    let paused: Option<bool> = sqlx::query_scalar(concat!(
        "update reprieve.tombstones t
         set uploads_aborted = uploads_aborted + $3, deaths = case when $3 > 0 then 0 else t.deaths end,
             lease_until = clock_timestamp() + $4 * interval '1 second'
         where id = $1 and fence = $2 and state = 'purging' returning ",
        is_paused!()
    ))
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .bind(i64::try_from(aborted).unwrap_or(i64::MAX))
    .bind(lease.duration.as_secs_f64())
    .fetch_optional(conn)
    .await?;
    Ok(extended(lease, asked, paused))
}

/// How often it has waited for a server without getting any further than `before`.
///
/// # Errors
/// The statement failed.
pub async fn waits(conn: &mut PgConnection, id: TombstoneId, before: &Progress) -> Result<u32, StoreError> {
    let steps = before.objects_gone() + before.uploads_aborted + before.rows_deleted;
    let waits: Option<i32> = sqlx::query_scalar(
        "select case when objects_deleted + objects_absent + uploads_aborted + rows_deleted > $2 then 0 else waits end
         from reprieve.tombstones where id = $1",
    )
    .bind(id.0)
    .bind(i64::try_from(steps).unwrap_or(i64::MAX))
    .fetch_optional(conn)
    .await?;
    Ok(waits.and_then(|waits| u32::try_from(waits).ok()).unwrap_or(0))
}

/// Why a purge is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassOn<'a> {
    /// The slice was over: nothing has failed.
    Continues,
    /// Somebody has paused it.
    Paused,
    /// A server is away or asks for less. That is waited for, however long it takes; so often in a row by now.
    Outage {
        /// What it says.
        reason: &'a str,
        /// Waits without getting further in between, with this one.
        waits: u32,
    },
    /// It failed: one of a number of attempts.
    Failed(&'a str),
    /// Its worker died or panicked, which is counted already.
    Died(&'a str),
}

/// Gives the lease back and looks again after `wait`. What only continues does not forget its failed attempts, or a
/// purge of many slices would try a key that cannot be deleted for ever.
///
/// # Errors
/// The statement failed.
pub async fn pass_on(
    conn: &mut PgConnection,
    lease: &Lease,
    wait: Duration,
    why: PassOn<'_>,
) -> Result<Fenced, StoreError> {
    let (attempts, waits, error) = match why {
        PassOn::Continues => (0, Some(0), None),
        PassOn::Paused => (0, None, Some("paused")),
        PassOn::Outage { reason, waits } => (0, Some(i32::try_from(waits).unwrap_or(i32::MAX)), Some(reason)),
        PassOn::Failed(reason) => (1, Some(0), Some(reason)),
        PassOn::Died(reason) => (0, Some(0), Some(reason)),
    };
    let done = sqlx::query(
        "update reprieve.tombstones
         set lease_owner = null, lease_until = null, next_attempt_at = now() + $3 * interval '1 second',
             attempts = attempts + $4, waits = coalesce($5, waits), last_error = $6
         where id = $1 and fence = $2 and state = 'purging'",
    )
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .bind(wait.as_secs_f64())
    .bind(attempts)
    .bind(waits)
    .bind(error.map(storable))
    .execute(conn)
    .await?;
    Ok(ours(done.rows_affected()))
}

/// Why a purge is set aside, and until when.
#[derive(Debug, Clone)]
pub struct Setback {
    /// Why.
    pub reason: String,
    /// When it can get further by itself. `None`: not without help.
    pub until: Option<OffsetDateTime>,
    /// The least time until then: what is locked one by one is not tried one by one.
    pub at_least: Duration,
}

/// How a purge was set aside.
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use = "a lost lease means: stop"]
pub enum SetAside {
    /// It was not: somebody else has taken over.
    Lost,
    /// Until somebody helps.
    ForHelp,
    /// For so long, by the database's clock.
    For(Duration),
}

/// `purging` → `stuck`, with its reason and, where it is known, the date at which it tries again.
///
/// # Errors
/// The statement failed.
pub async fn give_up(conn: &mut PgConnection, lease: &Lease, setback: &Setback) -> Result<SetAside, StoreError> {
    let wait: Option<Option<f64>> = sqlx::query_scalar(
        "update reprieve.tombstones
         set state = 'stuck', lease_owner = null, lease_until = null, attempts = attempts + 1, last_error = $3,
             retry_at = case when $4::timestamptz is not null then greatest($4, now() + $5 * interval '1 second') end,
             next_attempt_at = case when $4::timestamptz is not null
                 then greatest($4, now() + $5 * interval '1 second') else next_attempt_at end
         where id = $1 and fence = $2 and state = 'purging'
         returning extract(epoch from retry_at - now())::float8",
    )
    .bind(lease.id.0)
    .bind(lease.fence.0)
    .bind(storable(&setback.reason))
    .bind(setback.until)
    .bind(setback.at_least.as_secs_f64())
    .fetch_optional(conn)
    .await?;
    Ok(match wait {
        None => SetAside::Lost,
        Some(None) => SetAside::ForHelp,
        Some(Some(seconds)) => SetAside::For(Duration::try_from_secs_f64(seconds).unwrap_or_default()),
    })
}

/// `stuck` → `purging`, where the date has come for which it waited. `false`: it is not stuck, or not until a date, or
/// the date is still to come.
///
/// # Errors
/// The statement failed.
pub async fn thaw(conn: &mut PgConnection, id: TombstoneId) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones
         set state = 'purging', attempts = 0, deaths = 0, waits = 0, next_attempt_at = now(), retry_at = null
         where id = $1 and state = 'stuck' and retry_at <= now()",
    )
    .bind(id.0)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// `stuck` → `purging`, to be looked at now; and so is what is `purging`, in nobody's living hands and waits for its next
/// try. `false`: neither.
///
/// # Errors
/// The statement failed.
pub async fn retry(conn: &mut PgConnection, id: TombstoneId) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones
         set state = 'purging', attempts = 0, deaths = 0, waits = 0, next_attempt_at = now(), retry_at = null,
             lease_owner = null, lease_until = null
         where id = $1 and (state = 'stuck'
             or (state = 'purging' and next_attempt_at > now() and (lease_until is null or lease_until < now())))",
    )
    .bind(id.0)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// `purging` → `purged`, in the transaction that deletes the resource's row and the last `rows` in all, with what became
/// of its objects; told in the same statement, unless the lease is lost.
///
/// # Errors
/// The statement failed. The table refuses counters that do not add up.
pub async fn finish(
    conn: &mut PgConnection,
    lease: &Lease,
    progress: &Progress,
    rows: u64,
    told: &Telling<'_>,
) -> Result<Fenced, StoreError> {
    let n = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let sql = told!(
        "update reprieve.tombstones
         set state = 'purged', closed_at = now(), lease_owner = null, lease_until = null, checkpoint = null,
             last_error = null, objects_listed = $17, objects_deleted = $18, objects_absent = $19, objects_failed = $20,
             objects_unknown = $21, bytes_freed = $22, rows_deleted = rows_deleted + $23, versions_gone = $24,
             markers_gone = $25, objects_kept = $26
         where id = $15 and fence = $16 and state = 'purging' and $20 = 0 and $21 = 0 returning id",
        "id"
    );
    let query = told.bind_to(sqlx::query(sql));
    let done = query
        .bind(lease.id.0)
        .bind(lease.fence.0)
        .bind(n(progress.objects_listed))
        .bind(n(progress.objects_deleted))
        .bind(n(progress.objects_absent))
        .bind(n(progress.objects_failed))
        .bind(n(progress.objects_unknown))
        .bind(n(progress.bytes_freed))
        .bind(n(rows))
        .bind(n(progress.versions_gone))
        .bind(n(progress.markers_gone))
        .bind(n(progress.objects_kept))
        .fetch_optional(conn)
        .await?;
    Ok(if done.is_some() { Fenced::Ours { paused: false } } else { Fenced::Lost })
}

/// What a statement that was sent at `asked`, and extends the lease where it is still ours, has found.
fn extended(lease: &Lease, asked: Moment, paused: Option<bool>) -> Fenced {
    paused.map_or(Fenced::Lost, |paused| {
        lease.extended(asked);
        Fenced::Ours { paused }
    })
}

fn ours(rows_affected: u64) -> Fenced {
    if rows_affected == 1 { Fenced::Ours { paused: false } } else { Fenced::Lost }
}
