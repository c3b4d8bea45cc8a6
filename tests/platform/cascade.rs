use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::trash::{TrashError, TrashRequest};
use uuid::Uuid;

use crate::bench::{Bench, alice, by, kind};
use crate::keyed::{MAP, TABLES, held, name, purged};
use crate::support::heimdall::{Dataset, Job, Model};

/// A finished job with two datasets.
async fn job_with_datasets(bench: &Bench) -> (Uuid, [Uuid; 2]) {
    let job = Job::named("generation").insert(&bench.pool).await;
    let mut datasets = Vec::new();
    for name in ["set a", "set b"] {
        datasets.push(Dataset { created_by: Some(job), ..Dataset::iq_raw(name) }.insert(&bench.pool).await);
    }
    (job, [datasets[0], datasets[1]])
}

#[tokio::test]
async fn a_job_goes_alone_unless_its_datasets_are_asked_for() {
    let bench = Bench::heimdall().await;
    let (job, _) = job_with_datasets(&bench).await;
    let alone = bench.try_trash("job", job).await.expect("goes");
    assert!(alone.children.is_empty());
    assert_eq!(bench.count("reprieve.tombstones").await, 1);
}

#[tokio::test]
async fn asked_for_they_go_together_each_with_its_own_tombstone_and_parent() {
    let bench = Bench::heimdall().await;
    let (job, datasets) = job_with_datasets(&bench).await;
    let other = bench.dataset("of nobody", 1).await;
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    let mut ids: Vec<String> = went.children.iter().map(|child| child.resource.id.to_string()).collect();
    let mut expected = datasets.map(|id| id.to_string());
    ids.sort();
    expected.sort();
    assert_eq!(ids, expected);
    assert!(went.children.iter().all(|child| child.parent == Some(went.tombstone.id)));
    assert_eq!(bench.count(&format!("reprieve.tombstones where resource_id = '{other}'")).await, 0);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 3);
}

#[tokio::test]
async fn every_blocker_of_every_child_is_reported_and_nothing_is_written() {
    let bench = Bench::heimdall().await;
    let (job, [a, b]) = job_with_datasets(&bench).await;
    Model { active: true, datasets: vec![a], ..Model::named("of a") }.insert(&bench.pool).await;
    Model { production: true, datasets: vec![b], ..Model::named("of b") }.insert(&bench.pool).await;
    bench.bin.hold(&bench.resource("dataset", b), &by("bob", None)).await.expect("holds");
    bench.run("update heimdall.training_jobs set status = 'running'").await;
    let before = bench.count("reprieve.audit").await;

    let refused = bench.trash_job_with_datasets(job).await.expect_err("in use");
    let TrashError::Refused { refusals, .. } = &refused else { panic!("{refused}") };
    let mut labels: Vec<&str> = refusals.blockers.iter().map(|blocker| blocker.label.as_str()).collect();
    labels.sort_unstable();
    assert_eq!(labels, ["generation", "of a", "of b"]);
    assert_eq!(refusals.holds.len(), 1);
    assert!(refused.to_string().contains(&format!("dataset {a}")), "{refused}");
    assert_eq!(bench.count("reprieve.tombstones").await, 0);
    assert_eq!((bench.count("reprieve.outbox").await, bench.count("reprieve.audit").await), (0, before));
}

#[tokio::test]
async fn a_cascade_to_a_kind_that_is_no_child_is_a_mistake_and_says_which_there_are() {
    let bench = Bench::heimdall().await;
    let (job, [a, _]) = job_with_datasets(&bench).await;
    let wrong = TrashRequest { with: vec![kind("job")], ..bench.request("job", job) };
    let refused = bench.bin.trash(&wrong).await.expect_err("jobs are no children of jobs");
    assert_eq!(refused.code(), "no_such_children");
    assert!(refused.to_string().contains("it has: dataset"), "{refused}");
    let childless = TrashRequest { with: vec![kind("job")], ..bench.request("dataset", a) };
    assert_eq!(bench.bin.trash(&childless).await.expect_err("has none").code(), "no_such_children");
    assert_eq!(bench.bin.kinds(["dateset"]).expect_err("a typing error").code(), "unknown_kind");
    assert_eq!(bench.count("reprieve.tombstones").await, 0);
}

#[tokio::test]
async fn a_child_in_the_trash_before_keeps_its_own_tombstone() {
    let bench = Bench::heimdall().await;
    let (job, [a, b]) = job_with_datasets(&bench).await;
    let own = bench.trash("dataset", a).await;
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    assert_eq!(went.children_already.iter().map(|child| child.id).collect::<Vec<_>>(), [own]);
    assert_eq!(went.children.len(), 1);
    assert_eq!(went.children[0].resource.id.to_string(), b.to_string());
    let back = bench.restore("job", job).await;
    assert_eq!(back.children.len(), 1, "what went before does not come back with it");
    assert_eq!(bench.state(own).await, State::Trashed);
}

#[tokio::test]
async fn children_of_children_go_only_when_each_kind_is_asked_for_and_cycles_end() {
    let map = r#"
[[resource]]
kind = "folder"
table = "plat.folders"
id_type = "integer"
[[resource.children]]
kind = "folder"
query = "select id from plat.folders where parent = $1"
[[resource.children]]
kind = "file"
query = "select id from plat.files where folder = $1"
[[resource]]
kind = "file"
table = "plat.files"
id_type = "text"
"#;
    let schema = "create schema plat; create table plat.folders (id int primary key, parent int);
                  create table plat.files (id text primary key, folder int);
                  insert into plat.folders values (1, 3), (2, 1), (3, 2), (4, null);
                  insert into plat.files values ('f1', 3), ('f2', 4)";
    let bench = Bench::with(map, schema, |_| ()).await;
    let files = TrashRequest { with: vec![kind("file")], ..bench.request("folder", 1) };
    assert_eq!(bench.bin.plan(&files).await.expect("plans").members.len(), 1, "its own files alone");
    let all = TrashRequest { with: vec![kind("folder"), kind("file")], ..bench.request("folder", 1) };
    let went = bench.bin.trash(&all).await.expect("goes");
    assert_eq!(went.children.len(), 3, "two folders and a file, the cycle once around");
    let back = bench.bin.restore(&went.tombstone.resource, reprieve::trash::IfChildrenLost::Refuse, &alice()).await;
    assert_eq!(back.expect("comes back").children.len(), 3);
}

#[tokio::test]
async fn a_held_parent_holds_what_went_with_it_until_it_is_released() {
    let bench = Bench::heimdall().await;
    let (job, _) = job_with_datasets(&bench).await;
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    let child = went.children[0].id;
    bench.make_due(child).await;
    let resource = bench.resource("job", job);
    bench.bin.hold(&resource, &by("bob", Some("audit"))).await.expect("holds");
    let held = SliceEnd::Deferred(format!("held with job {job} by bob: audit"));
    assert_eq!(bench.slice(child).await, held);
    bench.bin.release(&resource, &alice()).await.expect("releases");
    let now = format!("reprieve.outbox where topic = 'purge' and tombstone_id = '{child}' and available_at <= now()");
    assert_eq!(bench.count(&now).await, 1, "the release reaches the children too");
    assert_eq!(bench.slice(child).await, SliceEnd::Purged);
}

const DISCS: &str = r#"
[[resource.children]]
kind = "disc"
query = "select id from plat.discs where album_id = $1"
[[resource]]
kind = "disc"
table = "plat.discs"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
keys = "select key from plat.disc_files where disc_id = $1"
named_by = "select key, disc_id from plat.disc_files where key = any($1)"

[[resource]]
kind = "folder""#;

#[tokio::test]
async fn a_plan_with_children_does_not_call_kept_what_goes_with_the_last_of_them() {
    let map = MAP.replace("[[resource]]\nkind = \"folder\"", DISCS);
    let tables = format!(
        "{TABLES}; create table plat.discs (id text primary key, album_id text);
         create table plat.disc_files (disc_id text, key text);
         insert into plat.discs values ('d', 'a'), ('e', 'b');
         insert into plat.disc_files values ('d', 'shared'), ('d', 'with another'), ('e', 'with another')"
    );
    let bench = Bench::with(&map, &tables, |_| ()).await;
    name(&bench, "a", &["shared", "with another"]).await;
    let request = TrashRequest { with: vec![kind("disc")], ..bench.request("album", "a") };
    let plan = bench.bin.plan(&request).await.expect("plans");
    let shared: Vec<u64> = plan.members.iter().flat_map(|member| &member.recorded).map(|keys| keys.shared).collect();
    assert_eq!(shared, [1, 1], "what disc e names stays, and nothing else");
    // alone the album leaves both to the disc
    let alone = bench.bin.plan(&bench.request("album", "a")).await.expect("plans");
    assert_eq!(alone.members[0].recorded[0].shared, 2);
    let trashed = bench.bin.trash(&request).await.expect("trashes");
    for id in [trashed.children[0].id, trashed.tombstone.id] {
        bench.make_due(id).await;
        purged(&bench, id).await;
    }
    assert_eq!(held(&bench), ["with another"]);
}

#[tokio::test]
async fn children_that_block_are_said_to_go_along_when_they_are_asked_for() {
    let bench = Bench::with(NESTED, NESTED_TABLES, |_| ()).await;
    let refused = bench.try_trash("whole", "w1").await.expect_err("its parts would lose their objects");
    let advice = refused.advice();
    assert!(advice.contains("--with part") && !advice.contains("models"), "{advice}");
    // with another use beside them, both ways are named
    bench.run("insert into plat.users values ('u1', 'w1')").await;
    let advice = bench.try_trash("whole", "w1").await.expect_err("in use").advice().into_owned();
    assert!(advice.contains("--with part") && advice.contains("end the other uses"), "{advice}");
    bench.run("delete from plat.users").await;
    let with = vec![kind("part")];
    let request = TrashRequest { with, ..bench.request("whole", "w1") };
    assert_eq!(bench.bin.trash(&request).await.expect("all of it").children.len(), 2);
}

const NESTED: &str = r#"
[[resource]]
kind = "whole"
table = "plat.wholes"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "wholes/{id}/"
[[resource.references]]
name = "user"
query = "select id, id from plat.users where whole = $1"
[[resource.children]]
kind = "part"
query = "select id from plat.parts where whole = $1"
[[resource]]
kind = "part"
table = "plat.parts"
id_type = "text"
[[resource.objects]]
store = "main"
query = "select 's3://heimdall-synthetic-iq/wholes/' || whole || '/' || id || '/' from plat.parts where id = $1"
"#;

const NESTED_TABLES: &str = "create schema plat; set search_path to plat;
    create table wholes (id text primary key);
    create table parts (id text primary key, whole text references wholes);
    create table users (id text primary key, whole text);
    insert into wholes values ('w1'); insert into parts values ('p1', 'w1'), ('p2', 'w1');";
