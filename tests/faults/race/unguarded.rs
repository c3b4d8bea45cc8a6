//! Without guards: the narrow window between the claim's question and its commit, shown and measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reprieve::domain::ids::TombstoneId;
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use reprieve::purge::SliceEnd;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::MAP;
use crate::bench::Bench;
use crate::environment;
use crate::support::heimdall::{self, Model};

#[tokio::test]
async fn without_guards_a_use_between_the_claims_question_and_its_commit_is_not_seen() {
    let bench = Bench::with(MAP, "", |_| ()).await;
    let (model, id) = trashed(&bench).await;
    // the claim has asked its references, and waits here before its commit
    bench
        .run(
            "create function public.gate() returns trigger language plpgsql as $$ begin
                  perform pg_advisory_xact_lock(11); return new; end $$;
              create trigger gate before update on reprieve.tombstones for each row
                  when (old.state = 'trashed' and new.state = 'purging') execute function public.gate()",
        )
        .await;
    let mut gate = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(11)").execute(&mut *gate).await.expect("locks");
    let worker = bench.purger();
    let purge = tokio::spawn(async move { worker.run_slice(id, &crate::bench::budget()).await });
    bench.until_waiting("the claim waits before its commit", 1).await;
    bench.run(&format!("update heimdall.models set is_active = true where id = '{model}'")).await;
    sqlx::query("select pg_advisory_unlock(11)").execute(&mut *gate).await.expect("unlocks");
    assert_eq!(purge.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    let orphans = "heimdall.models where is_active and synthetic_dataset_id is null";
    assert_eq!(bench.count(orphans).await, 1, "active, and what it uses is gone: this is what guards are for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_guards_the_window_is_as_wide_as_the_claim_takes_from_its_question_to_its_commit() {
    // commit times tell the order, and nothing else does
    let settings = vec![("track_commit_timestamp".to_owned(), "on".to_owned())];
    let server = PrivatePostgres::start(Options { tcp: false, settings }).await.expect("starts");
    let url = server.create_database("platform").await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("connects");
    heimdall::load(&pool).await;
    let bench = Arc::new(Bench::over_database(pool, &url, MAP, "", |_| ()).await);
    let rounds = super::attempts() / 20;
    let narrow = meet(&bench, rounds, 1).await;
    bench
        .run(
            "create function public.dawdle() returns trigger language plpgsql as $$ begin
                  perform pg_sleep(0.02); return new; end $$;
              create trigger dawdle before update on reprieve.tombstones for each row
                  when (old.state = 'trashed' and new.state = 'purging') execute function public.dawdle()",
        )
        .await;
    let wide = meet(&bench, rounds / 4, 2).await;
    println!("without guards: {narrow}\nwith a claim that takes 20 ms longer: {wide}");
    for seen in [&narrow, &wide] {
        assert_eq!(seen.blocked + seen.within + seen.after, seen.rounds, "{seen}");
        assert!(seen.blocked >= seen.rounds / 10, "some came before the question, and nothing was lost: {seen}");
        assert!(seen.within + seen.after >= seen.rounds / 10, "some came after it: {seen}");
    }
    assert!(wide.within >= wide.rounds / 20, "a window of 20 ms is hit: {wide}");
}

/// A dataset that is due, and the idle model trained on it.
async fn trashed(bench: &Bench) -> (Uuid, TombstoneId) {
    let name = Uuid::new_v4().to_string();
    let dataset = bench.dataset(&name, 2).await;
    let model = Model { datasets: vec![dataset], ..Model::named(&name) }.insert(&bench.pool).await;
    (model, bench.trash_due("dataset", dataset).await)
}

/// How activations that nothing refuses came out.
#[derive(Debug, Default)]
struct Met {
    rounds: u64,
    /// Committed before the claim asked: the purge was blocked, and nothing was lost.
    blocked: u64,
    /// Committed before the claim did, and yet not seen by it: the window.
    within: u64,
    /// Committed after the claim: past the point of no return.
    after: u64,
    /// Of the claims that went through, from the beginning of the transaction to its commit.
    claims: Duration,
}

impl std::fmt::Display for Met {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Met { rounds, blocked, within, after, claims } = self;
        let mean = claims.as_secs_f64() * 1e3 / (within + after).max(1) as f64;
        write!(
            f,
            "of {rounds} activations raced against a claim {blocked} blocked it, {within} slipped into its window, "
        )?;
        write!(f, "{after} came after its commit; a claim's transaction took {mean:.1} ms")
    }
}

/// Races one activation against one claim at a time, as close as chance brings them.
async fn meet(bench: &Arc<Bench>, rounds: u64, stream: u64) -> Met {
    let mut chance = StdRng::seed_from_u64(environment::seed(super::SEED) ^ stream);
    let mut met = Met { rounds, ..Met::default() };
    // the moment at which the two meet: later after a block, earlier after a purge
    let mut lead = Duration::from_millis(4);
    for _ in 0..rounds {
        let (model, id) = trashed(bench).await;
        let wait = lead.mul_f64(chance.random_range(0.7..1.3));
        let platform = bench.clone();
        let activation = tokio::spawn(async move { activate_after(&platform, wait, model).await });
        let end = bench.slice(id).await;
        let transaction = activation.await.expect("no panic");
        if end == SliceEnd::Blocked(1) {
            met.blocked += 1;
            lead = lead.mul_f64(1.1).min(Duration::from_millis(250));
            continue;
        }
        assert_eq!(end, SliceEnd::Purged);
        lead = lead.mul_f64(0.91).max(Duration::from_micros(50));
        let (within, claim): (bool, f64) = sqlx::query_as(
            "select pg_xact_commit_timestamp($2::xid8::xid) < pg_xact_commit_timestamp(xmin),
                    extract(epoch from pg_xact_commit_timestamp(xmin) - at)::float8
             from reprieve.audit where tombstone_id = $1 and event = 'purge_begun'",
        )
        .bind(id.0)
        .bind(transaction)
        .fetch_one(&bench.pool)
        .await
        .expect("commit times are kept");
        met.claims += Duration::from_secs_f64(claim);
        if within { met.within += 1 } else { met.after += 1 }
    }
    met
}

/// Activates the model after `wait`, and gives back the id of the transaction.
async fn activate_after(bench: &Bench, wait: Duration, model: Uuid) -> String {
    let began = Instant::now();
    // a timer is coarser than what is measured
    while began.elapsed() < wait {
        tokio::task::yield_now().await;
    }
    let sql = "update heimdall.models set is_active = true where id = $1 returning pg_current_xact_id()::text";
    sqlx::query_scalar(sql).bind(model).fetch_one(&bench.pool).await.expect("nothing refuses it")
}
