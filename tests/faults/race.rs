//! The race that lost data elsewhere: a resource is put to use while it is trashed, restored and purged.
//!
//! Invariant, held against every attempt: a use that was committed finds the dataset's row and all its objects at the
//! end of the use, in the transaction that ends it; and a use that was refused was refused for an open tombstone.
//! `FAULTS_COUNT` is the number of attempts, if more than usual, and `FAULTS_SEED` what chance begins with.

mod actors;
mod real;
mod tally;
mod unguarded;

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use reprieve::purge::SliceEnd;
use reprieve::store::guards;
use sqlx::postgres::PgPoolOptions;

use self::actors::{Arena, Isolation, Use};
use crate::bench::{Bench, budget};
use crate::environment;
use crate::gate::At;
use crate::support::heimdall::Model;

/// The real map of the platform, whose guards mind models and jobs.
const MAP: &str = include_str!("../../config/maps/heimdall.toml");

/// What chance begins with, unless told.
const SEED: u64 = 20_261_122;
/// Datasets in the race at once. Few, so that they are fought for.
const SLOTS: usize = 12;
/// Platform connections that put datasets to use.
const ACTIVATORS: usize = 24;

/// Attempts: enough for each outcome under each isolation level and by each way of using, many times. More with
/// `FAULTS_COUNT`.
fn attempts() -> u64 {
    environment::count(5_000)
}

/// A platform with the guards of its map.
async fn guarded() -> Bench {
    let bench = Bench::with(MAP, "", |config| config.database.max_connections = 40).await;
    let mut conn = bench.store.conn().await.expect("a connection");
    assert_eq!(guards::install(&mut conn, &bench.config.map).await.expect("installs"), 3);
    drop(conn);
    bench
}

async fn race(bench: Bench) -> Arc<Arena> {
    let (seed, attempts) = (environment::seed(SEED), attempts());
    println!("race: FAULTS_SEED={seed} FAULTS_COUNT={attempts}");
    let url = secrecy::ExposeSecret::expose_secret(&bench.config.database.url).to_owned();
    let pool = PgPoolOptions::new().max_connections(ACTIVATORS as u32 + 2).connect(&url).await.expect("connects");
    let arena = Arc::new(Arena::new(bench, pool, attempts, SLOTS).await);
    let stream = |n: usize| StdRng::seed_from_u64(seed.wrapping_add(n as u64));
    let mut actors = tokio::task::JoinSet::new();
    for slot in 0..SLOTS {
        let (arena, chance) = (arena.clone(), stream(slot));
        actors.spawn(async move { arena.live_and_die(slot, chance).await });
    }
    for actor in 0..ACTIVATORS {
        let (arena, chance) = (arena.clone(), stream(1_000 + actor));
        actors.spawn(async move { arena.put_to_use(chance).await });
    }
    while let Some(ended) = actors.join_next().await {
        ended.expect("no actor panics");
    }
    arena.everything_is_as_it_says().await;
    arena
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_guards_no_committed_use_loses_its_dataset_whoever_comes_first() {
    let arena = race(guarded().await).await;
    let tally = &arena.tally;
    println!("{tally}");
    assert_eq!(tally.violations(), Vec::<String>::new());
    let attempts = tally.attempts();
    assert_eq!(tally.outcomes(), attempts, "each attempt has one outcome");
    // both orders, often, under each isolation level and by each way of using
    for isolation in Isolation::ALL {
        assert!(tally.committed(isolation) >= attempts / 30, "{isolation:?}: the use came first");
        assert!(tally.refused(isolation) >= attempts / 30, "{isolation:?}: the trash came first");
    }
    for way in Use::ALL {
        assert!(tally.committed_by(way) >= attempts / 40 && tally.refused_by(way) >= attempts / 40, "{way:?}");
    }
    let lives = tally.lives();
    assert!(lives.trash_refused >= attempts / 100, "the use came first, and the trash waited for it: {lives:?}");
    assert!(lives.purged >= attempts / 100 && lives.restored >= attempts / 100, "{lives:?}");
    assert_eq!(lives.blocked, 0, "what is in use was never trashed: {lives:?}");
    // the guard holds the using row, the end of a purge the used one
    assert_eq!(tally.deadlocks(), 0, "nobody waits in a circle");
}

#[tokio::test]
async fn a_transaction_older_than_the_trash_cannot_use_what_is_being_purged() {
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        let bench = guarded().await;
        let dataset = bench.dataset("set a", 2).await;
        let model = Model { datasets: vec![dataset], ..Model::named("m") }.insert(&bench.pool).await;
        let mut platform = bench.pool.begin_with(isolation.begin()).await.expect("begins");
        sqlx::query("select from heimdall.models").execute(&mut *platform).await.expect("takes its snapshot");

        let id = bench.trash_due("dataset", dataset).await;
        let gate = bench.objects.stop_a_delete(0, At::Before);
        let worker = bench.purger();
        let purge = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
        gate.reached().await;
        let activated = sqlx::query("update heimdall.models set is_active = true where id = $1").bind(model);
        let refused = activated.execute(&mut *platform).await.expect_err("its purge has begun");
        assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("23503"), "{refused}");
        drop(platform);
        gate.open();
        assert_eq!(purge.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
        assert_eq!(bench.count("heimdall.models where is_active").await, 0);
        assert_eq!(bench.count("reprieve.tombstones where actor = 'guard'").await, 0, "a trial leaves nothing");
    }
}
