//! Workers that die over a purge, or panic: counted while it gets no further, and forgotten when it does.

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;

use crate::bench::{Bench, HEIMDALL, alice, budget};
use crate::gate::At;

/// Its worker is gone, and has not given the lease back.
const RUN_OUT: &str = "update reprieve.tombstones set lease_until = now() - interval '1 second'";

async fn due(samples: u32) -> (Bench, uuid::Uuid, TombstoneId) {
    let bench = Bench::with(HEIMDALL, "", |config| {
        config.stores.values_mut().for_each(|store| store.batch_size = 10);
        config.purge.max_attempts = 3;
    })
    .await;
    let dataset = bench.dataset("set a", samples).await;
    let id = bench.trash_due("dataset", dataset).await;
    (bench, dataset, id)
}

/// A worker takes it up and dies at the delete after `passes` more, before it is done.
async fn dies(bench: &Bench, id: TombstoneId, passes: usize) {
    bench.make_due(id).await;
    let gate = bench.objects.stop_a_delete(passes, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    working.abort();
    assert!(working.await.expect_err("aborted").is_cancelled());
    bench.run(RUN_OUT).await;
}

async fn deaths(bench: &Bench) -> i32 {
    bench.value("select deaths from reprieve.tombstones").await
}

#[tokio::test]
async fn deaths_in_a_row_without_a_batch_between_are_spaced_and_then_it_is_stuck() {
    let (bench, dataset, id) = due(25).await;
    dies(&bench, id, 0).await;
    assert_eq!(deaths(&bench).await, 0, "nobody knows of it yet");
    // one is an ordinary crash: the next goes on at once
    dies(&bench, id, 0).await;
    assert_eq!(deaths(&bench).await, 1);
    let spaced = bench.slice(id).await;
    assert!(matches!(&spaced, SliceEnd::Failed(why) if why.contains("2 times in a row")), "{spaced:?}");
    let later = "reprieve.outbox where topic = 'purge' and available_at > now() + interval '20 minutes'";
    assert_eq!(bench.count(later).await, 1);
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)), "not before the back-off is over");
    let waiting = bench.tombstone(id).await;
    assert_eq!((waiting.state, waiting.lease_owner), (State::Purging, None));
    assert!(waiting.last_error.is_some_and(|why| why.contains("died or fell silent")));
    dies(&bench, id, 0).await;
    assert_eq!(deaths(&bench).await, 2, "the wait was no death");
    let end = bench.slice(id).await;
    let SliceEnd::Stuck(reason) = end else { panic!("{end:?}") };
    assert_eq!(reason, "its worker died or fell silent; 3 times in a row without getting further");
    let stuck = bench.tombstone(id).await;
    assert_eq!((stuck.state, stuck.last_error.as_ref(), stuck.lease_owner), (State::Stuck, Some(&reason), None));
    assert_eq!(bench.told(id, "stuck").await.details["reason"], reason);
    assert_eq!(bench.count("reprieve.outbox where topic = 'event' and destination = 'dataset.stuck'").await, 1);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0);

    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(deaths(&bench).await, 0, "a retry counts anew");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone()), (25, 25), "each counted once");
}

#[tokio::test]
async fn a_purge_that_gets_further_between_its_workers_deaths_is_never_stuck() {
    let (bench, _, id) = due(95).await;
    let mut died = 0;
    while bench.tombstone(id).await.progress.objects_gone() < 80 {
        // one batch goes and is counted, and the one after it does not
        dies(&bench, id, 1).await;
        died += 1;
        assert!(died < 20, "it gets no further");
        assert!(deaths(&bench).await < 2);
    }
    assert!(died > 6, "more than it has attempts: {died}");
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone()), (95, 95));
    assert_eq!(bench.events(id).await, ["trashed", "purge_begun", "purged"]);
}

#[tokio::test]
async fn a_chunk_of_rows_forgets_deaths_too() {
    let (mut bench, _, id) = due(15).await;
    bench.config.purge.row_chunk = 15;
    dies(&bench, id, 0).await;
    bench
        .run(
            "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not yet'; end $$;
              create trigger refuses before delete on heimdall.measurement_features
                  for each statement execute function refuse()",
        )
        .await;
    bench.make_due(id).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)), "samples go, features are refused");
    assert_eq!((bench.count("heimdall.synthetic_iq_samples").await, deaths(&bench).await), (0, 0));
}

#[tokio::test]
async fn a_worker_that_comes_back_to_its_own_lease_has_not_died() {
    let (bench, _, id) = due(15).await;
    let worker = bench.purger();
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let same = worker.clone();
    let cut_off = tokio::spawn(async move { same.run_slice(id, &budget()).await });
    gate.reached().await;
    cut_off.abort();
    let _ = cut_off.await;
    bench.run(RUN_OUT).await;
    assert_eq!(worker.run_slice(id, &budget()).await.expect("the database is there"), SliceEnd::Purged);
    assert_eq!(deaths(&bench).await, 0);
}

#[tokio::test]
async fn panics_give_the_lease_back_are_spaced_and_then_it_is_stuck_with_what_they_said() {
    let (bench, _, id) = due(15).await;
    for panic in 1..=3 {
        bench.make_due(id).await;
        let gate = bench.objects.stop_a_delete(0, At::Before);
        let worker = bench.purger();
        let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
        gate.reached().await;
        gate.collapse();
        let end = working.await.expect("caught").expect("the database is there");
        let now = bench.tombstone(id).await;
        assert_eq!((now.lease_owner, now.lease_until), (None, None));
        assert!(now.last_error.is_some_and(|why| why.contains("panicked: the gate collapses")));
        if panic < 3 {
            assert!(matches!(end, SliceEnd::Panicked(_)), "{end:?}");
            let later = "reprieve.outbox where topic = 'purge' and available_at > now() + interval '20 minutes'";
            assert_eq!((now.state, bench.count(later).await), (State::Purging, 1));
        } else {
            assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("3 times in a row")), "{end:?}");
            assert_eq!((now.state, bench.objects()), (State::Stuck, 15));
        }
    }
    assert_eq!(bench.events(id).await, ["trashed", "purge_begun", "purge_failed", "purge_failed", "stuck"]);
}
