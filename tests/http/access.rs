use serde_json::json;
use uuid::Uuid;

use crate::client::send;
use crate::fixture::{Options, Platform};
use crate::support::heimdall::Dataset;

const TOKEN: &str = "correct-horse-battery";

#[tokio::test]
async fn with_a_token_configured_nothing_but_health_and_metrics_answers_without_it() {
    let platform = Platform::start_with(Options { token: Some(TOKEN), ..Options::default() }).await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let (to, trash) = (platform.api.address, format!("/v1/resources/dataset/{dataset}/trash"));
    let body = json!({ "actor": "alice", "dry_run": false }).to_string();
    for header in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer correct-horse-batterz",
        "Bearer correct-horse-battery2",
        "Bearer correct-horse-batter",
        "Basic correct-horse-battery",
        "correct-horse-battery",
    ] {
        for (method, path) in [("POST", trash.as_str()), ("GET", "/v1/tombstones"), ("GET", "/v2"), ("PUT", &trash)] {
            let answer = send(to, method, path, &[("authorization", header)], &body).await;
            answer.problem(401, "unauthorized");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"reprieve\""));
        }
    }
    assert_eq!(platform.traces().await, [0; 5]);
    for path in ["/health/live", "/health/ready", "/health/startup", "/metrics"] {
        assert_eq!(platform.api.get(path).await.status, 200, "{path}");
    }
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let headers = [("authorization", &*format!("{scheme} {TOKEN}")), ("host", "reprieve.example")];
        send(to, "GET", "/v1/tombstones", &headers, "").await.ok();
    }
    send(to, "POST", &trash, &[("authorization", &format!("Bearer {TOKEN}"))], &body).await.ok();
    assert_eq!(platform.count("select count(*) from reprieve.tombstones").await, 1);
}

#[tokio::test]
async fn without_a_token_a_page_whose_name_resolves_to_this_machine_is_refused() {
    let platform = Platform::start().await;
    let to = platform.api.address;
    for host in ["evil.example", "evil.example:8320", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"] {
        send(to, "GET", "/v1/tombstones", &[("host", host)], "").await.problem(403, "foreign_host");
        let path = format!("/v1/resources/dataset/{}/trash", Uuid::new_v4());
        send(to, "POST", &path, &[("host", host)], r#"{"actor":"mallory"}"#).await.problem(403, "foreign_host");
    }
    for host in ["localhost", "LOCALHOST:8320", "127.0.0.1:1", "127.8.8.8", "[::1]:8320"] {
        send(to, "GET", "/v1/tombstones", &[("host", host)], "").await.ok();
    }
    // probes come by the pod's or container's address
    assert_eq!(send(to, "GET", "/health/live", &[("host", "10.1.2.3")], "").await.status, 200);
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_problems_too() {
    let platform = Platform::start().await;
    for path in ["/", "/v1", "/v1/", "/v1/tombstones/", "/v1/resources/dataset", "/v1/resources/dataset/1/purge"] {
        platform.api.get(path).await.problem(404, "no_route");
    }
    let to = platform.api.address;
    for (method, path, allowed) in [
        ("POST", "/v1/tombstones", "GET,HEAD"),
        ("GET", "/v1/resources/dataset/1/trash", "POST"),
        ("DELETE", "/v1/resources/dataset/1", "GET,HEAD"),
        ("PUT", "/health/live", "GET,HEAD"),
    ] {
        let answer = send(to, method, path, &[], "").await;
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allowed), "{method} {path}");
    }
}
