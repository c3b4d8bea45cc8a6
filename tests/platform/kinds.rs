use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::trash::TrashError;

use crate::bench::{Bench, budget};

/// One table, one kind: `more` is the rest of the kind's section.
fn one_kind(more: &str) -> String {
    format!("[[resource]]\nkind = \"thing\"\ntable = \"plat.things\"\n{more}")
}

const TEXT: &str = "id_type = \"text\"";

async fn things(columns: &str, more: &str) -> Bench {
    let schema = format!("create schema plat; create table plat.things ({columns})");
    Bench::with(&one_kind(more), &schema, |_| ()).await
}

#[tokio::test]
async fn text_ids_live_their_whole_life() {
    let more =
        format!("{TEXT}\n[[resource.objects]]\nstore = \"main\"\nbucket = \"second-bucket\"\nprefix = \"t/{{id}}/\"");
    let bench = things("id varchar(50) primary key", &more).await;
    bench.run("insert into plat.things values ('run-1'), ('run-10'), ('it''s')").await;
    let memory = bench.objects.memory();
    ["t/run-1/a", "t/run-1/a", "t/run-1/b", "t/run-10/a"].iter().for_each(|key| memory.put("second-bucket", key, 7));
    let id = bench.trash_due("thing", "run-1").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(memory.count("second-bucket"), 1, "every version, and nothing of run-10");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.bytes_freed, progress.rows_deleted), (3, 21, 1));
    let quoted = bench.bin.resource("thing", "it's").expect_err("a quote is no part of a safe id");
    assert_eq!(quoted.code(), "malformed_id");
}

#[tokio::test]
async fn integer_ids_live_their_whole_life_in_any_spelling() {
    for column in ["id smallint", "id integer", "id bigint"] {
        let bench = things(&format!("{column} primary key"), "id_type = \"integer\"").await;
        bench.run("insert into plat.things values (7), (8)").await;
        let id = bench.trash("thing", "007").await;
        assert!(bench.try_trash("thing", "7").await.expect("is there").already, "one resource, two spellings");
        bench.make_due(id).await;
        assert_eq!(bench.slice(id).await, SliceEnd::Purged, "{column}");
        assert_eq!(bench.count("plat.things").await, 1);
    }
}

#[tokio::test]
async fn a_kind_can_be_a_part_of_a_table() {
    let bench =
        things("id int primary key, type text", "id_type = \"integer\"\nwhere = \"type = 'raw' -- only\"").await;
    bench.run("insert into plat.things values (1, 'raw'), (2, 'derived'), (3, null)").await;
    for other in [2, 3] {
        let refused = bench.try_trash("thing", other).await.expect_err("not of this kind");
        assert!(matches!(refused, TrashError::NotFound(_)), "{refused}");
    }
    let id = bench.trash_due("thing", 1).await;
    bench.run("update plat.things set type = 'derived' where id = 1").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1), "no longer of its kind: not now");
    assert_eq!(bench.tombstone(id).await.blockers[0].reference, "changed kind");
    assert_eq!(bench.count("plat.things").await, 3);
}

#[tokio::test]
async fn what_changes_while_the_claim_waits_for_the_row_is_seen() {
    let (alone, with_another) =
        ("soft_delete = \"gone_at\"", "where = \"exists (select from plat.live l where l.id = things.id)\"");
    for (more, change, expected) in [
        (alone, "update plat.things set gone_at = null where id = 1", "undeleted row"),
        (alone, "delete from plat.things; insert into plat.things values (1)", "undeleted row"),
        (with_another, "delete from plat.live where id = 1", "changed kind"),
        (
            with_another,
            "delete from plat.things; insert into plat.things values (1); delete from plat.live",
            "changed kind",
        ),
    ] {
        let columns = "id int primary key, gone_at timestamptz); create table plat.live (id int primary key";
        let bench = things(columns, &format!("id_type = \"integer\"\n{more}")).await;
        bench.run("insert into plat.things values (1); insert into plat.live values (1)").await;
        let id = bench.trash_due("thing", 1).await;
        let mut platform = bench.pool.begin().await.expect("begins");
        sqlx::query("select from plat.things for update").execute(&mut *platform).await.expect("locks");
        sqlx::raw_sql(change).execute(&mut *platform).await.expect("changes");
        let purger = bench.purger();
        let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
        bench.until_waiting("the claim waits for the row", 1).await;
        platform.commit().await.expect("commits");
        assert_eq!(slice.await.expect("no panic").expect("the database is there"), SliceEnd::Blocked(1), "{expected}");
        assert_eq!(bench.tombstone(id).await.blockers[0].reference, expected);
    }
}

/// Trashes and restores row 1 and shows its mark before, in between and after.
async fn marks(bench: &Bench, mark: &str) -> [Option<String>; 3] {
    let sql = format!("select ({mark})::text from plat.things where id = 1");
    let before = bench.value(&sql).await;
    bench.trash("thing", 1).await;
    let trashed = bench.value(&sql).await;
    bench.restore("thing", 1).await;
    [before, trashed, bench.value(&sql).await]
}

#[tokio::test]
async fn the_platforms_own_mark_is_set_and_taken_back_whatever_its_form() {
    let some = |text: &str| Some(text.to_owned());
    let stage = "soft_delete = { column = \"stage\", live = \"active\", trashed = \"deleted\" }";
    for (columns, soft_delete, row, mark, expected) in [
        (
            "deleted_at timestamptz",
            "soft_delete = \"deleted_at\"",
            "null",
            "deleted_at is null",
            ["true", "false", "true"],
        ),
        ("gone boolean not null", "soft_delete = { boolean = \"gone\" }", "false", "gone", ["false", "true", "false"]),
        ("stage text not null", stage, "'active'", "stage", ["active", "deleted", "active"]),
        ("stage stages not null", stage, "'active'", "stage", ["active", "deleted", "active"]),
        ("other int", "", "5", "other", ["5", "5", "5"]),
    ] {
        let schema = format!(
            "create type stages as enum ('active', 'deleted');
             create schema plat; create table plat.things (id int primary key, {columns});
             insert into plat.things values (1, {row})"
        );
        let map = one_kind(&format!("id_type = \"integer\"\n{soft_delete}"));
        let bench = Bench::with(&map, &schema, |_| ()).await;
        assert_eq!(marks(&bench, mark).await, expected.map(some), "{columns}");
    }
}

#[tokio::test]
async fn a_time_of_deletion_that_the_platform_has_set_stays() {
    let bench =
        things("id int primary key, deleted_at timestamptz", "id_type = \"integer\"\nsoft_delete = \"deleted_at\"")
            .await;
    bench.run("insert into plat.things values (1, '2020-01-01')").await;
    bench.trash("thing", 1).await;
    assert_eq!(bench.count("plat.things where deleted_at = '2020-01-01'").await, 1);
}

const OWNED: &str = "id_type = \"text\"\n[[resource.objects]]\nstore = \"main\"\nbucket = \"second-bucket\"\nprefix = \"{owner}/{id}/\"";

#[tokio::test]
async fn a_prefix_takes_columns_of_the_row_and_when_they_change_it_blocks_until_they_are_as_they_were() {
    let bench = things("id text primary key, owner int", OWNED).await;
    bench.run("insert into plat.things values ('a', 42)").await;
    bench.objects.memory().put("second-bucket", "42/a/x", 1);
    bench.objects.memory().put("second-bucket", "43/a/x", 1);
    let id = bench.trash_due("thing", "a").await;
    bench.run("update plat.things set owner = 43").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    assert_eq!(bench.tombstone(id).await.blockers[0].reference, "moved objects");
    bench.run("update plat.things set owner = 42").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects.memory().count("second-bucket"), 1, "43/a/x was never its own");
}

#[tokio::test]
async fn a_null_or_a_slash_in_a_prefix_column_refuses_the_trash() {
    let bench = things("id text primary key, owner text", OWNED).await;
    bench.run("insert into plat.things values ('a', null), ('b', 'x/y'), ('c', ''), ('d', '..')").await;
    for id in ["a", "b", "c", "d"] {
        let refused = bench.try_trash("thing", id).await.expect_err("no safe place");
        assert_eq!(refused.code(), "unsafe_place", "{refused}");
        assert!(refused.to_string().contains("owner"), "{refused}");
    }
    assert_eq!(bench.count("reprieve.tombstones").await, 0);
}

const QUERIED: &str = "id_type = \"text\"\n[[resource.objects]]\nstore = \"main\"\nquery = \"select uri from plat.places where thing = $1\"";

async fn queried(uri: &str) -> Bench {
    let schema = format!(
        "create schema plat; create table plat.things (id text primary key); insert into plat.things values ('a');
         create table plat.places (thing text, uri text); insert into plat.places values ('a', {uri})"
    );
    Bench::with(&one_kind(QUERIED), &schema, |_| ()).await
}

#[tokio::test]
async fn addresses_come_from_a_query_and_those_inside_another_are_emptied_once() {
    let bench =
        queried("'s3://second-bucket/q/1/'), ('a', 's3://second-bucket/q/1/sub/'), ('a', 's3://second-bucket/q/1/'")
            .await;
    ["q/1/x", "q/1/sub/y", "q/10/z"].iter().for_each(|key| bench.objects.memory().put("second-bucket", key, 1));
    let id = bench.trash_due("thing", "a").await;
    assert_eq!(bench.tombstone(id).await.locations.len(), 1);
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.tombstone(id).await.progress.objects_listed, 2);
    assert_eq!(bench.objects.memory().count("second-bucket"), 1);
}

#[tokio::test]
async fn an_address_in_a_foreign_bucket_at_the_root_or_null_refuses_the_trash() {
    for (uri, code) in [
        ("'s3://elsewhere/q/1/'", "unsafe_place"),
        ("'s3://somebody-elses/q/1/'", "unsafe_place"),
        ("'s3://second-bucket/'", "unsafe_place"),
        ("'s3://second-bucket'", "unsafe_place"),
        ("'s3://second-bucket//'", "unsafe_place"),
        ("'s3://second-bucket/q/1'", "unsafe_place"),
        ("'/q/1/'", "unsafe_place"),
        ("null", "unavailable"),
    ] {
        let bench = queried(uri).await;
        let refused = bench.try_trash("thing", "a").await.expect_err("no safe place");
        assert_eq!(refused.code(), code, "{uri}: {refused}");
        assert_eq!(bench.count("reprieve.tombstones").await, 0, "{uri}");
    }
}

#[tokio::test]
async fn a_kind_without_objects_is_purged_row_by_row_alone() {
    let bench = things("id int primary key", "id_type = \"integer\"").await;
    bench.run("insert into plat.things values (1), (2)").await;
    let id = bench.trash_due("thing", 1).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!((bench.state(id).await, bench.count("plat.things").await), (State::Purged, 1));
}
