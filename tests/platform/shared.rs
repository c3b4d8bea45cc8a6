//! Objects that several resources name, or that lie below somebody's prefix: they go with the last who needs them.

use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::SliceEnd;

use crate::bench::{Bench, budget};
use crate::gate::At;
use crate::keyed::{MAP, TABLES, albums, held, link, name, purged};

#[tokio::test]
async fn what_two_name_goes_with_the_last_of_them_in_any_order() {
    for (restored, order) in [(false, ["a", "b"]), (false, ["b", "a"]), (true, ["a", "b"])] {
        let bench = albums().await;
        name(&bench, "a", &["shared", "only a"]).await;
        name(&bench, "b", &["only b"]).await;
        link(&bench, "b", &["shared"]).await;
        let [first, second] = order;
        // trashed, and perhaps restored: it needs its objects all the while
        let other = bench.trash("album", second).await;
        if restored {
            bench.restore("album", second).await;
            assert_eq!(bench.count("reprieve.recorded_objects").await, 0);
        }
        let id = bench.trash_due("album", first).await;
        purged(&bench, id).await;
        assert_eq!(held(&bench), [format!("only {second}"), "shared".into()]);
        let progress = bench.tombstone(id).await.progress;
        assert_eq!((progress.objects_deleted, progress.objects_kept), (1, 1));
        assert_eq!(bench.told(id, "purged").await.details["objects"]["kept"], 1);
        let other = if restored { bench.trash("album", second).await } else { other };
        bench.make_due(other).await;
        purged(&bench, other).await;
        assert_eq!(held(&bench), [""; 0]);
        assert_eq!(bench.tombstone(other).await.progress.objects_deleted, 2);
    }
}

#[tokio::test]
async fn what_a_live_one_names_stays_with_it() {
    let bench = albums().await;
    name(&bench, "a", &["shared", "only a"]).await;
    link(&bench, "b", &["shared"]).await;
    let id = bench.trash_due("album", "a").await;
    purged(&bench, id).await;
    assert_eq!(held(&bench), ["shared"]);
}

#[tokio::test]
async fn two_past_the_point_of_no_return_leave_nothing_for_each_other() {
    let bench = albums().await;
    name(&bench, "a", &["shared", "only a"]).await;
    link(&bench, "b", &["shared"]).await;
    let (a, b) = (bench.trash_due("album", "a").await, bench.trash_due("album", "b").await);
    let keeper = bench.objects.stop_a_delete(0, At::Before);
    let purger = bench.purger();
    let first = tokio::spawn(async move { purger.run_slice(a, &budget()).await });
    keeper.reached().await;
    // it has been found to be needed by b, which is not past it yet; so b is the one to delete it
    assert_eq!(bench.slice(b).await, SliceEnd::Purged);
    keeper.open();
    assert_eq!(first.await.expect("no panic").expect("no outage"), SliceEnd::Purged);
    assert_eq!(held(&bench), [""; 0]);
    assert_eq!(bench.tombstone(a).await.progress.objects_kept, 1);
}

#[tokio::test]
async fn one_that_is_stuck_keeps_nothing_from_another() {
    let bench = albums().await;
    name(&bench, "a", &["shared", "locked"]).await;
    link(&bench, "b", &["shared"]).await;
    let denied = failure("AccessDenied", FailureClass::Permanent);
    bench.objects.faults.fail_key("locked", Times::Always, denied);
    let (a, b) = (bench.trash_due("album", "a").await, bench.trash_due("album", "b").await);
    assert!(matches!(bench.slice(a).await, SliceEnd::Stuck(why) if why.contains("locked")));
    assert_eq!(held(&bench), ["locked", "shared"], "b may still be restored");
    purged(&bench, b).await;
    assert_eq!(held(&bench), ["locked"]);
    assert_eq!(bench.state(a).await, State::Stuck);
}

#[tokio::test]
async fn a_link_that_outlives_its_purged_resource_keeps_nothing() {
    let map = MAP.replace("[[resource.rows]]\ntable = \"plat.files\"\ncolumn = \"album_id\"\n", "");
    let bench = Bench::with(&map, TABLES, |_| ()).await;
    name(&bench, "a", &["shared"]).await;
    link(&bench, "b", &["shared"]).await;
    let a = bench.trash_due("album", "a").await;
    purged(&bench, a).await;
    assert_eq!((held(&bench).len(), bench.count("plat.files where album_id = 'a'").await), (1, 1));
    let b = bench.trash_due("album", "b").await;
    purged(&bench, b).await;
    assert_eq!(held(&bench), [""; 0]);
    // but somebody new with its id is somebody
    name(&bench, "c", &["shared"]).await;
    bench.run("insert into plat.albums values ('a')").await;
    let c = bench.trash_due("album", "c").await;
    purged(&bench, c).await;
    assert_eq!(held(&bench), ["shared"]);
}

#[tokio::test]
async fn one_in_the_trash_whose_rows_the_platform_has_removed_still_needs_its_objects() {
    let bench = albums().await;
    name(&bench, "a", &["shared"]).await;
    link(&bench, "b", &["shared"]).await;
    let b = bench.trash("album", "b").await;
    bench.run("delete from plat.files where album_id = 'b'").await;
    let a = bench.trash_due("album", "a").await;
    purged(&bench, a).await;
    assert_eq!(held(&bench), ["shared"]);
    bench.make_due(b).await;
    purged(&bench, b).await;
    assert_eq!(held(&bench), [""; 0]);
}

#[tokio::test]
async fn one_that_comes_to_need_an_object_right_before_its_delete_keeps_it() {
    let bench = albums().await;
    let keys: Vec<String> = (0..1500).map(|n| format!("k{n:04}")).collect();
    name(&bench, "a", &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let id = bench.trash_due("album", "a").await;
    let keeper = bench.objects.stop_a_delete(0, At::Before);
    let purger = bench.purger();
    let slice = tokio::spawn(async move { purger.run_slice(id, &budget()).await });
    keeper.reached().await;
    link(&bench, "b", &["k1200"]).await;
    keeper.open();
    assert_eq!(slice.await.expect("no panic").expect("no outage"), SliceEnd::Purged);
    assert_eq!(held(&bench), ["k1200"]);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.objects_kept), (1499, 1));
}

#[tokio::test]
async fn an_object_below_the_prefix_of_somebody_else_stays() {
    for trashed in [false, true] {
        let bench = albums().await;
        name(&bench, "a", &["folders/f/1", "folders/g/1", "folders/f", "folders/f2/1"]).await;
        bench.run("insert into plat.folders values ('f')").await;
        if trashed {
            bench.trash("folder", "f").await;
            bench.run("delete from plat.folders").await;
        }
        let id = bench.trash_due("album", "a").await;
        purged(&bench, id).await;
        assert_eq!(held(&bench), ["folders/f/1"], "trashed: {trashed}");
        assert_eq!(bench.tombstone(id).await.progress.objects_kept, 1);
    }
}

#[tokio::test]
async fn who_else_names_them_must_be_known_or_nothing_goes() {
    let bench = albums().await;
    name(&bench, "a", &["one"]).await;
    let id = bench.trash_due("album", "a").await;
    bench.run("alter table plat.files rename column album_id to album").await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("keys query of kind album")), "{end:?}");
    assert_eq!(held(&bench), ["one"]);
    bench.run("alter table plat.files rename column album to album_id").await;
    // an answer to another question is none
    let lower = MAP.replace("select key, album_id from", "select upper(key), album_id from");
    let other = Bench::with(&lower, TABLES, |_| ()).await;
    name(&other, "a", &["one"]).await;
    let id = other.trash_due("album", "a").await;
    link(&other, "b", &["one"]).await;
    let end = other.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("was not among the names")), "{end:?}");
    assert_eq!(held(&other), ["one"]);
}

#[tokio::test]
async fn a_map_that_no_longer_says_who_names_them_defers_the_purge() {
    let mut bench = albums().await;
    name(&bench, "a", &["one"]).await;
    let id = bench.trash_due("album", "a").await;
    let without = MAP.replace("keys = \"select key", "query = \"select key").replace("named_by", "#");
    bench.config.map = crate::bench::load_config("postgres://nobody@127.0.0.1:1/none", &without).map;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("no longer says who names")), "{end:?}");
    assert_eq!((bench.state(id).await, held(&bench)), (State::Trashed, vec!["one".to_owned()]));
}

#[tokio::test]
async fn a_store_that_goes_away_midway_lets_what_is_kept_be_counted_once() {
    let bench = albums().await;
    name(&bench, "a", &["a", "b", "c", "d", "kept"]).await;
    link(&bench, "b", &["kept"]).await;
    bench.objects.faults.grant(2, reprieve::domain::outcome::RetryAfter::seconds(60));
    let id = bench.trash_due("album", "a").await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("SlowDown")), "{end:?}");
    assert_eq!(bench.objects(), 3);
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(held(&bench), ["kept"]);
    let progress = bench.tombstone(id).await.progress;
    assert_eq!((progress.objects_deleted, progress.objects_kept), (4, 1));
}

#[tokio::test]
async fn a_prefix_below_which_another_names_an_object_is_in_use() {
    let below = "named_below = \"select key, album_id from plat.files where starts_with(key, $1)\"";
    let bench = Bench::with(&MAP.replacen("named_by", &format!("{below}\nnamed_by"), 1), TABLES, |_| ()).await;
    bench.run("insert into plat.folders values ('f'), ('f2')").await;
    name(&bench, "a", &["folders/f/1", "folders/f2"]).await;
    let error = bench.try_trash("folder", "f").await.expect_err("in use").to_string();
    assert!(error.contains("album a: names folders/f/1, which lies below the prefix"), "{error}");
    bench.trash("folder", "f2").await;
    // it comes in the window
    bench.run("delete from plat.files where key = 'folders/f/1'").await;
    let id = bench.trash_due("folder", "f").await;
    link(&bench, "b", &["folders/f/1"]).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    // in the trash it needs it as before, by its record alone
    let album = bench.trash("album", "b").await;
    bench.run("delete from plat.files").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    assert_eq!(held(&bench), ["folders/f/1", "folders/f2"]);
    // and past the point of no return it does not: what is live or in the trash keeps it, so the folder's object stays
    bench.make_due(album).await;
    purged(&bench, album).await;
    assert_eq!(bench.tombstone(album).await.progress.objects_kept, 1);
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(held(&bench), ["folders/f2"]);
}

#[tokio::test]
async fn a_record_in_the_trash_keeps_its_objects_from_a_prefix_whatever_the_map_says_by_now() {
    let mut bench = albums().await;
    bench.run("insert into plat.folders values ('f'), ('g')").await;
    name(&bench, "a", &["folders/f/1", "folders/g"]).await;
    bench.trash("album", "a").await;
    // somebody takes the entry out of the map while it waits
    let (_, folders) = MAP.split_once("[[resource]]\nkind = \"folder\"").expect("two kinds");
    let map = format!("[[resource]]\nkind = \"folder\"{folders}");
    bench.config.map = crate::bench::load_config("postgres://nobody@127.0.0.1:1/none", &map).map;
    bench.bin = reprieve::trash::TrashBin::new(bench.store.clone(), &bench.config);
    let error = bench.try_trash("folder", "f").await.expect_err("in use").to_string();
    assert!(error.contains("album a: names folders/f/1, which lies below the prefix"), "{error}");
    let g = bench.trash_due("folder", "g").await;
    assert_eq!(bench.slice(g).await, SliceEnd::Purged, "nothing lies below its prefix");
    assert_eq!(held(&bench), ["folders/f/1", "folders/g"]);
}
