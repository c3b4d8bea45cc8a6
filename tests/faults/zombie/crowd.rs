//! Three full processes, stopped, continued and killed at random while they purge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::process::Service;
use crate::support::heimdall::Shape;
use crate::support::wait_until;
use crate::world::{Settings, World};

const DATASETS: u32 = 60;
const PROCESSES: usize = 3;
/// How long the faults go on at least, whether or not there is still something to purge.
const FAULTS: Duration = Duration::from_secs(20);
/// What a dead relay had in hand waits no longer than this.
const RELAY: [(&str, &str); 1] = [("REPRIEVE__RELAY__LEASE", "2s")];
const SEED: u64 = 5_011;

/// What was done to the processes.
#[derive(Debug, Default)]
struct Faults {
    stopped: u32,
    killed: u32,
}

#[tokio::test]
async fn three_full_processes_stopped_and_killed_at_random_purge_each_dataset_once() {
    let seed = crate::environment::seed(SEED);
    println!("crowd: FAULTS_SEED={seed}");
    let settings = Settings { batch_size: 4, lease: "1s", redeliver_after: "2s", ..Settings::default() };
    let world = World::new(settings).await;
    let mut datasets = Vec::new();
    for n in 0..DATASETS {
        let (id, put) = world.dataset(&format!("set {n}"), Shape { samples: 1 + n % 5, receivers: 4 }).await;
        datasets.push((id, put, world.rows(id).await));
    }
    let trashed = AtomicBool::new(false);
    let (faults, ()) = tokio::join!(torment(&world, seed, &trashed), async {
        // spread over the faults
        for (id, ..) in &datasets {
            world.trash("dataset", *id).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        trashed.store(true, Ordering::Relaxed);
    });
    let takeovers: i64 = value(&world, "select sum(fence - 1)::int8 from reprieve.tombstones").await;
    println!("crowd: {faults:?}, {takeovers} times another went on");
    assert!(faults.stopped >= 12 && faults.killed >= 4 && takeovers >= 3, "{faults:?}, {takeovers} takeovers");
    for (id, put, rows) in &datasets {
        let end: (String, i64, i64, i64) = sqlx::query_as(
            "select state, objects_listed, objects_deleted + objects_absent, rows_deleted
             from reprieve.tombstones where resource_id = $1",
        )
        .bind(id.to_string())
        .fetch_one(&world.pool)
        .await
        .expect("one tombstone");
        assert_eq!(end, ("purged".to_owned(), *put, *put, *rows), "each object and each row is counted once");
        let receipts = "select count(*) from reprieve.audit where event = 'purged' and resource_id = $1";
        let receipts: i64 =
            sqlx::query_scalar(receipts).bind(id.to_string()).fetch_one(&world.pool).await.expect("counted");
        assert_eq!((receipts, world.rows(*id).await), (1, 0));
    }
    assert_eq!(world.objects_below("").await, 0, "the bucket is empty");
    let early = "select count(*) from reprieve.tombstones where purging_at < purge_after";
    assert_eq!(value(&world, early).await, 0, "nothing before its time");
}

async fn value(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("the database answers")
}

/// Stops, continues and kills until the time is over and everything was trashed; then lets them finish.
async fn torment(world: &World, seed: u64, trashed: &AtomicBool) -> Faults {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut faults = Faults::default();
    let mut crowd: Vec<Service> = (0..PROCESSES).map(|_| world.serve_with(&[], &RELAY)).collect();
    crowd[0].says("worker consumes").await;
    // when each is to go on
    let mut frozen: Vec<Option<Instant>> = vec![None; PROCESSES];
    let began = Instant::now();
    while began.elapsed() < FAULTS || !trashed.load(Ordering::Relaxed) {
        let at = chance.random_range(0..PROCESSES);
        if chance.random_bool(0.25) {
            crowd[at].kill9();
            crowd[at] = world.serve_with(&[], &RELAY);
            frozen[at] = None;
            faults.killed += 1;
        } else if frozen[at].is_none() {
            // for less than a lease, or for several
            let long = Duration::from_millis(chance.random_range(100..4_000));
            crowd[at].freeze().await;
            frozen[at] = Some(Instant::now() + long);
            faults.stopped += 1;
        }
        tokio::time::sleep(Duration::from_millis(chance.random_range(100..500))).await;
        for (service, until) in crowd.iter().zip(&mut frozen) {
            if until.is_some_and(|until| until <= Instant::now()) {
                service.signal("CONT");
                *until = None;
            }
        }
    }
    crowd.iter().for_each(|service| service.signal("CONT"));
    wait_until("everything is purged", crate::world::PURGED, async || {
        value(world, "select count(*) from reprieve.tombstones where state <> 'purged'").await == 0
    })
    .await;
    assert!(world.is_quiet(Duration::from_secs(60)).await, "no task and no message is left over");
    faults
}
