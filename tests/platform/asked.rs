//! What is asked about objects that are named, while others come and go: nobody who needs one is missed for coming back
//! in the middle of the question.

use reprieve::domain::outcome::FailureClass;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::SliceEnd;

use crate::bench::{BUCKET, Bench, budget};
use crate::keyed::{MAP, TABLES, albums, held, link, name};

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
