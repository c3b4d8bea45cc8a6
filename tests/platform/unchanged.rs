//! Recorded objects that are deleted only while they have the ETag that they were recorded with.

use reprieve::objects::memory::etag_of;
use reprieve::purge::SliceEnd;

use crate::bench::{BUCKET, Bench, alice, budget};
use crate::gate::At;
use crate::keyed::{TABLES, held, name, purged};

/// The same with ETags.
const WITH_ETAGS: &str = r#"
[[resource]]
kind = "album"
table = "plat.albums"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
keys = "select key, etag from plat.files where album_id = $1"
named_by = "select key, album_id from plat.files where key = any($1)"
only_if_unchanged = true
[[resource.rows]]
table = "plat.files"
column = "album_id"
"#;

async fn with_etags(keys: &[&str]) -> Bench {
    let bench = Bench::with(WITH_ETAGS, TABLES, |_| ()).await;
    bench.run("alter table plat.files add column etag text").await;
    name(&bench, "a", keys).await;
    bench.run(&format!("update plat.files set etag = '\"{}\"'", etag_of(10))).await;
    bench
}

#[tokio::test]
async fn what_has_changed_since_it_was_recorded_stays_until_an_operator_decides() {
    let manual = include_str!("../../docs/operations.md");
    let (_, section) = manual.split_once("## Objects that have changed").expect("the section");
    let mut ways = section.split("```sql").skip(1).map(|way| way.split("```").next().expect("its end").to_owned());
    let (delete, keep) = (ways.next().expect("to delete it"), ways.next().expect("to keep it"));
    for (way, left) in [(delete, &[][..]), (keep, &["two"][..])] {
        let bench = with_etags(&["one", "two", "three"]).await;
        let id = bench.trash_due("album", "a").await;
        bench.objects.memory().put(BUCKET, "two", 11);
        let end = bench.slice(id).await;
        assert!(
            matches!(&end, SliceEnd::Stuck(why) if why.contains("it has changed since it was recorded") && why.contains("two")),
            "{end:?}"
        );
        assert_eq!((held(&bench), bench.count("plat.files").await), (vec!["two".to_owned()], 3));
        assert_eq!(bench.tombstone(id).await.progress.objects_deleted, 2);
        let sql = way.replace("TOMBSTONE", &id.to_string()).replace("KEY", "two");
        bench.run(&sql).await;
        if !left.is_empty() {
            bench.run("delete from plat.files where key = 'two'").await;
        }
        bench.bin.retry(&bench.resource("album", "a"), &alice()).await.expect("goes on");
        purged(&bench, id).await;
        assert_eq!(held(&bench), left);
    }
}

#[tokio::test]
async fn an_object_that_changes_right_before_its_delete_stays() {
    let bench = with_etags(&["one", "two"]).await;
    let id = bench.trash_due("album", "a").await;
    let keeper = bench.objects.stop_a_delete(0, At::Before);
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    bench.objects.memory().put(BUCKET, "one", 7);
    keeper.open();
    let end = slice.await.expect("no panic").expect("no outage");
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("changed since")), "{end:?}");
    assert_eq!(held(&bench), ["one"]);
}

#[tokio::test]
async fn a_lost_answer_to_a_conditional_delete_is_no_change() {
    let bench = with_etags(&["one", "two"]).await;
    let id = bench.trash_due("album", "a").await;
    bench.objects.faults.lose_next_answer();
    purged(&bench, id).await;
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_listed, progress.objects_gone()), (2, 2));
}

#[tokio::test]
async fn a_worker_that_dies_after_a_conditional_delete_leaves_no_change_behind() {
    let bench = with_etags(&["one", "two"]).await;
    let id = bench.trash_due("album", "a").await;
    let keeper = bench.objects.stop_a_delete(0, At::After);
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    slice.abort();
    assert!(slice.await.expect_err("it was ended").is_cancelled());
    bench.run("update reprieve.tombstones set lease_until = now() - interval '1 second'").await;
    purged(&bench, id).await;
    assert_eq!((held(&bench).len(), bench.tombstone(id).await.progress.objects_gone()), (0, 2));
}

#[tokio::test]
async fn a_key_without_its_etag_refuses_the_trash() {
    let bench = with_etags(&["one", "two"]).await;
    bench.run("update plat.files set etag = null where key = 'two'").await;
    let error = bench.try_trash("album", "a").await.expect_err("nothing to compare").to_string();
    assert!(error.contains("no etag for \"two\""), "{error}");
}

#[tokio::test]
async fn a_bucket_with_versions_cannot_be_told_to_be_unchanged_and_says_so() {
    let map = WITH_ETAGS.replace("bucket = \"heimdall-synthetic-iq\"", "bucket = \"second-bucket\"");
    let bench = Bench::with(&map, TABLES, |_| ()).await;
    bench.run("alter table plat.files add column etag text").await;
    bench.objects.memory().put("second-bucket", "one", 10);
    bench.run(&format!("insert into plat.files values ('a', 'one', '{}')", etag_of(10))).await;
    let id = bench.trash_due("album", "a").await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Stuck(why) if why.contains("keeps versions")), "{end:?}");
    assert_eq!(bench.objects.memory().count("second-bucket"), 1);
}
