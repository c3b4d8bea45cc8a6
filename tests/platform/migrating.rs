use reprieve::store::migrate::{self, Schema};
use reprieve::store::{Store, StoreError};
use reprieve::trash::TrashError;
use sqlx::{Connection, PgConnection};

use crate::bench::{Bench, HEIMDALL, load_config};
use crate::support::fresh_database;
use crate::support::heimdall::{Dataset, fresh};

#[tokio::test]
async fn migrating_twice_is_migrating_once() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    bench.trash("dataset", dataset).await;
    migrate::run(&bench.config.database).await.expect("nothing left to do");
    assert_eq!(bench.count("reprieve.tombstones").await, 1, "what was there stays");
    assert_eq!(migrate::compare(&bench.store).await.expect("reads"), Schema::Fits);
}

#[tokio::test]
async fn eight_processes_that_migrate_at_once_all_succeed() {
    let config = load_config(&fresh_database().await, HEIMDALL).database;
    let runs = (0..8).map(|_| migrate::run(&config));
    for run in futures_util::future::join_all(runs).await {
        run.expect("migrates or finds it done");
    }
    let store = Store::new(&config).expect("the URL is fine");
    assert_eq!(migrate::compare(&store).await.expect("reads"), Schema::Fits);
}

#[tokio::test]
async fn the_platforms_own_migrations_are_left_alone() {
    let url = fresh_database().await;
    let mut platform = PgConnection::connect(&url).await.expect("connects");
    let theirs = "create table _sqlx_migrations (version bigint primary key, description text not null,
                     installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
                     execution_time bigint not null);
                  insert into _sqlx_migrations values (1, 'theirs', now(), true, 'other', 0), (99, 'new', now(), true, 'x', 0)";
    sqlx::raw_sql(theirs).execute(&mut platform).await.expect("their table");
    let config = load_config(&url, HEIMDALL).database;
    migrate::run(&config).await.expect("their version 1 is not ours");
    let kept: Vec<String> = sqlx::query_scalar("select description from _sqlx_migrations order by version")
        .fetch_all(&mut platform)
        .await
        .expect("still there");
    assert_eq!(kept, ["theirs", "new"]);
    let store = Store::new(&config).expect("the URL is fine");
    assert_eq!(migrate::compare(&store).await.expect("reads"), Schema::Fits);
}

#[tokio::test]
async fn a_database_that_was_not_migrated_says_what_to_run() {
    let (pool, url) = fresh().await;
    let dataset = Dataset::iq_raw("set a").insert(&pool).await;
    let config = load_config(&url, HEIMDALL);
    let store = Store::new(&config.database).expect("the URL is fine");
    assert!(matches!(migrate::compare(&store).await.expect("reads"), Schema::Behind(8..)));
    let bin = reprieve::trash::TrashBin::new(store, &config);
    let resource = bin.resource("dataset", &dataset.to_string()).expect("fine");
    let request =
        reprieve::trash::TrashRequest { resource, with: Vec::new(), retention: None, by: crate::bench::alice() };
    let refused = bin.trash(&request).await.expect_err("there is no place for a tombstone");
    assert!(matches!(refused, TrashError::Store(StoreError::NotMigrated(_))), "{refused:?}");
    assert!(refused.to_string().contains("reprieve migrate"), "{refused}");
}

#[tokio::test]
async fn an_older_program_neither_serves_nor_migrates_what_a_newer_one_has_migrated() {
    let bench = Bench::heimdall().await;
    let newer = "insert into reprieve.migrations (version, description, success, checksum, execution_time)
                 values (9999, 'of a newer program', true, '\\x00', 0)";
    bench.run(newer).await;
    let schema = migrate::compare(&bench.store).await.expect("reads");
    assert_eq!(schema, Schema::Ahead(9999));
    assert!(schema.mismatch().is_some_and(|why| why.contains("9999") && why.contains("newer program")), "{schema:?}");
    let refused = migrate::run(&bench.config.database).await.expect_err("it does not know that migration");
    assert!(refused.to_string().contains("9999"), "{refused}");
}
