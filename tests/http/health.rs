use std::collections::{BTreeMap, BTreeSet};

use reprieve::embedded::postgres::{Options as PostgresOptions, PrivatePostgres};
use reprieve::store::migrate;
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use crate::fixture::{Options, Platform, Server, add_mark, config};
use crate::support::{SOON, fresh_database, heimdall, wait_until};

/// Reads Prometheus's text format: every sample by its name and labels. Panics where it is not well-formed.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut found, mut families) = (BTreeMap::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            if words.next() == Some("TYPE") {
                let family = words.next().expect("a name").to_owned();
                assert!(families.insert(family), "one family twice: {line}");
            }
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
        let bare = name.split('{').next().unwrap_or(name);
        let of_family = |suffix: &str| bare.strip_suffix(suffix).is_some_and(|family| families.contains(family));
        assert!(["", "_bucket", "_sum", "_count"].into_iter().any(of_family), "a sample without a type: {line}");
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line:?}"));
        assert!(found.insert(name.to_owned(), value).is_none(), "one sample twice: {line}");
    }
    assert!(text.ends_with('\n'));
    found
}

#[tokio::test]
async fn the_metrics_show_what_the_process_did_and_what_the_database_holds() {
    let platform = Platform::start().await;
    let dataset = heimdall::Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    platform.api.get("/no/such/path").await.problem(404, "no_route");
    platform.execute("update reprieve.outbox set available_at = now() - interval '1 hour' where topic = 'event'").await;

    let answer = platform.api.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")),
        "{answer:?}"
    );
    assert!(!answer.body.contains(&dataset.to_string()), "no id in a label");
    let samples = samples(&answer.body);
    for (name, value) in [
        ("reprieve_database_up", 1.0),
        ("reprieve_outbox_rows", 2.0),
        ("reprieve_outbox_due_rows", 1.0),
        ("reprieve_open_tombstones{kind=\"dataset\",state=\"trashed\"}", 1.0),
        ("reprieve_open_tombstones{kind=\"dataset\",state=\"stuck\"}", 0.0),
        ("reprieve_oldest_overdue_seconds{kind=\"dataset\",state=\"trashed\"}", 0.0),
        ("reprieve_oldest_overdue_seconds{kind=\"job\",state=\"purging\"}", 0.0),
        ("reprieve_open_tombstones{kind=\"job\",state=\"blocked\"}", 0.0),
        ("reprieve_published_total", 0.0),
        ("reprieve_http_requests_total{method=\"POST\",route=\"/v1/resources/{kind}/{id}/trash\",status=\"200\"}", 1.0),
        ("reprieve_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"}", 1.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} in {samples:#?}");
    }
    let oldest = samples["reprieve_outbox_oldest_due_seconds"];
    assert!((3600.0..3700.0).contains(&oldest), "{oldest}");
    assert!(!samples.keys().any(|name| name.contains("state=\"restored\"")), "open ones alone");

    let overdue = "update reprieve.tombstones set trashed_at = now() - interval '2 hours',
                       purge_after = now() - interval '1 hour'";
    platform.execute(overdue).await;
    let samples = self::samples(&platform.api.get("/metrics").await.body);
    let oldest = samples["reprieve_oldest_overdue_seconds{kind=\"dataset\",state=\"trashed\"}"];
    assert!((3600.0..3700.0).contains(&oldest), "{oldest}");
    assert_eq!(samples["reprieve_oldest_overdue_seconds{kind=\"dataset\",state=\"purging\"}"], 0.0);
}

#[tokio::test]
async fn a_schema_that_is_not_migrated_is_not_ready_and_says_what_to_do() {
    let url = fresh_database().await;
    let config = config(&url);
    let api = Server::start(&config, Options::default()).await;
    let problem = api.get("/health/ready").await.problem(503, "not_ready");
    assert!(problem["details"]["schema"]["pending_migrations"].as_u64() > Some(0), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("reprieve migrate")));
    api.get("/v1/tombstones").await.problem(503, "unavailable");
    let samples = samples(&api.get("/metrics").await.body);
    assert_eq!(samples["reprieve_database_up"], 0.0, "it answers, but with nothing that can be shown");
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
    assert_eq!((answer.header("retry-after"), &problem["details"]), (Some("5"), &json!({ "database": "away" })));
    let scraped = api.get("/metrics").await;
    assert_eq!(scraped.status, 200);
    let samples = samples(&scraped.body);
    assert_eq!(samples["reprieve_database_up"], 0.0);
    assert_eq!(samples["reprieve_swept_total"], 0.0, "the process's own are still there");
    assert!(!samples.keys().any(|name| name.starts_with("reprieve_open_") || name.starts_with("reprieve_outbox")));
    for answer in [
        api.ask(dataset, "trash", json!({ "dry_run": false })).await,
        api.ask(dataset, "restore", json!({})).await,
        api.get(&format!("/v1/resources/dataset/{}", Uuid::new_v4())).await,
        api.get("/v1/tombstones").await,
    ] {
        answer.problem(503, "unavailable");
        assert_eq!(answer.header("retry-after"), Some("5"));
    }

    postgres.start_again().await.expect("starts");
    wait_until("it is ready again", SOON, async || api.get("/health/ready").await.status == 200).await;
    api.trashed(dataset).await;
}
