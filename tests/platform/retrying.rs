//! An operator's retry of a purge that waits for its next try, and what a retry leaves alone.

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::FailureClass;
use reprieve::domain::state::State;
use reprieve::objects::faulty::failure;
use reprieve::purge::SliceEnd;
use reprieve::store::pauses::Scope;
use reprieve::trash::{NoRetry, TrashError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::bench::{Bench, alice, budget, by};
use crate::gate::At;
use crate::support::heimdall::Model;

/// A dataset of three objects whose purge has begun, and waits since its store was away.
async fn waiting() -> (Bench, Uuid, TombstoneId) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    bench.objects.faults.fail_next_list(failure("Connection", FailureClass::Transient));
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
    assert_eq!(bench.count("reprieve.tombstones where next_attempt_at > now() + interval '10 minutes'").await, 1);
    (bench, dataset, id)
}

/// All that a retry could change.
async fn all_of_it(bench: &Bench) -> String {
    let sql = "select jsonb_build_object('tombstones', (select jsonb_agg(t) from reprieve.tombstones t),
            'outbox', (select jsonb_agg(o order by o.id) from reprieve.outbox o),
            'audit', (select count(*) from reprieve.audit))::text";
    bench.value(sql).await
}

/// Why a retry is refused; it has changed nothing then, and a dry run says the same.
async fn refused(bench: &Bench, dataset: Uuid) -> (NoRetry, String, String) {
    let (resource, before) = (bench.resource("dataset", dataset), all_of_it(bench).await);
    let dry = bench.bin.retriable(&resource).await.expect_err("nothing to retry");
    let error = bench.bin.retry(&resource, &alice()).await.expect_err("nothing to retry");
    assert_eq!((error.code(), all_of_it(bench).await), ("not_stuck", before));
    assert_eq!(error.to_string(), dry.to_string());
    let (said, advice) = (error.to_string(), error.advice().into_owned());
    let TrashError::NothingToRetry { why, .. } = error else { panic!("{error}") };
    (why, said, advice)
}

const TASKS_NOW: &str = "reprieve.outbox where topic = 'purge' and available_at <= now()";

#[tokio::test]
async fn a_purge_that_waits_for_its_next_try_is_tried_now_when_an_operator_says_so() {
    let (bench, dataset, id) = waiting().await;
    bench.run("update reprieve.tombstones set attempts = 2, deaths = 1").await;
    let resource = bench.resource("dataset", dataset);
    let (before, was) = (all_of_it(&bench).await, bench.tombstone(id).await);
    assert!(bench.bin.retriable(&resource).await.expect("waits").last_error.is_some());
    assert_eq!(all_of_it(&bench).await, before, "looking is free");
    assert_eq!(bench.count(TASKS_NOW).await, 0);

    bench.bin.retry(&resource, &by("olga", Some("the store is back"))).await.expect("goes on");
    let anew = "reprieve.tombstones where state = 'purging' and attempts = 0 and deaths = 0 and waits = 0
        and next_attempt_at <= now() and lease_owner is null";
    assert_eq!(bench.count(anew).await, 1);
    assert_eq!(bench.count(TASKS_NOW).await, 1, "the task that was to leave later leaves now");
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 1, "and there is no other");
    let told = bench.told(id, "retried").await;
    assert_eq!((told.actor.as_str(), told.details["was"].as_str()), ("olga", was.last_error.as_deref()));
    let until = told.details["waited_until"].as_str().expect("a time");
    let until = OffsetDateTime::parse(until, &Rfc3339).expect("a time");
    assert!((was.next_attempt_at - until).abs() <= time::Duration::SECOND, "{until}");
    let event = "reprieve.outbox where topic = 'event' and destination = 'dataset.retried'";
    assert_eq!(bench.count(event).await, 1);

    assert!(matches!(refused(&bench, dataset).await.0, NoRetry::Due), "the second time there is nothing to do");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.events(id).await, ["trashed", "purge_begun", "purge_failed", "retried", "purged"]);
}

#[tokio::test]
async fn a_task_that_is_lost_or_on_its_way_is_written_anew() {
    for lost in [
        "delete from reprieve.outbox where topic = 'purge'",
        "update reprieve.outbox set leased_until = now() + interval '1 hour', attempts = 3",
    ] {
        let (bench, dataset, id) = waiting().await;
        bench.run(lost).await;
        bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
        let ready = format!("{TASKS_NOW} and tombstone_id = '{id}' and leased_until is null and attempts = 0");
        assert_eq!(bench.count(&ready).await, 1, "{lost}");
    }
}

#[tokio::test]
async fn a_purge_that_is_worked_on_is_left_to_its_worker() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    let gate = bench.objects.stop_a_delete(0, At::Before);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    for next in ["now()", "now() + interval '1 hour'"] {
        bench.run(&format!("update reprieve.tombstones set next_attempt_at = {next}")).await;
        let (why, said, advice) = refused(&bench, dataset).await;
        assert!(matches!(why, NoRetry::WorkedOn) && said.contains("right now"), "{said}");
        assert!(advice.contains(&format!("reprieve show dataset {dataset}")), "{advice}");
    }
    gate.open();
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Purged);
    assert_eq!(
        bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect_err("over").code(),
        "not_in_trash"
    );
}

#[tokio::test]
async fn a_worker_that_takes_it_while_a_retry_waits_for_the_tombstone_is_not_disturbed() {
    let (bench, dataset, id) = waiting().await;
    let mut taking = bench.pool.begin().await.expect("begins");
    let sql = "update reprieve.tombstones set fence = fence + 1, lease_owner = 'another', lease_until = now() + interval '1 hour'";
    sqlx::raw_sql(sql).execute(&mut *taking).await.expect("takes it");
    let (bin, resource) = (bench.bin.clone(), bench.resource("dataset", dataset));
    let retrying = tokio::spawn(async move { bin.retry(&resource, &alice()).await });
    bench.until_waiting("the retry waits for the tombstone", 1).await;
    taking.commit().await.expect("has it");
    let error = retrying.await.expect("no panic").expect_err("it has a worker");
    assert!(matches!(error, TrashError::NothingToRetry { why: NoRetry::WorkedOn, .. }), "{error}");
    assert_eq!(bench.tombstone(id).await.lease_owner.as_deref(), Some("another"));
    assert!(!bench.events(id).await.contains(&"retried".to_owned()));
    // it dies: what it had is nobody's
    bench.run("update reprieve.tombstones set lease_until = now() - interval '1 second'").await;
    bench.bin.retry(&bench.resource("dataset", dataset), &alice()).await.expect("goes on");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn what_is_due_is_said_to_be_due() {
    let (bench, dataset, id) = waiting().await;
    bench.make_due(id).await;
    let (why, said, advice) = refused(&bench, dataset).await;
    assert!(matches!(why, NoRetry::Due) && said.contains("it is due since"), "{said}");
    assert!(advice.contains("reprieve health"), "{advice}");
}

#[tokio::test]
async fn what_waits_for_the_end_of_a_pause_is_told_how_to_end_it() {
    let (bench, dataset, id) = waiting().await;
    bench.bin.pause(&Scope::All, &by("bob", Some("stocktaking"))).await.expect("pauses");
    let (why, said, advice) = refused(&bench, dataset).await;
    assert!(matches!(why, NoRetry::Paused(_)) && said.contains("bob: stocktaking"), "{said}");
    assert_eq!(advice, "reprieve resume --all");
    bench.bin.resume(&Scope::All, &alice()).await.expect("resumes");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged, "a resume lets it leave");
}

#[tokio::test]
async fn before_the_point_of_no_return_a_retry_says_when_it_is_looked_at_again() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash("dataset", dataset).await;
    let end: String =
        bench.value("select to_char(purge_after at time zone 'utc', 'YYYY-MM-DD') from reprieve.tombstones").await;
    let (why, said, _) = refused(&bench, dataset).await;
    assert!(matches!(why, NoRetry::NotBegun) && said.contains("is trashed, not stuck"), "{said}");
    assert!(said.contains(&format!("by itself at {end}T")), "{said}, and its window ends at {end}");

    bench.run("alter table heimdall.models disable trigger all").await;
    Model { datasets: vec![dataset], active: true, ..Model::named("localiser 7") }.insert(&bench.pool).await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    let (why, said, advice) = refused(&bench, dataset).await;
    assert!(matches!(why, NoRetry::NotBegun) && said.contains("is blocked, not stuck"), "{said}");
    assert!(said.contains("localiser 7"), "{said}");
    assert!(advice.contains(&format!("reprieve restore dataset {dataset}")), "{advice}");
    assert_eq!(bench.state(id).await, State::Blocked);
}
