//! Rows that the map does not name, and that would refuse a purge its end by a foreign key, after the objects were gone.

use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::store::Store;
use reprieve::trash::TrashError;
use secrecy::ExposeSecret;

use crate::bench::{BUCKET, Bench, budget, kind};

/// Experiments with runs, and with steps as their rows.
const MAP: &str = r#"
[[resource]]
kind = "experiment"
table = "plat.experiments"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "experiments/{id}/"
[[resource.rows]]
table = "plat.steps"
column = "experiment_id"
[[resource.children]]
kind = "run"
query = "select id from plat.runs where experiment_id = $1"
[[resource]]
kind = "run"
table = "plat.runs"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "runs/{id}/"
[[resource.rows]]
table = "plat.logs"
column = "run_id"
"#;

/// Steps are mapped; they go before their experiment, whose key on them refuses nothing then.
const TABLES: &str = "create schema plat; set search_path to plat;
    create table experiments (id text primary key, region int default 1, unique (id, region));
    create table runs (id text primary key, experiment_id text);
    create table logs (id int primary key, run_id text references runs, experiment_id text);
    create table steps (id int primary key, experiment_id text references experiments, before int references steps);
    insert into experiments values ('e1'), ('e2');
    insert into runs values ('r1', 'e1');
    insert into steps values (1, 'e1', null), (2, 'e1', 1), (3, 'e2', null);";

async fn bench(more: &str) -> Bench {
    let bench = Bench::with(MAP, &format!("{TABLES}\n{more}"), |_| ()).await;
    bench.objects.memory().put(BUCKET, "experiments/e1/data.bin", 5);
    bench
}

/// What refuses the trash, for people; it has written nothing.
async fn refused(bench: &Bench, with: &[&str]) -> String {
    let mut request = bench.request("experiment", "e1");
    request.with = with.iter().map(|name| kind(name)).collect();
    let planned = bench.bin.plan(&request).await.expect_err("a dry run refuses as well").to_string();
    let error = bench.bin.trash(&request).await.expect_err("refused");
    assert_eq!((error.code(), error.to_string()), ("in_use", planned));
    assert!(error.advice().contains("[[resource.rows]]"), "{}", error.advice());
    assert_eq!(bench.count("reprieve.tombstones").await, 0);
    match error {
        TrashError::Refused { refusals, .. } => refusals.to_string(),
        other => panic!("{other}"),
    }
}

/// Trashes and purges the experiment to the end.
async fn is_purged(bench: &Bench) {
    let id = bench.trash_due("experiment", "e1").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!((bench.objects(), bench.count("plat.experiments where id = 'e1'").await), (0, 0));
}

#[tokio::test]
async fn rows_that_a_foreign_key_keeps_and_the_map_does_not_know_refuse_the_trash_with_their_table_and_count() {
    for action in ["no action", "restrict", "set null", "cascade"] {
        let bench = bench(&format!(
            "create table notes (id int primary key, about text constraint notes_about references experiments on delete {action});
             insert into notes values (1, 'e1'), (2, 'e1'), (3, 'e2'), (4, null)"
        ))
        .await;
        if ["set null", "cascade"].contains(&action) {
            is_purged(&bench).await;
            continue;
        }
        let why = refused(&bench, &[]).await;
        assert!(why.contains("2 rows of plat.notes") && why.contains("notes_about"), "{why}");
        bench.run("delete from plat.notes where about = 'e1'").await;
        is_purged(&bench).await;
        assert_eq!(bench.count("plat.notes").await, 2);
    }
}

#[tokio::test]
async fn child_rows_that_the_map_deletes_too_late_are_named_with_the_order_that_is_right() {
    let tables = format!(
        "{TABLES} create table marks (step int references steps, experiment_id text);
         insert into marks values (1, 'e1'), (3, 'e2');"
    );
    let marks = "[[resource.rows]]\ntable = \"plat.marks\"\ncolumn = \"experiment_id\"\n";
    let wrong = MAP.replacen("[[resource.children]]", &format!("{marks}[[resource.children]]"), 1);
    let bench = Bench::with(&wrong, &tables, |_| ()).await;
    let why = refused(&bench, &[]).await;
    assert!(why.contains("before that of plat.steps") && !why.contains("nothing deletes"), "{why}");
    let right = MAP.replacen("[[resource.rows]]", &format!("{marks}[[resource.rows]]"), 1);
    let bench = Bench::with(&right, &tables, |_| ()).await;
    bench.objects.memory().put(BUCKET, "experiments/e1/data.bin", 5);
    is_purged(&bench).await;
}

#[tokio::test]
async fn a_key_that_would_set_to_null_what_may_not_be_null_refuses() {
    for column in [
        "text not null references experiments on delete set null",
        "text not null references experiments on delete set default",
    ] {
        let notes = format!("create table notes (experiment_id {column}); insert into notes values ('e1');");
        let refusals = refused(&bench(&notes).await, &[]).await;
        assert!(refusals.contains("1 row of plat.notes"), "{refusals}");
    }
    for column in [
        "text references experiments on delete set null",
        "text not null default 'e2' references experiments on delete set default",
    ] {
        let notes = format!("create table notes (experiment_id {column}); insert into notes values ('e1');");
        let bench = bench(&notes).await;
        is_purged(&bench).await;
        assert_eq!(bench.count("plat.notes").await, 1);
    }
}

#[tokio::test]
async fn a_row_that_comes_inside_of_the_window_blocks_the_purge_before_its_first_object_is_gone() {
    let bench = bench("create table notes (id int primary key, about text references experiments)").await;
    let id = bench.trash_due("experiment", "e1").await;
    bench.run("insert into plat.notes values (1, 'e1')").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    let blocker = bench.tombstone(id).await.blockers[0].to_string();
    assert!(blocker.contains("1 row of plat.notes"), "{blocker}");
    assert_eq!((bench.objects(), bench.count("plat.steps").await), (1, 3), "nothing is lost");
    bench.run("delete from plat.notes").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn rows_behind_a_cascade_or_on_child_rows_refuse_too() {
    for more in [
        "create table pages (id int primary key, experiment_id text references experiments on delete cascade);
         create table parts (id int primary key, page int references pages on delete cascade);
         create table notes (id int primary key, part int references parts);
         insert into pages values (1, 'e1'), (2, 'e2'); insert into parts values (1, 1), (2, 2);
         insert into notes values (1, 1), (2, 2)",
        "create table notes (id int primary key, step int references steps); insert into notes values (1, 2), (2, 3)",
    ] {
        let bench = bench(more).await;
        let why = refused(&bench, &[]).await;
        assert!(why.contains("1 row of plat.notes"), "{why}");
        bench.run("delete from plat.notes where id = 1").await;
        is_purged(&bench).await;
    }
}

#[tokio::test]
async fn rows_that_go_along_by_a_cascade_a_deferred_key_or_their_own_row_refuse_nothing() {
    for more in [
        // the notes go with the experiment by one key, before the other is asked
        "create table notes (id int primary key, of text references experiments on delete cascade,
             about text references experiments); insert into notes values (1, 'e1', 'e1')",
        // the notes go with their pages, as do the parts that they are about
        "create table pages (id int primary key, experiment_id text references experiments on delete cascade);
         create table parts (id int primary key, page int references pages on delete cascade);
         create table notes (id int primary key, page int references pages on delete cascade, part int references parts);
         insert into pages values (1, 'e1'); insert into parts values (1, 1); insert into notes values (1, 1, 1)",
        // the experiment's own row points at a step that goes before it, and the key is asked about at the end
        "alter table experiments add first int references steps deferrable initially deferred;
         update experiments set first = 1 where id = 'e1'",
        // it points at itself
        "alter table experiments add self text references experiments; update experiments set self = id",
        // nothing enforces it
        "create table notes (id int primary key, about text references experiments); insert into notes values (1, 'e1');
         alter table experiments disable trigger all",
    ] {
        is_purged(&bench(more).await).await;
    }
}

#[tokio::test]
async fn a_row_that_goes_only_after_what_it_points_at_refuses() {
    for (more, table) in [
        (
            "alter table experiments add first int references steps; update experiments set first = 1 where id = 'e1'",
            "experiments",
        ),
        // what is restricted is never deferred
        (
            "alter table experiments add first int references steps on delete restrict deferrable initially deferred;
             update experiments set first = 1 where id = 'e1'",
            "experiments",
        ),
        // PostgreSQL asks for the notes of an experiment before it deletes those of its pages
        (
            "create table pages (id int primary key, experiment_id text references experiments on delete cascade);
             create table notes (id int primary key, page int references pages on delete cascade,
                 about text references experiments);
             insert into pages values (1, 'e1'); insert into notes values (1, 1, 'e1')",
            "notes",
        ),
        (
            "create table notes (id int primary key, about text references experiments,
                 of text references experiments on delete cascade); insert into notes values (1, 'e1', 'e1')",
            "notes",
        ),
    ] {
        let bench = bench(more).await;
        let why = refused(&bench, &[]).await;
        assert!(why.contains(&format!("1 row of plat.{table}")), "{why}");
        let deleted = bench
            .try_run("delete from plat.steps where experiment_id = 'e1'; delete from plat.experiments where id = 'e1'")
            .await;
        assert!(deleted.expect_err("PostgreSQL refuses as well").to_string().contains("foreign key"));
    }
}

#[tokio::test]
async fn keys_of_several_columns_of_partitions_and_onto_other_columns_are_followed() {
    for (more, table) in [
        (
            "create table notes (id int, about text, region int, foreign key (region, about) references experiments (region, id));
             insert into notes values (1, 'e1', 1), (2, 'e1', null)",
            "notes",
        ),
        (
            "create table notes (id int, about text references experiments) partition by list (id);
             create table notes_1 partition of notes for values in (1);
             insert into notes values (1, 'e1')",
            "notes",
        ),
        (
            "alter table experiments add code int unique; update experiments set code = 7 where id = 'e1';
             create table \"Odd notes\" (\"of\" int references experiments (code)); insert into \"Odd notes\" values (7)",
            "\\\"Odd notes\\\"",
        ),
        // the map names a partition, and the key is onto the whole
        (
            "create table all_steps (id int, experiment_id text, primary key (id, experiment_id)) partition by list (experiment_id);
             drop table steps; create table steps partition of all_steps for values in ('e1');
             create table notes (id int, step int, about text, foreign key (step, about) references all_steps);
             insert into all_steps values (1, 'e1'); insert into notes values (1, 1, 'e1')",
            "notes",
        ),
        // the triggers that act are those of the partitions, as PostgreSQL 14 has no others
        (
            "drop table steps; create table steps (id int primary key, experiment_id text) partition by list (id);
             create table steps_1 partition of steps for values in (1);
             create table notes (id int primary key, step int references steps);
             insert into steps values (1, 'e1'); insert into notes values (1, 1);
             delete from pg_trigger where tgrelid = 'steps'::regclass and tgconstraint in
                 (select oid from pg_constraint where conrelid = 'notes'::regclass)",
            "notes",
        ),
        // the map names the whole, and the key is onto a partition of a partition; what another one has is another row
        (
            "drop table steps; create table steps (id int, experiment_id text) partition by list (experiment_id);
             create table steps_1 partition of steps for values in ('e1') partition by list (id);
             create table steps_1_1 partition of steps_1 (id primary key) for values in (1, 2);
             create table steps_2 partition of steps (id primary key) for values in ('e2');
             create table notes (id int primary key, step int references steps_1_1);
             create table others (id int primary key, step int references steps_2);
             insert into steps values (1, 'e1'), (1, 'e2'); insert into notes values (1, 1);
             insert into others values (1, 1)",
            "notes",
        ),
        // so do the rows of a table that inherits from it
        (
            "create table late_steps (primary key (id)) inherits (steps); insert into late_steps values (9, 'e1');
             create table notes (id int primary key, step int references late_steps); insert into notes values (1, 9)",
            "notes",
        ),
    ] {
        let why = refused(&bench(more).await, &[]).await;
        assert!(why.contains(&format!("1 row of plat.{table}")) && !why.contains("plat.others"), "{why}");
    }
}

#[tokio::test]
async fn rows_that_are_deleted_in_chunks_refuse_by_the_keys_among_them() {
    let chained = "insert into steps values (5, 'e1', 2), (6, 'e1', 5)";
    for (more, table) in [
        // only the chunk with the last of them has the row that points at it
        (chained, "steps"),
        // asked when the first chunk is committed, and the experiment's own row is still there
        (
            "alter table steps drop constraint steps_before_fkey; insert into steps values (5, 'e1'), (6, 'e1');
             alter table experiments add first int references steps deferrable initially deferred;
             update experiments set first = 1 where id = 'e1'",
            "experiments",
        ),
        // the notes of one step are about the parts of another
        (
            "alter table steps drop constraint steps_before_fkey; insert into steps values (5, 'e1'), (6, 'e1');
             create table parts (id int primary key, step int references steps on delete cascade);
             create table notes (id int primary key, step int references steps on delete cascade, part int references parts);
             insert into parts values (1, 1); insert into notes values (1, 6, 1)",
            "notes",
        ),
    ] {
        let in_chunks_of = |chunk| async move {
            let schema = format!("{TABLES}\n{more}");
            let bench = Bench::with(MAP, &schema, |config| config.purge.row_chunk = chunk).await;
            bench.objects.memory().put(BUCKET, "experiments/e1/data.bin", 5);
            bench
        };
        // four rows fill four chunks' places, and the experiment's own goes in another transaction
        for chunk in [2, 4] {
            let why = refused(&in_chunks_of(chunk).await, &[]).await;
            assert!(why.contains(&format!("of plat.{table}, which nothing deletes in time")), "{why}");
        }
        is_purged(&in_chunks_of(5).await).await;
    }
}

#[tokio::test]
async fn siblings_that_point_at_each_other_refuse_and_a_chain_of_them_does_not() {
    let chain = "alter table runs add before text references runs;
        insert into runs values ('r0', 'e1', 'r1'), ('r2', 'e1', 'r0'), ('r3', 'e1', 'r2')";
    let circle = bench(&format!("{chain}; update runs set before = 'r3' where id = 'r1'")).await;
    let why = refused(&circle, &["run"]).await;
    assert!(why.contains("1 row of plat.runs"), "{why}");
    let bench = bench(chain).await;
    let mut request = bench.request("experiment", "e1");
    request.with = vec![kind("run")];
    let trashed = bench.bin.trash(&request).await.expect("one after the other");
    for run in ["r3", "r2", "r0", "r1"] {
        let child = trashed.children.iter().find(|child| child.resource.id.as_str() == run).expect("goes along").id;
        bench.make_due(child).await;
        assert_eq!(bench.slice(child).await, SliceEnd::Purged, "{run}");
    }
    bench.make_due(trashed.tombstone.id).await;
    assert_eq!(bench.slice(trashed.tombstone.id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn more_ways_of_cascades_than_a_question_can_hold_mean_not_now() {
    let bench = bench("create table level_0 (id int primary key, experiment_id text)").await;
    let id = bench.trash_due("experiment", "e1").await;
    let level = |at: u32, below: u32| {
        format!(
            "create table plat.level_{at} (id int primary key, a int references plat.level_{below} on delete cascade,
                 b int references plat.level_{below} on delete cascade);"
        )
    };
    bench.run(&(1..=12).map(|at| level(at, at - 1)).collect::<String>()).await;
    bench
        .run("alter table plat.level_0 add foreign key (experiment_id) references plat.experiments on delete cascade")
        .await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("too many ways")), "{end:?}");
    assert_eq!(bench.objects(), 1);
}

#[tokio::test]
async fn another_number_of_the_same_rows_is_no_news() {
    let bench = bench("create table notes (id int primary key, about text references experiments)").await;
    let id = bench.trash_due("experiment", "e1").await;
    for note in 1..=3 {
        bench.run(&format!("insert into plat.notes values ({note}, 'e1')")).await;
        assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
        assert!(bench.tombstone(id).await.blockers[0].to_string().contains(&format!("{note} row")));
        bench.make_due(id).await;
    }
    assert_eq!(bench.count("reprieve.audit where event = 'blocked'").await, 1);
}

#[tokio::test]
async fn a_child_that_points_at_its_parent_refuses_unless_it_goes_along_and_its_rows_too() {
    let bench = bench(
        "alter table runs add foreign key (experiment_id) references experiments;
         alter table logs add foreign key (experiment_id) references experiments; insert into logs values (1, 'r1', 'e1')",
    )
    .await;
    let why = refused(&bench, &[]).await;
    assert!(why.contains("1 row of plat.runs") && why.contains("1 row of plat.logs"), "{why}");
    let mut request = bench.request("experiment", "e1");
    request.with = vec![kind("run")];
    let trashed = bench.bin.trash(&request).await.expect("goes along");
    let (parent, child) = (trashed.tombstone.id, trashed.children[0].id);
    bench.make_due(parent).await;
    bench.make_due(child).await;
    assert_eq!(bench.slice(child).await, SliceEnd::Purged);
    assert_eq!(bench.slice(parent).await, SliceEnd::Purged);
}

#[tokio::test]
async fn a_child_in_the_trash_on_its_own_lets_the_parent_in_and_keeps_it_until_it_is_purged() {
    let bench = bench("alter table runs add foreign key (experiment_id) references experiments").await;
    let child = bench.trash("run", "r1").await;
    let parent = bench.trash_due("experiment", "e1").await;
    assert_eq!(bench.slice(parent).await, SliceEnd::Blocked(1));
    bench.make_due(child).await;
    assert_eq!(bench.slice(child).await, SliceEnd::Purged);
    bench.make_due(parent).await;
    assert_eq!(bench.slice(parent).await, SliceEnd::Purged);
}

#[tokio::test]
async fn a_parent_that_points_at_its_child_refuses_since_it_goes_after_it() {
    let bench = bench(
        "alter table experiments add best text references runs; update experiments set best = 'r1' where id = 'e1'",
    )
    .await;
    let why = refused(&bench, &["run"]).await;
    assert!(why.contains("1 row of plat.experiments") && why.contains("uses run r1"), "{why}");
}

#[tokio::test]
async fn a_table_that_may_not_be_read_means_not_now() {
    let bench = bench("create table notes (id int primary key, about text references experiments)").await;
    let id = bench.trash_due("experiment", "e1").await;
    let role: String = bench.value("select 'few_rights_' || replace(current_database(), '-', '_')").await;
    bench
        .run(&format!(
            "create role {role}; grant usage on schema plat, reprieve to {role};
             grant all on all tables in schema plat, reprieve to {role};
             grant usage on all sequences in schema reprieve to {role}; revoke all on plat.notes from {role}"
        ))
        .await;
    let mut config = bench.config.database.clone();
    let url = config.url.expose_secret();
    let and = if url.contains('?') { '&' } else { '?' };
    config.url = format!("{url}{and}options=-crole%3D{role}").into();
    let few_rights = bench.over(Store::new(&config).expect("the URL is fine"));
    let end = few_rights.run_slice(id, &budget()).await.expect("the database is there");
    assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("permission denied for table notes")), "{end:?}");
    assert_eq!(bench.objects(), 1);
    bench.make_due(id).await;
    bench.run(&format!("grant select on plat.notes to {role}")).await;
    assert_eq!(few_rights.run_slice(id, &budget()).await.expect("the database is there"), SliceEnd::Purged);
    assert_eq!(bench.state(id).await, State::Purged);
    bench.run(&format!("drop owned by {role}; drop role {role}")).await;
}
