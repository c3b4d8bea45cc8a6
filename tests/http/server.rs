use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::exposition::Exposition;
use crate::fixture::{Options, Platform};
use crate::support::heimdall::Dataset;
use crate::support::{SOON, wait_until};

async fn lock(platform: &Platform, dataset: Uuid) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut tx = platform.pool.begin().await.expect("begins");
    let sql = "select 1 from heimdall.synthetic_datasets where id = $1 for update";
    sqlx::query(sql).bind(dataset).execute(&mut *tx).await.expect("locks");
    tx
}

#[tokio::test]
async fn told_to_stop_it_answers_what_is_under_way_and_takes_nothing_new() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let idle = TcpStream::connect(platform.api.address).await.expect("connects");
    let locked = lock(&platform, dataset).await;
    let asked = platform.api.ask(dataset, "trash", json!({ "dry_run": false }));
    let story = async {
        platform.until_one_waits_for_a_lock().await;
        platform.api.stop.cancel();
        let refused = async || TcpStream::connect(platform.api.address).await.is_err();
        wait_until("connections are refused", SOON, refused).await;
        assert!(!platform.api.ended.is_finished(), "it waits for the answer");
        locked.rollback().await.expect("rolls back");
    };
    let (answer, ()) = tokio::join!(asked, story);
    assert_eq!(answer.ok()["status"], "trashed");
    timeout(SOON, platform.api.ended).await.expect("an idle connection does not keep it").expect("no panic");
    drop(idle);
}

#[tokio::test]
async fn a_request_whose_client_hangs_up_is_carried_out_and_counted() {
    let platform = Platform::start().await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let locked = lock(&platform, dataset).await;
    let body = json!({ "actor": "alice", "dry_run": false }).to_string();
    let head = format!("POST /v1/resources/dataset/{dataset}/trash HTTP/1.1\r\nhost: {}\r\n", platform.api.address);
    let fields = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut client = TcpStream::connect(platform.api.address).await.expect("connects");
    client.write_all((head + &fields).as_bytes()).await.expect("sent");
    platform.until_one_waits_for_a_lock().await;
    let ports = [platform.api.address, client.local_addr().expect("connected")].map(|of| format!(":{:04X}", of.port()));
    let is_open = || {
        let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        // local and remote address; established, or closed by the other end alone
        sockets.lines().any(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, local, remote, state, ..] => {
                local.ends_with(&ports[0]) && remote.ends_with(&ports[1]) && ["01", "08"].contains(&state)
            }
            _ => false,
        })
    };
    assert!(is_open(), "the server's end");
    drop(client);
    wait_until("the server has seen that it is gone", SOON, async || !is_open()).await;
    locked.rollback().await.expect("rolls back");
    wait_until("it is in the trash, and counted", SOON, async || {
        let shown = Exposition::read(&platform.api.get("/metrics").await.body);
        platform.count("select count(*) from reprieve.tombstones").await == 1
            && shown.one("reprieve_tombstones_trashed_total", &[("kind", "dataset"), ("origin", "api")]) == 1.0
            && shown
                .one("reprieve_http_requests_total", &[("route", "/v1/resources/{kind}/{id}/trash"), ("status", "2xx")])
                == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_request_that_passes_its_deadline_is_dropped_with_all_that_it_did() {
    let options = Options { deadline: Some(Duration::from_millis(400)), ..Options::default() };
    let platform = Platform::start_with(options).await;
    let dataset = Dataset::iq_raw("set a").insert(&platform.pool).await;
    let locked = lock(&platform, dataset).await;
    let answer = platform.api.ask(dataset, "trash", json!({ "dry_run": false })).await;
    answer.problem(503, "deadline_exceeded");
    assert_eq!(answer.header("retry-after"), Some("5"));
    locked.rollback().await.expect("rolls back");
    let of_the_api = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'reprieve' and state <> 'idle'";
    wait_until("its transaction has ended", SOON, async || platform.count(of_the_api).await == 0).await;
    assert_eq!(platform.traces().await, [0; 5]);
    platform.api.trashed(dataset).await;
}

#[tokio::test]
async fn a_body_that_never_comes_meets_the_deadline_and_not_the_other_clients() {
    let options = Options { deadline: Some(Duration::from_millis(400)), ..Options::default() };
    let platform = Platform::start_with(options).await;
    let mut slow = TcpStream::connect(platform.api.address).await.expect("connects");
    let head = format!("POST /v1/resources/dataset/{}/trash HTTP/1.1\r\n", Uuid::new_v4());
    let fields = "host: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\nconnection: close\r\n\r\n{";
    slow.write_all((head + fields).as_bytes()).await.expect("sent");
    platform.api.get("/v1/tombstones").await.ok();
    let answer = timeout(SOON, crate::client::read(&mut slow)).await.expect("in time");
    answer.problem(503, "deadline_exceeded");
}
