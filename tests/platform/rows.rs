use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::state::State;
use reprieve::purge::{Budget, SliceEnd};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bench::{Bench, HEIMDALL, SIZE, alice, budget};
use crate::gate::At;
use crate::support::heimdall::{Dataset, Model};
use crate::support::{SOON, wait_until};

#[tokio::test]
async fn child_rows_go_in_chunks_and_are_counted() {
    let bench = Bench::with(HEIMDALL, "", |config| config.purge.row_chunk = 7).await;
    let dataset = Dataset { samples: 30, features: 15, ..Dataset::iq_raw("set a") }.insert(&bench.pool).await;
    let other = Dataset { samples: 5, features: 5, ..Dataset::feature_based("set b") }.insert(&bench.pool).await;
    bench
        .run(
            "create table chunks (n int); create function note() returns trigger language plpgsql as $$ begin
                  insert into chunks select count(*) from gone; return null; end $$;
              create trigger notes after delete on heimdall.synthetic_iq_samples
                  referencing old table as gone for each statement execute function note()",
        )
        .await;
    let id = bench.trash_due("dataset", dataset).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.rows_deleted, 30 + 15 + 1);
    assert_eq!(bench.value::<i32>("select max(n) from chunks").await, 7);
    assert_eq!(bench.value::<i64>("select sum(n) from chunks").await, 30, "all of them in chunks, none by a cascade");
    let left = format!("heimdall.synthetic_training_samples where dataset_id = '{other}'");
    assert_eq!((bench.count(&left).await, bench.count("heimdall.measurement_features").await), (5, 5));
}

#[tokio::test]
async fn a_row_that_is_changed_at_the_moment_of_its_end_is_not_left_behind() {
    let bench = Bench::heimdall().await;
    let dataset = Dataset { features: 2, ..Dataset::iq_raw("set a") }.insert(&bench.pool).await;
    let id = bench.trash_due("dataset", dataset).await;
    let mut changing = bench.pool.begin().await.expect("begins");
    sqlx::query("update heimdall.measurement_features set overall_confidence = 0.1")
        .execute(&mut *changing)
        .await
        .expect("changes");
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    bench.until_waiting("the delete waits", 1).await;
    changing.commit().await.expect("commits");
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    assert_eq!(bench.count("heimdall.measurement_features").await, 0, "no foreign key would take them along");
    assert_eq!(bench.tombstone(id).await.progress.rows_deleted, 2 + 1);
}

/// Three attempts that fail with this table's name, and the one of a retry after `mended` that ends it.
async fn fails_until_mended(bench: &Bench, dataset: Uuid, id: TombstoneId, table: &str, mended: &str) {
    for attempt in 1..=3 {
        let end = tokio::time::timeout(SOON, bench.slice(id)).await.expect("it does not try for ever");
        let (SliceEnd::Failed(why) | SliceEnd::Stuck(why)) = end else { panic!("rows are left: {end:?}") };
        assert!(why.contains(table) && why.contains("a delete takes none"), "{attempt}: {why}");
        assert_eq!(bench.tombstone(id).await.attempts, attempt);
        bench.make_due(id).await;
    }
    assert_eq!((bench.state(id).await, bench.count("heimdall.synthetic_datasets").await), (State::Stuck, 1));
    assert_eq!(bench.events(id).await.iter().filter(|event| *event == "purged").count(), 0);
    bench.run(mended).await;
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.rows_deleted, 7, "each counted once");
    for table in ["synthetic_iq_samples", "measurement_features", "synthetic_datasets"] {
        assert_eq!(bench.count(&format!("heimdall.{table}")).await, 0, "{table}");
    }
}

#[tokio::test]
async fn child_rows_that_the_platform_keeps_fail_it_with_their_tables_name() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    bench
        .run(
            "create function keeps() returns trigger language plpgsql as $$ begin return null; end $$;
             create trigger keeps before delete on heimdall.measurement_features
                 for each row execute function keeps()",
        )
        .await;
    let id = bench.trash_due("dataset", dataset).await;
    fails_until_mended(
        &bench,
        dataset,
        id,
        "measurement_features",
        "drop trigger keeps on heimdall.measurement_features",
    )
    .await;
}

#[tokio::test]
async fn a_resource_whose_own_row_the_platform_keeps_is_not_purged() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    // a soft delete of the platform's own making
    bench
        .run(
            "create rule keeps as on delete to heimdall.synthetic_datasets
                 do instead update heimdall.synthetic_datasets set name = 'gone' where id = old.id",
        )
        .await;
    let id = bench.trash_due("dataset", dataset).await;
    fails_until_mended(&bench, dataset, id, "synthetic_datasets", "drop rule keeps on heimdall.synthetic_datasets")
        .await;
}

#[tokio::test]
async fn rows_that_the_map_does_not_know_and_that_come_after_the_claim_fail_it_with_their_tables_name() {
    let schema = "create table heimdall.exports (id int primary key, dataset uuid references heimdall.synthetic_datasets on delete restrict)";
    let bench = Bench::with(HEIMDALL, schema, |_| ()).await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let no_time = Budget::new(Duration::ZERO, CancellationToken::new());
    assert_eq!(bench.purger().run_slice(id, &no_time).await.expect("the database is there"), SliceEnd::Continues);
    bench.run(&format!("insert into heimdall.exports values (1, '{dataset}')")).await;
    bench.make_due(id).await;
    for attempt in 1..=3 {
        let (SliceEnd::Failed(why) | SliceEnd::Stuck(why)) = bench.slice(id).await else {
            panic!("a row refers to it")
        };
        assert!(why.contains("exports") && why.contains("foreign key"), "{attempt}: {why}");
        bench.make_due(id).await;
    }
    assert_eq!((bench.state(id).await, bench.count("heimdall.synthetic_datasets").await), (State::Stuck, 1));
    bench.run("delete from heimdall.exports").await;
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.rows_deleted, 7, "what went before the failure is counted too");
}

#[tokio::test]
async fn the_receipt_tells_what_was_destroyed_and_by_whose_wish() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 12).await;
    Model { datasets: vec![dataset], ..Model::named("idle") }.insert(&bench.pool).await;
    let id = bench.trash_due("dataset", dataset).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let entry = bench.told(id, "purged").await;
    assert!(entry.actor.starts_with("worker ") && entry.origin == "worker");
    let receipt = entry.details;
    let objects = serde_json::json!({
        "listed": 12, "deleted": 12, "absent": 0, "failed": 0, "unknown": 0, "older_versions": 0, "delete_markers": 0
    });
    assert_eq!(receipt["objects"], objects);
    assert_eq!(receipt["bytes_freed"], 12 * SIZE);
    assert_eq!(receipt["rows_deleted"], 25);
    assert_eq!((&receipt["row_found"], &receipt["row_deleted"]), (&true.into(), &true.into()));
    assert_eq!((&receipt["trashed_by"], &receipt["name"]), (&"alice".into(), &"set a".into()));
    let places = receipt["verified_empty"].as_array().expect("places");
    assert_eq!(places.len(), 2);
    assert_eq!(places[0]["bucket"], crate::bench::BUCKET);
    let keys: Vec<String> =
        sqlx::query_scalar("select destination from reprieve.outbox where topic = 'event' order by id")
            .fetch_all(&bench.pool)
            .await
            .expect("reads");
    assert_eq!(keys, ["dataset.trashed", "dataset.purge_begun", "dataset.purged"]);
    let told: serde_json::Value =
        bench.value("select payload from reprieve.outbox where destination = 'dataset.purged'").await;
    assert_eq!(told["details"], receipt, "the event says the same");
}

#[tokio::test]
async fn a_hold_that_meets_the_last_commit_neither_hangs_nor_breaks_it() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash_due("dataset", dataset).await;
    // the row's delete waits until the hold has come
    bench
        .run(
            "create function waits() returns trigger language plpgsql as $$ begin
                  perform pg_advisory_xact_lock(8); return null; end $$;
              create trigger waits after delete on heimdall.synthetic_datasets
                  for each row execute function waits()",
        )
        .await;
    let mut gate = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(8)").execute(&mut *gate).await.expect("locks");
    let (worker, bin, resource) = (bench.purger(), bench.bin.clone(), bench.resource("dataset", dataset));
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    bench.until_waiting("the row's delete waits", 1).await;
    let holding = tokio::spawn(async move { bin.hold(&resource, &alice()).await });
    bench.until_waiting("the hold waits", 2).await;
    sqlx::query("select pg_advisory_unlock(8)").execute(&mut *gate).await.expect("unlocks");
    assert_eq!(working.await.expect("no panic").expect("no deadlock"), SliceEnd::Purged);
    let refused = holding.await.expect("no panic").expect_err("there is nothing left to hold");
    assert_eq!(refused.code(), "not_found", "{refused}");
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    assert_eq!(bench.value::<i64>(deadlocks).await, 0);
    assert_eq!(bench.count("reprieve.holds").await, 0);
}

#[tokio::test]
async fn rows_of_a_partitioned_table_go_and_none_of_another_resource_with_the_same_place() {
    let map = HEIMDALL.replace("table = \"heimdall.measurement_features\"", "table = \"heimdall.parts\"");
    let schema = "create table heimdall.parts (dataset_id uuid, n int) partition by list (n);
                  create table heimdall.parts_0 partition of heimdall.parts for values in (0);
                  create table heimdall.parts_1 partition of heimdall.parts for values in (1)";
    let bench = Bench::with(&map, schema, |config| config.purge.row_chunk = 3).await;
    let (gone, kept) = (bench.dataset("set a", 0).await, bench.dataset("set b", 0).await);
    // the same row addresses in both partitions, of different datasets
    bench
        .run(&format!(
            "insert into heimdall.parts select '{gone}', 0 from generate_series(1, 10);
             insert into heimdall.parts select case when i % 2 = 0 then '{gone}'::uuid else '{kept}' end, 1 from generate_series(1, 10) i"
        ))
        .await;
    let id = bench.trash_due("dataset", gone).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.rows_deleted, 10 + 5 + 1);
    assert_eq!(bench.count(&format!("heimdall.parts where dataset_id = '{kept}'")).await, 5);
    assert_eq!(bench.count("heimdall.parts").await, 5);
}

/// A due dataset whose row the platform has removed, and a row of it that no foreign key took along.
async fn removed() -> (Bench, Uuid, TombstoneId) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash_due("dataset", dataset).await;
    bench.run("delete from heimdall.synthetic_datasets").await;
    assert_eq!(bench.count("heimdall.measurement_features").await, 1);
    (bench, dataset, id)
}

/// Another dataset takes the id, and has rows of its own.
async fn newcomer(bench: &Bench, id: Uuid) {
    Dataset { id, features: 2, ..Dataset::iq_raw("newcomer") }.insert(&bench.pool).await;
}

#[tokio::test]
async fn a_newcomer_that_comes_while_the_end_waits_keeps_its_rows() {
    let (bench, dataset, id) = removed().await;
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    let mut lock = bench.pool.begin().await.expect("begins");
    sqlx::query("select from reprieve.tombstones for update").execute(&mut *lock).await.expect("locks");
    gate.open();
    let end_waits = "pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
        and query like '%from reprieve.tombstones t%for update'";
    wait_until("the end waits", SOON, async || bench.count(end_waits).await == 1).await;
    newcomer(&bench, dataset).await;
    lock.rollback().await.expect("rolls back");
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    let (datasets, features) = ("heimdall.synthetic_datasets", "heimdall.measurement_features");
    assert_eq!((bench.count(datasets).await, bench.count(features).await), (1, 2));
    let receipt = bench.told(id, "purged").await.details;
    assert_eq!((&receipt["row_found"], &receipt["row_deleted"]), (&false.into(), &false.into()));
    assert_eq!(receipt["rows_deleted"], 1);
}

#[tokio::test]
async fn a_newcomer_that_comes_between_the_rows_keeps_its_own() {
    let (bench, dataset, id) = removed().await;
    bench
        .run(
            "create function waits() returns trigger language plpgsql as $$ begin
                  perform pg_advisory_xact_lock(8); return null; end $$;
              create trigger waits after delete on heimdall.measurement_features
                  for each statement execute function waits()",
        )
        .await;
    let mut gate = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(8)").execute(&mut *gate).await.expect("locks");
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    bench.until_waiting("the rows' delete waits", 1).await;
    newcomer(&bench, dataset).await;
    sqlx::query("select pg_advisory_unlock(8)").execute(&mut *gate).await.expect("unlocks");
    let end = working.await.expect("no panic").expect("the database is there");
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("another one has its id")), "{end:?}");
    let (datasets, features) = ("heimdall.synthetic_datasets", "heimdall.measurement_features");
    assert_eq!((bench.count(datasets).await, bench.count(features).await), (1, 1 + 2), "nobody knows whose they are");
}
