//! "See that this is purged", and what operators can do about it.

use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::trash::{PurgeAnswer, TrashError};
use uuid::Uuid;

use crate::bench::{Bench, alice};

const MAP: &str = r#"
[[resource]]
kind = "run"
table = "plat.runs"
id_type = "integer"
soft_delete = "deleted_at"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "runs/{id}/"
"#;

const SCHEMA: &str = "create schema plat; create table plat.runs (id int primary key, deleted_at timestamptz);
    insert into plat.runs values (1, null), (2, now() - interval '1 year')";

async fn runs() -> Bench {
    Bench::with(MAP, SCHEMA, |_| ()).await
}

async fn ask(bench: &Bench, run: i32) -> Result<PurgeAnswer, TrashError> {
    let mut tx = bench.store.begin().await.expect("begins");
    let answer = bench.bin.request_purge_in(&mut tx, &bench.request("run", run)).await?;
    reprieve::store::commit(tx).await.expect("commits");
    Ok(answer)
}

#[tokio::test]
async fn what_is_live_is_refused_and_what_is_not_there_is_not_found() {
    let bench = runs().await;
    assert_eq!(ask(&bench, 1).await.expect_err("live").code(), "not_in_trash");
    assert_eq!(ask(&bench, 9).await.expect_err("nobody").code(), "not_found");
    assert_eq!(bench.count("reprieve.tombstones").await, 0);
}

#[tokio::test]
async fn what_the_platform_has_soft_deleted_is_adopted_and_its_window_begins_now() {
    let bench = runs().await;
    let answer = ask(&bench, 2).await.expect("adopted");
    assert_eq!(answer.status, "scheduled");
    let full = bench.count("reprieve.tombstones where purge_after - now() > interval '13 days 23 hours'").await;
    assert_eq!(full, 1, "deleted a year ago, and still the whole window from now on");
    assert_eq!(bench.slice(answer.tombstone.id).await, SliceEnd::Deferred("it is not time yet".into()));
    let again = ask(&bench, 2).await.expect("is there");
    assert_eq!((again.status, again.tombstone.id), ("waiting", answer.tombstone.id));
}

#[tokio::test]
async fn each_further_request_says_how_far_it_is() {
    let bench = runs().await;
    bench.objects.memory().put(crate::bench::BUCKET, "runs/2/a", 1);
    let id = ask(&bench, 2).await.expect("adopted").tombstone.id;
    bench.make_due(id).await;
    bench.run("update reprieve.tombstones set next_attempt_at = now() + interval '1 hour'").await;
    bench.run("update reprieve.outbox set available_at = now() + interval '1 hour'").await;
    assert_eq!(ask(&bench, 2).await.expect("due").status, "due");
    assert_eq!(
        bench.count("reprieve.outbox where topic = 'purge' and available_at <= now()").await,
        1,
        "and it leaves"
    );
    bench.objects.ignore("runs/2/a");
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
    assert_eq!(ask(&bench, 2).await.expect("on its way").status, "purging");
    bench.run("update reprieve.tombstones set state = 'stuck'").await;
    assert_eq!(ask(&bench, 2).await.expect("set aside").status, "stuck");
    bench.objects.heed();
    bench.bin.retry(&bench.resource("run", 2), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(ask(&bench, 2).await.expect("over").status, "purged");
}

#[tokio::test]
async fn a_platforms_undelete_keeps_it_from_being_purged() {
    let bench = runs().await;
    let id = bench.trash_due("run", 1).await;
    bench.run("update plat.runs set deleted_at = null where id = 1").await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    assert_eq!(bench.tombstone(id).await.blockers[0].reference, "undeleted row");
    assert_eq!(bench.count("plat.runs where id = 1").await, 1);
}

#[tokio::test]
async fn only_what_is_stuck_can_be_retried() {
    let bench = runs().await;
    let run = bench.resource("run", 1);
    assert_eq!(bench.bin.retry(&run, &alice()).await.expect_err("live").code(), "not_in_trash");
    let id = bench.trash("run", 1).await;
    let refused = bench.bin.retry(&run, &alice()).await.expect_err("waiting");
    assert!(refused.code() == "not_stuck" && refused.to_string().contains("trashed"), "{refused}");
    assert_eq!(bench.state(id).await, State::Trashed);
}

#[tokio::test]
async fn a_hold_past_the_point_of_no_return_is_refused_and_not_kept() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 2).await;
    bench.objects.ignore(&crate::support::heimdall::key(dataset, 0, 0));
    let id = bench.trash_due("dataset", dataset).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
    let refused = bench.bin.hold(&bench.resource("dataset", dataset), &alice()).await.expect_err("too late");
    assert_eq!(refused.code(), "past_return");
    assert_eq!(bench.count("reprieve.holds").await, 0);
    let nobody = bench.resource("dataset", Uuid::new_v4());
    assert!(!bench.bin.release(&nobody, &alice()).await.expect("nothing to release"));
}
