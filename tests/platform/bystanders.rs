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

/// Datasets with samples and pages, and what has objects of its own behind them.
const BEHIND: &str = r#"
[[resource]]
kind = "dataset"
table = "plat.datasets"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "datasets/{id}/"
[[resource.rows]]
table = "plat.samples"
column = "dataset_id"
[[resource]]
kind = "annotation"
table = "plat.annotations"
id_type = "integer"
where = "status <> 'draft'"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "annotations/{id}/"
"#;

#[tokio::test]
async fn a_live_row_behind_any_number_of_cascades_and_child_rows_refuses_the_trash_and_blocks_the_purge() {
    let schema = "create schema plat; set search_path to plat;
        create table datasets (id text primary key, region int default 1, code int unique, unique (id, region));
        create table samples (id int primary key, dataset_id text references datasets);
        insert into datasets values ('d1', 1, 7), ('d2', 1, 8); insert into samples values (1, 'd1'), (2, 'd2');
        create table annotations (id int primary key, sample int, page int, dataset text, region int, code int,
            status text default 'final');";
    for (keys, its, others) in [
        // behind a child row
        (
            "alter table annotations add foreign key (sample) references samples on delete cascade",
            "sample = 1",
            "sample = 2",
        ),
        // behind a tree of pages that the map does not name
        (
            "create table pages (id int primary key, dataset text references datasets on delete cascade,
                 above int references pages on delete cascade);
             insert into pages values (1, 'd1', null), (2, null, 1), (3, null, 2), (4, null, 3), (5, 'd2', null);
             alter table annotations add foreign key (page) references pages on delete cascade",
            "page = 4",
            "page = 5",
        ),
        // behind two tables that point at each other
        (
            "create table pages (id int primary key, dataset text references datasets on delete cascade, part int);
             create table parts (id int primary key, page int references pages on delete cascade);
             alter table pages add foreign key (part) references parts on delete cascade;
             insert into pages values (1, 'd1'), (3, 'd2'); insert into parts values (1, 1);
             insert into pages values (2, null, 1); insert into parts values (2, 2); insert into pages values (4, null, 2);
             alter table annotations add foreign key (page) references pages on delete cascade",
            "page = 4",
            "page = 3",
        ),
        // by several columns, and by another one than the id
        (
            "alter table annotations add foreign key (dataset, region) references datasets (id, region) on delete cascade",
            "dataset = 'd1', region = 1",
            "dataset = 'd2', region = 1",
        ),
        (
            "alter table annotations add foreign key (code) references datasets (code) on delete cascade",
            "code = 7",
            "code = 8",
        ),
        // in a partition, by a key of the whole
        (
            "alter table annotations rename to old; create table parted (like old) partition by list (id);
             alter table parted alter status set default 'final';
             create table annotations partition of parted for values in (1, 2, 3);
             alter table annotations add unique (id);
             alter table parted add foreign key (sample) references samples on delete cascade",
            "sample = 1",
            "sample = 2",
        ),
    ] {
        let bench = Bench::with(BEHIND, &format!("{schema} {keys}"), |_| ()).await;
        bench.run("insert into plat.annotations (id) values (1), (2), (3)").await;
        bench.run(&format!("update plat.annotations set {others} where id = 2")).await;
        let parent = bench.trash_due("dataset", "d1").await;
        bench.run(&format!("update plat.annotations set {its} where id = 1")).await;
        assert_eq!(bench.slice(parent).await, SliceEnd::Blocked(1), "one that came in the window blocks too: {keys}");
        let blocker = bench.tombstone(parent).await.blockers[0].to_string();
        assert!(blocker.contains("annotation 1"), "{blocker}");
        bench.restore("dataset", "d1").await;
        let why = refused(&bench, "dataset", "d1", &[]).await;
        assert!(why.contains("annotation 1") && !why.contains("annotation 2"), "{why}");
        assert_eq!((bench.count("plat.annotations").await, bench.count("plat.samples").await), (3, 2));
        // what is no annotation by the map's `where` is none
        bench.run("update plat.annotations set status = 'draft' where id = 1").await;
        let parent = bench.trash_due("dataset", "d1").await;
        assert_eq!(bench.slice(parent).await, SliceEnd::Purged);
        assert_eq!(bench.count("plat.annotations").await, 2);
    }
}

#[tokio::test]
async fn a_live_resource_whose_row_is_in_a_partition_that_the_map_has_as_anothers_child_rows_refuses_too() {
    let map = BEHIND.replace("plat.samples", "plat.its_annotations");
    let schema = "create schema plat; set search_path to plat; create table datasets (id text primary key);
        create table annotations (id int unique, dataset_id text, status text default 'final') partition by list (id);
        create table its_annotations partition of annotations for values in (1, 2);
        insert into datasets values ('d1'); insert into annotations values (1, 'd1'), (2, null)";
    let bench = Bench::with(&map, schema, |_| ()).await;
    let why = refused(&bench, "dataset", "d1", &[]).await;
    assert!(why.contains("annotation 1") && !why.contains("annotation 2"), "{why}");
}
