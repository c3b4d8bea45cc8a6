//! Long backlogs: what the relay and the sweeper read of a hundred thousand tombstones, and what leaves the outbox
//! when the broker is slow or takes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reprieve::domain::ids::TombstoneId;
use reprieve::domain::location::Location;
use reprieve::queue::{Consumer, Depths, Outgoing, PublishOutcome, Publisher, QueueError, Source, Target, TaskQueue};
use reprieve::relay::Relay;
use reprieve::store::outbox::{self, Window};
use reprieve::store::{commit, recorded, tombstones};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::bench::{BUCKET, Bench};
use crate::keyed::{MAP, TABLES, name};
use crate::support::{SOON, wait_until};

/// What the planner and the tables see after years: 50,000 wait for their time, each with its task; 10,000 are due, the
/// older half of them with a task in the outbox, the others handed to the broker long ago; the rest is closed.
const CROWD: &str = "
    insert into reprieve.tombstones (id, kind, resource_id, actor, origin, locations, state, trashed_at, purge_after,
        next_attempt_at, purging_at, closed_at, queued_at)
    select md5(n::text)::uuid, 'dataset', n::text, 'alice', 'test', '[]',
           case when n <= 60000 then 'trashed' else 'purged' end, now() - interval '60 days',
           due.at, due.at, case when n > 60000 then due.at end, case when n > 60000 then due.at end,
           case when n > 55000 then now() - interval '2 days' end
    from generate_series(1, 100000) as n,
         lateral (select now() + case when n <= 50000 then 1 else -1 end * interval '1 day' + n * interval '1 millisecond' as at) as due;
    insert into reprieve.outbox (id, topic, destination, payload, tombstone_id, available_at)
    select gen_random_uuid(), 'purge', '', '{}', id, purge_after from reprieve.tombstones
    where resource_id::int <= 55000;
    insert into reprieve.outbox (id, topic, destination, payload)
    select gen_random_uuid(), 'event', 'dataset.trashed', '{}' from generate_series(1, 100);
    analyze reprieve.tombstones, reprieve.outbox";

/// What the statements of this transaction have read of our tables so far.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Read {
    sequential_scans: i64,
    rows: i64,
}

async fn read(conn: &mut PgConnection) -> Read {
    let (sequential_scans, rows) = sqlx::query_as(
        "select coalesce(sum(seq_scan), 0)::bigint, coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint
         from pg_stat_xact_user_tables where schemaname = 'reprieve'",
    )
    .fetch_one(conn)
    .await
    .expect("counted");
    Read { sequential_scans, rows }
}

#[tokio::test]
async fn of_a_hundred_thousand_tombstones_the_sweeper_reads_those_that_are_due_and_no_closed_one() {
    const DUE: i64 = 10_000;
    let bench = Bench::heimdall().await;
    bench.run(CROWD).await;
    let mut tx = bench.store.begin().await.expect("begins");
    let before = read(&mut tx).await;
    let began = Instant::now();
    let found = tombstones::overdue(&mut tx, Duration::from_secs(900), 500).await.expect("reads");
    let took = began.elapsed();
    let after = read(&mut tx).await;
    eprintln!("overdue: {took:.1?}, {} rows read", after.rows - before.rows);
    assert_eq!(found.len(), 500);
    assert_eq!(after.sequential_scans, before.sequential_scans, "no table is read from end to end");
    // each due one, its task, and each of the found ones once more to lock it
    assert!(after.rows - before.rows <= 2 * DUE + 1_000, "{after:?}");
}

/// The numbers of the resources whose tasks these are, in their order.
async fn oldest(conn: &mut PgConnection, leased: &[outbox::Leased]) -> Vec<u32> {
    let mut numbers = Vec::new();
    for id in leased.iter().filter_map(|row| row.tombstone) {
        let found = tombstones::find(conn, id).await.expect("reads").expect("it is there");
        numbers.push(found.resource.id.as_str().parse().expect("a number"));
    }
    numbers
}

#[tokio::test]
async fn the_relay_reads_no_more_of_a_long_outbox_than_it_takes_also_when_it_holds_tasks_back() {
    let bench = Bench::heimdall().await;
    bench.run(CROWD).await;
    for window in [Window { tasks: 256, messages: 256 }, Window { tasks: 0, messages: 256 }] {
        let mut tx = bench.store.begin().await.expect("begins");
        let before = read(&mut tx).await;
        let began = Instant::now();
        let leased = outbox::lease(&mut tx, window, Duration::from_secs(60)).await.expect("leases");
        let took = began.elapsed();
        let after = read(&mut tx).await;
        let (taken, rows) = (leased.len(), after.rows - before.rows);
        eprintln!("lease of {taken}: {took:.1?}, {rows} rows read");
        assert_eq!(taken, 100 + usize::from(window.tasks), "all events, and the tasks that there is room for");
        let tasks: Vec<u32> = oldest(&mut tx, &leased).await;
        assert!(
            tasks.iter().eq(&(50_001..50_001 + u32::from(window.tasks)).collect::<Vec<_>>()),
            "the oldest, in order"
        );
        assert_eq!(after.sequential_scans, before.sequential_scans, "the outbox is not read from end to end");
        // found and locked; then found again to be leased
        assert!(rows <= 3 * taken as i64 + 50, "{rows} rows read for {taken}");
        // a transaction that is only dropped holds its locks for another while
        tx.rollback().await.expect("ends");
    }
}

/// Blocks of the records and their indexes that this connection has touched so far.
async fn blocks_of_records(conn: &mut PgConnection) -> i64 {
    // its own statistics are written at the end of the statement, and read by the next
    sqlx::query("select pg_stat_force_next_flush()").execute(&mut *conn).await.expect("flushes");
    let touched = sqlx::query_scalar(
        "select (heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint
         from pg_statio_user_tables where relid = 'reprieve.recorded_objects'::regclass",
    );
    touched.fetch_one(conn).await.expect("counted")
}

#[tokio::test]
async fn a_claim_reads_neither_all_of_the_trash_nor_all_that_somebody_has_recorded_there() {
    let bench = Bench::with(MAP, TABLES, |_| ()).await;
    bench.run(CROWD).await;
    name(&bench, "a", &["zz"]).await;
    name(&bench, "b", &["folders/g/1"]).await;
    let (a, _) = (bench.trash("album", "a").await, bench.trash("album", "b").await);
    // one has recorded very much, on both sides of the prefix, and 100,000 others nothing
    bench
        .run(&format!(
            "insert into reprieve.recorded_objects
             select '{a}', 0, side || n || '.bin', null
             from generate_series(1, 100000) n, unnest(array['files/', 'folders/e', 'tracks/']) side;
             analyze reprieve.recorded_objects"
        ))
        .await;
    let at = |prefix: &str| -> Location {
        serde_json::from_value(serde_json::json!({ "store": "main", "bucket": BUCKET, "prefix": prefix })).expect("one")
    };
    let folder = bench.resource("folder", "f");
    let mut conn = bench.store.conn().await.expect("a connection");
    for (prefixes, finds) in [(vec![at("folders/f/")], 0), (vec![at("folders/f/"), at("folders/g/")], 1)] {
        // a plan is made for any values after some times; it has to be as good
        for time in 0..10 {
            let (blocks, rows) = (blocks_of_records(&mut conn).await, read(&mut conn).await.rows);
            let found = recorded::recorded_below(&mut conn, &folder, &prefixes).await.expect("asks");
            assert_eq!(found.len(), finds, "{found:?}");
            let rows = read(&mut conn).await.rows - rows;
            let blocks = blocks_of_records(&mut conn).await - blocks;
            eprintln!("{blocks} blocks of records, {rows} rows read");
            assert!((1..100).contains(&blocks) && rows < 100, "{time}: {blocks} blocks, {rows} rows");
        }
    }
}

#[tokio::test]
async fn however_many_are_recorded_they_are_forgotten_in_one_scan_and_nobody_elses() {
    let bench = Bench::with(MAP, TABLES, |_| ()).await;
    let of = |n: u128| TombstoneId(uuid::Uuid::from_u128(n));
    for (n, count) in [(1, 1_000), (2, 10_000), (3, 40_000)] {
        let records = format!("select '{}', place, n || '.bin', null from generate_series(1, {count}) n", of(n));
        let both = format!("insert into reprieve.recorded_objects {records}, generate_series(0, 1) place");
        bench.run(&both).await;
    }
    bench.run("analyze reprieve.recorded_objects").await;
    for (n, count) in [(2, 20_000), (3, 80_000)] {
        let mut tx = bench.store.begin().await.expect("begins");
        let before = forgotten(&mut tx).await;
        recorded::forget_all(&mut tx, of(n)).await.expect("forgets");
        let after = forgotten(&mut tx).await;
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, count), "scans of the table, and rows deleted");
        commit(tx).await.expect("commits");
    }
    assert_eq!(bench.count("reprieve.recorded_objects").await, 2_000, "somebody else's");
}

/// How often this transaction has gone over the records, and how many it has deleted.
async fn forgotten(conn: &mut PgConnection) -> (i64, i64) {
    let counted = sqlx::query_as(
        "select (seq_scan + coalesce(idx_scan, 0))::bigint, n_tup_del::bigint from pg_stat_xact_user_tables
         where relid = 'reprieve.recorded_objects'::regclass",
    );
    counted.fetch_one(conn).await.expect("counted")
}

/// A broker that takes purge tasks and nothing else.
#[derive(Debug, Clone, Default)]
struct TasksOnly {
    tasks: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    events: Arc<AtomicU64>,
}

#[async_trait]
impl Publisher for TasksOnly {
    async fn publish(&mut self, window: &[Outgoing]) -> Result<Vec<PublishOutcome>, QueueError> {
        let outcome = |message: &Outgoing| match message.target {
            Target::Purge => {
                self.tasks.fetch_add(1, Ordering::SeqCst);
                PublishOutcome::Confirmed
            }
            Target::Events(_) => {
                self.events.fetch_add(1, Ordering::SeqCst);
                PublishOutcome::Refused("403 ACCESS_REFUSED".to_owned())
            }
            Target::Reply(ref queue) if queue == "slow" => PublishOutcome::Unconfirmed("no confirm in time".to_owned()),
            Target::Reply(_) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                PublishOutcome::Refused("403 ACCESS_REFUSED".to_owned())
            }
        };
        Ok(window.iter().map(outcome).collect())
    }

    async fn tasks_waiting(&mut self) -> Result<u64, QueueError> {
        Ok(self.tasks.load(Ordering::SeqCst))
    }
}

#[async_trait]
impl TaskQueue for TasksOnly {
    async fn prepare(&self) -> Result<(), QueueError> {
        Ok(())
    }

    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError> {
        Ok(Box::new(self.clone()))
    }

    async fn consumer(&self, _: Source, _: u16) -> Result<Box<dyn Consumer>, QueueError> {
        unreachable!("nobody consumes here")
    }

    async fn depths(&self) -> Result<Depths, QueueError> {
        Ok(Depths::default())
    }
}

#[tokio::test]
async fn only_a_reply_that_is_refused_is_ever_dropped_and_it_holds_nothing_up() {
    let bench = Bench::with(crate::bench::HEIMDALL, "", |config| config.relay.max_queued = 3).await;
    for n in 0..5 {
        bench.trash_due("dataset", bench.dataset(&format!("set {n}"), 0).await).await;
    }
    let mut conn = bench.store.conn().await.expect("a connection");
    for queue in ["forbidden", "slow"] {
        let reply = outbox::Reply { queue, correlation_id: None, trace: None, payload: &serde_json::json!({}) };
        outbox::reply(&mut conn, reply).await.expect("written");
    }
    let (broker, stop) = (TasksOnly::default(), CancellationToken::new());
    let relay = Relay::new(bench.store.clone(), bench.config.relay.clone(), bench.metrics.clone()).expect("fine");
    let (queue, token) = (broker.clone(), stop.clone());
    let running = tokio::spawn(async move { relay.run(&queue, &token).await });
    wait_until("the reply is dropped", SOON, async || {
        // its back-off is not waited for
        bench
            .run("update reprieve.outbox set available_at = now() where topic <> 'purge' and available_at > now()")
            .await;
        bench.count("reprieve.outbox where topic <> 'purge' and attempts <= 10").await == 0
    })
    .await;
    stop.cancel();
    running.await.expect("no panic").expect("it ends well");
    assert_eq!(
        bench.count("reprieve.outbox where topic = 'reply' and destination = 'slow'").await,
        1,
        "it may come through"
    );
    assert_eq!(bench.count("reprieve.outbox where topic = 'event'").await, 5, "no event is lost");
    assert!(broker.events.load(Ordering::SeqCst) > 50);
    assert_eq!(broker.refused.load(Ordering::SeqCst), 10);
    assert_eq!(broker.tasks.load(Ordering::SeqCst), 3, "as many as may wait");
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge' and leased_until is null").await, 2, "held back");
}

#[tokio::test]
async fn old_answers_are_forgotten_some_thousand_at_a_time() {
    let bench = Bench::heimdall().await;
    bench
        .run(
            "insert into reprieve.requests (message_id, answered_at, digest, answer)
             select n::text, now() - interval '40 days' + case when n > 25000 then 30 else 0 end * interval '1 day', '', 'null'
             from generate_series(1, 26000) as n; analyze reprieve.requests",
        )
        .await;
    let month = Duration::from_secs(30 * 24 * 3600);
    for (forgotten, left) in [(10_000, 16_000), (10_000, 6_000), (5_000, 1_000), (0, 1_000)] {
        let mut conn = bench.store.conn().await.expect("a connection");
        let began = Instant::now();
        let done = reprieve::store::requests::forget(&mut conn, month).await.expect("forgets");
        eprintln!("forget {done}: {:.1?}", began.elapsed());
        assert_eq!((done, bench.count("reprieve.requests").await), (forgotten, left));
    }
}

#[tokio::test]
async fn a_purge_task_that_is_moved_belongs_to_what_its_tombstone_does() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash("dataset", dataset).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    // as in a rolling upgrade: a program that knew nothing of causes wrote the task
    bench
        .run(&format!(
            "update reprieve.outbox set correlation_id = null, traceparent = null, tracestate = null;
             update reprieve.tombstones set correlation_id = 'c-1', traceparent = '{trace}', tracestate = 'a=b'"
        ))
        .await;
    let mut conn = bench.store.conn().await.expect("connects");
    outbox::schedule_purge(&mut conn, id, &serde_json::json!({}), Duration::ZERO).await.expect("moved");
    let task = format!(
        "reprieve.outbox where topic = 'purge' and tombstone_id = '{id}' and correlation_id = 'c-1'
         and traceparent = '{trace}' and tracestate = 'a=b'"
    );
    assert_eq!(bench.count(&task).await, 1);
}
