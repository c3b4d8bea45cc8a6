//! One worker at a time, whatever the messages say.

use std::time::Duration;

use reprieve::domain::ids::{Fence, TombstoneId};
use reprieve::domain::progress::Progress;
use reprieve::domain::state::State;
use reprieve::history::telling;
use reprieve::purge::SliceEnd;
use reprieve::store::audit::Happened;
use reprieve::store::tombstones::purging::{self, Beginning, Fenced, Lease, PassOn, SetAside, Setback};
use serde_json::json;
use sqlx::PgConnection;

use crate::bench::{Bench, alice, budget};
use crate::gate::At;

/// What is told of a tombstone, to the audit log and to whoever listens.
const TOLD: &str = "(select tombstone_id from reprieve.audit
    union all select tombstone_id from reprieve.outbox where topic = 'event') as told";

/// The statement of the point of no return.
async fn begin(bench: &Bench, conn: &mut PgConnection, id: TombstoneId, owner: &str, lease: Duration) -> Option<Lease> {
    let tombstone = bench.tombstone(id).await;
    let told = &telling(Happened::PurgeBegun, &tombstone, &alice(), json!({}));
    let beginning = Beginning { owner, lease, row_found: true, told };
    purging::begin(conn, id, beginning).await.expect("runs")
}

/// The statement of the end.
async fn finish(bench: &Bench, conn: &mut PgConnection, lease: &Lease, progress: &Progress) -> Fenced {
    let tombstone = bench.tombstone(lease.id).await;
    let told = telling(Happened::Purged, &tombstone, &alice(), json!({}));
    purging::finish(conn, lease, progress, 1, &told).await.expect("runs")
}

const RUN_OUT: &str = "update reprieve.tombstones set lease_until = now() - interval '1 second'";

#[tokio::test]
async fn of_two_claims_at_once_one_wins_and_the_other_leaves_it_alone() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let (one, two) = (bench.purger(), bench.purger());
    let (one, two) = (
        tokio::spawn(async move { one.run_slice(id, &budget()).await }),
        tokio::spawn(async move { two.run_slice(id, &budget()).await }),
    );
    gate.reached().await;
    let (ended, working) = if one.is_finished() { (one, two) } else { (two, one) };
    let loser = ended.await.expect("no panic").expect("the database is there");
    assert!(matches!(&loser, SliceEnd::Deferred(why) if why.contains("lease")), "{loser:?}");
    gate.open();
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    let tombstone = bench.tombstone(id).await;
    assert_eq!((tombstone.fence, tombstone.progress.objects_deleted), (Fence(1), 3));
    assert_eq!(bench.count("reprieve.audit where event = 'purged'").await, 1);
}

#[tokio::test]
async fn a_task_for_what_another_works_on_waits_until_the_lease_has_run_out() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)));
    let at_its_end = "reprieve.outbox o join reprieve.tombstones t on t.id = o.tombstone_id where o.topic = 'purge'
        and o.available_at between t.lease_until - interval '10 seconds' and t.lease_until + interval '10 seconds'";
    assert_eq!(bench.count(at_its_end).await, 1);
    gate.open();
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0, "nothing left to look at");
}

#[tokio::test]
async fn a_worker_that_comes_back_from_the_dead_touches_nothing_any_more() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::After);
    let zombie = bench.purger();
    let stopped = tokio::spawn(async move { zombie.run_slice(id, &budget()).await });
    gate.reached().await;
    bench.run(RUN_OUT).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged, "the other takes over");
    let after = bench.tombstone(id).await;
    assert_eq!(after.fence, Fence(2));
    gate.open();
    let end = stopped.await.expect("no panic").expect("the database is there");
    assert_eq!(end, SliceEnd::LeaseLost);
    let now = bench.tombstone(id).await;
    assert_eq!((now.state, now.progress, now.fence), (after.state, after.progress, after.fence));
    assert_eq!(bench.events(id).await, ["trashed", "purge_begun", "purged"]);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0);
}

#[tokio::test]
async fn no_write_that_carries_an_old_fence_touches_a_row() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 2).await;
    bench.objects.ignore(&crate::support::heimdall::key(dataset, 0, 0));
    let id = bench.trash_due("dataset", dataset).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
    bench.make_due(id).await;
    let before: String = bench.value("select t::text from reprieve.tombstones t").await;
    let told = bench.count(TOLD).await;

    let mut conn = bench.store.conn().await.expect("a connection");
    let old = Lease::new(id, Fence(0), Duration::from_secs(60));
    let progress = Progress { objects_listed: 9, objects_deleted: 9, ..Progress::default() };
    let nothing = serde_json::json!({});
    assert_eq!(purging::checkpoint(&mut conn, &old, &progress, &nothing).await.expect("runs"), Fenced::Lost);
    assert_eq!(purging::renew(&mut conn, &old).await.expect("runs"), Fenced::Lost);
    assert!(purging::lock(&mut conn, &old).await.expect("runs").is_none());
    assert_eq!(purging::count_rows(&mut conn, &old, 5).await.expect("runs"), Fenced::Lost);
    assert_eq!(purging::pass_on(&mut conn, &old, Duration::ZERO, PassOn::Continues).await.expect("runs"), Fenced::Lost);
    let tired = Setback { reason: "tired".into(), until: None, at_least: Duration::ZERO };
    assert_eq!(purging::give_up(&mut conn, &old, &tired).await.expect("runs"), SetAside::Lost);
    assert_eq!(finish(&bench, &mut conn, &old, &progress).await, Fenced::Lost);
    let after: String = bench.value("select t::text from reprieve.tombstones t").await;
    assert_eq!(before, after);
    assert_eq!(bench.count(TOLD).await, told, "and nobody is told of an end that was none");
}

#[tokio::test]
async fn the_statement_of_the_point_of_no_return_looks_at_the_time_itself() {
    let bench = Bench::heimdall().await;
    let id = bench.trash("dataset", bench.dataset("set a", 1).await).await;
    let mut conn = bench.store.conn().await.expect("a connection");
    let lease = Duration::from_secs(60);
    let told = bench.count(TOLD).await;
    assert!(begin(&bench, &mut conn, id, "early", lease).await.is_none());
    let still = bench.tombstone(id).await;
    assert_eq!((still.state, still.fence, still.lease_owner), (State::Trashed, Fence(0), None));
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 1, "its task stays");
    bench.make_due(id).await;
    let begun = begin(&bench, &mut conn, id, "in time", lease).await;
    assert_eq!(begun.expect("due").fence, Fence(1));
    assert!(begin(&bench, &mut conn, id, "second", lease).await.is_none());
    assert_eq!(bench.count(TOLD).await, told + 2, "told of once, to both");
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0, "its task is taken up");
}

#[tokio::test]
async fn the_statement_of_the_end_refuses_while_one_object_is_not_gone() {
    let bench = Bench::heimdall().await;
    let id = bench.trash_due("dataset", bench.dataset("set a", 1).await).await;
    let mut conn = bench.store.conn().await.expect("a connection");
    let duration = Duration::from_secs(60);
    let lease = begin(&bench, &mut conn, id, "worker", duration).await.expect("due");
    let nothing = serde_json::json!({});
    for left in [
        Progress { objects_listed: 2, objects_deleted: 1, objects_failed: 1, ..Progress::default() },
        Progress { objects_listed: 2, objects_deleted: 1, objects_unknown: 1, ..Progress::default() },
    ] {
        let _ours = purging::checkpoint(&mut conn, &lease, &left, &nothing).await.expect("runs");
        assert_eq!(finish(&bench, &mut conn, &lease, &left).await, Fenced::Lost, "{left:?}");
        assert_eq!(bench.state(id).await, State::Purging);
    }
    let gone = Progress { objects_listed: 2, objects_deleted: 2, ..Progress::default() };
    let ours = Fenced::Ours { paused: false };
    assert_eq!(finish(&bench, &mut conn, &lease, &gone).await, ours);
    let end = bench.tombstone(id).await;
    assert_eq!((end.state, end.progress), (State::Purged, Progress { rows_deleted: 1, ..gone }));
}

#[tokio::test]
async fn a_late_heartbeat_revives_no_lease_that_was_given_back() {
    let bench = Bench::heimdall().await;
    let id = bench.trash_due("dataset", bench.dataset("set a", 1).await).await;
    let mut conn = bench.store.conn().await.expect("a connection");
    let duration = Duration::from_secs(60);
    let lease = begin(&bench, &mut conn, id, "worker", duration).await.expect("due");
    assert_eq!(purging::renew(&mut conn, &lease).await.expect("runs"), Fenced::Ours { paused: false });
    let passed = purging::pass_on(&mut conn, &lease, Duration::ZERO, PassOn::Continues).await.expect("runs");
    assert_eq!(passed, Fenced::Ours { paused: false });
    assert_eq!(purging::renew(&mut conn, &lease).await.expect("runs"), Fenced::Lost);
    assert_eq!(bench.tombstone(id).await.lease_until, None, "the next worker need not wait for it");
    let lease = purging::take_over(&mut conn, id, "next", duration).await.expect("runs").expect("free");
    let ended = finish(&bench, &mut conn, &lease, &Progress::default()).await;
    assert_eq!(ended, Fenced::Ours { paused: false });
    assert_eq!(purging::renew(&mut conn, &lease).await.expect("runs"), Fenced::Ours { paused: false });
    assert_eq!(bench.tombstone(id).await.lease_until, None);
}

#[tokio::test]
async fn a_worker_that_dies_after_its_claim_is_followed_by_one_with_a_higher_fence() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let worker = bench.purger();
    let dies = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    dies.abort();
    assert!(dies.await.expect_err("aborted").is_cancelled());
    assert_eq!(bench.state(id).await, State::Purging);
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)), "its lease is not over");
    bench.run(RUN_OUT).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.fence, Fence(2));
}

#[tokio::test]
async fn a_long_request_keeps_its_lease() {
    let bench = Bench::with(crate::bench::HEIMDALL, "", |config| config.purge.lease = Duration::from_millis(900)).await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    let first = bench.tombstone(id).await.lease_until.expect("leased");
    crate::support::wait_until("two leases have been asked for anew", crate::support::SOON, async || {
        bench.tombstone(id).await.lease_until.expect("leased") > first + 2 * Duration::from_millis(900)
    })
    .await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)), "nobody takes over what lives");
    gate.open();
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
}

#[tokio::test]
async fn a_restore_and_a_claim_at_once_end_in_exactly_one_of_them() {
    let bench = Bench::heimdall().await;
    for round in 0..12 {
        let dataset = bench.dataset(&format!("set {round}"), 1).await;
        let id = bench.trash_due("dataset", dataset).await;
        let before = bench.objects();
        let purger = bench.purger();
        let (end, back) = tokio::join!(
            tokio::spawn(async move { purger.run_slice(id, &budget()).await }),
            bench.try_restore("dataset", dataset)
        );
        let end = end.expect("no panic").expect("the database is there");
        match back {
            Ok(back) => {
                assert_eq!((back.tombstone.state, bench.objects()), (State::Restored, before));
                assert!(matches!(end, SliceEnd::Nothing(_)), "{end:?}");
            }
            Err(refused) => {
                assert_eq!((refused.code(), end, bench.objects()), ("past_return", SliceEnd::Purged, before - 1));
            }
        }
    }
}

#[tokio::test]
async fn rows_that_a_worker_without_a_lease_deletes_are_not_deleted() {
    let bench = Bench::with(crate::bench::HEIMDALL, "", |config| config.purge.row_chunk = 10).await;
    let dataset = bench.dataset("set a", 30).await;
    let id = bench.trash_due("dataset", dataset).await;
    // the second chunk waits in the middle of its transaction
    bench
        .run("create function waits() returns trigger language plpgsql as $$ begin
                  if (select count(*) from heimdall.synthetic_iq_samples) = 10 then perform pg_advisory_xact_lock(7); end if;
                  return null; end $$;
              create trigger waits after delete on heimdall.synthetic_iq_samples
                  for each statement execute function waits()")
        .await;
    let mut gate = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(7)").execute(&mut *gate).await.expect("locks");
    let (zombie, heir) = (bench.purger(), bench.purger());
    let zombie = tokio::spawn(async move { zombie.run_slice(id, &budget()).await });
    bench.until_waiting("the second chunk waits", 1).await;
    bench.run(RUN_OUT).await;
    let heir = tokio::spawn(async move { heir.run_slice(id, &budget()).await });
    bench.until_waiting("the other waits for its rows", 2).await;
    sqlx::query("select pg_advisory_unlock(7)").execute(&mut *gate).await.expect("unlocks");
    assert_eq!(zombie.await.expect("no panic").expect("the database is there"), SliceEnd::LeaseLost);
    assert_eq!(heir.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    let tombstone = bench.tombstone(id).await;
    assert_eq!((tombstone.fence, tombstone.progress.rows_deleted), (Fence(2), 61), "each row counted once");
}
