//! What the database holds at the moment, in numbers, for the metrics.
//!
//! Invariant: one statement, which finds open tombstones and those of the last hour by their indexes: how many have ever
//! been closed does not matter.

use sqlx::PgConnection;

use super::StoreError;

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Open tombstones of a kind in a state.
    Open {
        /// The kind.
        kind: String,
        /// The state.
        state: String,
        /// How many.
        count: i64,
        /// Of those restorable and not yet due, how many come due within an hour, a day, a week.
        coming_due: [i64; 3],
        /// Seconds since the window of the one that is overdue longest, and that nobody holds; 0 where there is none.
        oldest_overdue: f64,
        /// How many are stuck until a date, on which they go on by themselves.
        locked: i64,
    },
    /// Tombstones of the last hour.
    Trashed {
        /// The kind.
        kind: String,
        /// How it was asked for.
        origin: String,
        /// How many.
        count: i64,
    },
    /// Messages in the outbox.
    Outbox {
        /// For whom.
        topic: String,
        /// How many.
        rows: i64,
        /// How many of them are due.
        due: i64,
        /// Seconds since the oldest of those came due; 0 where none is due.
        oldest: f64,
    },
    /// Holds.
    Holds(i64),
    /// Pauses.
    Pauses {
        /// Of what.
        scope: String,
        /// How many.
        count: i64,
    },
}

/// The statement: what, of which kind or topic or scope, and in which state or of which origin; counts; seconds. A hold
/// keeps what went into the trash with its resource too, up to the point of no return.
pub const STATEMENT: &str = "with recursive held(id) as (
         select t.id from reprieve.holds h
         cross join lateral (select id from reprieve.tombstones
                             where kind = h.kind and resource_id = h.resource_id offset 0) t
         union
         select t.id from held
         cross join lateral (select id from reprieve.tombstones where parent = held.id offset 0) t)
     select 'open', kind, state,
            array[count(*),
                  count(*) filter (where is_waiting and purge_after <= now() + interval '1 hour'),
                  count(*) filter (where is_waiting and purge_after <= now() + interval '1 day'),
                  count(*) filter (where is_waiting and purge_after <= now() + interval '7 days'),
                  count(retry_at)],
            greatest(extract(epoch from now() - min(late_since) filter (where not is_held)), 0)::float8
     from (select kind, state, purge_after, greatest(purge_after, purging_at) as late_since, retry_at,
                  state in ('trashed', 'blocked') and purge_after > now() as is_waiting,
                  state in ('trashed', 'blocked') and id in (select id from held) as is_held
           from reprieve.tombstones where state in ('trashed', 'blocked', 'purging', 'stuck')) as open
     group by kind, state
     union all
     select 'trashed', kind, origin, array[count(*)], 0
     from reprieve.tombstones where trashed_at > now() - interval '1 hour' group by kind, origin
     union all
     select 'outbox', topic, '', array[count(*), count(*) filter (where available_at <= now())],
            coalesce(extract(epoch from now() - min(available_at) filter (where available_at <= now())), 0)::float8
     from reprieve.outbox group by topic
     union all
     select 'holds', '', '', array[count(*)], 0 from reprieve.holds
     union all
     select 'pauses', scope, '', array[count(*)], 0 from reprieve.pauses group by scope";

/// Reads everything.
///
/// # Errors
/// The statement failed.
pub async fn read(conn: &mut PgConnection) -> Result<Vec<Fact>, StoreError> {
    let rows: Vec<(String, String, String, Vec<i64>, f64)> = sqlx::query_as(STATEMENT).fetch_all(conn).await?;
    Ok(rows.into_iter().filter_map(fact).collect())
}

fn fact((what, of, and, counts, seconds): (String, String, String, Vec<i64>, f64)) -> Option<Fact> {
    match (what.as_str(), counts.as_slice()) {
        ("open", &[count, hour, day, week, locked]) => {
            let coming_due = [hour, day, week];
            Some(Fact::Open { kind: of, state: and, count, coming_due, oldest_overdue: seconds, locked })
        }
        ("trashed", &[count]) => Some(Fact::Trashed { kind: of, origin: and, count }),
        ("outbox", &[rows, due]) => Some(Fact::Outbox { topic: of, rows, due, oldest: seconds }),
        ("holds", &[count]) => Some(Fact::Holds(count)),
        ("pauses", &[count]) => Some(Fact::Pauses { scope: of, count }),
        // the statement above returns nothing else
        _ => None,
    }
}
