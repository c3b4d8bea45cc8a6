use reprieve::domain::state::State;
use reprieve::purge::SliceEnd;
use reprieve::store::pauses::Scope;
use uuid::Uuid;

use crate::bench::{Bench, HEIMDALL, alice, by, kind};
use crate::support::heimdall::{Dataset, Job, Model};

/// A due dataset with three objects.
async fn due() -> (Bench, Uuid, reprieve::domain::ids::TombstoneId) {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash_due("dataset", dataset).await;
    (bench, dataset, id)
}

/// Still restorable, nothing lost, and a task for later in the outbox.
async fn is_untouched(bench: &Bench, id: reprieve::domain::ids::TombstoneId) {
    let tombstone = bench.tombstone(id).await;
    assert!(tombstone.state.is_restorable(), "{}", tombstone.state);
    assert!(tombstone.purging_at.is_none() && tombstone.lease_owner.is_none() && tombstone.fence.0 == 0);
    assert_eq!(bench.objects(), 3);
    assert_eq!(bench.count("heimdall.synthetic_datasets").await, 1);
    let later = format!("reprieve.outbox where topic = 'purge' and tombstone_id = '{id}' and available_at > now()");
    assert_eq!(bench.count(&later).await, 1, "it is looked at again");
}

#[tokio::test]
async fn nothing_is_claimed_before_its_time_whoever_sends_a_task() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 3).await;
    let id = bench.trash("dataset", dataset).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Deferred("it is not time yet".into()));
    is_untouched(&bench, id).await;
    let at_the_end = "reprieve.outbox o join reprieve.tombstones t on t.id = o.tombstone_id
        where o.topic = 'purge' and o.available_at between t.purge_after - interval '1 second' and t.purge_after + interval '5 seconds'";
    assert_eq!(bench.count(at_the_end).await, 1, "the task waits for the window's end again");
}

#[tokio::test]
async fn a_task_for_a_tombstone_that_does_not_exist_does_nothing() {
    let bench = Bench::heimdall().await;
    let end = bench.slice(reprieve::domain::ids::TombstoneId::new()).await;
    assert_eq!(end, SliceEnd::Nothing("there is no such tombstone"));
    assert_eq!(bench.count("reprieve.outbox").await, 0);
}

#[tokio::test]
async fn what_is_held_waits_with_the_reason_and_goes_on_when_released() {
    let (bench, dataset, id) = due().await;
    let resource = bench.resource("dataset", dataset);
    bench.bin.hold(&resource, &by("bob", Some("audit"))).await.expect("holds");
    assert_eq!(bench.slice(id).await, SliceEnd::Deferred("held by bob: audit".into()));
    is_untouched(&bench, id).await;
    assert_eq!(bench.tombstone(id).await.last_error.as_deref(), Some("held by bob: audit"));
    bench.bin.release(&resource, &alice()).await.expect("releases");
    let now = "reprieve.outbox where topic = 'purge' and available_at <= now()";
    assert_eq!(bench.count(now).await, 1, "a release does not wait for the next look");
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn a_pause_of_all_of_its_kind_or_of_its_store_holds_it_and_others_do_not() {
    let (bench, _, id) = due().await;
    let store = |name| Scope::Store(reprieve::domain::location::StoreName::parse(name).expect("a name"));
    for scope in [Scope::All, Scope::Kind(kind("dataset")), store("main")] {
        assert!(bench.bin.pause(&scope, &by("bob", None)).await.expect("pauses"));
        assert!(!bench.bin.pause(&scope, &by("bob", None)).await.expect("is paused"));
        let end = bench.slice(id).await;
        assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("paused by bob")), "{scope}: {end:?}");
        is_untouched(&bench, id).await;
        assert!(bench.bin.resume(&scope, &alice()).await.expect("resumes"));
        assert_eq!(bench.count("reprieve.outbox where topic = 'purge' and available_at <= now()").await, 1);
    }
    for scope in [Scope::Kind(kind("job")), store("other")] {
        bench.bin.pause(&scope, &alice()).await.expect("pauses");
    }
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.count("reprieve.audit where event in ('paused', 'resumed')").await, 8);
}

/// So many due tombstones of each kind and store, to be looked at in an hour.
async fn many_that_wait(bench: &Bench, each: u32) {
    bench
        .run(&format!(
            "insert into reprieve.tombstones
                 (id, kind, resource_id, actor, origin, trashed_at, purge_after, next_attempt_at, locations)
             select gen_random_uuid(), kind, n::text, 'alice', 'test', now() - interval '2 days',
                    now() - interval '1 day', now() + interval '1 hour',
                    jsonb_build_array(jsonb_build_object('store', store, 'bucket', 'b', 'prefix', 'p/' || n || '/'))
             from (values ('dataset', 'main'), ('job', 'main'), ('recording', 'other')) as k (kind, store),
                  generate_series(1, {each}) as n"
        ))
        .await;
}

#[tokio::test]
async fn a_resume_wakes_however_many_there_are_of_what_was_paused_and_nothing_else() {
    let bench = Bench::heimdall().await;
    many_that_wait(&bench, 2_100).await;
    let store = |name| Scope::Store(reprieve::domain::location::StoreName::parse(name).expect("a name"));
    let woken = "reprieve.tombstones where next_attempt_at <= now()";
    for (scope, expected) in
        [(Scope::Kind(kind("job")), 2_100), (store("other"), 4_200), (store("main"), 6_300), (Scope::All, 6_300)]
    {
        bench.bin.pause(&scope, &alice()).await.expect("pauses");
        assert!(bench.bin.resume(&scope, &alice()).await.expect("resumes"));
        assert_eq!(bench.count(woken).await, expected, "{scope}");
    }
    assert_eq!(bench.count("reprieve.tombstones where kind = 'dataset' and next_attempt_at > now()").await, 0);
}

#[tokio::test]
async fn a_pause_is_lifted_although_what_waits_behind_it_cannot_be_woken() {
    let bench = Bench::heimdall().await;
    many_that_wait(&bench, 3).await;
    bench.bin.pause(&Scope::All, &alice()).await.expect("pauses");
    bench
        .run(
            "create function fails() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
             create trigger fails before update on reprieve.tombstones for each row execute function fails()",
        )
        .await;
    assert!(bench.bin.resume(&Scope::All, &alice()).await.expect("resumes all the same"));
    assert_eq!(bench.count("reprieve.pauses").await, 0);
    assert_eq!(bench.count("reprieve.audit where event = 'resumed'").await, 1);
}

#[tokio::test]
async fn pauses_and_holds_of_what_has_left_the_configuration_can_still_be_ended() {
    let bench = Bench::heimdall().await;
    let scope = Scope::Kind(kind("recording"));
    bench.bin.pause(&scope, &alice()).await.expect("pauses");
    bench.run("insert into reprieve.holds (kind, resource_id, actor) values ('recording', 'a/b', 'bob')").await;
    let paused = bench.bin.pauses().await.expect("reads");
    assert!(paused.len() == 1 && paused[0].is_of(&scope) && !paused[0].is_of(&Scope::Kind(kind("job"))), "{paused:?}");
    assert!(bench.bin.resume(&scope, &alice()).await.expect("resumes"));

    let held = bench.bin.held_resource("recording", "a/b").await.expect("is held");
    assert!(bench.bin.release(&held, &alice()).await.expect("releases"));
    let unknown = bench.bin.held_resource("recording", "a/b").await.expect_err("neither held nor in the map");
    assert_eq!(unknown.code(), "unknown_kind");
    assert_eq!(bench.count("reprieve.holds").await, 0);
}

#[tokio::test]
async fn a_use_that_came_meanwhile_blocks_it_by_name_until_it_ends() {
    let (bench, dataset, id) = due().await;
    Model { active: true, datasets: vec![dataset], ..Model::named("late") }.insert(&bench.pool).await;
    Job { status: "queued", config_dataset_ids: vec![dataset], ..Job::named("next") }.insert(&bench.pool).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(2));
    is_untouched(&bench, id).await;
    let tombstone = bench.tombstone(id).await;
    assert_eq!(tombstone.state, State::Blocked);
    let labels: Vec<_> = tombstone.blockers.iter().map(|blocker| blocker.label.as_str()).collect();
    assert_eq!(labels, ["late", "next"]);

    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(2));
    assert_eq!(bench.events(id).await, ["trashed", "blocked"], "the same blockers are told once");

    bench
        .run("update heimdall.models set is_active = false; update heimdall.training_jobs set status = 'completed'")
        .await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert!(bench.tombstone(id).await.blockers.is_empty());
}

#[tokio::test]
async fn a_reference_query_that_fails_means_not_now_and_says_which() {
    let (bench, dataset, id) = due().await;
    Model { active: true, datasets: vec![dataset], ..Model::named("user") }.insert(&bench.pool).await;
    bench.run("alter table heimdall.models drop column is_production").await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("is_production")), "{end:?}");
    is_untouched(&bench, id).await;
    let why = bench.tombstone(id).await.last_error.expect("a reason");
    assert!(why.contains("production model") && why.contains("reprieve check"), "{why}");

    bench.run("drop table heimdall.inference_requests, heimdall.model_shares, heimdall.model_evaluations, heimdall.models").await;
    bench.make_due(id).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Deferred(_)), "a table that is gone is not one without uses");
    is_untouched(&bench, id).await;
}

#[tokio::test]
async fn a_reference_query_that_takes_too_long_means_not_now_and_says_so() {
    let map = HEIMDALL.replace(
        "from heimdall.models where is_active",
        "from (select *, pg_sleep(30 + version) from heimdall.models offset 0) as slow where is_active",
    );
    let bench = Bench::with(&map, "", |config| {
        config.database.statement_timeout = std::time::Duration::from_secs(1);
    })
    .await;
    let dataset = bench.dataset("set a", 3).await;
    // no model, so that trashing has nothing to sleep for
    let id = bench.trash_due("dataset", dataset).await;
    Model::named("any").insert(&bench.pool).await;
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("timeout")), "{end:?}");
    is_untouched(&bench, id).await;
    assert!(bench.tombstone(id).await.last_error.expect("a reason").contains("active model"));
}

#[tokio::test]
async fn a_row_that_the_platform_locks_for_long_delays_its_own_purge_alone() {
    let (bench, dataset, id) = due().await;
    let mut holder = bench.pool.begin().await.expect("begins");
    sqlx::query("select from heimdall.synthetic_datasets where id = $1 for update")
        .bind(dataset)
        .execute(&mut *holder)
        .await
        .expect("locks");
    let mut store = bench.config.database.clone();
    store.statement_timeout = std::time::Duration::from_secs(1);
    let patient = bench.over(reprieve::store::Store::new(&store).expect("fine"));
    let end = patient.run_slice(id, &crate::bench::budget()).await.expect("the database is there");
    assert!(matches!(&end, SliceEnd::Deferred(_)), "{end:?}");
    holder.rollback().await.expect("rolls back");
    is_untouched(&bench, id).await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}

#[tokio::test]
async fn a_row_removed_meanwhile_does_not_end_the_purge_and_the_receipt_says_so() {
    let (bench, dataset, id) = due().await;
    bench.run("delete from heimdall.synthetic_datasets").await;
    Job { status: "running", config_dataset_ids: vec![dataset], ..Job::named("reader") }.insert(&bench.pool).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1), "it is still asked who uses it");
    bench.run("update heimdall.training_jobs set status = 'completed'").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    let receipt = bench.told(id, "purged").await.details;
    assert_eq!((&receipt["row_found"], &receipt["row_deleted"]), (&false.into(), &false.into()));
    assert_eq!(receipt["objects"]["deleted"], 3);
    assert_eq!(receipt["rows_deleted"], 3, "features, which no foreign key took along");
}

#[tokio::test]
async fn a_parent_waits_for_its_children_and_goes_on_when_the_last_is_purged() {
    let bench = Bench::heimdall().await;
    let job = Job::named("generation").insert(&bench.pool).await;
    for name in ["a", "b"] {
        Dataset { created_by: Some(job), ..Dataset::iq_raw(name) }.insert(&bench.pool).await;
    }
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    let parent = went.tombstone.id;
    for id in went.children.iter().map(|child| child.id).chain([parent]) {
        bench.make_due(id).await;
    }
    assert_eq!(bench.slice(parent).await, SliceEnd::Blocked(2));
    assert_eq!(bench.tombstone(parent).await.blockers[0].reference, "child in the trash");
    assert_eq!(bench.slice(went.children[0].id).await, SliceEnd::Purged);
    bench.make_due(parent).await;
    assert_eq!(bench.slice(parent).await, SliceEnd::Blocked(1));
    assert_eq!(bench.slice(went.children[1].id).await, SliceEnd::Purged);
    let woken =
        format!("reprieve.outbox where topic = 'purge' and tombstone_id = '{parent}' and available_at <= now()");
    assert_eq!(bench.count(&woken).await, 1, "the last child calls it");
    assert_eq!(bench.slice(parent).await, SliceEnd::Purged);
    assert_eq!(bench.count("heimdall.training_jobs").await, 0);
}

#[tokio::test]
async fn a_kind_that_left_the_map_waits_and_says_so() {
    let (mut bench, _, id) = due().await;
    let url: String = secrecy::ExposeSecret::expose_secret(&bench.config.database.url).to_string();
    let only_jobs = "[[resource]]\nkind = \"job\"\ntable = \"heimdall.training_jobs\"";
    let whole = std::mem::replace(&mut bench.config, crate::bench::load_config(&url, only_jobs));
    let end = bench.slice(id).await;
    assert!(matches!(&end, SliceEnd::Deferred(why) if why.contains("no longer has the kind dataset")), "{end:?}");
    is_untouched(&bench, id).await;
    bench.config = whole;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
}
