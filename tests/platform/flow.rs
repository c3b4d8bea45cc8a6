//! Outbox, relay, queue, worker and sweeper together, in one process.

use std::sync::Arc;
use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::queue::local::{LocalEvent, LocalQueue};
use reprieve::queue::message::PurgeTask;
use reprieve::queue::{Outgoing, Source, Target, TaskQueue};
use reprieve::relay::{Relay, Sweeper};
use reprieve::store::outbox::{self, Window};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bench::{BUCKET, Bench, HEIMDALL, alice};
use crate::support::heimdall::{Dataset, Job, key};
use crate::support::{SOON, wait_until};

/// Roles that run until this is dropped.
struct Running {
    queue: LocalQueue,
    stop: CancellationToken,
    roles: JoinSet<()>,
}

impl Running {
    async fn new() -> Running {
        let queue = LocalQueue::default();
        queue.prepare().await.expect("prepares");
        Running { queue, stop: CancellationToken::new(), roles: JoinSet::new() }
    }

    fn relay(mut self, bench: &Bench) -> Running {
        let relay = Relay::new(bench.store.clone(), bench.config.relay.clone(), bench.metrics.clone()).expect("fine");
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        self.roles.spawn(async move { relay.run(&queue, &stop).await.expect("relays") });
        self
    }

    fn worker(mut self, bench: &Bench) -> Running {
        let (purger, queue, stop) = (bench.purger(), self.queue.clone(), self.stop.clone());
        // as supervision does it: again when the queue ends
        self.roles.spawn(async move {
            while !stop.is_cancelled() {
                if purger.work(&queue, &stop).await.is_err() {
                    queue.prepare().await.expect("prepares");
                }
            }
        });
        self
    }

    fn sweeper(mut self, bench: &Bench) -> Running {
        let sweeper = Sweeper::new(bench.store.clone(), bench.config.sweeper.clone(), bench.metrics.clone());
        let stop = self.stop.clone();
        self.roles.spawn(async move { sweeper.run(&stop).await });
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits of milliseconds, so that everything comes to its end by itself.
async fn quick() -> Bench {
    Bench::with(HEIMDALL, "", |config| {
        let purge = &mut config.purge;
        (purge.backoff_initial, purge.backoff_max) = (Duration::from_millis(5), Duration::from_millis(50));
        (purge.recheck_initial, purge.recheck_max) = (Duration::from_millis(5), Duration::from_millis(50));
        purge.max_attempts = 1000;
        config.database.max_connections = 12;
    })
    .await
}

async fn reaches(bench: &Bench, id: TombstoneId, state: State) {
    wait_until(format_args!("{id} is {state}"), SOON, async || bench.state(id).await == state).await;
}

#[tokio::test]
async fn what_is_due_flows_from_the_outbox_to_its_end_with_every_event_told() {
    let bench = quick().await;
    let running = Running::new().await.relay(&bench).worker(&bench);
    let mut events = running.queue.events();
    let job = Job::named("generation").insert(&bench.pool).await;
    for name in ["a", "b"] {
        let id = Dataset { created_by: Some(job), samples: 3, ..Dataset::iq_raw(name) }.insert(&bench.pool).await;
        bench.put(id, 3);
    }
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    for id in went.children.iter().map(|child| child.id).chain([went.tombstone.id]) {
        bench.make_due(id).await;
    }
    reaches(&bench, went.tombstone.id, State::Purged).await;
    assert_eq!((bench.objects(), bench.count("heimdall.training_jobs").await), (0, 0));
    wait_until("the outbox is empty", SOON, async || bench.count("reprieve.outbox").await == 0).await;
    let mut told = Vec::new();
    while let Ok(LocalEvent { routing_key, .. }) = events.try_recv() {
        told.push(routing_key);
    }
    for expected in ["job.trashed", "dataset.trashed", "dataset.purge_begun", "dataset.purged", "job.purged"] {
        assert!(told.iter().any(|key| key == expected), "{expected} in {told:?}");
    }
    assert_eq!(told.iter().filter(|key| *key == "dataset.purged").count(), 2);
}

#[tokio::test]
async fn nothing_leaves_before_it_is_due_and_a_restore_takes_the_waiting_task_away() {
    let bench = quick().await;
    let running = Running::new().await.relay(&bench);
    let dataset = bench.dataset("set a", 1).await;
    bench.trash("dataset", dataset).await;
    wait_until("the event has left", SOON, async || bench.count("reprieve.outbox where topic = 'event'").await == 0)
        .await;
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 1);
    assert_eq!(running.queue.depths().await.expect("local").purge, 0);
    bench.restore("dataset", dataset).await;
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0);
}

#[tokio::test]
async fn a_task_written_anew_while_the_old_one_is_on_its_way_survives_the_confirm() {
    let bench = Bench::heimdall().await;
    let id = bench.trash_due("dataset", bench.dataset("set a", 1).await).await;
    let mut conn = bench.store.conn().await.expect("a connection");
    let window = Window { tasks: 10, messages: 10 };
    let leased = outbox::lease(&mut conn, window, Duration::from_secs(60)).await.expect("leases");
    assert!(leased.iter().any(|row| row.tombstone == Some(id)));
    let again = outbox::lease(&mut conn, window, Duration::from_secs(60)).await.expect("leases");
    assert!(again.is_empty(), "another relay passes them over");
    // the worker was quicker than the confirm, and found a hold
    outbox::schedule_purge(&mut conn, id, &PurgeTask { tombstone: id }.encode(), Duration::from_secs(60))
        .await
        .expect("moves");
    let ids: Vec<_> = leased.iter().map(|row| row.id).collect();
    outbox::confirm(&mut conn, &ids).await.expect("confirms");
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge' and leased_until is null").await, 1);
    assert_eq!(bench.count("reprieve.outbox").await, 1, "all that was confirmed is gone");
}

#[tokio::test]
async fn a_relay_that_settles_and_a_worker_that_writes_the_next_task_do_not_lock_each_other_out() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash_due("dataset", dataset).await;
    bench.bin.hold(&bench.resource("dataset", dataset), &alice()).await.expect("holds");
    // the relay stops where it notes that the broker has the task
    bench
        .run(
            "create function waits() returns trigger language plpgsql as $$ begin
                  perform pg_advisory_xact_lock(9); return null; end $$;
              create trigger waits before update of queued_at on reprieve.tombstones
                  for each statement execute function waits()",
        )
        .await;
    let mut gate = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(9)").execute(&mut *gate).await.expect("locks");
    let running = Running::new().await.relay(&bench);
    bench.until_waiting("the relay waits", 1).await;
    let worker = bench.purger();
    let mut slice = tokio::spawn(async move { worker.run_slice(id, &crate::bench::budget()).await });
    // either it is through, or it waits for the relay
    wait_until("the worker goes on or waits", SOON, async || slice.is_finished() || bench.waiting().await >= 2).await;
    sqlx::query("select pg_advisory_unlock(9)").execute(&mut *gate).await.expect("unlocks");
    let end = (&mut slice).await.expect("no panic");
    assert!(matches!(&end, Ok(SliceEnd::Deferred(why)) if why.contains("held")), "{end:?}");
    wait_until("the relay is done", SOON, async || {
        bench.count("reprieve.tombstones where queued_at is not null").await == 1
    })
    .await;
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(bench.value::<i64>(deadlocks).await, 0);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge' and available_at > now()").await, 1);
    drop(running);
}

#[tokio::test]
async fn the_sweeper_brings_back_what_a_wiped_broker_has_lost() {
    let bench = quick().await;
    let running = Running::new().await.relay(&bench);
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(bench.trash_due("dataset", bench.dataset(name, 2).await).await);
    }
    wait_until("the broker has them", SOON, async || running.queue.depths().await.expect("local").purge == 3).await;
    wait_until("and says so", SOON, async || bench.count("reprieve.tombstones where queued_at is not null").await == 3)
        .await;
    running.queue.delete(Source::Purge);
    running.queue.prepare().await.expect("an empty queue again");
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0, "nobody knows of them any more");
    let running = running.worker(&bench).sweeper(&bench);
    for id in ids {
        reaches(&bench, id, State::Purged).await;
    }
    let metrics = bench.metrics.render();
    let swept = metrics.lines().find_map(|line| line.strip_prefix("reprieve_swept_total ")).expect("counted");
    // a slow machine lets one count as lost again before it is worked on
    assert!(swept.parse::<u64>().expect("a count") >= 3, "each swept: {swept}");
    assert_eq!(running.queue.dead_letters(), []);
}

#[tokio::test]
async fn the_sweeper_leaves_alone_what_waits_is_held_by_a_worker_or_was_just_sent() {
    let bench = Bench::heimdall().await;
    let sweeper = Sweeper::new(bench.store.clone(), bench.config.sweeper.clone(), bench.metrics.clone());
    let dataset = async |name| bench.trash_due("dataset", bench.dataset(name, 1).await).await;
    let (waiting, leased, sent, stuck, lost) =
        (dataset("1").await, dataset("2").await, dataset("3").await, dataset("4").await, dataset("5").await);
    let early = bench.trash("dataset", bench.dataset("6", 1).await).await;
    bench.run(&format!("delete from reprieve.outbox where tombstone_id <> '{waiting}'")).await;
    bench
        .run(&format!(
            "update reprieve.tombstones set state = 'purging', purging_at = now(), lease_owner = 'w', lease_until = now() + interval '1 minute' where id = '{leased}';
             update reprieve.tombstones set queued_at = now() + interval '1 minute' where id = '{sent}';
             update reprieve.tombstones set queued_at = now() - interval '1 day' where id = '{lost}';
             update reprieve.tombstones set state = 'stuck', purging_at = now() where id = '{stuck}'"
        ))
        .await;
    assert_eq!(sweeper.sweep().await.expect("sweeps"), 1);
    assert_eq!(sweeper.sweep().await.expect("sweeps"), 0, "once");
    let tasks = "reprieve.outbox where topic = 'purge' and tombstone_id";
    assert_eq!(bench.count(&format!("{tasks} = '{lost}'")).await, 1);
    assert_eq!(bench.count(&format!("{tasks} in ('{leased}', '{sent}', '{stuck}', '{early}')")).await, 0);
}

#[tokio::test]
async fn a_worker_that_dies_is_followed_by_another_without_anybodys_help() {
    let bench = Bench::with(HEIMDALL, "", |config| config.purge.lease = Duration::from_secs(1)).await;
    let dataset = bench.dataset("set a", 5).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, crate::gate::At::After);
    let worker = bench.purger();
    let dies = tokio::spawn(async move { worker.run_slice(id, &crate::bench::budget()).await });
    gate.reached().await;
    dies.abort();
    assert!(dies.await.expect_err("aborted").is_cancelled());
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0, "its task died with it");
    let _running = Running::new().await.relay(&bench).worker(&bench).sweeper(&bench);
    reaches(&bench, id, State::Purged).await;
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone()), (5, 5));
}

#[tokio::test]
async fn a_slice_that_panics_is_noted_on_its_tombstone_and_tried_again() {
    let bench = Bench::with(HEIMDALL, "", |config| config.purge.lease = Duration::from_millis(300)).await;
    let id = bench.trash_due("dataset", bench.dataset("set a", 3).await).await;
    let gate = bench.objects.stop_a_delete(0, crate::gate::At::Before);
    let running = Running::new().await.relay(&bench).worker(&bench);
    gate.reached().await;
    gate.collapse();
    wait_until("it is set aside", SOON, async || running.queue.dead_letters().len() == 1).await;
    let tombstone = bench.tombstone(id).await;
    assert_eq!(tombstone.state, State::Purging);
    assert!(tombstone.last_error.is_some_and(|why| why.contains("panicked")));
    let waiting = "reprieve.outbox where topic = 'purge' and available_at > now() + interval '20 minutes'";
    assert_eq!(bench.count(waiting).await, 1, "another try, after a back-off");
    tokio::time::sleep(bench.config.purge.lease).await;
    bench.make_due(id).await;
    reaches(&bench, id, State::Purged).await;
    assert_eq!(bench.tombstone(id).await.last_error, None);
}

#[tokio::test]
async fn duplicates_early_and_foreign_tasks_do_no_harm_and_garbage_is_set_aside() {
    let bench = quick().await;
    let running = Running::new().await.relay(&bench).worker(&bench);
    let dataset = bench.dataset("set a", 30).await;
    let id = bench.trash("dataset", dataset).await;
    let mut publisher = running.queue.publisher().await.expect("local");
    let task = |body: Vec<u8>| Outgoing {
        id: uuid::Uuid::new_v4(),
        target: Target::Purge,
        body,
        correlation_id: None,
        trace: None,
    };
    let mut bodies = vec![PurgeTask { tombstone: id }.encode().to_string().into_bytes(); 20];
    bodies.push(PurgeTask { tombstone: TombstoneId::new() }.encode().to_string().into_bytes());
    bodies.push(b"{\"v\":1,\"tombstone_id\":7}".to_vec());
    bodies.push(b"\xff".to_vec());
    let window: Vec<_> = bodies.into_iter().map(task).collect();
    publisher.publish(&window).await.expect("local");
    wait_until("garbage is set aside", SOON, async || running.queue.dead_letters().len() == 2).await;
    wait_until("all are handled", SOON, async || running.queue.depths().await.expect("local").purge == 0).await;
    assert_eq!((bench.state(id).await, bench.objects()), (State::Trashed, 30));
    bench.make_due(id).await;
    publisher.publish(&window).await.expect("local");
    reaches(&bench, id, State::Purged).await;
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 30);
    assert_eq!(bench.count("reprieve.audit where event = 'purged'").await, 1);
}

#[tokio::test]
async fn forty_purges_with_blockers_pauses_and_faults_all_converge() {
    let bench = Arc::new(quick().await);
    let mut ids = Vec::new();
    for n in 0..40 {
        let dataset = bench.dataset(&format!("set {n}"), 12).await;
        let busy = reprieve::objects::faulty::failure("SlowDown", reprieve::domain::outcome::FailureClass::Throttled);
        bench.objects.faults.fail_key(&key(dataset, 3, 0), reprieve::objects::faulty::Times::Next(3), busy);
        ids.push(bench.trash("dataset", dataset).await);
    }
    bench.objects.memory().put(BUCKET, "synthetic/somebody-elses/1", 1);
    let running = Running::new().await.relay(&bench).relay(&bench).worker(&bench).worker(&bench).sweeper(&bench);
    bench.bin.pause(&reprieve::store::pauses::Scope::All, &alice()).await.expect("pauses");
    for id in &ids {
        bench.make_due(*id).await;
    }
    wait_until("some were looked at", SOON, async || {
        bench.count("reprieve.tombstones where last_error like '%paused%'").await > 20
    })
    .await;
    assert_eq!(bench.objects(), 40 * 12 + 1);
    bench.bin.resume(&reprieve::store::pauses::Scope::All, &alice()).await.expect("resumes");
    for id in ids {
        reaches(&bench, id, State::Purged).await;
        let progress = bench.tombstone(id).await.progress;
        assert_eq!((progress.objects_listed, progress.objects_gone(), progress.bytes_freed), (12, 12, 12 * 80));
    }
    assert_eq!((bench.objects(), running.queue.dead_letters().len()), (1, 0));
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(bench.value::<i64>(deadlocks).await, 0);
}
