use serde_json::json;
use uuid::Uuid;

use crate::fixture::Platform;
use crate::support::heimdall::{Dataset, Job};

#[tokio::test]
async fn the_list_is_newest_first_and_can_be_narrowed() {
    let platform = Platform::start().await;
    let first = Dataset::iq_raw("first").insert(&platform.pool).await;
    let second = Dataset::iq_raw("second").insert(&platform.pool).await;
    let job = Job::named("job").insert(&platform.pool).await;
    platform.api.trashed(first).await;
    platform.api.trashed(second).await;
    let body = json!({ "actor": "alice", "dry_run": false });
    platform.api.post(&format!("/v1/resources/job/{job}/trash"), &body).await.ok();
    platform.api.ask(first, "restore", json!({})).await.ok();

    for (query, names) in [
        ("", vec!["job", "second", "first"]),
        ("?limit=1", vec!["job"]),
        ("?kind=dataset", vec!["second", "first"]),
        ("?kind=dataset&state=restored", vec!["first"]),
        ("?state=trashed,restored&limit=1000", vec!["job", "second", "first"]),
        ("?state=stuck", vec![]),
    ] {
        let list = platform.api.get(&format!("/v1/tombstones{query}")).await.ok();
        let found: Vec<_> = list["tombstones"].as_array().expect("a list").iter().map(|t| t["name"].clone()).collect();
        assert_eq!(found, names, "{query}");
    }
    for query in
        ["limit=0", "limit=1001", "limit=-1", "limit=many", "state=gone", "state=", "sort=name", "limit=1&limit=2"]
    {
        platform.api.get(&format!("/v1/tombstones?{query}")).await.problem(400, "invalid_request");
    }
    platform.api.get("/v1/tombstones?kind=dataste").await.problem(404, "unknown_kind");
}

#[tokio::test]
async fn of_what_is_overdue_the_one_that_has_been_for_longest_comes_first() {
    let platform = Platform::start().await;
    for name in ["due", "late", "latest", "restored"] {
        let dataset = Dataset::iq_raw(name).insert(&platform.pool).await;
        platform.api.trashed(dataset).await;
        if name == "restored" {
            platform.api.ask(dataset, "restore", json!({})).await.ok();
        }
    }
    platform
        .execute(
            "update reprieve.tombstones set trashed_at = now() - interval '9 days',
                 purge_after = now() - case name when 'late' then interval '1 hour' else interval '2 hours' end
             where name <> 'due'",
        )
        .await;
    for (query, names) in [
        ("?overdue=true", vec!["latest", "late"]),
        ("?overdue=true&limit=1", vec!["latest"]),
        ("?overdue=true&state=stuck", vec![]),
        ("?overdue=false", vec!["due", "late", "latest", "restored"]),
    ] {
        let list = platform.api.get(&format!("/v1/tombstones{query}")).await.ok();
        let mut found: Vec<_> =
            list["tombstones"].as_array().expect("a list").iter().map(|t| t["name"].clone()).collect();
        if query == "?overdue=false" {
            found.sort_by_key(ToString::to_string);
        }
        assert_eq!(found, names, "{query}");
    }
    platform.api.get("/v1/tombstones?overdue=perhaps").await.problem(400, "invalid_request");
}

#[tokio::test]
async fn a_resource_shows_its_newest_tombstone_its_history_and_its_hold() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let path = format!("/v1/resources/dataset/{dataset}");
    let live = platform.api.get(&path).await.ok();
    assert_eq!((&live["in_trash"], &live["tombstone"], &live["hold"]), (&json!(false), &json!(null), &json!(null)));

    let trashed = platform.api.trashed(dataset).await;
    platform.api.ask(dataset, "hold", json!({})).await.ok();
    // a UUID in another spelling is the same resource
    let shown =
        platform.api.get(&path.to_uppercase().replace("/V1/RESOURCES/DATASET/", "/v1/resources/dataset/")).await;
    let shown = shown.ok();
    assert_eq!(shown["in_trash"], true);
    assert_eq!(shown["tombstone"]["tombstone_id"], trashed["result"]["tombstone"]["tombstone_id"]);
    assert_eq!(shown["hold"]["actor"], "alice");
    assert_eq!(shown["receipt"], json!(null));
    let events: Vec<_> =
        shown["history"].as_array().expect("a list").iter().map(|entry| entry["event"].clone()).collect();
    assert_eq!(events, ["trashed", "held"]);
}

#[tokio::test]
async fn the_receipt_of_a_purge_outlives_the_row() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    platform
        .execute(
            "update reprieve.tombstones set state = 'purged', purging_at = now(), closed_at = now();
             insert into reprieve.audit (event, tombstone_id, kind, resource_id, actor, origin, details)
             select 'purged', id, kind, resource_id, 'reprieve', 'worker', '{\"bytes_freed\": 7}' from reprieve.tombstones;
             delete from heimdall.synthetic_datasets",
        )
        .await;
    let shown = platform.api.get(&format!("/v1/resources/dataset/{dataset}")).await.ok();
    assert_eq!((&shown["in_trash"], &shown["tombstone"]["state"]), (&json!(false), &json!("purged")));
    assert_eq!(shown["receipt"], json!({ "bytes_freed": 7 }));
}

#[tokio::test]
async fn a_resource_that_does_not_exist_is_told_from_an_id_that_cannot() {
    let platform = Platform::start().await;
    platform.api.get(&format!("/v1/resources/dataset/{}", Uuid::new_v4())).await.problem(404, "not_found");
    let problem = platform.api.get("/v1/resources/dataset/not-a-uuid").await.problem(400, "malformed_id");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("not-a-uuid")));
    platform.api.get("/v1/resources/planet/7").await.problem(404, "unknown_kind");
}

#[tokio::test]
async fn a_map_that_does_not_fit_the_database_is_the_servers_fault() {
    let platform = Platform::start().await;
    platform.execute("alter table heimdall.synthetic_datasets rename to moved").await;
    let problem = platform.api.get(&format!("/v1/resources/dataset/{}", Uuid::new_v4())).await.problem(500, "internal");
    assert!(problem["detail"].as_str().is_some_and(|text| text.contains("reprieve check")), "{problem}");
}
