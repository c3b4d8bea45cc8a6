use std::collections::BTreeSet;
use std::time::Instant;

use futures_util::future::join_all;
use reprieve::embedded::postgres::{Options as PostgresOptions, PrivatePostgres};
use reprieve::store::migrate;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::exposition::Exposition;
use crate::fixture::{Options, Platform, Server, add_mark, config};
use crate::support::{SOON, fresh_database, heimdall, wait_until};

#[tokio::test]
async fn the_metrics_show_what_the_process_did_and_what_the_database_holds() {
    let platform = Platform::start().await;
    let dataset = heimdall::Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    platform.api.get("/no/such/path").await.problem(404, "no_route");
    platform.execute("update heimdall.synthetic_datasets set storage_size_bytes = 4000000").await;
    platform.execute("update reprieve.outbox set available_at = now() - interval '1 hour' where topic = 'event'").await;

    let answer = platform.api.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")),
        "{answer:?}"
    );
    assert!(!answer.body.contains(&dataset.to_string()), "no id in a label");
    let shown = Exposition::read(&answer.body);
    let (dataset, trash) = (("kind", "dataset"), ("route", "/v1/resources/{kind}/{id}/trash"));
    for (name, labels, value) in [
        ("reprieve_database_up", &[][..], 1.0),
        ("reprieve_outbox_rows", &[("topic", "purge")], 1.0),
        ("reprieve_outbox_rows", &[("topic", "event")], 1.0),
        ("reprieve_outbox_rows", &[("topic", "reply")], 0.0),
        ("reprieve_outbox_due_rows", &[("topic", "purge")], 0.0),
        ("reprieve_outbox_due_rows", &[("topic", "event")], 1.0),
        ("reprieve_outbox_oldest_due_seconds", &[("topic", "purge")], 0.0),
        ("reprieve_open_tombstones", &[dataset, ("state", "trashed")], 1.0),
        ("reprieve_open_tombstones", &[dataset, ("state", "stuck")], 0.0),
        ("reprieve_oldest_overdue_seconds", &[dataset, ("state", "trashed")], 0.0),
        ("reprieve_oldest_overdue_seconds", &[("kind", "job"), ("state", "purging")], 0.0),
        ("reprieve_open_tombstones", &[("kind", "job"), ("state", "blocked")], 0.0),
        ("reprieve_coming_due_tombstones", &[dataset, ("within", "7d")], 0.0),
        ("reprieve_recently_trashed_tombstones", &[dataset, ("origin", "api")], 1.0),
        ("reprieve_recently_trashed_tombstones", &[dataset, ("origin", "cli")], 0.0),
        ("reprieve_trash_bytes", &[dataset], 4_000_000.0),
        ("reprieve_holds", &[], 0.0),
        ("reprieve_pauses", &[("scope", "all")], 0.0),
        ("reprieve_published_total", &[("topic", "event")], 0.0),
        ("reprieve_tombstones_trashed_total", &[dataset, ("origin", "api")], 1.0),
        ("reprieve_requests_total", &[("origin", "api"), ("operation", "trash"), ("result", "ok")], 1.0),
        ("reprieve_http_requests_total", &[trash, ("status", "2xx")], 1.0),
        ("reprieve_http_requests_total", &[("route", "none"), ("status", "4xx")], 1.0),
        ("reprieve_http_request_duration_seconds_count", &[trash], 1.0),
    ] {
        assert_eq!(shown.one(name, labels), value, "{name} {labels:?}");
    }
    let oldest = shown.one("reprieve_outbox_oldest_due_seconds", &[("topic", "event")]);
    assert!((3600.0..3700.0).contains(&oldest), "{oldest}");
    assert!(!answer.body.contains("state=\"restored\""), "open ones alone");

    platform
        .execute(
            "update reprieve.tombstones set trashed_at = now() - interval '2 hours',
                 purge_after = now() - interval '1 hour'",
        )
        .await;
    let overdue =
        |shown: &Exposition, state| shown.one("reprieve_oldest_overdue_seconds", &[dataset, ("state", state)]);
    wait_until("it is overdue", SOON, async || {
        let shown = Exposition::read(&platform.api.get("/metrics").await.body);
        assert_eq!(overdue(&shown, "purging"), 0.0);
        (3600.0..3700.0).contains(&overdue(&shown, "trashed"))
            && shown.one("reprieve_recently_trashed_tombstones", &[dataset, ("origin", "api")]) == 0.0
    })
    .await;
}

#[tokio::test]
async fn scrapes_that_come_together_read_the_database_once() {
    let platform = Platform::start().await;
    let began = Instant::now();
    let scrapes = (0..40).map(|_| platform.api.get("/metrics"));
    let answers = join_all(scrapes).await;
    let took = began.elapsed();
    let reads: BTreeSet<String> = answers
        .iter()
        .map(|answer| Exposition::read(&answer.body).one("reprieve_database_read_duration_seconds", &[]).to_string())
        .collect();
    // each read takes a time of its own, to the nanosecond
    let most = usize::try_from(took.as_secs()).expect("a short time") + 1;
    assert!(reads.len() <= most, "{} reads in {took:?}", reads.len());
}

/// The facts' age and how long they took, with what shows that there are any.
async fn facts(api: &Server) -> (f64, f64, f64) {
    let shown = Exposition::read(&api.get("/metrics").await.body);
    assert_eq!(shown.one("reprieve_database_up", &[]), 1.0, "it answers");
    let read = |what: &str| shown.one(&format!("reprieve_database_read_{what}_seconds"), &[]);
    let trashed = shown.sum("reprieve_open_tombstones", &[("state", "trashed")]);
    (read("age"), read("duration"), trashed)
}

#[tokio::test]
async fn facts_that_cannot_be_read_in_time_stay_as_they_were_with_their_age_and_are_not_asked_for_at_once_again() {
    let platform = Platform::start().await;
    let dataset = heimdall::Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    assert_eq!(facts(&platform.api).await.2, 1.0);
    // as long as this is locked a read takes as long as it may
    let mut tx = platform.pool.begin().await.expect("begins");
    sqlx::raw_sql("lock table reprieve.outbox").execute(&mut *tx).await.expect("locks");
    let mut slow = 0.0;
    wait_until("a read failed", SOON, async || {
        let (age, took, trashed) = facts(&platform.api).await;
        slow = took;
        assert_eq!(trashed, 1.0, "as it was found last");
        took >= 4.0 && age >= 4.0
    })
    .await;
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    assert_eq!(platform.count(waiting).await, 0, "the database has given it up, too");
    let (age, took, trashed) = facts(&platform.api).await;
    assert_eq!((took, trashed), (slow, 1.0), "no other read was begun");
    assert!(age >= 4.0, "{age}");
}

/// As many as the environment says; docs/metrics.md has how long a read of 300,000 took.
#[tokio::test]
async fn the_facts_of_many_open_tombstones_are_found_with_their_tasks_and_sizes() {
    let many: u32 =
        std::env::var("REPRIEVE_OPEN_TOMBSTONES").map_or(2000, |number| number.parse().expect("how many there are"));
    let platform = Platform::start().await;
    let sql = format!(
        "insert into heimdall.synthetic_datasets (id, name, num_samples, config, dataset_type, storage_size_bytes, deleted_at)
         select gen_random_uuid(), 'set ' || n, 1, '{{}}', 'iq_raw', 1000, now() from generate_series(1, {many}) as n;
         insert into reprieve.tombstones (id, kind, resource_id, actor, origin, trashed_at, purge_after, locations,
                                          next_attempt_at)
         select gen_random_uuid(), 'dataset', id, 'alice', 'api', now() - interval '2 days',
                now() + random() * interval '14 days', ('[{{\"store\": \"main\", \"bucket\": \"data-sets\",
                    \"prefix\": \"synthetic/' || id || '/\"}}]')::jsonb, now()
         from heimdall.synthetic_datasets;
         insert into reprieve.outbox (id, topic, destination, payload, tombstone_id, available_at)
         select gen_random_uuid(), 'purge', '', '{{}}', id, purge_after from reprieve.tombstones;
         analyze"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&platform.pool).await.expect("written");
    let shown = Exposition::read(&platform.api.get("/metrics").await.body);
    let (dataset, many) = (("kind", "dataset"), f64::from(many));
    assert_eq!(shown.one("reprieve_open_tombstones", &[dataset, ("state", "trashed")]), many);
    assert_eq!(shown.one("reprieve_outbox_rows", &[("topic", "purge")]), many);
    assert_eq!(shown.one("reprieve_trash_bytes", &[dataset]), many * 1000.0);
    eprintln!("{many} took {} s", shown.one("reprieve_database_read_duration_seconds", &[]));
}

#[tokio::test]
async fn a_schema_that_cannot_be_asked_is_missing_since_it_could_not_be_asked_first() {
    let platform = Platform::start().await;
    let mut tx = platform.pool.begin().await.expect("begins");
    sqlx::raw_sql("lock table reprieve.migrations").execute(&mut *tx).await.expect("locks");
    let first = platform.api.get("/health/ready").await.problem(503, "not_ready");
    let second = platform.api.get("/health/ready").await.problem(503, "not_ready");
    assert_eq!(missing(&first["details"]), ["database"], "{first}");
    let since = |problem: &Value| problem["details"]["missing"][0]["since"].clone();
    assert_eq!(since(&second), since(&first), "and not since it was asked last");
    tx.rollback().await.expect("rolls back");
    wait_until("it is ready", SOON, async || platform.api.get("/health/ready").await.status == 200).await;
}

#[tokio::test]
async fn a_column_of_the_size_that_is_none_hides_the_size_alone() {
    let platform = Platform::start().await;
    platform.execute("alter table heimdall.synthetic_datasets rename storage_size_bytes to other").await;
    let shown = Exposition::read(&platform.api.get("/metrics").await.body);
    assert_eq!(shown.one("reprieve_database_up", &[]), 1.0);
    assert!(!shown.text.contains("reprieve_trash_bytes{"), "{}", shown.text);
}

/// What is missing, by the answer's details.
fn missing(problem: &Value) -> Vec<&str> {
    let missing = problem["missing"].as_array().expect("a list").iter();
    missing.map(|part| part["part"].as_str().expect("its name")).collect()
}

#[tokio::test]
async fn a_schema_that_is_not_migrated_is_not_ready_and_says_what_to_do() {
    let url = fresh_database().await;
    let config = config(&url);
    let api = Server::start(&config, Options::default()).await;
    let problem = api.get("/health/ready").await.problem(503, "not_ready");
    assert_eq!(missing(&problem["details"]), ["schema"], "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("reprieve migrate")));
    api.get("/v1/tombstones").await.problem(503, "unavailable");
    let shown = Exposition::read(&api.get("/metrics").await.body);
    assert_eq!(shown.one("reprieve_database_up", &[]), 1.0, "it answers, but with nothing that can be shown");
    assert!(!shown.types.contains_key("reprieve_open_tombstones"), "{}", shown.text);
    migrate::run(&config.database).await.expect("migrates");
    assert_eq!(api.get("/health/ready").await.ok(), json!({ "status": "ready" }));
}

#[tokio::test]
async fn while_the_database_is_away_the_process_lives_is_not_ready_and_comes_back_by_itself() {
    let mut postgres = PrivatePostgres::start(PostgresOptions::default()).await.expect("starts");
    let url = postgres.create_database("platform").await.expect("creates");
    let pool = PgPool::connect(&url).await.expect("connects");
    heimdall::load(&pool).await;
    add_mark(&pool).await;
    let config = config(&url);
    migrate::run(&config.database).await.expect("migrates");
    let dataset = heimdall::Dataset::iq_raw("set a").insert(&pool).await;
    let api = Server::start(&config, Options::default()).await;
    api.get("/health/ready").await.ok();

    postgres.stop().expect("stops");
    api.get("/health/live").await.ok();
    let answer = api.get("/health/ready").await;
    let problem = answer.problem(503, "not_ready");
    assert_eq!((answer.header("retry-after"), missing(&problem["details"])), (Some("5"), vec!["database"]));
    let since = |problem: &Value| problem["details"]["missing"][0]["since"].as_str().expect("a time").to_owned();
    let again = api.get("/health/ready").await.problem(503, "not_ready");
    assert_eq!(since(&again), since(&problem), "since when it has been away, not since it was asked");
    assert!(again["details"]["missing"][0]["seconds"].is_u64(), "{again}");
    let scraped = api.get("/metrics").await;
    assert_eq!(scraped.status, 200);
    let shown = Exposition::read(&scraped.body);
    assert_eq!(shown.one("reprieve_database_up", &[]), 0.0);
    assert_eq!(shown.one("reprieve_swept_total", &[]), 0.0, "the process's own are still there");
    assert!(!shown.types.keys().any(|name| name.starts_with("reprieve_open_") || name.starts_with("reprieve_outbox")));
    for (answer, may_have_changed) in [
        (api.ask(dataset, "trash", json!({ "dry_run": false })).await, true),
        (api.ask(dataset, "restore", json!({})).await, true),
        (api.ask(dataset, "trash", json!({})).await, false),
        (api.get(&format!("/v1/resources/dataset/{}", Uuid::new_v4())).await, false),
        (api.get("/v1/tombstones").await, false),
    ] {
        let problem = answer.problem(503, "unavailable");
        assert_eq!(answer.header("retry-after"), Some("5"));
        let is_unknown = problem["advice"].as_str().is_some_and(|advice| advice.contains("not known"));
        assert!(may_have_changed || !is_unknown, "{problem}");
    }

    postgres.start_again().await.expect("starts");
    wait_until("it is ready again", SOON, async || api.get("/health/ready").await.status == 200).await;
    assert_eq!(api.get("/health/ready").await.ok(), json!({ "status": "ready" }));
    api.trashed(dataset).await;
}
