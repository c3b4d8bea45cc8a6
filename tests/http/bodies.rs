use serde_json::Value;

use crate::client::send;
use crate::fixture::Platform;
use crate::support::heimdall::Dataset;

const DO_IT: &str = r#"{"actor":"alice","dry_run":false}"#;

#[tokio::test]
async fn a_form_that_another_site_makes_a_browser_send_is_no_request() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    for verb in ["trash", "restore", "hold", "release", "retry"] {
        let path = format!("/v1/resources/dataset/{dataset}/{verb}");
        for kind in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/jsonx",
            "text/plain; application/json",
        ] {
            send(platform.api.address, "POST", &path, &[("content-type", kind)], DO_IT).await.problem(415, "not_json");
        }
    }
    assert_eq!(platform.traces().await, [0; 5]);
    let path = format!("/v1/resources/dataset/{dataset}/trash");
    send(platform.api.address, "POST", &path, &[("content-type", "Application/JSON; charset=utf-8")], DO_IT).await.ok();
    assert_eq!(platform.count("select count(*) from reprieve.tombstones").await, 1);
}

#[tokio::test]
async fn every_body_of_the_readme_is_understood_and_has_every_field_that_there_is() {
    let platform = Platform::start().await;
    let readme = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.expect("it is there");
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `…/")?.split_once("` | `"));
    let mut asked = Vec::new();
    for (verbs, body) in rows {
        let body: Value = serde_json::from_str(body.trim_end_matches("` |")).expect("JSON");
        for verb in verbs.split("`, `…/") {
            let answer = platform.api.ask(dataset, verb, body.clone()).await;
            // there is nothing to restore or to retry, and that is no matter of the body
            assert!([200, 404].contains(&answer.status), "{verb}: {answer:?}");
            let mut wrong = body.clone();
            wrong["another"] = true.into();
            let told =
                platform.api.ask(dataset, verb, wrong).await.problem(400, "malformed_body")["detail"].to_string();
            // the parser names the fields that it knows
            for field in told.split('`').skip(3).step_by(2) {
                assert!(body.get(field).is_some(), "{verb}: the README leaves out {field}: {told}");
            }
            asked.push(verb.to_owned());
        }
    }
    assert_eq!(asked, ["trash", "restore", "hold", "release", "retry"]);
}

#[tokio::test]
async fn a_body_that_is_not_wholly_understood_is_refused_and_does_nothing() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let path = format!("/v1/resources/dataset/{dataset}/trash");
    for (body, named) in [
        ("", "object"),
        ("null", "object"),
        (r#"["alice", null, [], null, false]"#, "object"),
        ("{", "EOF"),
        (r#"{"dry_run":false}"#, "actor"),
        (r#"{"actor":7,"dry_run":false}"#, "string"),
        (r#"{"actor":"alice","dry_run":"false"}"#, "boolean"),
        (r#"{"actor":"alice","dry_run":null}"#, "boolean"),
        (r#"{"actor":"alice","dry_run":false,"dryrun":true}"#, "dryrun"),
        (r#"{"actor":"alice","dry_run":true,"dry_run":false}"#, "duplicate"),
        (r#"{"actor":"alice","dry_run":false,"partial":true}"#, "partial"),
        (r#"{"actor":"alice","dry_run":false} {}"#, "trailing"),
        ("{\"actor\":\"al\nice\",\"dry_run\":false}", "control character"),
    ] {
        let problem = send(platform.api.address, "POST", &path, &[], body).await.problem(400, "malformed_body");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains(named)), "{body} gave {problem}");
    }
    for (verb, body) in [
        ("restore", r#"{"actor":"alice","dry_run":false}"#),
        ("hold", r#"{"actor":"alice","until":"friday"}"#),
        ("release", r#"{"actor":"alice","force":true}"#),
        ("retry", r#"{"actor":"alice","partial":true}"#),
    ] {
        let path = format!("/v1/resources/dataset/{dataset}/{verb}");
        let problem = send(platform.api.address, "POST", &path, &[], body).await.problem(400, "malformed_body");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains("unknown field")), "{body} gave {problem}");
    }
    assert_eq!(platform.traces().await, [0; 5]);
}

#[tokio::test]
async fn a_body_of_more_than_64_kib_is_refused_whether_it_says_its_length_or_not() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let path = format!("/v1/resources/dataset/{dataset}/trash");
    let of = |bytes: usize| {
        let frame = r#"{"actor":"alice","dry_run":false,"reason":""}"#.len();
        format!(r#"{{"actor":"alice","dry_run":false,"reason":"{}"}}"#, "x".repeat(bytes - frame))
    };
    let large = of(64 * 1024 + 1);
    send(platform.api.address, "POST", &path, &[], &large).await.problem(413, "body_too_large");
    let chunks = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let headers = [("content-length", ""), ("transfer-encoding", "chunked")];
    send(platform.api.address, "POST", &path, &headers, &chunks).await.problem(413, "body_too_large");
    assert_eq!(platform.traces().await, [0; 5]);
    // white space is no part of what is asked
    let padded = format!("{}{}", of(1024), " ".repeat(63 * 1024));
    send(platform.api.address, "POST", &path, &[], &padded).await.ok();
}
