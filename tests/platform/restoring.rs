use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::trash::{IfChildrenLost, TrashError};
use uuid::Uuid;

use crate::bench::{Bench, alice};
use crate::support::heimdall::{Dataset, Job, Model};

#[tokio::test]
async fn inside_the_window_everything_comes_back_and_the_task_is_gone() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 5).await;
    let id = bench.trash("dataset", dataset).await;
    let back = bench.restore("dataset", dataset).await;
    assert!(!back.already);
    assert_eq!((back.tombstone.id, back.tombstone.state), (id, State::Restored));
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 0);
    assert_eq!(bench.events(id).await, ["trashed", "restored"]);
    assert_eq!(bench.slice(id).await, SliceEnd::Nothing("it is closed"), "a task that was on its way does nothing");
    assert_eq!(bench.objects(), 5);
    let again = bench.trash("dataset", dataset).await;
    assert_ne!(again, id, "trashed anew, a new tombstone with a new window");
}

#[tokio::test]
async fn restoring_twice_changes_nothing_and_says_so() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash("dataset", dataset).await;
    bench.restore("dataset", dataset).await;
    let again = bench.restore("dataset", dataset).await;
    assert!(again.already && again.tombstone.id == id);
    assert_eq!(bench.events(id).await, ["trashed", "restored"]);
}

#[tokio::test]
async fn of_several_that_restore_at_the_same_time_one_does_and_the_others_find_it_done() {
    let bench = Bench::heimdall().await;
    for n in 0..5 {
        let dataset = bench.dataset(&format!("set {n}"), 1).await;
        let id = bench.trash("dataset", dataset).await;
        let one = || bench.restore("dataset", dataset);
        let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
        assert_eq!([a, b, c, d].iter().filter(|restored| !restored.already).count(), 1);
        assert_eq!(bench.events(id).await, ["trashed", "restored"]);
    }
}

#[tokio::test]
async fn what_was_never_trashed_and_what_never_was_are_told_apart() {
    let bench = Bench::heimdall().await;
    let live = bench.dataset("set a", 1).await;
    assert_eq!(bench.try_restore("dataset", live).await.expect_err("live").code(), "not_in_trash");
    assert_eq!(bench.try_restore("dataset", Uuid::new_v4()).await.expect_err("nobody").code(), "not_found");
}

#[tokio::test]
async fn children_come_back_with_their_parent_and_those_restored_before_stay() {
    let bench = Bench::heimdall().await;
    let job = Job::named("generation").insert(&bench.pool).await;
    let dataset = |name| Dataset { created_by: Some(job), ..Dataset::iq_raw(name) };
    let (first, _) = (dataset("a").insert(&bench.pool).await, dataset("b").insert(&bench.pool).await);
    bench.trash_job_with_datasets(job).await.expect("goes");
    bench.restore("dataset", first).await;
    let back = bench.restore("job", job).await;
    assert_eq!((back.children.len(), back.lost.len()), (1, 0));
    assert_eq!(bench.count("reprieve.tombstones where state = 'restored'").await, 3);
}

#[tokio::test]
async fn what_is_blocked_can_still_be_restored() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash_due("dataset", dataset).await;
    Model { active: true, datasets: vec![dataset], ..Model::named("late") }.insert(&bench.pool).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    let back = bench.restore("dataset", dataset).await;
    assert!(back.tombstone.blockers.is_empty());
    assert_eq!(bench.state(id).await, State::Restored);
}

#[tokio::test]
async fn past_the_point_of_no_return_it_is_refused_with_how_far_the_purge_is() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    bench.objects.ignore(&crate::support::heimdall::key(dataset, 1, 0));
    let id = bench.trash_due("dataset", dataset).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
    let refused = bench.try_restore("dataset", dataset).await.expect_err("too late");
    assert_eq!(refused.code(), "past_return");
    assert!(refused.to_string().contains("2 of 3 listed objects (160 bytes)"), "{refused}");
    assert_eq!(refused.details()["tombstone"]["state"], "purging");
    assert_eq!(bench.state(id).await, State::Purging);

    bench.objects.heed();
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let refused = bench.try_restore("dataset", dataset).await.expect_err("far too late");
    assert!(refused.to_string().contains("purged"), "{refused}");
}

#[tokio::test]
async fn a_child_past_return_refuses_the_whole_restore_unless_a_part_is_enough() {
    let bench = Bench::heimdall().await;
    let job = Job::named("generation").insert(&bench.pool).await;
    for name in ["a", "b"] {
        Dataset { created_by: Some(job), ..Dataset::iq_raw(name) }.insert(&bench.pool).await;
    }
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    let lost = went.children[0].id;
    bench.make_due(lost).await;
    assert_eq!(bench.slice(lost).await, SliceEnd::Purged);
    let refused = bench.try_restore("job", job).await.expect_err("a child is gone");
    assert_eq!(refused.code(), "past_return");
    assert_eq!(bench.count("reprieve.tombstones where state = 'restored'").await, 0, "nothing half done");

    let resource = bench.resource("job", job);
    let back = bench.bin.restore(&resource, IfChildrenLost::RestoreTheRest, &alice()).await.expect("the rest");
    assert_eq!((back.children.len(), back.lost.len()), (1, 1));
    assert_eq!(back.lost[0].id, lost);
    assert_eq!(bench.state(went.tombstone.id).await, State::Restored);
}

#[tokio::test]
async fn a_row_that_the_platform_has_removed_cannot_come_back_and_its_objects_stay() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 2).await;
    let id = bench.trash("dataset", dataset).await;
    bench.run("delete from heimdall.synthetic_datasets").await;
    let refused = bench.try_restore("dataset", dataset).await.expect_err("nothing to bring back");
    assert!(matches!(refused, TrashError::RowGone(_)), "{refused}");
    assert_eq!((bench.state(id).await, bench.objects()), (State::Trashed, 2));
}

#[tokio::test]
async fn a_child_whose_row_is_gone_is_left_behind_when_a_part_is_enough() {
    let bench = Bench::heimdall().await;
    let job = Job::named("generation").insert(&bench.pool).await;
    let dataset = Dataset { created_by: Some(job), ..Dataset::iq_raw("a") }.insert(&bench.pool).await;
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    bench.run(&format!("delete from heimdall.synthetic_datasets where id = '{dataset}'")).await;
    assert_eq!(bench.try_restore("job", job).await.expect_err("not whole").code(), "row_gone");
    assert_eq!(bench.state(went.tombstone.id).await, State::Trashed);
    let resource = bench.resource("job", job);
    let back = bench.bin.restore(&resource, IfChildrenLost::RestoreTheRest, &alice()).await.expect("the job");
    assert_eq!((back.children.len(), back.lost.len()), (0, 1));
    assert_eq!(bench.state(went.children[0].id).await, State::Trashed, "its objects are still purged in time");
    assert_eq!(bench.state(went.tombstone.id).await, State::Restored);
}
