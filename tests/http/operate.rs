use serde_json::json;
use uuid::Uuid;

use crate::fixture::Platform;
use crate::support::heimdall::Dataset;

#[tokio::test]
async fn a_restore_takes_the_deletion_back_once() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.ask(dataset, "restore", json!({})).await.problem(404, "not_in_trash");
    platform.api.ask(Uuid::new_v4(), "restore", json!({})).await.problem(404, "not_found");
    platform.api.trashed(dataset).await;
    let restored = platform.api.ask(dataset, "restore", json!({ "partial": true })).await.ok();
    assert_eq!(
        (restored["status"].as_str(), restored["result"]["tombstone"]["state"].as_str()),
        (Some("restored"), Some("restored"))
    );
    assert_eq!(platform.count("select count(*) from reprieve.outbox where topic = 'purge'").await, 0);
    assert_eq!(
        platform.count("select count(*) from heimdall.synthetic_datasets where deleted_at is not null").await,
        0
    );
    assert_eq!(platform.api.ask(dataset, "restore", json!({})).await.ok()["status"], "already_restored");
}

#[tokio::test]
async fn past_the_point_of_no_return_a_restore_is_refused_with_how_far_it_is() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    platform.execute("update reprieve.tombstones set state = 'purging', purging_at = now()").await;
    let problem = platform.api.ask(dataset, "restore", json!({})).await.problem(409, "past_return");
    assert_eq!(problem["details"]["tombstone"]["state"], "purging");
    platform.api.ask(dataset, "hold", json!({})).await.problem(409, "past_return");
    assert_eq!(platform.count("select count(*) from reprieve.holds").await, 0);
}

#[tokio::test]
async fn a_row_that_the_platform_has_removed_cannot_come_back() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    platform.execute("delete from heimdall.synthetic_datasets").await;
    platform.api.ask(dataset, "restore", json!({})).await.problem(409, "row_gone");
    assert_eq!(platform.count("select count(*) from reprieve.tombstones where state = 'trashed'").await, 1);
}

#[tokio::test]
async fn holding_and_releasing_say_whether_they_changed_anything() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    for (verb, status) in [
        ("release", "not_held"),
        ("hold", "held"),
        ("hold", "already_held"),
        ("release", "released"),
        ("release", "not_held"),
    ] {
        assert_eq!(platform.api.ask(dataset, verb, json!({})).await.ok()["status"], status, "{verb}");
    }
    let sql = "select count(*) from reprieve.audit where actor = 'alice' and origin = 'api' and reason = 'test'";
    assert_eq!(platform.count(sql).await, 2, "one for each change");
    platform.api.ask(Uuid::new_v4(), "hold", json!({})).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_retry_is_a_dry_run_first_and_of_what_is_stuck_alone() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    for more in [json!({}), json!({ "dry_run": false })] {
        platform.api.ask(dataset, "retry", more).await.problem(404, "not_in_trash");
    }
    platform.api.trashed(dataset).await;
    for more in [json!({}), json!({ "dry_run": false })] {
        platform.api.ask(dataset, "retry", more).await.problem(409, "not_stuck");
    }
    platform.execute("update reprieve.tombstones set state = 'stuck', purging_at = now(), last_error = 'locked'; delete from reprieve.outbox").await;
    let before = platform.traces().await;
    let would = platform.api.ask(dataset, "retry", json!({})).await.ok();
    assert_eq!((would["status"].as_str(), would["was"]["last_error"].as_str()), (Some("would_retry"), Some("locked")));
    assert_eq!(platform.traces().await, before);

    let done = platform.api.ask(dataset, "retry", json!({ "dry_run": false })).await.ok();
    assert_eq!((done["status"].as_str(), done["dry_run"].as_bool()), (Some("retried"), Some(false)));
    assert_eq!(platform.count("select count(*) from reprieve.tombstones where state = 'purging'").await, 1);
    assert_eq!(
        platform.count("select count(*) from reprieve.outbox where topic = 'purge' and available_at <= now()").await,
        1
    );
}

#[tokio::test]
async fn a_retry_of_what_waits_for_its_next_try_is_a_dry_run_first_and_then_due_at_once() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    platform.api.trashed(dataset).await;
    let waits = "update reprieve.tombstones set state = 'purging', purging_at = now(), last_error = 'Connection',
            trashed_at = now() - interval '2 days', purge_after = now() - interval '1 day',
            attempts = 3, waits = 7, next_attempt_at = now() + interval '1 hour';
        update reprieve.outbox set available_at = now() + interval '1 hour' where topic = 'purge'";
    platform.execute(waits).await;
    let as_it_was = "select count(*) from reprieve.tombstones t join reprieve.outbox o on o.tombstone_id = t.id
        where t.attempts = 3 and t.waits = 7 and t.next_attempt_at > now() and o.topic = 'purge' and o.available_at > now()";
    let before = platform.traces().await;
    let would = platform.api.ask(dataset, "retry", json!({})).await.ok();
    assert_eq!((&would["status"], &would["was"]["state"]), (&json!("would_retry"), &json!("purging")));
    assert_eq!((platform.traces().await, platform.count(as_it_was).await), (before.clone(), 1));

    platform.execute("update reprieve.tombstones set lease_owner = 'w', lease_until = now() + interval '1 hour'").await;
    for more in [json!({}), json!({ "dry_run": false })] {
        let problem = platform.api.ask(dataset, "retry", more).await.problem(409, "not_stuck");
        assert_eq!(problem["details"]["tombstone"]["lease_owner"], "w");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("right now")), "{problem:#}");
    }
    assert_eq!((platform.traces().await, platform.count(as_it_was).await), (before, 1));
    platform.execute("update reprieve.tombstones set lease_owner = null, lease_until = null").await;

    let done = platform.api.ask(dataset, "retry", json!({ "dry_run": false })).await.ok();
    assert_eq!((&done["status"], &done["was"]["last_error"]), (&json!("retried"), &json!("Connection")));
    let now = "select count(*) from reprieve.tombstones t join reprieve.outbox o on o.tombstone_id = t.id
        where t.attempts = 0 and t.waits = 0 and t.next_attempt_at <= now() and o.topic = 'purge' and o.available_at <= now()";
    assert_eq!(platform.count(now).await, 1);
    let told =
        "select count(*) from reprieve.audit where event = 'retried' and actor = 'alice' and details ? 'waited_until'";
    assert_eq!(platform.count(told).await, 1);
    let metrics = platform.api.get("/metrics").await.body;
    let stuck = "reprieve_purges_retried_total{by=\"request\",kind=\"dataset\"} 0";
    assert!(metrics.contains(stuck), "it was not stuck, and counts among requests alone: {metrics}");
    let problem = platform.api.ask(dataset, "retry", json!({ "dry_run": false })).await.problem(409, "not_stuck");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("it is due since")), "{problem:#}");
    assert_eq!(platform.count(told).await, 1);
}
