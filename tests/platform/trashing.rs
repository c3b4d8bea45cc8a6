use std::time::Duration;

use reprieve::domain::retention::Retention;
use reprieve::domain::state::State;
use reprieve::trash::{TrashError, TrashRequest};
use uuid::Uuid;

use crate::bench::{Bench, alice, by};
use crate::support::heimdall::{Job, Model};

/// The references that refuse, with the labels of their rows.
fn blockers(refused: &TrashError) -> Vec<(String, String)> {
    let TrashError::Refused { refusals, .. } = refused else { panic!("refused for another reason: {refused}") };
    refusals.blockers.iter().map(|blocker| (blocker.reference.clone(), blocker.label.clone())).collect()
}

async fn nothing_was_written(bench: &Bench) {
    for table in ["reprieve.tombstones", "reprieve.outbox", "reprieve.audit"] {
        assert_eq!(bench.count(table).await, 0, "{table}");
    }
}

#[tokio::test]
async fn every_use_is_named_at_once_by_its_reference_and_label() {
    let bench = Bench::heimdall().await;
    let (used, other) = (bench.dataset("set a", 1).await, bench.dataset("set b", 1).await);
    let pool = &bench.pool;
    Model { active: true, datasets: vec![used], ..Model::named("first") }.insert(pool).await;
    // only the json names it: the column has the other one
    Model { active: true, datasets: vec![other, used], ..Model::named("second") }.insert(pool).await;
    Model { production: true, datasets: vec![used], ..Model::named("live") }.insert(pool).await;
    Model { datasets: vec![used], ..Model::named("idle") }.insert(pool).await;
    Job { status: "running", config_dataset_ids: vec![used], ..Job::named("night run") }.insert(pool).await;
    Job { config_dataset_ids: vec![used], ..Job::named("finished") }.insert(pool).await;

    let refused = bench.try_trash("dataset", used).await.expect_err("in use");
    let mut named = blockers(&refused);
    named.sort();
    let expected = [
        ("active model", "first"),
        ("active model", "second"),
        ("production model", "live"),
        ("running job", "night run"),
    ];
    assert_eq!(named, expected.map(|(reference, label)| (reference.to_owned(), label.to_owned())));
    assert_eq!(refused.code(), "in_use");
    assert!(refused.to_string().contains("night run") && refused.advice().contains("deactivate"), "{refused}");
    nothing_was_written(&bench).await;
}

#[tokio::test]
async fn what_is_unused_goes_although_idle_models_and_finished_jobs_name_it() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    Model { datasets: vec![dataset], ..Model::named("idle") }.insert(&bench.pool).await;
    Job { status: "failed", config_dataset_ids: vec![dataset], ..Job::named("failed") }.insert(&bench.pool).await;
    let id = bench.trash("dataset", dataset).await;
    assert_eq!(bench.state(id).await, State::Trashed);
}

#[tokio::test]
async fn a_protected_name_is_never_trashed_and_says_by_what() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("benchmark-v1", 1).await;
    let refused = bench.try_trash("dataset", dataset).await.expect_err("protected");
    assert_eq!(refused.code(), "protected");
    assert!(refused.to_string().contains(&dataset.to_string()), "{refused}");
    assert!(refused.advice().contains("protect"), "{}", refused.advice());
    bench.trash("dataset", bench.dataset("benchmark-v10", 1).await).await;
}

#[tokio::test]
async fn what_is_held_is_refused_with_who_and_why_until_it_is_released() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let resource = bench.resource("dataset", dataset);
    let bob = by("bob", Some("paper under review"));
    assert!(bench.bin.hold(&resource, &bob).await.expect("holds"));
    assert!(!bench.bin.hold(&resource, &alice()).await.expect("is held"), "a second hold changes nothing");
    let refused = bench.try_trash("dataset", dataset).await.expect_err("held");
    assert_eq!(refused.code(), "held");
    assert!(refused.to_string().contains("bob: paper under review"), "{refused}");
    assert!(bench.bin.release(&resource, &alice()).await.expect("releases"));
    assert!(!bench.bin.release(&resource, &alice()).await.expect("is free"));
    bench.trash("dataset", dataset).await;
}

#[tokio::test]
async fn a_hold_needs_something_to_hold() {
    let bench = Bench::heimdall().await;
    let refused = bench.bin.hold(&bench.resource("dataset", Uuid::new_v4()), &alice()).await.expect_err("nothing");
    assert!(matches!(refused, TrashError::NotFound(_)), "{refused}");
}

#[tokio::test]
async fn an_unknown_kind_an_unknown_id_and_a_malformed_id_are_told_apart() {
    let bench = Bench::heimdall().await;
    let kind = bench.bin.resource("modell", &Uuid::new_v4().to_string()).expect_err("no such kind");
    assert_eq!(kind.code(), "unknown_kind");
    assert!(kind.to_string().contains("dataset, job"), "{kind}");
    let malformed = bench.bin.resource("dataset", "set a").expect_err("no UUID");
    assert_eq!(malformed.code(), "malformed_id");
    let nobody = bench.try_trash("dataset", Uuid::new_v4()).await.expect_err("no such row");
    assert_eq!(nobody.code(), "not_found");
    assert!(kind.is_malformed() && malformed.is_malformed() && !nobody.is_malformed());
    nothing_was_written(&bench).await;
}

#[tokio::test]
async fn trashing_twice_changes_nothing_and_says_so() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let first = bench.try_trash("dataset", dataset).await.expect("goes");
    let upper = dataset.to_string().to_uppercase();
    let second = bench.try_trash("dataset", upper).await.expect("is there");
    assert!(!first.already && second.already);
    assert_eq!((second.tombstone.id, second.tombstone.purge_after), (first.tombstone.id, first.tombstone.purge_after));
    assert_eq!(bench.events(first.tombstone.id).await, ["trashed"]);
    assert_eq!(bench.count("reprieve.outbox where topic = 'purge'").await, 1);
}

#[tokio::test]
async fn trashing_what_is_in_the_trash_and_whose_row_is_gone_still_says_that_it_is_there() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let id = bench.trash("dataset", dataset).await;
    bench.run("delete from heimdall.synthetic_datasets").await;
    let again = bench.try_trash("dataset", dataset).await.expect("it is in the trash");
    assert!(again.already && again.tombstone.id == id);
}

#[tokio::test]
async fn two_that_trash_the_same_at_once_write_one_tombstone() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let (one, two) = tokio::join!(bench.try_trash("dataset", dataset), bench.try_trash("dataset", dataset));
    let (one, two) = (one.expect("goes"), two.expect("goes"));
    assert_eq!(one.tombstone.id, two.tombstone.id);
    assert!(one.already != two.already, "one of them did it");
}

#[tokio::test]
async fn a_window_shorter_than_allowed_is_refused_and_a_longer_one_is_kept() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    let with = |raw: &str| TrashRequest {
        retention: Some(Retention::parse(raw).expect("a window")),
        ..bench.request("dataset", dataset)
    };
    let refused = bench.bin.trash(&with("59m")).await.expect_err("below the minimum");
    assert_eq!(refused.code(), "retention_too_short");
    assert!(refused.to_string().contains("59m") && refused.to_string().contains("1h"), "{refused}");
    nothing_was_written(&bench).await;
    let kept = bench.bin.trash(&with("30d")).await.expect("longer").tombstone;
    assert_eq!(kept.purge_after - kept.trashed_at, Duration::from_secs(30 * 86_400));
}

#[tokio::test]
async fn a_dry_run_shows_everything_and_writes_nothing() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let plan = bench.bin.plan(&bench.request("dataset", dataset)).await.expect("can go");
    assert_eq!(plan.members.len(), 1);
    let member = &plan.members[0];
    assert_eq!(member.name.as_deref(), Some("set a"));
    let places: Vec<String> = member.locations.iter().map(|at| format!("{}/{}", at.bucket, at.prefix)).collect();
    let expected = [
        format!("{}/synthetic/{dataset}/", crate::bench::BUCKET),
        format!("{}/synthetic/dataset-{dataset}/", crate::bench::BUCKET),
    ];
    assert!(expected.iter().all(|place| places.contains(place)) && places.len() == 2, "{places:?}");
    nothing_was_written(&bench).await;
    assert_eq!(bench.objects(), 3);
}

#[tokio::test]
async fn tombstone_purge_task_audit_entry_and_event_are_written_together() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    // in one transaction that is rolled back: none of them
    let mut tx = bench.store.begin().await.expect("begins");
    bench.bin.trash_in(&mut tx, &bench.request("dataset", dataset)).await.expect("goes");
    drop(tx);
    nothing_was_written(&bench).await;

    let id = bench.trash("dataset", dataset).await;
    let tombstone = bench.tombstone(id).await;
    let leaves: bool = bench
        .value("select o.available_at = t.purge_after from reprieve.outbox o join reprieve.tombstones t on t.id = o.tombstone_id where o.topic = 'purge'")
        .await;
    assert!(leaves, "the task waits for the end of the window");
    let key: String = bench.value("select destination from reprieve.outbox where topic = 'event'").await;
    assert_eq!(key, "dataset.trashed");
    let entry = bench.told(id, "trashed").await;
    assert_eq!((entry.actor.as_str(), entry.origin.as_str()), ("alice", "test"));
    assert_eq!(entry.reason.as_deref(), Some("no longer needed"));
    let shown = serde_json::to_value(&tombstone).expect("JSON");
    assert_eq!(entry.details["purge_after"], shown["purge_after"]);
}

#[tokio::test]
async fn with_the_map_that_we_ship_a_job_that_may_still_write_is_not_trashed() {
    let map = include_str!("../../config/maps/heimdall.toml");
    let bench = Bench::with(map, "", |_| ()).await;
    for status in ["pending", "queued", "running", "paused"] {
        let job = Job { status, ..Job::named("generation") }.insert(&bench.pool).await;
        let refused = bench.try_trash("job", job).await.expect_err(status);
        assert_eq!(refused.code(), "in_use", "{status}: {refused}");
    }
    let done = Job { status: "completed", ..Job::named("generation") }.insert(&bench.pool).await;
    bench.trash("job", done).await;
}
