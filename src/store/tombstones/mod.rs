//! Tombstones: reading them, writing them, and the changes before the point of no return.
//!
//! Invariant: the guards of `domain::state` stand in every `where`. What happens past the point of no return is in
//! [`purging`], and carries the fence.

mod lease;
pub mod purging;
mod row;

use std::time::Duration;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, types::Json};
use uuid::Uuid;

use self::row::Row;
use super::{StoreError, pauses::Scope};
use crate::domain::{
    cause::CorrelationId,
    ids::{Kind, ResourceId, ResourceRef, TombstoneId},
    location::{KeyPlace, Location},
    retention::Retention,
    state::State,
    tombstone::{Blocker, Provenance, Tombstone},
};

/// Every column of a [`Row`].
const COLUMNS: &str = "id, kind, resource_id, name, state, actor, origin, reason, correlation_id, traceparent, \
     tracestate, trashed_at, purge_after, parent, \
     locations, blockers, attempts, next_attempt_at, retry_at, last_error, fence, lease_owner, lease_until, objects_listed, \
     objects_deleted, objects_absent, versions_gone, markers_gone, objects_failed, objects_unknown, uploads_aborted, objects_kept, bytes_freed, rows_deleted, \
     row_found, purging_at, closed_at";

/// What a trash writes.
#[derive(Debug)]
pub struct NewTombstone<'a> {
    /// Its id.
    pub id: TombstoneId,
    /// Of which resource.
    pub resource: &'a ResourceRef,
    /// Its name now.
    pub name: Option<&'a str>,
    /// By whom and why.
    pub by: &'a Provenance,
    /// The restore window, from now.
    pub retention: Retention,
    /// The tombstone whose cascade this is.
    pub parent: Option<TombstoneId>,
    /// What to empty.
    pub locations: &'a [Location],
    /// Where its objects are recorded by key.
    pub recorded: &'a [KeyPlace],
}

/// An element of the column `locations`. Only one of keys has a member `keys`.
#[derive(Serialize)]
#[serde(untagged)]
enum Place<'a> {
    Prefix(&'a Location),
    Keys(&'a KeyPlace),
}

/// Which tombstones to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of these states; of all where empty.
    pub states: Vec<State>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Of the request with this id.
    pub correlation_id: Option<CorrelationId>,
    /// Only those whose window is over, the one that ended first at the head, instead of the newest.
    pub overdue: bool,
    /// At most so many.
    pub limit: u32,
}

/// Writes a tombstone in the state `trashed` and gives it back as it was written.
///
/// # Errors
/// The statement failed; the resource's row must be locked, so an open tombstone cannot be in the way.
pub async fn insert(conn: &mut PgConnection, new: NewTombstone<'_>) -> Result<Tombstone, StoreError> {
    let sql = format!(
        "insert into reprieve.tombstones
             (id, kind, resource_id, name, actor, origin, reason, parent, locations, correlation_id, traceparent,
              tracestate, trashed_at, purge_after, next_attempt_at)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $11, $12, $13, now(), due.at, due.at
         from (select now() + $10 * interval '1 second' as at) as due
         returning {COLUMNS}"
    );
    // one list, so that a pause of a store finds both in it
    let places: Vec<Place<'_>> =
        new.locations.iter().map(Place::Prefix).chain(new.recorded.iter().map(Place::Keys)).collect();
    let row: Row = sqlx::query_as(AssertSqlSafe(sql))
        .bind(new.id.0)
        .bind(new.resource.kind.as_str())
        .bind(new.resource.id.as_str())
        .bind(new.name)
        .bind(new.by.actor.as_str())
        .bind(&new.by.origin)
        .bind(new.by.reason.as_deref())
        .bind(new.parent.map(|id| id.0))
        .bind(Json(places))
        .bind(new.retention.duration().as_secs_f64())
        .bind(new.by.cause.correlation_id())
        .bind(new.by.cause.traceparent())
        .bind(new.by.cause.tracestate())
        .fetch_one(conn)
        .await?;
    row.try_into()
}

/// The tombstone of that id.
///
/// # Errors
/// The statement failed.
pub async fn find(conn: &mut PgConnection, id: TombstoneId) -> Result<Option<Tombstone>, StoreError> {
    fetch(conn, "where id = $1", |query| query.bind(id.0)).await
}

/// As [`find`], and locks it until the transaction ends.
///
/// # Errors
/// The statement failed, or the lock was not to be had in time.
pub async fn lock(conn: &mut PgConnection, id: TombstoneId) -> Result<Option<Tombstone>, StoreError> {
    fetch(conn, "where id = $1 for update", |query| query.bind(id.0)).await
}

/// A tombstone that somebody may go on with.
#[derive(Debug)]
pub struct Candidate {
    /// The tombstone.
    pub tombstone: Tombstone,
    /// How often it was looked at in vain since it last got further; spaces the next look.
    pub waits: u32,
    /// How long until it is to be looked at: its restore window's end or its next check, by the database's clock; zero
    /// when that has come.
    pub due_in: Duration,
    /// Whether a worker has it, by a lease that still runs.
    pub is_leased: bool,
}

/// As [`find`], with what a claim or a retry has to know besides.
///
/// # Errors
/// The statement failed.
pub async fn candidate(conn: &mut PgConnection, id: TombstoneId) -> Result<Option<Candidate>, StoreError> {
    fetch_candidate(conn, id, "").await
}

/// As [`candidate`], and locks it until the transaction ends.
///
/// # Errors
/// The statement failed, or the lock was not to be had in time.
pub async fn lock_candidate(conn: &mut PgConnection, id: TombstoneId) -> Result<Option<Candidate>, StoreError> {
    fetch_candidate(conn, id, "for update").await
}

async fn fetch_candidate(
    conn: &mut PgConnection,
    id: TombstoneId,
    lock: &str,
) -> Result<Option<Candidate>, StoreError> {
    #[derive(sqlx::FromRow)]
    struct Found {
        #[sqlx(flatten)]
        row: Row,
        waits: i32,
        due_in: f64,
        is_leased: bool,
    }
    let sql = format!(
        "select {COLUMNS}, waits,
                greatest(extract(epoch from greatest(purge_after, next_attempt_at) - now()), 0)::float8 as due_in,
                coalesce(lease_until >= now(), false) as is_leased
         from reprieve.tombstones where id = $1 {lock}"
    );
    let found: Option<Found> = sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).fetch_optional(conn).await?;
    found
        .map(|Found { row, waits, due_in, is_leased }| {
            Ok(Candidate {
                tombstone: row.try_into()?,
                waits: u32::try_from(waits).unwrap_or(0),
                due_in: Duration::from_secs_f64(due_in),
                is_leased,
            })
        })
        .transpose()
}

/// Whether anything of ours stands in the way of a purge: a hold, a pause, a child that is still in the trash. One
/// question for what is seldom the case; who asks goes on to ask what it is.
///
/// # Errors
/// The statement failed.
pub async fn is_kept(conn: &mut PgConnection, tombstone: &Tombstone) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "with recursive up as (
             select parent, kind, resource_id from reprieve.tombstones where id = $1
             union all
             select t.parent, t.kind, t.resource_id from reprieve.tombstones t join up on t.id = up.parent)
         select exists (select from reprieve.holds h join up on h.kind = up.kind and h.resource_id = up.resource_id)
             or exists (select from reprieve.pauses
                        where scope = 'all' or (scope = 'kind' and name = $2) or (scope = 'store' and name = any($3)))
             or exists (select from reprieve.tombstones
                        where parent = $1 and state in ('trashed', 'blocked', 'purging', 'stuck'))",
    )
    .bind(tombstone.id.0)
    .bind(tombstone.resource.kind.as_str())
    .bind(tombstone.stores())
    .fetch_one(conn)
    .await?)
}

/// The open tombstone of a resource, if it has one.
///
/// # Errors
/// The statement failed.
pub async fn open_of(conn: &mut PgConnection, resource: &ResourceRef) -> Result<Option<Tombstone>, StoreError> {
    let tail = "where kind = $1 and resource_id = $2 and state in ('trashed', 'blocked', 'purging', 'stuck')";
    fetch(conn, tail, |query| query.bind(resource.kind.as_str()).bind(resource.id.as_str())).await
}

/// The newest tombstone of a resource, open or not.
///
/// # Errors
/// The statement failed.
pub async fn newest_of(conn: &mut PgConnection, resource: &ResourceRef) -> Result<Option<Tombstone>, StoreError> {
    let tail = "where kind = $1 and resource_id = $2 order by trashed_at desc, id desc limit 1";
    fetch(conn, tail, |query| query.bind(resource.kind.as_str()).bind(resource.id.as_str())).await
}

/// The tombstones that a cascade wrote under `parent`, by id.
///
/// # Errors
/// The statement failed.
pub async fn children_of(conn: &mut PgConnection, parent: TombstoneId) -> Result<Vec<Tombstone>, StoreError> {
    let sql = format!("select {COLUMNS} from reprieve.tombstones where parent = $1 order by id");
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql)).bind(parent.0).fetch_all(conn).await?;
    rows.into_iter().map(Tombstone::try_from).collect()
}

/// Other resources in the trash whose objects lie below one of `locations`; at most 100.
///
/// # Errors
/// The statement failed.
pub async fn open_below(
    conn: &mut PgConnection,
    resource: &ResourceRef,
    locations: &[Location],
) -> Result<Vec<ResourceRef>, StoreError> {
    let found: Vec<(String, String)> = sqlx::query_as(
        "select distinct t.kind, t.resource_id from reprieve.tombstones t
         cross join jsonb_array_elements(t.locations) as inner_place
         cross join jsonb_array_elements($3::jsonb) as outer_place
         where t.state in ('trashed', 'blocked', 'purging', 'stuck') and not (t.kind = $1 and t.resource_id = $2)
           and inner_place ->> 'store' = outer_place ->> 'store' and inner_place ->> 'bucket' = outer_place ->> 'bucket'
           and starts_with(inner_place ->> 'prefix', outer_place ->> 'prefix') limit 100",
    )
    .bind(resource.kind.as_str())
    .bind(resource.id.as_str())
    .bind(Json(locations))
    .fetch_all(conn)
    .await?;
    let resource = |(kind, id)| ResourceRef { kind: Kind::from_stored(kind), id: ResourceId::from_stored(id) };
    Ok(found.into_iter().map(resource).collect())
}

/// Keeps the tombstones whose cascade brought this one from being held, restored or changed until the transaction
/// ends. Children are locked before their parents, everywhere.
///
/// # Errors
/// The statement failed, or a lock was not to be had in time.
pub async fn lock_ancestors(conn: &mut PgConnection, tombstone: &Tombstone) -> Result<(), StoreError> {
    let mut next = tombstone.parent.map(|id| id.0);
    while let Some(id) = next {
        let parent: Option<Option<Uuid>> =
            sqlx::query_scalar("select parent from reprieve.tombstones where id = $1 for share")
                .bind(id)
                .fetch_optional(&mut *conn)
                .await?;
        next = parent.flatten();
    }
    Ok(())
}

/// A tombstone and all that its cascade wrote, at any depth, by id from the newest: children before their parents.
///
/// # Errors
/// The statement failed.
pub async fn family_of(conn: &mut PgConnection, id: TombstoneId) -> Result<Vec<TombstoneId>, StoreError> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "with recursive down as (
             select id from reprieve.tombstones where id = $1
             union all
             select t.id from reprieve.tombstones t join down on t.parent = down.id)
         select id from down order by id desc",
    )
    .bind(id.0)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(TombstoneId).collect())
}

/// A list, newest first, or, of what is overdue, oldest first. One that cannot be read is left out and logged: it must not hide the others.
///
/// # Errors
/// The statement failed.
pub async fn list(conn: &mut PgConnection, filter: &Filter) -> Result<Vec<Tombstone>, StoreError> {
    let (only, order) = match filter.overdue {
        // what is closed is not overdue, whatever its window
        true => {
            let only = "and purge_after <= now() and state in ('trashed', 'blocked', 'purging', 'stuck')";
            (only, "purge_after, id")
        }
        false => ("", "trashed_at desc, id desc"),
    };
    let sql = format!(
        "select {COLUMNS} from reprieve.tombstones
         where (cardinality($1::text[]) = 0 or state = any($1)) and ($2::text is null or kind = $2)
           and ($4::text is null or correlation_id = $4) {only}
         order by {order} limit $3"
    );
    let states: Vec<String> = filter.states.iter().map(|state| state.as_str().to_owned()).collect();
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(states)
        .bind(filter.kind.as_deref())
        .bind(i64::from(filter.limit))
        .bind(filter.correlation_id.as_ref().map(CorrelationId::as_str))
        .fetch_all(conn)
        .await?;
    let readable = rows.into_iter().filter_map(|row| {
        let id = row.id();
        Tombstone::try_from(row)
            .inspect_err(|error| tracing::warn!(tombstone.id = %id, %error, "unreadable tombstone left out of a list"))
            .ok()
    });
    Ok(readable.collect())
}

/// `trashed`/`blocked` → `restored`. `None`: it no longer was in one of these.
///
/// # Errors
/// The statement failed.
pub async fn restore(conn: &mut PgConnection, id: TombstoneId) -> Result<Option<Tombstone>, StoreError> {
    let sql = format!(
        "update reprieve.tombstones set state = 'restored', closed_at = now(), blockers = '[]', last_error = null
         where id = $1 and state in ('trashed', 'blocked') returning {COLUMNS}"
    );
    let row: Option<Row> = sqlx::query_as(AssertSqlSafe(sql)).bind(id.0).fetch_optional(conn).await?;
    row.map(Tombstone::try_from).transpose()
}

/// `trashed`/`blocked` → `blocked`, by these users, to be looked at again after `wait`.
///
/// # Errors
/// The statement failed.
pub async fn block(
    conn: &mut PgConnection,
    id: TombstoneId,
    blockers: &[Blocker],
    wait: Duration,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones
         set state = 'blocked', blockers = $2, waits = waits + 1, last_error = null,
             next_attempt_at = now() + $3 * interval '1 second'
         where id = $1 and state in ('trashed', 'blocked')",
    )
    .bind(id.0)
    .bind(Json(blockers))
    .bind(wait.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Leaves the state as it is and looks again after `wait`, for the `reason`. `false`: it is past the point of no
/// return or closed.
///
/// # Errors
/// The statement failed.
pub async fn defer(conn: &mut PgConnection, id: TombstoneId, reason: &str, wait: Duration) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones
         set last_error = $2, waits = waits + 1, next_attempt_at = now() + $3 * interval '1 second'
         where id = $1 and state in ('trashed', 'blocked')",
    )
    .bind(id.0)
    .bind(reason)
    .bind(wait.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Notes what went wrong before anybody had a lease, and looks again after `wait`. `false`: it is closed or stuck, not
/// due, or somebody has the lease; then nothing changes.
///
/// # Errors
/// The statement failed.
pub async fn set_back(
    conn: &mut PgConnection,
    id: TombstoneId,
    reason: &str,
    wait: Duration,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones
         set last_error = $2, waits = waits + 1, next_attempt_at = now() + $3 * interval '1 second'
         where id = $1 and state in ('trashed', 'blocked', 'purging')
           and greatest(purge_after, next_attempt_at) <= now() and (lease_until is null or lease_until < now())",
    )
    .bind(id.0)
    .bind(reason)
    .bind(wait.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// How long its lease and its back-off still run; never zero, for it was not free a moment ago.
///
/// # Errors
/// The statement failed.
pub async fn until_free(conn: &mut PgConnection, id: TombstoneId) -> Result<Duration, StoreError> {
    const LEAST: f64 = 0.2;
    let seconds: Option<f64> = sqlx::query_scalar(
        "select extract(epoch from greatest(lease_until, next_attempt_at) - now())::float8
         from reprieve.tombstones where id = $1",
    )
    .bind(id.0)
    .fetch_optional(conn)
    .await?;
    Ok(Duration::from_secs_f64(seconds.unwrap_or(LEAST).max(LEAST)))
}

/// How often it was looked at in vain since it last got further; spaces the next look.
///
/// # Errors
/// The statement failed.
pub async fn waits(conn: &mut PgConnection, id: TombstoneId) -> Result<u32, StoreError> {
    let count: Option<i32> = sqlx::query_scalar("select waits from reprieve.tombstones where id = $1")
        .bind(id.0)
        .fetch_optional(conn)
        .await?;
    Ok(count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0))
}

/// Makes a due tombstone be looked at now instead of at its next check (a hold was lifted, a child has gone, a purge was
/// asked for). The restore window is not shortened. `false`: it is not due, or closed, or stuck.
///
/// # Errors
/// The statement failed.
pub async fn wake(conn: &mut PgConnection, id: TombstoneId) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update reprieve.tombstones set next_attempt_at = least(next_attempt_at, now())
         where id = $1 and state in ('trashed', 'blocked', 'purging') and purge_after <= now()",
    )
    .bind(id.0)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// As [`wake`], of what is due and was paused by `scope`: at most `limit`, by id, those after `after`; passes over those
/// that somebody works on already. Fewer than `limit` means that there are no more.
///
/// # Errors
/// The statement failed.
pub async fn wake_paused(
    conn: &mut PgConnection,
    scope: &Scope,
    after: Option<TombstoneId>,
    limit: u32,
) -> Result<Vec<TombstoneId>, StoreError> {
    let (what, name) = scope.parts();
    let mut woken: Vec<Uuid> = sqlx::query_scalar(
        "update reprieve.tombstones set next_attempt_at = least(next_attempt_at, now())
         where id in (
             select id from reprieve.tombstones
             where state in ('trashed', 'blocked', 'purging') and purge_after <= now() and id > $3
               and case $1 when 'kind' then kind = $2
                           when 'store' then locations @> jsonb_build_array(jsonb_build_object('store', $2))
                           else true end
             order by id limit $4 for update skip locked)
         returning id",
    )
    .bind(what)
    .bind(name)
    .bind(after.map_or(Uuid::nil(), |id| id.0))
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    woken.sort_unstable();
    Ok(woken.into_iter().map(TombstoneId).collect())
}

/// Notes that the broker has these tombstones' tasks; passes over those that somebody works on already.
///
/// # Errors
/// The statement failed.
pub async fn mark_queued(conn: &mut PgConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query(
        "update reprieve.tombstones set queued_at = now() where id in (
             select id from reprieve.tombstones where id = any($1) for update skip locked)",
    )
    .bind(ids)
    .execute(conn)
    .await?;
    Ok(())
}

/// Tombstones that should be worked on and for which nothing is under way: due, no task in the outbox, none handed to
/// the broker within `redeliver_after` (after that it counts as lost), no living lease. At most `limit`, longest
/// overdue first; rows that somebody else has locked are passed over.
///
/// # Errors
/// The statement failed.
pub async fn overdue(
    conn: &mut PgConnection,
    redeliver_after: Duration,
    limit: u32,
) -> Result<Vec<TombstoneId>, StoreError> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "select t.id from reprieve.tombstones t
         where (t.state in ('trashed', 'blocked', 'purging') or t.retry_at is not null)
           and t.next_attempt_at <= now() and t.purge_after <= now()
           and (t.lease_until is null or t.lease_until < now())
           and (t.queued_at is null or t.queued_at < now() - $1 * interval '1 second')
           and not exists (select from reprieve.outbox o where o.tombstone_id = t.id and o.topic = 'purge')
         order by t.next_attempt_at limit $2 for update of t skip locked",
    )
    .bind(redeliver_after.as_secs_f64())
    .bind(i64::from(limit))
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(TombstoneId).collect())
}

type RowQuery<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, Row, sqlx::postgres::PgArguments>;

async fn fetch<'q>(
    conn: &mut PgConnection,
    tail: &str,
    bind: impl FnOnce(RowQuery<'q>) -> RowQuery<'q>,
) -> Result<Option<Tombstone>, StoreError> {
    let sql = format!("select {COLUMNS} from reprieve.tombstones {tail}");
    let row = bind(sqlx::query_as(AssertSqlSafe(sql))).fetch_optional(conn).await?;
    row.map(Tombstone::try_from).transpose()
}
