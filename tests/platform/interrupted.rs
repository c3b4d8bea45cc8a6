//! Slices, pauses, crashes, attempts: whatever ends a delivery, the next goes on and the figures stay exact.

use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::failure;
use reprieve::purge::{Budget, SliceEnd};
use reprieve::store::pauses::Scope;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bench::{Bench, HEIMDALL, SIZE, alice, budget};
use crate::gate::At;
use crate::support::heimdall::key;

/// A due dataset whose objects go ten at a time.
async fn due(samples: u32) -> (Bench, Uuid, TombstoneId) {
    let bench = Bench::with(HEIMDALL, "", |config| {
        config.stores.values_mut().for_each(|store| store.batch_size = 10);
    })
    .await;
    let dataset = bench.dataset("set a", samples).await;
    let id = bench.trash_due("dataset", dataset).await;
    (bench, dataset, id)
}

async fn is_counted(bench: &Bench, id: TombstoneId, samples: u64) {
    let tombstone = bench.tombstone(id).await;
    assert_eq!(tombstone.state, State::Purged);
    let progress = tombstone.progress;
    assert!(progress.adds_up() && !progress.has_leftovers(), "{progress:?}");
    assert_eq!((progress.objects_listed, progress.objects_gone()), (samples, samples));
    assert_eq!(progress.bytes_freed, samples * SIZE);
    assert_eq!(progress.rows_deleted, 2 * samples.min(50) + 1);
    assert_eq!(bench.objects(), 0);
}

const RUN_OUT: &str = "update reprieve.tombstones set lease_until = now() - interval '1 second'";

#[tokio::test]
async fn a_pause_takes_effect_before_the_next_batch_and_the_rest_goes_when_it_is_lifted() {
    let (bench, _, id) = due(100).await;
    let gate = bench.objects.stop_a_delete(3, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    bench.bin.pause(&Scope::All, &alice()).await.expect("pauses");
    gate.open();
    let end = working.await.expect("no panic").expect("the database is there");
    assert_eq!(end, SliceEnd::Deferred("paused".into()));
    assert_eq!(bench.objects.faults.batches().len(), 4, "the one under way and no other");
    assert_eq!((bench.objects(), bench.state(id).await), (60, State::Purging));
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 40, "what was done is counted");
    bench.make_due(id).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)));
    assert_eq!(bench.objects(), 60);
    bench.bin.resume(&Scope::All, &alice()).await.expect("resumes");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, 100).await;
}

#[tokio::test]
async fn a_pause_while_rows_are_deleted_takes_effect_before_the_next_chunk() {
    let bench = Bench::with(HEIMDALL, "", |config| config.purge.row_chunk = 10).await;
    let dataset = bench.dataset("set a", 40).await;
    let id = bench.trash_due("dataset", dataset).await;
    // the first chunk pauses everything, as an operator would in that moment
    bench
        .run(
            "create function pg_temp_pause() returns trigger language plpgsql as $$ begin
                  insert into reprieve.pauses (scope, actor) values ('all', 'bob') on conflict do nothing; return null;
              end $$;
              create trigger pauses after delete on heimdall.synthetic_iq_samples
                  for each statement execute function pg_temp_pause()",
        )
        .await;
    assert_eq!(bench.slice(id).await, SliceEnd::Deferred("paused".into()));
    assert_eq!(bench.count("heimdall.synthetic_iq_samples").await, 30, "one chunk");
    bench.run("drop trigger pauses on heimdall.synthetic_iq_samples").await;
    bench.bin.resume(&Scope::All, &alice()).await.expect("resumes");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, 40).await;
}

#[tokio::test]
async fn slices_that_run_out_of_time_go_on_where_they_were_and_count_exactly() {
    let (bench, _, id) = due(64).await;
    let mut slices = 0;
    loop {
        slices += 1;
        assert!(slices < 50, "each slice gets something done");
        let spent = Budget::new(Duration::ZERO, CancellationToken::new());
        match bench.purger().run_slice(id, &spent).await.expect("the database is there") {
            SliceEnd::Continues => {
                let now = "reprieve.outbox where topic = 'purge' and available_at <= now()";
                assert_eq!(bench.count(now).await, 1, "the rest is a task that leaves at once");
                assert!(bench.tombstone(id).await.lease_owner.is_none());
            }
            SliceEnd::Purged => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(slices >= 7, "64 objects in tens are seven batches, and took {slices} slices");
    is_counted(&bench, id, 64).await;
}

#[tokio::test]
async fn a_shutdown_ends_the_slice_at_the_next_batch() {
    let (bench, _, id) = due(40).await;
    let gate = bench.objects.stop_a_delete(1, At::Before);
    let (worker, stop) = (bench.purger(), CancellationToken::new());
    let budget = Budget::new(Duration::from_secs(60), stop.clone());
    let working = tokio::spawn(async move { worker.run_slice(id, &budget).await });
    gate.reached().await;
    stop.cancel();
    gate.open();
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Continues);
    assert_eq!(bench.objects(), 20);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, 40).await;
}

#[tokio::test]
async fn a_crash_at_any_batch_before_or_after_its_delete_loses_no_count() {
    for (at, batch) in [(At::Before, 0), (At::After, 0), (At::Before, 2), (At::After, 2), (At::After, 4)] {
        let (bench, _, id) = due(45).await;
        let gate = bench.objects.stop_a_delete(batch, at);
        let worker = bench.purger();
        let dies = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
        gate.reached().await;
        dies.abort();
        assert!(dies.await.expect_err("aborted").is_cancelled());
        bench.run(RUN_OUT).await;
        assert_eq!(bench.slice(id).await, SliceEnd::Purged, "{at:?} {batch}");
        is_counted(&bench, id, 45).await;
    }
}

#[tokio::test]
async fn crashes_in_a_row_at_the_same_batch_count_its_objects_once() {
    for at in [At::Before, At::After] {
        let (bench, _, id) = due(25).await;
        for _ in 0..2 {
            let gate = bench.objects.stop_a_delete(0, at);
            let worker = bench.purger();
            let dies = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
            gate.reached().await;
            dies.abort();
            let _ = dies.await;
            bench.run(RUN_OUT).await;
        }
        if at == At::Before {
            assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)), "two without a batch between: it waits");
            bench.make_due(id).await;
        }
        assert_eq!(bench.slice(id).await, SliceEnd::Purged, "{at:?}");
        is_counted(&bench, id, 25).await;
    }
}

#[tokio::test]
async fn a_crash_while_rows_are_deleted_goes_on_with_the_rest_of_them() {
    let bench = Bench::with(HEIMDALL, "", |config| config.purge.row_chunk = 10).await;
    let dataset = bench.dataset("set a", 40).await;
    let id = bench.trash_due("dataset", dataset).await;
    // the third chunk of samples hangs on an advisory lock
    bench
        .run("create function wait_third() returns trigger language plpgsql as $$ begin
                  if (select count(*) from heimdall.synthetic_iq_samples) = 10 then perform pg_advisory_xact_lock(7); end if;
                  return null; end $$;
              create trigger waits after delete on heimdall.synthetic_iq_samples
                  for each statement execute function wait_third()")
        .await;
    let mut holder = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(7)").execute(&mut *holder).await.expect("locks");
    let worker = bench.purger();
    let dies = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    bench.until_waiting("the third chunk waits", 1).await;
    dies.abort();
    let _ = dies.await;
    sqlx::query("select pg_advisory_unlock(7)").execute(&mut *holder).await.expect("unlocks");
    bench.run(RUN_OUT).await;
    bench.run("drop trigger waits on heimdall.synthetic_iq_samples").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, 40).await;
}

#[tokio::test]
async fn failures_use_up_their_attempts_then_it_is_stuck_until_a_retry_purges_it() {
    let (bench, dataset, id) = due(20).await;
    bench.objects.ignore(&key(dataset, 0, 0));
    for attempt in 1..=3 {
        bench.make_due(id).await;
        let end = bench.slice(id).await;
        assert_eq!(matches!(end, SliceEnd::Stuck(_)), attempt == 3, "{attempt}: {end:?}");
    }
    let tombstone = bench.tombstone(id).await;
    assert_eq!((tombstone.state, tombstone.attempts), (State::Stuck, 3));
    assert!(tombstone.last_error.is_some_and(|why| why.contains("no answer")));
    bench.objects.heed();
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, 20).await;
}

#[tokio::test]
async fn a_pass_that_takes_several_slices_does_not_forget_the_failures_before_it() {
    let (bench, dataset, id) = due(20).await;
    bench.objects.ignore(&key(dataset, 0, 0));
    let mut ends = Vec::new();
    while ends.len() < 100 && !matches!(ends.last(), Some(SliceEnd::Stuck(_))) {
        bench.make_due(id).await;
        let spent = Budget::new(Duration::ZERO, CancellationToken::new());
        ends.push(bench.purger().run_slice(id, &spent).await.expect("the database is there"));
    }
    assert!(ends.contains(&SliceEnd::Continues), "{ends:?}");
    assert!(matches!(ends.last(), Some(SliceEnd::Stuck(_))), "it ends: {ends:?}");
    assert_eq!(ends.iter().filter(|end| matches!(end, SliceEnd::Failed(_))).count(), 2);
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_begins_the_pass_anew() {
    let (bench, _, id) = due(45).await;
    let gate = bench.objects.stop_a_delete(2, At::Before);
    let worker = bench.purger();
    let dies = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    dies.abort();
    let _ = dies.await;
    bench.run(RUN_OUT).await;
    bench.run("update reprieve.tombstones set checkpoint = '{\"of\": \"a later version\"}'").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    is_counted(&bench, id, 45).await;
}

#[tokio::test]
async fn versions_that_a_batch_cuts_apart_are_counted_once_each() {
    let map = HEIMDALL.replace("heimdall-synthetic-iq", "second-bucket");
    let bench = Bench::with(&map, "", |config| {
        config.stores.values_mut().for_each(|store| store.batch_size = 4);
    })
    .await;
    let dataset = bench.dataset("set a", 0).await;
    for n in 0..33 {
        bench.objects.memory().put("second-bucket", &key(dataset, n % 11, 0), SIZE);
    }
    let id = bench.trash_due("dataset", dataset).await;
    for _ in 0..40 {
        let spent = Budget::new(Duration::ZERO, CancellationToken::new());
        match bench.purger().run_slice(id, &spent).await.expect("the database is there") {
            SliceEnd::Continues => {}
            end => {
                assert_eq!(end, SliceEnd::Purged);
                break;
            }
        }
    }
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.bytes_freed), (33, 33, 33 * SIZE));
    assert_eq!(bench.objects.memory().count("second-bucket"), 0);
}

#[tokio::test]
async fn a_database_that_crashes_in_the_middle_of_a_purge_comes_back_to_exact_counts() {
    let mut server = reprieve::embedded::postgres::PrivatePostgres::start(Default::default()).await.expect("starts");
    let url = server.create_database("platform").await.expect("creates");
    let pool = sqlx::PgPool::connect(&url).await.expect("connects");
    crate::support::heimdall::load(&pool).await;
    let bench = Bench::over_database(pool, &url, HEIMDALL, "", |config| {
        config.stores.values_mut().for_each(|store| store.batch_size = 10);
        config.purge.lease = Duration::from_secs(1);
    })
    .await;
    let dataset = bench.dataset("set a", 45).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(2, At::After);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    server.kill9().expect("killed");
    gate.open();
    let end = working.await.expect("no panic");
    assert!(matches!(&end, Err(error) if error.is_transient()), "{end:?}");
    server.start_again().await.expect("recovers");
    crate::support::wait_until("it is purged", crate::support::SOON, async || {
        matches!(bench.try_slice(id).await, Ok(SliceEnd::Purged))
    })
    .await;
    is_counted(&bench, id, 45).await;
}

#[tokio::test]
async fn an_error_after_the_last_object_has_gone_forgets_no_count() {
    let schema = "create table heimdall.exports (id int primary key, dataset uuid references heimdall.synthetic_datasets on delete restrict)";
    let bench = Bench::with(HEIMDALL, schema, |_| ()).await;
    let dataset = bench.dataset("set a", 10).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::After);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    // too late to keep it from its purge
    bench.run(&format!("insert into heimdall.exports values (1, '{dataset}')")).await;
    // the other prefix's listing is answered, and the verification's is not
    bench.objects.fail_list_after(1, failure("AccessDenied", FailureClass::Permanent));
    gate.open();
    let end = working.await.expect("no panic").expect("the database is there");
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("AccessDenied")), "{end:?}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_absent), (10, 10, 0));
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    // late objects that the next pass deletes, and then a row that must not go
    bench.put(dataset, 3);
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("objects appeared")), "{end:?}");
    bench.make_due(id).await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("exports")), "{end:?}");
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 13);
    bench.run("delete from heimdall.exports").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_absent), (13, 13, 0));
    assert_eq!((progress.bytes_freed, progress.rows_deleted), (13 * SIZE, 21));
}
