//! Processes that are stopped and go on (SIGSTOP, SIGCONT), for longer than their leases, at the worst instants.
//!
//! Invariant: somebody else finishes what they had begun, and they do no harm when they go on: each object and each row
//! is counted once, there is one receipt, and nothing is destroyed that came after.

mod crowd;

use std::time::Duration;

use crate::process::Service;
use crate::support::heimdall::{Dataset, Model, Shape};
use crate::support::wait_until;
use crate::world::{Settings, World};

/// Longer than anything waits here: the database ends a session that stands still in a transaction after 40 seconds.
const LONG: Duration = Duration::from_secs(90);

/// 500 objects, five batches.
const SHAPE: Shape = Shape { samples: 100, receivers: 5 };

fn settings() -> Settings {
    Settings { batch_size: 100, ..Settings::default() }
}

fn go_on(service: &Service) {
    service.signal("CONT");
}

#[tokio::test]
async fn a_worker_stopped_for_longer_than_its_lease_changes_nothing_when_it_goes_on() {
    let world = World::new(settings()).await;
    let (id, put) = world.dataset("stopped half-way", Shape { samples: 520, receivers: 5 }).await;
    let rows = world.rows(id).await;
    let zombie = world.serve(&[]);
    world.trash("dataset", id).await;
    let before = world.until_in_the_middle(id, put).await;
    zombie.freeze().await;
    assert_eq!(world.stands(id).await.state, "purging", "it was stopped in the middle");

    let mut heir = world.serve(&[]);
    let receipt = world.purged("dataset", id, put, rows).await;
    assert!(world.stands(id).await.fence > before.fence, "the other one had a fence of its own");
    go_on(&zombie);
    // it is as good as any: with the other gone it purges the next one
    assert!(heir.terminate(Duration::from_secs(20)).await.success());
    let (next, put_next) = world.dataset("the next one", SHAPE).await;
    let rows_next = world.rows(next).await;
    world.trash("dataset", next).await;
    world.purged("dataset", next, put_next, rows_next).await;
    assert_eq!(world.purged("dataset", id, put, rows).await, receipt, "one receipt, and the same");
    assert!(world.is_quiet(Duration::from_secs(30)).await, "no task and no message is left over");
}

/// Waits until the third batch is announced and not yet sent, where a fail point makes the worker linger.
async fn with_the_third_batch_announced(world: &World, id: uuid::Uuid) {
    let sql = "select objects_deleted = 200 and (checkpoint -> 'ranges' -> 0 -> 'owed' ->> 'objects')::int = 100
               from reprieve.tombstones where resource_id = $1 and state = 'purging'";
    wait_until("the third batch is announced", crate::world::PURGED, async || {
        let found = sqlx::query_scalar::<_, Option<bool>>(sql).bind(id.to_string()).fetch_optional(&world.pool).await;
        found.expect("the database answers").flatten() == Some(true)
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_wakes_with_old_keys_in_hand_leaves_new_objects_of_these_keys_alone() {
    let world = World::new(settings()).await;
    let (id, put) = world.dataset("before", SHAPE).await;
    let rows = world.rows(id).await;
    let zombie = world.serve_with(&[], &[("FAILPOINTS", "empty.written=2*off->1*sleep(6000)")]);
    world.trash("dataset", id).await;
    with_the_third_batch_announced(&world, id).await;
    zombie.freeze().await;
    with_the_third_batch_announced(&world, id).await;

    let heir = world.serve(&[]);
    world.purged("dataset", id, put, rows).await;
    // the platform takes the id again, and writes to the same keys
    let again = Dataset { id, features: 3, ..Dataset::iq_raw("after") };
    assert_eq!(world.dataset_like(again, SHAPE).await, (id, put));
    go_on(&zombie);
    zombie.says("lease no longer certain").await;
    zombie.says("lease lost, stopping").await;
    assert_eq!((world.objects(id).await, world.rows(id).await), (put, rows), "they are the new one's");

    drop(heir);
    world.trash("dataset", id).await;
    world.until("the new one has a tombstone of its own", id, |now| now.state == "purged").await;
    assert_eq!(world.objects(id).await, 0);
    let receipts = "select count(*), count(distinct tombstone_id) from reprieve.audit where event = 'purged'";
    let (receipts, tombstones): (i64, i64) = sqlx::query_as(receipts).fetch_one(&world.pool).await.expect("counted");
    assert_eq!((receipts, tombstones), (2, 2), "one receipt each");
}

#[tokio::test]
async fn a_worker_stopped_just_long_enough_to_be_unsure_asks_and_goes_on() {
    let world = World::new(settings()).await;
    let (id, put) = world.dataset("unsure", SHAPE).await;
    let rows = world.rows(id).await;
    // nobody else is there to take over, and nobody to write its task anew
    let worker =
        world.serve_with(&["--roles", "worker,relay"], &[("FAILPOINTS", "empty.written=2*off->1*sleep(4000)")]);
    world.trash("dataset", id).await;
    world.purged("dataset", id, put, rows).await;
    let log = worker.log();
    assert!(log.contains("lease no longer certain") && !log.contains("lease lost"), "{log}");
    assert_eq!(world.stands(id).await.fence, 1, "the same worker from the beginning to the end");
}

#[tokio::test]
async fn a_worker_stopped_before_its_claims_commit_holds_nobody_up_for_ever_and_claims_nothing_later() {
    let world = World::new(settings()).await;
    let (id, put) = world.dataset("claimed, almost", SHAPE).await;
    let rows = world.rows(id).await;
    let model = Model { datasets: vec![id], ..Model::named("m") }.insert(&world.pool).await;
    let zombie = world.serve_with(&[], &[("FAILPOINTS", "claim.uncommitted=1*sleep(6000)")]);
    world.trash("dataset", id).await;
    let standing = "select exists (select from pg_stat_activity where datname = current_database()
                        and state = 'idle in transaction' and query like '%reprieve.audit%')";
    let stands_still =
        async || sqlx::query_scalar::<_, bool>(standing).fetch_one(&world.pool).await.expect("the database answers");
    wait_until("the claim is about to commit", crate::world::PURGED, stands_still).await;
    zombie.freeze().await;
    assert!(stands_still().await, "it was stopped before its commit");

    // it keeps its locks, but not for ever: the database ends its session, and nothing has happened then
    let activated = sqlx::query("update heimdall.models set is_active = true where id = $1").bind(model);
    let refused = tokio::time::timeout(Duration::from_secs(10), activated.execute(&world.pool)).await;
    let refused = refused.expect("nobody waits for what is refused anyway").expect_err("in the trash");
    assert!(refused.to_string().contains("is in the trash (trashed)"), "{refused}");
    wait_until("its session is ended", LONG, async || {
        let restored = world.cli(&["restore", "dataset", &id.to_string()]).await;
        assert!(restored.code == 0 || restored.stderr.contains("the database is busy"), "{}", restored.stderr);
        restored.code == 0
    })
    .await;
    assert!(!stands_still().await);
    go_on(&zombie);
    zombie.says("the database cannot be reached").await;
    assert_eq!(world.stands(id).await.state, "restored");
    assert_eq!((world.objects(id).await, world.rows(id).await), (put, rows), "nothing is lost");

    // and it works on
    world.trash("dataset", id).await;
    world.until("purged by the one that was stopped", id, |now| now.state == "purged").await;
}

#[tokio::test]
async fn a_relay_stopped_with_messages_in_hand_keeps_nobody_waiting_and_its_duplicates_do_no_harm() {
    let world = World::new(settings()).await;
    let lease = ("REPRIEVE__RELAY__LEASE", "3s");
    let zombie = world.serve_with(&["--roles", "relay"], &[lease, ("FAILPOINTS", "relay.leased=1*sleep(6000)")]);
    let (id, put) = world.dataset("in its hand", SHAPE).await;
    let rows = world.rows(id).await;
    world.trash("dataset", id).await;
    let held = async || {
        let sql = "select count(*) from reprieve.outbox where leased_until > now()";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&world.pool).await.expect("the database answers")
    };
    wait_until("it has messages in hand", crate::support::SOON, async || held().await > 0).await;
    zombie.freeze().await;
    assert!(held().await > 0, "it was stopped with them");

    let _others = [world.serve_with(&[], &[lease]), world.serve_with(&[], &[lease])];
    let (other, put_other) = world.dataset("in nobody's hand", SHAPE).await;
    let rows_other = world.rows(other).await;
    world.trash("dataset", other).await;
    world.purged("dataset", other, put_other, rows_other).await;
    world.purged("dataset", id, put, rows).await;
    go_on(&zombie);
    let (last, put_last) = world.dataset("after it went on", SHAPE).await;
    let rows_last = world.rows(last).await;
    world.trash("dataset", last).await;
    for (id, put, rows) in [(id, put, rows), (other, put_other, rows_other), (last, put_last, rows_last)] {
        world.purged("dataset", id, put, rows).await;
    }
    assert!(world.is_quiet(Duration::from_secs(30)).await, "no task and no message is left over");
}
