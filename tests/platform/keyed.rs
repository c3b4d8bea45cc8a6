//! Objects that are not below a prefix of their own: named by a query, and recorded when their resource is trashed.

use std::time::Duration;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::objects::{LockMode, ObjectLock, Retention};
use reprieve::purge::{Budget, SliceEnd};
use tokio_util::sync::CancellationToken;

use crate::bench::{BUCKET, Bench, alice, budget};
use crate::gate::At;
use crate::support::keys::{nasty, pathlike, siblings};

pub const MAP: &str = r#"
[[resource]]
kind = "album"
table = "plat.albums"
id_type = "text"
soft_delete = "deleted_at"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
keys = "select key from plat.files where album_id = $1"
named_by = "select key, album_id from plat.files where key = any($1)"
[[resource.rows]]
table = "plat.files"
column = "album_id"

[[resource]]
kind = "folder"
table = "plat.folders"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "folders/{id}/"
"#;

pub const TABLES: &str = "create schema plat;
    create table plat.albums (id text primary key, deleted_at timestamptz);
    create table plat.folders (id text primary key);
    create table plat.files (album_id text, key text);
    create index on plat.files (album_id);
    create index on plat.files (key);
    insert into plat.albums values ('a'), ('b'), ('c')";

pub async fn albums() -> Bench {
    Bench::with(MAP, TABLES, |_| ()).await
}

/// Objects, and the rows of an album that name them.
pub async fn name(bench: &Bench, album: &str, keys: &[&str]) {
    keys.iter().for_each(|key| bench.objects.memory().put(BUCKET, key, 10));
    link(bench, album, keys).await;
}

/// Rows alone.
pub async fn link(bench: &Bench, album: &str, keys: &[&str]) {
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    sqlx::query("insert into plat.files select $1, unnest($2::text[])")
        .bind(album)
        .bind(keys)
        .execute(&bench.pool)
        .await
        .expect("inserts");
}

pub fn held(bench: &Bench) -> Vec<String> {
    bench.objects.memory().keys(BUCKET)
}

pub async fn purged(bench: &Bench, id: TombstoneId) {
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.count(&format!("reprieve.recorded_objects where tombstone_id = '{id}'")).await, 0);
}

#[tokio::test]
async fn named_objects_go_and_their_neighbours_stay() {
    let bench = albums().await;
    name(&bench, "a", &["a/1", "x", "other/2"]).await;
    for key in ["a/10", "a/1/x", "a/1 ", "a/", "xx", "other/2.npy", "folders/f/1"] {
        bench.objects.memory().put(BUCKET, key, 1);
    }
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    assert_eq!(held(&bench), ["a/", "a/1 ", "a/1/x", "a/10", "folders/f/1", "other/2.npy", "xx"]);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_kept), (3, 3, 0));
    assert_eq!((progress.bytes_freed, progress.rows_deleted), (30, 4));
    let receipt = bench.told(id, "purged").await.details;
    assert_eq!((&receipt["objects"]["kept"], &receipt["recorded"][0]["keys"]), (&0.into(), &3.into()), "{receipt:#}");
}

#[tokio::test]
async fn the_record_outlives_the_rows_that_the_platform_removes() {
    let bench = albums().await;
    name(&bench, "a", &["one", "two"]).await;
    let id = bench.trash_due("album", "a").await;
    bench.run("delete from plat.files; delete from plat.albums where id = 'a'").await;
    purged(&bench, id).await;
    assert_eq!(held(&bench), [""; 0]);
    assert_eq!(bench.tombstone(id).await.row_found, Some(false));
}

#[tokio::test]
async fn a_newcomer_with_the_id_of_a_removed_row_loses_nothing() {
    let bench = albums().await;
    name(&bench, "a", &["one", "two"]).await;
    let id = bench.trash_due("album", "a").await;
    bench.run("delete from plat.files; delete from plat.albums where id = 'a'").await;
    let keeper = bench.objects.stop_a_delete(0, At::Before);
    bench.objects.faults.fail_key("one", Times::Next(5), failure("InternalError", FailureClass::Transient));
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    bench.run("insert into plat.albums values ('a')").await;
    name(&bench, "a", &["one", "new"]).await;
    keeper.open();
    assert!(matches!(slice.await.expect("no panic").expect("no outage"), SliceEnd::Failed(_)));
    bench.make_due(id).await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("another one has its id")), "{end:?}");
    assert_eq!(held(&bench), ["new", "one"]);
}

#[tokio::test]
async fn what_is_named_after_the_trash_goes_too() {
    let bench = albums().await;
    name(&bench, "a", &["early"]).await;
    let id = bench.trash_due("album", "a").await;
    name(&bench, "a", &["in the window"]).await;
    let keeper = bench.objects.stop_a_delete(0, At::Before);
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    name(&bench, "a", &["during the purge"]).await;
    keeper.open();
    let end = slice.await.expect("no panic").expect("no outage");
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("not named before")), "{end:?}");
    assert_eq!(bench.count("plat.files").await, 3, "the rows that name it stay");
    bench.make_due(id).await;
    purged(&bench, id).await;
    assert_eq!(held(&bench), [""; 0]);
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 3);
}

#[tokio::test]
async fn pages_and_pages_of_them_are_each_counted_once_whenever_a_worker_dies() {
    let bench = albums().await;
    let keys: Vec<String> = (0..2500).map(|n| format!("p{}/k{n:04}", n % 7)).collect();
    name(&bench, "a", &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    link(&bench, "b", &["p0/k0000", "p3/k1242", "p6/k2498"]).await;
    let id = bench.trash_due("album", "a").await;
    let mut slices = 0;
    for (passes, at) in [(0, At::Before), (0, At::After), (1, At::After)] {
        let keeper = bench.objects.stop_a_delete(passes, at);
        let purger = bench.purger();
        let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
        keeper.reached().await;
        // dead where it stands
        slice.abort();
        assert!(slice.await.expect_err("it was ended").is_cancelled());
        keeper.open();
        bench.run("update reprieve.tombstones set lease_until = now() - interval '1 second', deaths = 0").await;
        slices += 1;
    }
    purged(&bench, id).await;
    assert_eq!((slices, held(&bench)), (3, vec!["p0/k0000".into(), "p3/k1242".into(), "p6/k2498".into()]));
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone(), progress.objects_kept), (2497, 2497, 3));
    assert_eq!(progress.bytes_freed, 24_970);
}

#[tokio::test]
async fn a_slice_of_no_time_gets_one_batch_further() {
    let bench = albums().await;
    let keys: Vec<String> = (0..2100).map(|n| format!("k{n:04}")).collect();
    name(&bench, "a", &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let id = bench.trash_due("album", "a").await;
    let mut left = Vec::new();
    loop {
        let none = Budget::new(Duration::ZERO, CancellationToken::new());
        match bench.purger().run_slice(id, &none).await.expect("no outage") {
            SliceEnd::Continues => left.push(bench.objects()),
            SliceEnd::Purged => break,
            other => panic!("{other:?}"),
        }
        assert!(left.len() < 20, "{left:?}");
        bench.make_due(id).await;
    }
    assert_eq!(left[..3], [1100, 100, 0]);
    // a page of the last look a slice, and the rows, which are looked for anew before each chunk
    assert!(left.len() >= 6, "{left:?}");
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 2100);
}

#[tokio::test]
async fn keys_of_every_shape_go_and_their_siblings_stay() {
    let bench = albums().await;
    let mut keys = nasty("s/x/");
    keys.extend(pathlike("s/x/"));
    keys.extend(["..", "/", "//", "s3:", "null", "%", "_", "'; drop table plat.files; --"].map(str::to_owned));
    keys.sort();
    keys.dedup();
    name(&bench, "a", &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let kept = siblings("s/x/");
    kept.iter().for_each(|key| bench.objects.memory().put(BUCKET, key, 1));
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    let mut kept = kept;
    kept.sort();
    assert_eq!(held(&bench), kept);
    assert_eq!(bench.tombstone(id).await.progress.objects_deleted, keys.len() as u64);
}

#[tokio::test]
async fn what_cannot_be_an_objects_name_refuses_the_trash_and_leaves_nothing() {
    let bench = albums().await;
    let long = "x".repeat(1025);
    for (key, why) in [
        ("", "which is no object's name"),
        (long.as_str(), "which is no object's name"),
        ("s3://heimdall-synthetic-iq", "which is no object's name"),
        ("s3://heimdall-synthetic-iq/", "which is no object's name"),
        ("s3:///x", "which is no object's name"),
        ("s3://second-bucket/x", "names the bucket \"second-bucket\""),
        ("s3://foreign/x", "names the bucket \"foreign\""),
    ] {
        name(&bench, "a", &["fine"]).await;
        link(&bench, "a", &[key]).await;
        let error = bench.try_trash("album", "a").await.expect_err(key);
        assert!(error.to_string().contains(why), "{key}: {error}");
        assert_eq!(error.code(), "unsafe_place");
        let planned = bench.bin.plan(&bench.request("album", "a")).await.expect_err(key);
        assert_eq!(planned.to_string(), error.to_string());
        bench.run("delete from plat.files").await;
    }
    bench.run("insert into plat.files values ('a', null)").await;
    let error = bench.try_trash("album", "a").await.expect_err("a null").to_string();
    assert!(error.contains("a null"), "{error}");
    assert_eq!(bench.count("reprieve.tombstones").await + bench.count("reprieve.recorded_objects").await, 0);
    assert_eq!(bench.count("plat.albums where deleted_at is not null").await, 0);
}

#[tokio::test]
async fn a_name_that_comes_late_and_cannot_be_one_keeps_the_rows_until_it_is_mended() {
    let bench = albums().await;
    name(&bench, "a", &["fine"]).await;
    let id = bench.trash_due("album", "a").await;
    link(&bench, "a", &["s3://foreign/x"]).await;
    for _ in 0..3 {
        let end = bench.slice(id).await;
        assert!(matches!(&end, SliceEnd::Failed(why) | SliceEnd::Stuck(why) if why.contains("\"foreign\"")), "{end:?}");
        bench.make_due(id).await;
    }
    assert_eq!((bench.state(id).await, bench.count("plat.files").await), (State::Stuck, 2));
    bench.run("delete from plat.files where key like 's3:%'").await;
    bench.bin.retry(&bench.resource("album", "a"), &alice()).await.expect("goes on");
    purged(&bench, id).await;
}

#[tokio::test]
async fn addresses_name_objects_in_each_of_the_buckets_with_all_their_versions() {
    let map = MAP.replacen("bucket = \"heimdall-synthetic-iq\"\nkeys", "keys", 1);
    let bench = Bench::with(&map, TABLES, |_| ()).await;
    let memory = bench.objects.memory();
    for _ in 0..3 {
        memory.put("second-bucket", "v/1", 10);
    }
    memory.put("second-bucket", "v/10", 10);
    memory.put(BUCKET, "v/1", 10);
    link(&bench, "a", &["s3://second-bucket/v/1", "s3://heimdall-synthetic-iq/v/1"]).await;
    link(&bench, "b", &["s3://heimdall-synthetic-iq/v/1"]).await;
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    assert_eq!((memory.keys("second-bucket"), held(&bench)), (vec!["v/10".to_owned()], vec!["v/1".to_owned()]));
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.versions_gone, progress.objects_kept), (3, 2, 1));
    // where several buckets are meant, a key alone says too little
    link(&bench, "b", &["v/1"]).await;
    let error = bench.try_trash("album", "b").await.expect_err("which bucket?").to_string();
    assert!(error.contains("needed where several buckets are meant"), "{error}");
}

#[tokio::test]
async fn the_plan_counts_them_and_those_that_another_names_and_changes_nothing() {
    let bench = albums().await;
    name(&bench, "a", &["one", "two", "three", "two"]).await;
    link(&bench, "b", &["two"]).await;
    let plan = bench.bin.plan(&bench.request("album", "a")).await.expect("plans");
    let keys = &plan.members[0].recorded;
    assert_eq!((keys.len(), keys[0].place.keys, keys[0].shared, keys[0].at_least), (1, 3, 1, false));
    assert_eq!(bench.count("reprieve.recorded_objects").await, 0);
    let id = bench.trash("album", "a").await;
    assert_eq!(bench.tombstone(id).await.recorded[0].keys, 3);
    assert_eq!(bench.count("reprieve.recorded_objects").await, 3);
}

#[tokio::test]
async fn lost_answers_are_resolved_by_a_look_at_each_key() {
    let bench = albums().await;
    name(&bench, "a", &["a", "m/1", "m/2", "z"]).await;
    (0..900).for_each(|n| bench.objects.memory().put(BUCKET, &format!("b{n}"), 1));
    for _ in 0..6 {
        bench.objects.faults.lose_next_answer();
    }
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.objects_absent, bench.objects()), (0, 4, 900));
}

#[tokio::test]
async fn a_key_that_no_answer_mentions_and_that_is_still_there_keeps_the_rows() {
    let bench = albums().await;
    name(&bench, "a", &["a", "silent"]).await;
    bench.objects.ignore("silent");
    let id = bench.trash_due("album", "a").await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("silent")), "{end:?}");
    assert_eq!((bench.count("plat.files").await, bench.count("reprieve.recorded_objects").await), (2, 2));
    bench.objects.heed();
    bench.make_due(id).await;
    purged(&bench, id).await;
}

#[tokio::test]
async fn a_pause_of_their_store_holds_them() {
    let bench = albums().await;
    name(&bench, "a", &["one"]).await;
    let id = bench.trash_due("album", "a").await;
    bench.run("insert into reprieve.pauses (scope, name, actor) values ('store', 'main', 'x')").await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(why) if why.contains("paused")));
    assert_eq!(held(&bench), ["one"]);
}

#[tokio::test]
async fn what_is_locked_until_a_date_is_named_and_tried_again_then() {
    let bench = albums().await;
    name(&bench, "a", &["free", "locked"]).await;
    name(&bench, "b", &["kept"]).await;
    link(&bench, "a", &["kept"]).await;
    let until = time::OffsetDateTime::now_utc() + time::Duration::days(3);
    let retention = Some(Retention { mode: LockMode::Compliance, until });
    bench.objects.memory().lock_key(BUCKET, "locked", ObjectLock { retention, legal_hold: false });
    let id = bench.trash_due("album", "a").await;
    let end = bench.slice(id).await;
    assert!(
        matches!(&end, SliceEnd::Stuck(why) if why.contains("1 locked in compliance mode (such as locked)")),
        "{end:?}"
    );
    assert!(bench.tombstone(id).await.retry_at.is_some());
    assert_eq!(held(&bench), ["kept", "locked"]);
}

#[tokio::test]
async fn a_failure_among_the_rows_is_no_news_of_objects_and_brings_the_record_back() {
    let bench = albums().await;
    name(&bench, "a", &["one", "two"]).await;
    let stays = "create function plat.stays() returns trigger language plpgsql as $$ begin raise 'it stays'; end $$;
        create trigger stays before delete on plat.albums for each row execute function plat.stays()";
    bench.run(stays).await;
    let id = bench.trash_due("album", "a").await;
    for attempt in 1..=2 {
        let end = bench.slice(id).await;
        assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("it stays")), "{attempt}: {end:?}");
        assert_eq!(bench.tombstone(id).await.attempts, attempt);
        assert_eq!((bench.count("reprieve.recorded_objects").await, bench.count("plat.files").await), (2, 2));
        bench.make_due(id).await;
    }
    bench.run("drop trigger stays on plat.albums").await;
    purged(&bench, id).await;
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.rows_deleted), (2, 2, 3));
}

#[tokio::test]
async fn what_is_kept_is_counted_once_however_many_slices_its_rows_take() {
    let bench = Bench::with(MAP, TABLES, |config| config.purge.row_chunk = 3).await;
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    name(&bench, "a", &keys).await;
    link(&bench, "b", &keys[..6]).await;
    let id = bench.trash_due("album", "a").await;
    let mut ends = Vec::new();
    while ends.len() < 30 && ends.last() != Some(&SliceEnd::Purged) {
        bench.make_due(id).await;
        let none = Budget::new(Duration::ZERO, CancellationToken::new());
        ends.push(bench.purger().run_slice(id, &none).await.expect("the database is there"));
    }
    assert!(ends.len() > 3 && ends.last() == Some(&SliceEnd::Purged), "{ends:?}");
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_kept, progress.objects_deleted, progress.rows_deleted), (6, 2, 9));
    let receipt = bench.told(id, "purged").await.details;
    assert_eq!(receipt["objects"]["kept"], 6, "{receipt:#}");
    assert_eq!((held(&bench).len(), bench.count("reprieve.recorded_objects").await), (6, 0));
}

#[tokio::test]
async fn a_store_that_grants_fewer_keys_at_once_than_a_batch_in_hand_has_gets_smaller_ones() {
    let bench = albums().await;
    let keys: Vec<String> = (0..60).map(|n| format!("k{n:02}")).collect();
    name(&bench, "a", &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    name(&bench, "b", &["k07", "k45"]).await;
    bench.objects.faults.grant_at_once(4);
    let id = bench.trash_due("album", "a").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged, "{:?}", bench.objects.faults.batches());
    assert_eq!(held(&bench), ["k07", "k45"]);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_deleted, progress.objects_kept), (58, 58, 2));
}
