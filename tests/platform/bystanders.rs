//! What the purge of one resource must not do to another: below its prefix, by a foreign key, in the same row, with
//! the same id.

use std::time::Duration;

use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::trash::TrashError;

use crate::bench::{BUCKET, Bench, alice, budget, kind};

/// Experiments whose runs keep their objects inside of theirs.
const NESTED: &str = r#"
[[resource]]
kind = "experiment"
table = "plat.experiments"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "{id}/"
[[resource.children]]
kind = "run"
query = "select id from plat.runs where experiment_id = $1"
[[resource]]
kind = "run"
table = "plat.runs"
id_type = "text"
name = "name"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "{experiment_id}/{id}/"
"#;

const TABLES: &str = "create schema plat; create table plat.experiments (id text primary key);
     create table plat.runs (id text primary key, name text default 'first', experiment_id text);
     insert into plat.experiments values ('e1');
     insert into plat.runs (id, experiment_id) values ('r1', 'e1')";

async fn nested() -> Bench {
    let bench = Bench::with(NESTED, TABLES, |_| ()).await;
    bench.objects.memory().put(BUCKET, "e1/r1/model.bin", 5);
    bench
}

/// The labels of the blockers that refused the trash.
async fn refused(bench: &Bench, of: &str, id: &str, with: &[&str]) -> String {
    let mut request = bench.request(of, id);
    request.with = with.iter().map(|name| kind(name)).collect();
    match bench.bin.trash(&request).await.expect_err("refused") {
        TrashError::Refused { refusals, .. } => refusals.to_string(),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_live_child_below_the_prefix_refuses_the_parent_unless_it_goes_along() {
    let bench = nested().await;
    let why = refused(&bench, "experiment", "e1", &[]).await;
    assert!(why.contains("run r1") && why.contains("below the prefix"), "{why}");
    let mut request = bench.request("experiment", "e1");
    request.with = vec![kind("run")];
    assert_eq!(bench.bin.trash(&request).await.expect("goes").children.len(), 1);
}

#[tokio::test]
async fn a_child_that_was_restored_alone_blocks_its_parents_purge() {
    let bench = nested().await;
    let mut request = bench.request("experiment", "e1");
    request.with = vec![kind("run")];
    let parent = bench.bin.trash(&request).await.expect("goes").tombstone.id;
    bench.restore("run", "r1").await;
    bench.make_due(parent).await;
    assert_eq!(bench.slice(parent).await, SliceEnd::Blocked(1));
    assert_eq!((bench.objects(), bench.count("plat.runs").await), (1, 1));
}

#[tokio::test]
async fn what_is_in_the_trash_on_its_own_below_the_prefix_refuses_the_parent_with_or_without_it() {
    let bench = nested().await;
    bench.trash("run", "r1").await;
    for with in [&[][..], &["run"]] {
        let why = refused(&bench, "experiment", "e1", with).await;
        assert!(why.contains("run r1"), "{why}");
    }
    assert_eq!(bench.count("reprieve.tombstones").await, 1);
}

#[tokio::test]
async fn a_live_row_that_a_foreign_key_would_delete_along_refuses_the_trash() {
    let schema =
        TABLES.replace("experiment_id text", "experiment_id text references plat.experiments on delete cascade");
    let map = NESTED.replace("prefix = \"{id}/\"", "prefix = \"experiments/{id}/\"");
    let bench = Bench::with(&map, &schema, |_| ()).await;
    let why = refused(&bench, "experiment", "e1", &[]).await;
    assert!(why.contains("run r1") && why.contains("foreign key"), "{why}");
    bench.run("delete from plat.runs").await;
    let parent = bench.trash_due("experiment", "e1").await;
    bench.run("insert into plat.runs (id, experiment_id) values ('r2', 'e1')").await;
    assert_eq!(bench.slice(parent).await, SliceEnd::Blocked(1), "one that came in the window blocks too");
    assert_eq!(bench.count("plat.runs").await, 1);
}

#[tokio::test]
async fn one_row_is_in_the_trash_once_whatever_it_is_called() {
    let again = NESTED.split("[[resource]]").nth(2).expect("run").replace("kind = \"run\"", "kind = \"any-run\"");
    let bench = Bench::with(&format!("{NESTED}\n[[resource]]{again}"), TABLES, |_| ()).await;
    bench.trash("run", "r1").await;
    let why = refused(&bench, "any-run", "r1", &[]).await;
    assert!(why.contains("same row"), "{why}");
}

#[tokio::test]
async fn another_row_with_the_id_of_one_that_the_platform_removed_is_left_alone() {
    let bench = nested().await;
    let id = bench.trash_due("run", "r1").await;
    bench.run("delete from plat.runs").await;
    bench.run("insert into plat.runs values ('r1', 'second', 'e1')").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    assert_eq!((bench.objects(), bench.count("plat.runs").await), (1, 1));
}

#[tokio::test]
async fn another_row_that_takes_the_id_during_the_purge_is_left_alone() {
    let bench = nested().await;
    let id = bench.trash_due("run", "r1").await;
    bench.run("delete from plat.runs").await;
    let keeper = bench.objects.stop_a_delete(0, crate::gate::At::Before);
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    bench.run("insert into plat.runs values ('r1', 'second', 'e1')").await;
    keeper.open();
    let end = slice.await.expect("no panic").expect("no outage");
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("another one has its id")), "{end:?}");
    assert_eq!(bench.count("plat.runs").await, 1);
}

#[tokio::test]
async fn a_hold_on_the_parent_and_the_claim_of_its_child_are_one_after_the_other() {
    let bench = nested().await;
    let mut request = bench.request("experiment", "e1");
    request.with = vec![kind("run")];
    let went = bench.bin.trash(&request).await.expect("goes");
    let child = went.children[0].id;
    bench.make_due(child).await;
    let mut row = bench.pool.begin().await.expect("begins");
    sqlx::query("select 1 from plat.runs for update").execute(&mut *row).await.expect("locks");
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(child, &budget()).await });
    bench.until_waiting("the claim waits for the row", 1).await;
    let (bin, resource) = (bench.bin.clone(), bench.resource("experiment", "e1"));
    let hold = tokio::spawn(async move { bin.hold(&resource, &alice()).await });
    bench.until_waiting("the hold waits for the claim", 2).await;
    assert_eq!(bench.count("reprieve.holds").await, 0, "no hold is promised while a child is being claimed");
    row.rollback().await.expect("rolls back");
    assert_eq!(slice.await.expect("no panic").expect("no outage"), SliceEnd::Purged);
    assert!(hold.await.expect("no panic").expect("holds what is left"));
    assert_eq!(bench.state(went.tombstone.id).await, State::Trashed);
}

#[tokio::test]
async fn places_that_a_query_did_not_name_at_trash_keep_the_rows_that_list_them() {
    let map = r#"
[[resource]]
kind = "session"
table = "plat.sessions"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
query = "select distinct 's3://heimdall-synthetic-iq/' || place from plat.chunks where session_id = $1"
[[resource.rows]]
table = "plat.chunks"
column = "session_id"
"#;
    let schema = "create schema plat; create table plat.sessions (id text primary key);
        create table plat.chunks (session_id text, place text);
        insert into plat.sessions values ('s'); insert into plat.chunks values ('s', 'a/s/')";
    let bench = Bench::with(map, schema, |_| ()).await;
    let id = bench.trash("session", "s").await;
    bench.run("insert into plat.chunks values ('s', 'b/s/')").await;
    bench.objects.memory().put(BUCKET, "b/s/2", 5);
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    assert_eq!((bench.objects(), bench.count("plat.chunks").await), (1, 2));
}

#[tokio::test]
async fn tasks_that_come_early_do_not_push_the_next_look_away() {
    let bench = Bench::with(crate::bench::HEIMDALL, "", |config| {
        config.purge.recheck_initial = Duration::from_secs(60);
    })
    .await;
    let dataset = bench.dataset("a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    bench.run("insert into reprieve.pauses (scope, actor) values ('all', 'x')").await;
    for _ in 0..10 {
        bench.slice(id).await;
    }
    assert_eq!(bench.value::<i32>("select waits from reprieve.tombstones").await, 1);
}

#[tokio::test]
async fn an_id_that_several_rows_have_is_refused_and_none_of_them_is_touched() {
    let map = r#"
[[resource]]
kind = "version"
table = "plat.versions"
id = "dataset"
id_type = "text"
"#;
    let schema = "create schema plat; create table plat.versions (dataset text, number int);
        insert into plat.versions values ('a', 1), ('a', 2), ('b', 1)";
    let bench = Bench::with(map, schema, |_| ()).await;
    let refused = bench.try_trash("version", "a").await.expect_err("refused").to_string();
    assert!(refused.contains("not unique"), "{refused}");
    let id = bench.trash_due("version", "b").await;
    bench.run("insert into plat.versions values ('b', 2)").await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(why) if why.contains("not unique")));
    assert_eq!(bench.count("plat.versions").await, 4);
}

#[tokio::test]
async fn a_foreign_key_of_the_table_onto_itself_counts_too() {
    let map = "[[resource]]\nkind = \"folder\"\ntable = \"plat.folders\"\nid_type = \"integer\"\n";
    let schema = "create schema plat;
        create table plat.folders (id int primary key, parent int references plat.folders on delete cascade);
        insert into plat.folders values (1, null), (2, 1), (3, 3)";
    let bench = Bench::with(map, schema, |_| ()).await;
    let why = refused(&bench, "folder", "1", &[]).await;
    assert!(why.contains("folder 2"), "{why}");
    bench.trash("folder", 3).await;
}
