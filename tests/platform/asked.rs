//! What is asked about objects that are named, while others come and go: nobody who needs one is missed for coming back
//! in the middle of the question, or for how the platform spells; and nothing is kept for one who is not there.

use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::SliceEnd;

use tokio::time::Instant;

use crate::bench::{BUCKET, Bench, alice, budget};
use crate::gate::At;
use crate::keyed::{MAP, TABLES, albums, held, link, name, purged};
use crate::support::{SOON, wait_until};

/// A query of the map can be made to wait, as one on a busy database does.
const WAIT: &str = ";
    create function plat.wait() returns boolean language plpgsql volatile as
    $$ begin perform pg_advisory_xact_lock_shared(42); return true; end $$";

/// As a platform would write it that does not show what it has soft-deleted.
fn live_only(condition: &str) -> String {
    format!(
        "select f.key, f.album_id from plat.files f join plat.albums a on a.id = f.album_id \
         where (select plat.wait()) and a.deleted_at is null and {condition}"
    )
}

async fn waiting_albums(below: bool) -> Bench {
    let by = format!("named_by = \"{}\"", live_only("f.key = any($1)"));
    let below = match below {
        true => format!("named_below = \"{}\"\n", live_only("starts_with(f.key, $1)")),
        false => String::new(),
    };
    let plain = "named_by = \"select key, album_id from plat.files where key = any($1)\"";
    assert!(MAP.contains(plain));
    let map = MAP.replace(plain, &format!("{below}{by}"));
    Bench::with(&map, &format!("{TABLES}{WAIT}"), |_| ()).await
}

#[tokio::test]
async fn who_is_restored_between_two_statements_of_the_question_keeps_its_objects() {
    let bench = waiting_albums(false).await;
    name(&bench, "a", &["shared"]).await;
    link(&bench, "b", &["shared"]).await;
    bench.trash("album", "b").await;
    let a = bench.trash_due("album", "a").await;
    let mut holder = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(42)").execute(&mut *holder).await.expect("locks");
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(a, &budget()).await });
    bench.until_waiting("the named_by query", 1).await;
    // b is never not in need of it: in the trash before, and live from here on
    bench.restore("album", "b").await;
    sqlx::query("select pg_advisory_unlock(42)").execute(&mut *holder).await.expect("unlocks");
    let end = slice.await.expect("no panic").expect("no outage");
    assert_eq!(end, SliceEnd::Purged);
    assert_eq!(held(&bench), ["shared"], "a restored album has lost its object");
}

#[tokio::test]
async fn who_is_restored_while_a_claim_asks_for_names_below_a_prefix_keeps_its_objects() {
    let bench = waiting_albums(true).await;
    bench.run("insert into plat.folders values ('f')").await;
    let f = bench.trash_due("folder", "f").await;
    bench.objects.memory().put(BUCKET, "folders/f/1", 1);
    // an address is asked for before a key is
    link(&bench, "b", &["s3://heimdall-synthetic-iq/folders/f/1"]).await;
    bench.trash("album", "b").await;
    let mut holder = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(42)").execute(&mut *holder).await.expect("locks");
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(f, &budget()).await });
    bench.until_waiting("the named_below query", 1).await;
    bench.restore("album", "b").await;
    sqlx::query("select pg_advisory_unlock(42)").execute(&mut *holder).await.expect("unlocks");
    let end = slice.await.expect("no panic").expect("no outage");
    assert_eq!(held(&bench), ["folders/f/1"], "a restored album has lost its object: {end:?}");
}

#[tokio::test]
async fn a_newcomer_with_the_id_of_a_stuck_purge_needs_what_it_names() {
    let bench = albums().await;
    name(&bench, "a", &["shared"]).await;
    name(&bench, "b", &["locked"]).await;
    let b = bench.trash_due("album", "b").await;
    // the platform removes the row itself; the purge of what it was is stuck
    bench.run("delete from plat.files where album_id = 'b'; delete from plat.albums where id = 'b'").await;
    let denied = failure("AccessDenied", FailureClass::Permanent);
    bench.objects.faults.fail_key("locked", Times::Always, denied);
    assert!(matches!(bench.slice(b).await, SliceEnd::Stuck(_)));
    assert_eq!(bench.tombstone(b).await.row_found, Some(false));
    // somebody new has the id, is live, and names what a names too
    bench.run("insert into plat.albums values ('b')").await;
    link(&bench, "b", &["shared"]).await;
    let a = bench.trash_due("album", "a").await;
    assert_eq!(bench.slice(a).await, SliceEnd::Purged);
    assert_eq!(held(&bench), ["locked", "shared"], "a live album has lost its object");
}

#[tokio::test]
async fn a_slow_query_of_one_kind_holds_up_no_other_purge_of_the_bucket() {
    // one request in flight, as after a refusal
    let bench = waiting_albums(false).await;
    name(&bench, "a", &["one", "shared"]).await;
    bench.run("insert into plat.folders values ('f')").await;
    bench.objects.memory().put(BUCKET, "folders/f/1", 1);
    let (a, f) = (bench.trash_due("album", "a").await, bench.trash_due("folder", "f").await);
    let mut holder = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(42)").execute(&mut *holder).await.expect("locks");
    let purger = bench.purger();
    let other = purger.clone();
    let slow = tokio::spawn(async move { purger.run_slice(a, &budget()).await });
    bench.until_waiting("the named_by query", 1).await;
    let folder = tokio::time::timeout(SOON, other.run_slice(f, &budget())).await;
    assert_eq!(folder.expect("it waits for nobody's query").expect("no outage"), SliceEnd::Purged);
    assert_eq!(bench.waiting().await, 1, "the album's query is not answered yet");
    sqlx::query("select pg_advisory_unlock(42)").execute(&mut *holder).await.expect("unlocks");
    assert_eq!(slow.await.expect("no panic").expect("no outage"), SliceEnd::Purged);
    assert_eq!(held(&bench), [""; 0]);
}

#[tokio::test]
async fn an_answer_that_has_waited_for_its_place_longer_than_it_took_is_asked_for_again() {
    let bench = waiting_albums(false).await;
    name(&bench, "a", &["one", "shared"]).await;
    bench.run("insert into plat.folders values ('f')").await;
    bench.objects.memory().put(BUCKET, "folders/f/1", 1);
    let (a, f) = (bench.trash_due("album", "a").await, bench.trash_due("folder", "f").await);
    let mut holder = bench.pool.acquire().await.expect("a connection");
    sqlx::query("select pg_advisory_lock(42)").execute(&mut *holder).await.expect("locks");
    let purger = bench.purger();
    let other = purger.clone();
    let began = Instant::now();
    let slow = tokio::spawn(async move { purger.run_slice(a, &budget()).await });
    bench.until_waiting("the named_by query", 1).await;
    // the only place is somebody else's, and stays so
    let keeper = bench.objects.stop_a_delete(0, At::Before);
    let folder = tokio::spawn(async move { other.run_slice(f, &budget()).await });
    keeper.reached().await;
    sqlx::query("select pg_advisory_unlock(42)").execute(&mut *holder).await.expect("unlocks");
    let asked = "pg_locks where locktype = 'advisory' and granted";
    wait_until("the album waits for its place", SOON, async || bench.count(asked).await == 0).await;
    // who comes to need an object while the answer waits
    link(&bench, "b", &["shared"]).await;
    let answered = Instant::now();
    wait_until("the answer is older than that", SOON, async || answered.elapsed() > 2 * (answered - began)).await;
    keeper.open();
    assert_eq!(folder.await.expect("no panic").expect("no outage"), SliceEnd::Purged);
    assert_eq!(slow.await.expect("no panic").expect("no outage"), SliceEnd::Purged);
    assert_eq!(held(&bench), ["shared"], "a live album has lost its object");
}

#[tokio::test]
async fn an_address_of_another_form_is_not_taken_for_a_key() {
    for address in ["s3a://heimdall-synthetic-iq/one", "S3://heimdall-synthetic-iq/one", "https://host/b/one"] {
        let bench = albums().await;
        bench.objects.memory().put(BUCKET, "one", 10);
        link(&bench, "a", &[address]).await;
        let refused = bench.try_trash("album", "a").await.expect_err("nobody knows which object that is");
        assert!(refused.to_string().contains(address), "{refused}");
        assert_eq!(held(&bench), ["one"]);
    }
}

#[tokio::test]
async fn one_refusal_of_a_batch_of_named_objects_ends_no_delivery() {
    let bench = albums().await;
    let slow_down = || failure("SlowDown", FailureClass::Throttled);
    // below a prefix it is flow control
    bench.run("insert into plat.folders values ('f')").await;
    bench.objects.memory().put(BUCKET, "folders/f/1", 1);
    let f = bench.trash_due("folder", "f").await;
    bench.objects.faults.refuse_next_delete(slow_down());
    assert_eq!(bench.slice(f).await, SliceEnd::Purged);
    // and by name an outage, with a back-off that doubles up to an hour
    name(&bench, "a", &["one", "two"]).await;
    let a = bench.trash_due("album", "a").await;
    bench.objects.faults.refuse_next_delete(slow_down());
    let end = bench.slice(a).await;
    let waits: i32 = bench.value(&format!("select waits from reprieve.tombstones where id = '{a}'")).await;
    assert_eq!((end, waits), (SliceEnd::Purged, 0));
}

/// Tries again until it is set aside; gives the reason back.
async fn until_stuck(bench: &Bench, id: reprieve::domain::ids::TombstoneId) -> String {
    for _ in 0..2 {
        let end = bench.slice(id).await;
        assert!(matches!(&end, SliceEnd::Failed(_)), "{end:?}");
        bench.make_due(id).await;
    }
    match bench.slice(id).await {
        SliceEnd::Stuck(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_id_that_is_no_resources_is_no_reason_to_keep_an_object_and_let_its_rows_go() {
    // the file's own id in place of the album's
    let map = MAP.replace("select key, album_id from plat.files", "select key, 'file-' || key from plat.files");
    let mut bench = Bench::with(&map, TABLES, |_| ()).await;
    name(&bench, "a", &["mine"]).await;
    let planned = bench.bin.plan(&bench.request("album", "a")).await.expect_err("nobody knows whose it is").to_string();
    let id = bench.trash_due("album", "a").await;
    let why = until_stuck(&bench, id).await;
    for text in [planned, why] {
        assert!(text.contains("named_by query of kind album says that \"file-mine\" names \"mine\""), "{text}");
    }
    assert_eq!((held(&bench), bench.count("plat.albums where id = 'a'").await), (vec!["mine".to_owned()], 1));
    bench.config.map = crate::bench::load_config("postgres://nobody@127.0.0.1:1/none", MAP).map;
    bench.bin.retry(&bench.resource("album", "a"), &alice()).await.expect("goes on");
    purged(&bench, id).await;
    assert_eq!(held(&bench), [""; 0]);
}

#[tokio::test]
async fn a_link_that_has_outlived_its_resource_is_named_and_keeps_the_rows() {
    let bench = albums().await;
    name(&bench, "a", &["shared", "other"]).await;
    link(&bench, "c", &["shared"]).await;
    bench.run("delete from plat.albums where id = 'c'").await;
    let id = bench.trash_due("album", "a").await;
    let why = until_stuck(&bench, id).await;
    assert!(why.contains("\"c\" names \"shared\"") && why.contains("outlived its resource"), "{why}");
    assert_eq!((held(&bench).len(), bench.count("plat.files where album_id = 'a'").await), (2, 2));
    bench.run("delete from plat.files where album_id = 'c'").await;
    bench.bin.retry(&bench.resource("album", "a"), &alice()).await.expect("goes on");
    purged(&bench, id).await;
    assert_eq!((held(&bench), bench.state(id).await), (Vec::<String>::new(), State::Purged));
}

#[tokio::test]
async fn one_who_is_there_speaks_before_a_link_to_one_who_is_not() {
    let bench = albums().await;
    name(&bench, "b", &["shared"]).await;
    for album in ["a", "0", "z"] {
        link(&bench, album, &["shared"]).await;
    }
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    assert_eq!((held(&bench), bench.tombstone(id).await.progress.objects_kept), (vec!["shared".to_owned()], 1));
}

/// Albums by another type of id, whose links the platform spells as it likes.
async fn spelt(id_type: &str, column: &str, albums: &[&str]) -> Bench {
    let map = MAP
        .replacen("id_type = \"text\"", &format!("id_type = \"{id_type}\""), 1)
        .replacen("where album_id = $1", "where album_id::PLATFORM = $1", 1)
        .replace("::PLATFORM", &format!("::{column}"))
        .replacen("[[resource.rows]]\ntable = \"plat.files\"\ncolumn = \"album_id\"\n", "", 1);
    let tables = format!(
        "create schema plat;
         create table plat.albums (id {column} primary key, deleted_at timestamptz);
         create table plat.folders (id text primary key);
         create table plat.files (album_id text, key text);"
    );
    let bench = Bench::with(&map, &tables, |_| ()).await;
    for album in albums {
        bench.run(&format!("insert into plat.albums values ('{album}')")).await;
    }
    bench
}

#[tokio::test]
async fn a_resource_is_not_somebody_else_for_how_its_id_is_spelt() {
    let uuid = "3f2b8c1e-9a4d-4e6f-8b7a-0c1d2e3f4a5b";
    for spelling in [uuid.to_uppercase(), uuid.replace('-', ""), format!("{{{uuid}}}")] {
        let bench = spelt("uuid", "uuid", &[uuid]).await;
        name(&bench, &spelling, &["mine"]).await;
        let id = bench.trash_due("album", uuid).await;
        purged(&bench, id).await;
        assert_eq!((held(&bench), bench.count("plat.albums").await), (Vec::<String>::new(), 0), "{spelling}");
    }
    let bench = spelt("integer", "bigint", &["7"]).await;
    name(&bench, "+007", &["mine"]).await;
    let id = bench.trash_due("album", "7").await;
    purged(&bench, id).await;
    assert_eq!((held(&bench), bench.count("plat.albums").await), (Vec::<String>::new(), 0));
}

#[tokio::test]
async fn somebody_else_is_found_however_its_id_is_spelt() {
    let [one, two] = ["3f2b8c1e-9a4d-4e6f-8b7a-0c1d2e3f4a5b", "a3f9b2e0-1c4d-4e6f-8b7a-0c1d2e3f4a5b"];
    for (id_type, column, own, other, spelling) in [
        ("uuid", "uuid", one, two, two.to_uppercase()),
        ("integer", "bigint", "7", "9223372036854775807", "9223372036854775807".to_owned()),
    ] {
        let bench = spelt(id_type, column, &[own, other]).await;
        name(&bench, own, &["shared"]).await;
        link(&bench, &spelling, &["shared"]).await;
        let (first, last) = (bench.trash_due("album", own).await, bench.trash("album", other).await);
        purged(&bench, first).await;
        assert_eq!(held(&bench), ["shared"], "{spelling}");
        // what its link says after its row has gone keeps nothing from anybody
        bench.make_due(last).await;
        purged(&bench, last).await;
        assert_eq!(held(&bench), [""; 0], "{spelling}");
    }
}

#[tokio::test]
async fn names_are_told_apart_that_the_platforms_collation_holds_for_equal() {
    let tables = TABLES.replace(
        "create table plat.files (album_id text, key text);",
        "create collation plat.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table plat.files (album_id text, key text collate plat.ci);",
    );
    assert_ne!(tables, TABLES);
    let bench = Bench::with(MAP, &tables, |_| ()).await;
    name(&bench, "a", &["shared", "SHARED", "Own"]).await;
    link(&bench, "b", &["shared"]).await;
    link(&bench, "c", &["SHARED"]).await;
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    assert_eq!(held(&bench), ["SHARED", "shared"], "each of the two is a live album's");
}

#[tokio::test]
async fn a_resource_is_asked_for_by_its_id_as_it_is_spelt_where_the_collation_takes_two_spellings_for_one() {
    let tables = TABLES.replace(
        "create table plat.albums (id text primary key",
        "create collation plat.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table plat.albums (id text collate plat.ci primary key",
    );
    assert_ne!(tables, TABLES);
    let bench = Bench::with(MAP, &tables, |_| ()).await;
    name(&bench, "a", &["one"]).await;
    let error = bench.try_trash("album", "A").await.expect_err("no id is spelt so");
    assert!(error.to_string().contains("is spelt \"a\""), "{error}");
    bench.trash("album", "a").await;
}
