use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{BUCKET, Platform};
use crate::support::heimdall::{Dataset, Job, Model};

#[tokio::test]
async fn a_trash_that_does_not_say_otherwise_is_a_dry_run_and_writes_nothing() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    for more in [json!({}), json!({ "dry_run": true })] {
        let answer = platform.api.ask(dataset, "trash", more).await.ok();
        assert_eq!((answer["status"].as_str(), answer["dry_run"].as_bool()), (Some("would_trash"), Some(true)));
        let member = &answer["plan"]["members"][0];
        assert_eq!(member["id"], dataset.to_string());
        assert_eq!(member["name"], "set a");
        assert_eq!(
            member["locations"],
            json!([{ "store": "main", "bucket": "data-sets", "prefix": format!("synthetic/{dataset}/"), "endpoint": "http://127.0.0.1:9" }])
        );
    }
    assert_eq!(platform.traces().await, [0; 5]);
}

#[tokio::test]
async fn a_dry_run_counts_what_lies_below_the_prefixes() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    for key in ["a", "b/c"] {
        platform.api.objects.put(BUCKET, &format!("synthetic/{dataset}/{key}"), 5);
    }
    platform.api.objects.begin_upload(BUCKET, &format!("synthetic/{dataset}/c")).expect("the bucket is there");
    let answer = platform.api.ask(dataset, "trash", json!({})).await.ok();
    let count = &answer["counts"][0];
    assert_eq!(count["location"], answer["plan"]["members"][0]["locations"][0]);
    for (name, is) in [("objects", 2), ("older_versions", 0), ("delete_markers", 0), ("bytes", 10)] {
        assert_eq!(count[name], is, "{name}");
    }
    assert_eq!(count["uploads"], json!({ "count": 1, "at_least": false, "error": null }));
    assert_eq!((&count["at_least"], &count["error"]), (&json!(false), &json!(null)));
}

#[tokio::test]
async fn asked_to_do_it_it_does_once_and_says_so_when_asked_again() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let trashed = platform.api.trashed(dataset).await;
    let tombstone = &trashed["result"]["tombstone"];
    assert_eq!((trashed["dry_run"].as_bool(), tombstone["state"].as_str()), (Some(false), Some("trashed")));
    assert_eq!((tombstone["actor"].as_str(), tombstone["origin"].as_str()), (Some("alice"), Some("api")));
    assert_eq!(tombstone["reason"], "test");
    assert_eq!(tombstone["id"], dataset.to_string(), "the resource's");
    assert!(tombstone["tombstone_id"].as_str().is_some_and(|id| id != dataset.to_string()), "{tombstone}");

    let traces = platform.traces().await;
    assert_eq!(traces, [1, 2, 1, 0, 1], "tombstone, task and event, history, no hold, the platform's mark");
    for more in [json!({}), json!({ "dry_run": false })] {
        assert_eq!(platform.api.ask(dataset, "trash", more).await.ok()["status"], "already_trashed");
    }
    assert_eq!(platform.traces().await, traces);

    let again = async |more: Value| platform.api.ask(dataset, "trash", more).await.ok();
    let same = again(json!({ "dry_run": false, "reason": "test" })).await;
    assert_eq!(same["result"].get("not_taken"), None, "{same}");
    let other = again(json!({ "dry_run": false, "reason": "other", "retention": "400d" })).await;
    assert_eq!(other["result"]["not_taken"], json!(["reason", "retention"]), "{other}");
    assert_eq!(other["result"]["tombstone"]["reason"], "test", "what is in force");
    assert_eq!(other["result"]["tombstone"]["purge_after"], same["result"]["tombstone"]["purge_after"]);
    let planned = again(json!({ "retention": "400d" })).await;
    assert_eq!(planned["plan"]["not_taken"], json!(["retention"]), "{planned}");
    assert_eq!(platform.traces().await, traces);
}

#[tokio::test]
async fn what_cannot_be_trashed_has_its_own_status_and_says_who_is_in_the_way() {
    let platform = Platform::start().await;
    let used = Dataset::iq_raw("in use").insert(&platform.pool).await;
    let model = Model { datasets: vec![used], active: true, ..Model::named("localiser") }.insert(&platform.pool).await;
    let benchmark = Dataset::iq_raw("benchmark-v1").insert(&platform.pool).await;
    let held = Dataset::iq_raw("held").insert(&platform.pool).await;
    platform.api.ask(held, "hold", json!({})).await.ok();
    let before = platform.traces().await;

    for dry_run in [true, false] {
        let more = json!({ "dry_run": dry_run });
        let problem = platform.api.ask(used, "trash", more.clone()).await.problem(409, "in_use");
        let blocker = &problem["details"]["blockers"][0];
        assert_eq!(
            (blocker["label"].as_str(), blocker["reference"].as_str()),
            (Some("localiser"), Some("active model"))
        );
        assert_eq!(blocker["id"], model.to_string());
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("localiser")));
        let problem = platform.api.ask(benchmark, "trash", more.clone()).await.problem(409, "protected");
        assert_eq!(problem["details"]["protected"][0]["id"], benchmark.to_string());
        let problem = platform.api.ask(held, "trash", more.clone()).await.problem(409, "held");
        assert_eq!(problem["details"]["holds"][0]["actor"], "alice");
        platform.api.ask(Uuid::new_v4(), "trash", more.clone()).await.problem(404, "not_found");
    }
    let body = json!({ "actor": "alice" });
    platform.api.post("/v1/resources/dataset/7/trash", &body).await.problem(400, "malformed_id");
    platform.api.post("/v1/resources/dataset/a%2Fb/trash", &body).await.problem(400, "malformed_id");
    platform.api.post("/v1/resources/dataset/%ff/trash", &body).await.problem(400, "malformed_id");
    platform.api.post("/v1/resources/modle/7/trash", &body).await.problem(404, "unknown_kind");
    assert_eq!(platform.traces().await, before);
}

#[tokio::test]
async fn a_job_takes_its_datasets_along_only_when_asked() {
    let platform = Platform::start().await;
    let job = Job::named("night run").insert(&platform.pool).await;
    let dataset = Dataset { created_by: Some(job), ..Dataset::iq_raw("set a") }.insert(&platform.pool).await;
    let path = format!("/v1/resources/job/{job}/trash");
    let alone = platform.api.post(&path, &json!({ "actor": "alice" })).await.ok();
    assert_eq!(alone["plan"]["members"].as_array().map(Vec::len), Some(1));
    let more = json!({ "actor": "alice", "with": ["dataset"], "retention": "30d" });
    let both = platform.api.post(&path, &more).await.ok();
    assert_eq!(both["plan"]["members"][1]["id"], dataset.to_string());
    assert_eq!(both["plan"]["members"][1]["retention"], "30d");
    assert_eq!(platform.traces().await, [0; 5]);

    let real = json!({ "actor": "alice", "with": ["dataset"], "dry_run": false });
    let done = platform.api.post(&path, &real).await.ok();
    assert_eq!(done["result"]["children"][0]["id"], dataset.to_string());
    assert_eq!(platform.count("select count(*) from reprieve.tombstones").await, 2);
}

#[tokio::test]
async fn fields_that_cannot_be_meant_are_refused_as_malformed() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    for (more, status, code) in [
        (json!({ "actor": " " }), 400, "invalid_request"),
        (json!({ "reason": "a\0b" }), 400, "invalid_request"),
        (json!({ "retention": "0d" }), 400, "invalid_request"),
        (json!({ "retention": "1h" }), 400, "retention_too_short"),
        (json!({ "with": ["job"] }), 400, "no_such_children"),
        (json!({ "with": ["jbo"] }), 404, "unknown_kind"),
    ] {
        for dry_run in [true, false] {
            let mut more = more.clone();
            more["dry_run"] = dry_run.into();
            platform.api.ask(dataset, "trash", more).await.problem(status, code);
        }
    }
    assert_eq!(platform.traces().await, [0; 5]);
}
