//! Roles in processes of their own, several of each, sharing the work and never doing it twice.

use std::time::Duration;

use serde_json::json;

use crate::amqp::Amqp;
use crate::support::heimdall::{self, Shape};
use crate::support::wait_until;
use crate::world::{Settings, World};

#[tokio::test]
async fn processes_with_different_roles_work_together() {
    let world = World::new(Settings { batch_size: 50, slice: "300ms", ..Settings::default() }).await;
    let shape = Shape { samples: 100, receivers: 4 };
    let mut datasets = Vec::new();
    for n in 0..6 {
        datasets.push(world.dataset(&format!("set {n}"), shape).await);
    }
    let _relays = [world.serve(&["--roles", "relay,sweeper"]), world.serve(&["--roles", "relay,sweeper"])];
    let intake = world.serve(&["--roles", "intake"]);
    let mut workers = [world.serve(&["--roles", "worker"]), world.serve(&["--roles", "worker"])];
    let _api = world.serve(&["--roles", "api,api"]);
    for worker in &workers {
        worker.says("worker consumes").await;
    }
    let amqp = Amqp::beside(&world, &intake).await;
    let events = amqp.listen(".events", "dataset.purged").await;
    for (id, _) in &datasets {
        let request = json!({ "v": 1, "op": "trash", "kind": "dataset", "id": id.to_string(), "actor": "service" });
        assert_eq!(amqp.ask(&request).await["status"], "trashed");
    }
    for (id, put) in &datasets {
        world.purged("dataset", *id, *put, 1 + 100 + 3).await;
    }
    for worker in &mut workers {
        assert!(worker.log().contains("purging"), "both had a share");
        assert!(!worker.log().contains("lease lost"), "and neither the other's:\n{}", worker.log());
    }
    assert!(world.is_quiet(Duration::from_secs(30)).await, "nothing is left to send");
    let mut told = Vec::new();
    for _ in &datasets {
        told.push(amqp.take(&events).await.json()["id"].as_str().expect("an id").to_owned());
    }
    told.sort();
    let mut expected: Vec<String> = datasets.iter().map(|(id, _)| id.to_string()).collect();
    expected.sort();
    assert_eq!(told, expected, "each end is told once");
    assert!(amqp.try_take(&events).await.is_none());
}

#[tokio::test]
async fn a_giant_purge_in_short_slices_does_not_hold_up_a_small_one() {
    let world = World::new(Settings { batch_size: 20, slice: "100ms", ..Settings::default() }).await;
    let (giant, put) = world.dataset("giant", Shape { samples: 200, receivers: 5 }).await;
    let (small, few) = world.dataset("small", Shape { samples: 1, receivers: 4 }).await;
    // one purge at a time
    let _service = world.serve_with(&[], &[("REPRIEVE__PURGE__CONCURRENCY", "1")]);
    world.trash("dataset", giant).await;
    world.until_in_the_middle(giant, put).await;
    world.trash("dataset", small).await;
    world.purged("dataset", small, few, 1 + 1 + 3).await;
    assert_eq!(world.stands(giant).await.state, "purging", "the giant is still at it");
    world.purged("dataset", giant, put, 1 + 200 + 3).await;
}

#[tokio::test]
async fn a_late_writer_costs_a_purge_more_rounds_and_never_an_uncounted_object() {
    let world = World::new(Settings { batch_size: 50, ..Settings::default() }).await;
    let (id, put) = world.dataset("still written", Shape { samples: 150, receivers: 4 }).await;
    let rows = world.rows(id).await;
    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    world.until_in_the_middle(id, put).await;
    // sorts before everything that is left, so the pass in hand does not see them
    let late: Vec<String> = (0..30).map(|n| format!("synthetic/{id}/!late/{n}.npy")).collect();
    heimdall::put_keys(&world.s3, &world.bucket, late).await;
    world.until_state(id, "purged").await;
    assert_eq!((world.objects(id).await, world.rows(id).await), (0, 0));
    let shown = world.json(&["show", "dataset", &id.to_string()]).await;
    let told = shown["history"].as_array().expect("entries").iter().any(|entry| {
        entry["event"] == "purge_failed"
            && entry["details"]["reason"].as_str().is_some_and(|why| why.contains("writer"))
    });
    assert!(told, "the history says why it took longer: {shown:#}");
    let receipt = &shown["receipt"];
    assert_eq!(
        (&receipt["objects"]["listed"], &receipt["rows_deleted"]),
        (&json!(put + 30), &json!(rows)),
        "{receipt:#}"
    );
}

#[tokio::test]
async fn the_api_tells_health_and_figures() {
    let world = World::new(Settings::default()).await;
    let service = world.serve(&["--roles", "api"]);
    service.says("api listens").await;
    let log = service.log();
    let line = log.lines().find(|line| line.contains("api listens")).expect("just seen");
    let address = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(['"', ' ']).next());
    let port: u16 = address.and_then(|port| port.parse().ok()).expect("a port");
    let get = async |path: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    };
    wait_until("it is healthy", Duration::from_secs(20), async || get("/metrics").await.starts_with("HTTP/1.1 200"))
        .await;
    assert!(get("/metrics").await.contains("reprieve_"));
    assert!(get("/v1/tombstones").await.starts_with("HTTP/1.1 200"));
    assert!(get("/nowhere").await.starts_with("HTTP/1.1 404"));
}
