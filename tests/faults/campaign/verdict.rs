//! What must hold when the faults are over, whatever they were.
//!
//! Each check reads the tables, the bucket and what was heard, and holds them against the truth of [`Land`]; each
//! broken promise is noted with the resource that it concerns.

mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use sqlx::FromRow;
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;

use super::land::{Known, Land};
use super::listener::Heard;
use crate::amqp::Amqp;
use crate::support::heimdall;

/// A tombstone, straight from the table.
#[derive(Debug, Clone, FromRow)]
struct Stands {
    id: Uuid,
    kind: String,
    resource_id: String,
    state: String,
    purge_after: OffsetDateTime,
    purging_at: Option<OffsetDateTime>,
    last_error: Option<String>,
    lease_owner: Option<String>,
    held: bool,
    living_blockers: i64,
    listed: i64,
    gone: i64,
    left: i64,
}

/// Waits until nothing moves any more: what is due is done, or waits for something that is really there. Says how long
/// it took.
pub async fn settled(land: &Land, limit: Duration) -> Option<Duration> {
    const LOOK: Duration = Duration::from_millis(250);
    let began = Instant::now();
    let (mut quiet, mut told) = (0, 0);
    while began.elapsed() < limit {
        let moving = moving(land).await;
        quiet = if moving.is_empty() { quiet + 1 } else { 0 };
        if quiet == 4 {
            return Some(began.elapsed());
        }
        if began.elapsed().as_secs() >= told + 15 {
            told = began.elapsed().as_secs();
            eprintln!("after {told} s {} things move, such as {:?}", moving.len(), moving.first());
        }
        sleep(LOOK).await;
    }
    for what in moving(land).await {
        land.tally.broken(format!("not settled after {limit:?}: {what}"));
    }
    None
}

async fn moving(land: &Land) -> Vec<String> {
    let mut moving: Vec<String> = stands(land)
        .await
        .into_iter()
        .filter(|now| match now.state.as_str() {
            "restored" | "purged" | "stuck" => false,
            "trashed" | "blocked" => !now.held && now.living_blockers == 0,
            _ => true,
        })
        .map(|now| format!("{now:?}"))
        .collect();
    let due: Vec<String> = sqlx::query_scalar(
        "select row_to_json(o)::text from reprieve.outbox o
         where topic <> 'purge' or available_at <= now() and not exists (select from reprieve.tombstones t
               where t.id = o.tombstone_id and (t.state = 'blocked' or t.state = 'trashed'))",
    )
    .fetch_all(&land.pool)
    .await
    .expect("reads");
    moving.extend(due.into_iter().map(|row| format!("message in the outbox: {row}")));
    moving
}

async fn stands(land: &Land) -> Vec<Stands> {
    sqlx::query_as(
        "select t.id, kind, resource_id, state, purge_after, purging_at, last_error, lease_owner,
                (select count(*) from jsonb_to_recordset(t.blockers) b (id uuid)
                 where exists (select from heimdall.models m where m.id = b.id and m.is_active)
                    or exists (select from heimdall.training_jobs j where j.id = b.id and j.status = 'running')
                    or exists (select from reprieve.tombstones s where s.id = b.id
                               and s.state in ('trashed', 'blocked', 'purging', 'stuck'))) as living_blockers,
                exists (with recursive up as (
                            select id, kind, resource_id, parent from reprieve.tombstones s where s.id = t.id
                            union all
                            select s.id, s.kind, s.resource_id, s.parent from reprieve.tombstones s join up on s.id = up.parent)
                        select from up join reprieve.holds h on h.kind = up.kind and h.resource_id = up.resource_id) as held,
                objects_listed as listed, objects_deleted + objects_absent as gone,
                objects_failed + objects_unknown as left
         from reprieve.tombstones t order by trashed_at",
    )
    .fetch_all(&land.pool)
    .await
    .expect("reads")
}

/// What must hold at any time when nothing moves.
pub async fn judge(land: &Land, first_deleted: &BTreeMap<String, SystemTime>, exact: bool) {
    let tombstones = stands(land).await;
    for now in &tombstones {
        let named = format!("{} {} ({})", now.kind, now.resource_id, now.id);
        let must = |kept: bool, what: String| land.tally.must(kept, || format!("{named}: {what}: {now:?}"));
        must(now.lease_owner.is_none(), "a lease is held although nothing moves".into());
        must(now.purging_at.is_none_or(|at| at >= now.purge_after), "it was begun before its time".into());
        must(now.listed == now.gone + now.left, "its counters do not add up".into());
        let reason = now.last_error.clone().unwrap_or_default();
        must(now.state != "restored" || now.purging_at.is_none(), "restored past the point of no return".into());
        must(now.state != "stuck" || !reason.is_empty(), "stuck without a reason".into());
        if now.state == "stuck" {
            land.tally.add(format!("stuck: {}", reason.chars().take(160).collect::<String>()));
        }
    }
    objects_and_rows(land, &tombstones).await;
    rows_after_objects(land, first_deleted).await;
    receipts(land, &tombstones, exact).await;
    told::holds(land).await;
    told::each_step_once(land).await;
    told::acknowledged(land, &tombstones);
    uses(land).await;
    others(land, &tombstones).await;
}

/// With nothing left that holds, uses or denies it, all that was trashed has come to its end.
pub async fn all_have_ended(land: &Land) {
    for now in stands(land).await {
        let ended = now.state == "purged" || now.state == "restored";
        land.tally.must(ended, || format!("nothing is in its way, and it has not ended: {now:?}"));
        land.tally.add(format!("ended: {}", now.state));
    }
}

/// What is in use is not in the trash: whoever came second was refused.
async fn uses(land: &Land) {
    let used: Vec<(Uuid, Option<String>)> = sqlx::query_as(
        "select u.dataset, (select max(t.state) from reprieve.tombstones t where t.resource_id = u.dataset::text
                            and t.kind = 'dataset' and t.state <> 'restored')
         from (select synthetic_dataset_id from heimdall.models where is_active
               union select dataset_id from heimdall.training_jobs where status = 'running') u (dataset)
         where u.dataset is not null",
    )
    .fetch_all(&land.pool)
    .await
    .expect("reads");
    for (dataset, grave) in used {
        land.tally.must(grave.is_none(), || format!("{dataset} is in use and {grave:?}"));
        land.tally.add("judged: uses that go on");
    }
    // the foreign key takes the dataset away from what used it
    let bereft = "select (select count(*) from heimdall.models where is_active and synthetic_dataset_id is null)
                       + (select count(*) from heimdall.training_jobs where status = 'running' and dataset_id is null)";
    let bereft: i64 = sqlx::query_scalar(bereft).fetch_one(&land.pool).await.expect("reads");
    land.tally.must(bereft == 0, || format!("{bereft} uses have lost their datasets"));
}

/// What is no dataset: a job is there unless it was purged, and every model is.
async fn others(land: &Land, tombstones: &[Stands]) {
    let purged: BTreeSet<&str> = tombstones
        .iter()
        .filter(|now| now.kind == "job" && now.state == "purged")
        .map(|now| now.resource_id.as_str())
        .collect();
    let rows = async |table: &str| -> BTreeSet<Uuid> {
        let sql = sqlx::AssertSqlSafe(format!("select id from heimdall.{table}"));
        sqlx::query_scalar(sql).fetch_all(&land.pool).await.expect("reads").into_iter().collect()
    };
    let (jobs, models) = (rows("training_jobs").await, rows("models").await);
    for job in &land.jobs {
        let (is_there, is_purged) = (jobs.contains(job), purged.contains(job.to_string().as_str()));
        land.tally.must(is_there != is_purged, || format!("job {job}: there {is_there}, purged {is_purged}"));
    }
    let lost = land.datasets.iter().flat_map(|known| &known.models).filter(|model| !models.contains(model)).count();
    land.tally.must(lost == 0, || format!("{lost} models are gone, which nobody has trashed"));
}

/// The datasets that were purged, and so must have gone.
fn purged(tombstones: &[Stands]) -> BTreeSet<Uuid> {
    let of_datasets = tombstones.iter().filter(|now| now.kind == "dataset" && now.state == "purged");
    of_datasets.map(|now| now.resource_id.parse().expect("ids are uuids")).collect()
}

/// Every key in the bucket. A listing that is as long as this now and then leaves some out (SeaweedFS, at the edge of a
/// page among hostile keys), so what it does not show is asked for by its name.
async fn stored(land: &Land, purged: &BTreeSet<Uuid>) -> BTreeSet<String> {
    let mut stored = land.list("").await.expect("no fault is left");
    for known in &land.datasets {
        let keys = known.keys.iter().filter(|_| !purged.contains(&known.id));
        for key in keys.chain(&known.siblings) {
            if !stored.contains(key) && land.has(key).await {
                land.tally.add("store: objects that its listing left out");
                stored.insert(key.clone());
            }
        }
    }
    stored
}

async fn objects_and_rows(land: &Land, tombstones: &[Stands]) {
    let purged = purged(tombstones);
    let begun: BTreeSet<&str> = tombstones
        .iter()
        .filter(|now| now.state == "purging" || now.state == "stuck")
        .map(|now| now.resource_id.as_str())
        .collect();
    let stored = stored(land, &purged).await;
    let mut expected = BTreeSet::new();
    let mut conn = land.pool.acquire().await.expect("no fault is left");
    for known in &land.datasets {
        expected.extend(known.siblings.iter());
        let rows = heimdall::count_rows(&mut *conn, known.id).await.expect("reads");
        if purged.contains(&known.id) {
            land.tally.must(rows == 0, || format!("{} is purged and has {rows} rows", known.id));
            continue;
        }
        expected.extend(known.keys.iter());
        if begun.contains(known.id.to_string().as_str()) {
            // stuck in the middle: some objects may be gone, and the rows that list them may not
            continue;
        }
        let here = known.keys.iter().filter(|key| stored.contains(*key)).count();
        land.tally.must(here == known.keys.len(), || {
            format!("{} was not purged and has {here} of {} objects", known.id, known.keys.len())
        });
        land.tally
            .must(rows == known.rows, || format!("{} was not purged and has {rows} of {} rows", known.id, known.rows));
    }
    for known in &land.datasets {
        for sibling in &known.siblings {
            land.tally.must(stored.contains(sibling), || format!("the neighbour {sibling:?} is gone"));
        }
    }
    let stray: Vec<&String> = stored.iter().filter(|key| !expected.contains(key)).collect();
    land.tally.must(stray.is_empty(), || {
        format!("{} objects of purged datasets are left, such as {:?}", stray.len(), stray.first())
    });
}

/// No row went before the last object of its dataset.
async fn rows_after_objects(land: &Land, first_deleted: &BTreeMap<String, SystemTime>) {
    let gone: Vec<(Uuid, OffsetDateTime)> = sqlx::query_as("select dataset, min(at) from truth.gone group by dataset")
        .fetch_all(&land.pool)
        .await
        .expect("reads");
    let first_row: BTreeMap<Uuid, OffsetDateTime> = gone.into_iter().collect();
    for known in &land.datasets {
        let Some(row) = first_row.get(&known.id) else { continue };
        let early: Vec<&String> = known
            .keys
            .iter()
            .filter(|key| first_deleted.get(*key).is_none_or(|object| OffsetDateTime::from(*object) > *row))
            .collect();
        land.tally.must(early.is_empty(), || {
            format!("a row of {} went at {row}, before {} objects such as {:?}", known.id, early.len(), early.first())
        });
        land.tally.add("judged: rows that went after their objects");
    }
}

/// Each purge has one receipt, and it says what was there.
async fn receipts(land: &Land, tombstones: &[Stands], exact: bool) {
    let entries: Vec<(Uuid, Value)> =
        sqlx::query_as("select tombstone_id, details from reprieve.audit where event = 'purged'")
            .fetch_all(&land.pool)
            .await
            .expect("reads");
    let mut of: BTreeMap<Uuid, Vec<Value>> = BTreeMap::new();
    entries.into_iter().for_each(|(id, details)| of.entry(id).or_default().push(details));
    let known: BTreeMap<String, &Known> = land.datasets.iter().map(|known| (known.id.to_string(), known)).collect();
    let once_stuck: Vec<Uuid> = sqlx::query_scalar("select tombstone_id from reprieve.audit where event = 'stuck'")
        .fetch_all(&land.pool)
        .await
        .expect("reads");
    for now in tombstones {
        let receipts = of.remove(&now.id).unwrap_or_default();
        let due = usize::from(now.state == "purged");
        land.tally.must(receipts.len() == due, || format!("{} receipts and {due} is due: {now:?}", receipts.len()));
        let (Some(receipt), Some(known)) = (receipts.first(), known.get(&now.resource_id)) else { continue };
        let n = |pointer: &str| receipt.pointer(pointer).and_then(Value::as_i64).unwrap_or(-1);
        let put = i64::try_from(known.keys.len()).expect("some thousand");
        let gone = n("/objects/deleted") + n("/objects/absent");
        land.tally.must(n("/objects/failed") == 0 && n("/objects/unknown") == 0, || format!("objects left: {receipt}"));
        // a listing that shows the past makes an object be seen, and counted, once more; and one that was deleted, and
        // said to be denied, has failed in its pass and is not there to be counted in the next
        let right = match once_stuck.contains(&now.id) {
            true => !exact || gone <= put,
            false => gone == put || (!exact && gone > put),
        };
        land.tally.must(right, || format!("{put} objects were put, and the receipt says {gone}: {now:?}"));
        land.tally.must(n("/rows_deleted") == known.rows, || format!("{} rows were there: {receipt}", known.rows));
        land.tally.add("judged: receipts");
    }
    land.tally.must(of.is_empty(), || format!("receipts of no tombstone: {:?}", of.keys()));
}

/// Every event was heard, as often as it is in the audit log, and none that is not.
pub async fn judge_events(land: &Land, heard: &Heard) {
    let told: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "select tombstone_id, event, count(*) from reprieve.audit
         where tombstone_id is not null and event not in ('held', 'released') group by 1, 2",
    )
    .fetch_all(&land.pool)
    .await
    .expect("reads");
    let mut left: BTreeMap<(String, String), usize> =
        heard.events.iter().map(|(about, messages)| (about.clone(), messages.len())).collect();
    for (tombstone, event, times) in told {
        let about = (tombstone.to_string(), event);
        let heard = left.remove(&about).unwrap_or(0);
        land.tally.must(i64::try_from(heard) == Ok(times), || {
            format!("the event {about:?} is {times} times in the audit log and was heard {heard} times")
        });
        land.tally.add("judged: events");
    }
    land.tally.must(left.is_empty(), || format!("events without a commit: {left:?}"));
}

/// Every request that the broker confirmed was carried out, but those that it lost with everything else.
pub async fn judge_requests(land: &Land, heard: &Heard) {
    let answered: Vec<(String, Value)> =
        sqlx::query_as("select message_id, answer from reprieve.requests").fetch_all(&land.pool).await.expect("reads");
    let answered: BTreeMap<String, String> =
        answered.into_iter().map(|(id, answer)| (id, super::listener::said(&answer))).collect();
    let wipes = land.ledger.wipes.load(std::sync::atomic::Ordering::SeqCst);
    for sent in land.ledger.sent.lock().expect("a list").iter() {
        if let Some(answer) = answered.get(&sent.message_id) {
            land.tally.add("judged: requests carried out");
            let Some(replies) = heard.replies.get(&sent.message_id) else {
                land.tally.must(sent.wipes_before < wipes, || format!("{} was answered to nobody", sent.message_id));
                continue;
            };
            // however often it came, it was carried out once
            land.tally.must(replies.iter().eq([answer]), || {
                format!("the request {} was answered {replies:?}, and {answer:?} is kept", sent.message_id)
            });
            land.tally.add("judged: requests whose reply was heard");
        } else {
            land.tally.must(sent.wipes_before < wipes, || {
                format!("the request {} was confirmed and is lost", sent.message_id)
            });
            land.tally.add("requests that are nowhere");
        }
    }
}

/// Nothing waits in the queues, and what was set aside can be understood: it is a forgery, or it was answered.
pub async fn judge_queues(land: &Land) {
    let amqp = Amqp::connect(&land.world).await;
    for queue in ["requests", "purge"] {
        crate::support::wait_until(format!("the queue {queue} is empty"), crate::support::SOON, async || {
            amqp.depth(queue).await == 0
        })
        .await;
    }
    let answered: Vec<String> =
        sqlx::query_scalar("select message_id from reprieve.requests").fetch_all(&land.pool).await.expect("reads");
    let sent: BTreeSet<String> =
        land.ledger.sent.lock().expect("a list").iter().map(|sent| sent.message_id.clone()).collect();
    while let Some(dead) = amqp.try_take(&format!("{}.dead", land.world.namespace)).await {
        let reason = dead.headers.get("x-reprieve-reason").map_or("too many deliveries", |reason| reason.as_str());
        land.tally.add(format!("dead letter: {}", reason.chars().take(60).collect::<String>()));
        let Some(id) = dead.message_id.filter(|id| sent.contains(id)) else { continue };
        land.tally.must(answered.contains(&id), || format!("the request {id} was set aside unanswered: {reason}"));
    }
}
