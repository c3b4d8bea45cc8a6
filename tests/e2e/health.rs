//! Whether a service lives, has started, is ready; what it waits for, and what it refuses to start on.

use std::net::SocketAddr;
use std::time::Duration;

use reprieve::embedded::keeper::free_port;
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;

use crate::exposition::{Exposition, address_in, get};
use crate::process::{Ended, Service};
use crate::support::rabbitmq::RabbitMq;
use crate::support::{SOON, heimdall, wait_until};
use crate::world::{Places, Settings, World};

const OWN_ADDRESS: (&str, &str) = ("REPRIEVE__SERVICE__LISTEN", "127.0.0.1:0");

/// Where a service answers probes.
async fn probes(service: &Service) -> SocketAddr {
    service.says("health and metrics listen").await;
    address_in(&service.log(), "health and metrics listen")
}

/// A probe's status, and what is missing by its answer, with the time since when.
async fn probe(at: SocketAddr, path: &str) -> (u16, Vec<(String, String)>) {
    let (status, body) = get(at, path).await;
    let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    let missing = answer.pointer("/details/missing").or_else(|| answer.get("missing")).and_then(Value::as_array);
    let told = |part: &Value| {
        assert!(part["seconds"].is_u64() && part["why"].as_str().is_some_and(|why| !why.is_empty()), "{answer}");
        (part["part"].as_str().expect("a name").to_owned(), part["since"].as_str().expect("a time").to_owned())
    };
    (status, missing.into_iter().flatten().map(told).collect())
}

fn parts(missing: &[(String, String)]) -> Vec<&str> {
    missing.iter().map(|(part, _)| part.as_str()).collect()
}

/// A world on a database server of its own, which can be stopped.
async fn on_own_database() -> (PrivatePostgres, World) {
    let postgres = PrivatePostgres::start(Options { tcp: true, settings: Vec::new() }).await.expect("starts");
    let database_url = postgres.create_database("platform").await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(4).connect(&database_url).await.expect("connects");
    heimdall::load(&pool).await;
    let world = World::unmigrated(Places { pool, database_url, ..Places::shared().await }, Settings::default()).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    (postgres, world)
}

#[tokio::test]
async fn a_service_whose_database_is_not_there_yet_answers_probes_and_starts_when_it_comes() {
    let (mut postgres, world) = on_own_database().await;
    postgres.stop().expect("ends");
    let service = world.serve_with(&[], &[OWN_ADDRESS]);
    let at = probes(&service).await;
    service.says("every role waits for it").await;
    assert_eq!(get(at, "/health/live").await.0, 200);
    let (status, missing) = probe(at, "/health/startup").await;
    assert_eq!((status, parts(&missing)), (503, vec!["start"]));
    let (status, first) = probe(at, "/health/ready").await;
    assert_eq!((status, first.iter().any(|(part, _)| part == "database")), (503, true), "{first:?}");
    let shown = Exposition::scrape(at).await;
    assert_eq!((shown.one("reprieve_started", &[]), shown.one("reprieve_database_up", &[])), (0.0, 0.0));
    let (_, second) = probe(at, "/health/ready").await;
    assert_eq!(second, first, "since when it is missing does not change");

    postgres.start_again().await.expect("starts again");
    wait_until("it has started", SOON, async || get(at, "/health/startup").await.0 == 200).await;
    wait_until("nothing is missing", SOON, async || get(at, "/health/ready").await.1 == r#"{"status":"ready"}"#).await;
    wait_until("the figures say so", SOON, async || {
        let shown = Exposition::scrape(at).await;
        shown.one("reprieve_started", &[]) == 1.0
            && shown.one("reprieve_database_up", &[]) == 1.0
            && shown.sum("reprieve_broker_connected", &[]) == 3.0
    })
    .await;
    let api = address_in(&service.log(), "api listens");
    // each read takes a time of its own, to the nanosecond
    wait_until("both listeners show one read of the facts", SOON, async || {
        let took = async |at| Exposition::scrape(at).await.one("reprieve_database_read_duration_seconds", &[]);
        took(at).await == took(api).await
    })
    .await;
    assert_eq!((get(api, "/v1/tombstones").await.0, get(at, "/v1/tombstones").await.0), (200, 404), "probes alone");
}

#[tokio::test]
async fn the_program_itself_asks_the_service_and_says_in_one_line_what_is_missing() {
    let (mut postgres, world) = on_own_database().await;
    let listen = format!("127.0.0.1:{}", free_port().expect("a port"));
    let own = [("REPRIEVE__SERVICE__LISTEN", listen.as_str())];
    let nobody = format!("amqp://a:b@127.0.0.1:{}", free_port().expect("a port"));
    let ask = async |args: &[&str]| {
        let mut command = world.command(&[&["health"], args].concat());
        command.envs(own);
        Ended::of(command).await
    };
    let told = ask(&[]).await.with(1).stderr;
    assert!(told.contains(&listen) && told.contains("does not answer"), "{told}");
    for (status, body) in [
        ("200 OK", ""),
        ("200 OK", r#"{"status":"ok"}"#),
        ("404 Not Found", "<p>gone</p>"),
        ("403 Forbidden", r#"{"detail":"no"}"#),
    ] {
        let other = tokio::net::TcpListener::bind(&listen).await.expect("it is free");
        let answering = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut asked, _) = other.accept().await.expect("it is asked");
            let _ = asked.read(&mut [0; 4096]).await.expect("a request");
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            asked.write_all(answer.as_bytes()).await.expect("is taken");
        });
        let told = ask(&[]).await.with(1).stderr;
        answering.await.expect("it was asked");
        assert!(told.contains(&listen) && told.contains("another server") && !told.contains("EOF"), "{told}");
    }

    postgres.stop().expect("ends");
    let service = world.serve_with(&["--roles", "worker,relay,intake"], &[own[0], ("REPRIEVE__BROKER__URL", &nobody)]);
    service.says("every role waits for it").await;
    assert_eq!(ask(&["--live"]).await.with(0).stdout, "live\n");
    for args in [&[][..], &["--startup"]] {
        let told = ask(args).await.with(1).stderr;
        assert!(told.contains("the database has not answered yet") && told.lines().count() == 1, "{told}");
    }
    assert_eq!(ask(&["--json"]).await.with(1).json()["error"]["code"], "failed");

    postgres.start_again().await.expect("starts again");
    wait_until("its start is over", SOON, async || ask(&["--startup"]).await.code == 0).await;
    // said once, of three roles
    wait_until("the broker alone is missing", SOON, async || {
        let told = ask(&[]).await;
        told.code == 1 && told.stderr == "error: not ready: not connected to the broker\n"
    })
    .await;
    drop(service);
    let service = world.serve_with(&[], &own);
    // with the role `api` it can do without the broker, and says so until it is there
    wait_until("it is ready", SOON, async || {
        let told = ask(&[]).await;
        assert!(
            told.code == 1 || told.stdout == "ready\n" || told.stdout.starts_with("ready; missing: broker ("),
            "{told:?}"
        );
        told.stdout == "ready\n"
    })
    .await;
    assert_eq!(ask(&["--json"]).await.with(0).json(), serde_json::json!({ "status": "ready" }));
    drop(service);
}

#[tokio::test]
async fn without_its_broker_a_worker_is_not_ready_and_an_api_is_and_both_say_since_when() {
    let mut broker = RabbitMq::start().await;
    let places = Places { amqp_url: broker.amqp_url(), ..Places::shared().await };
    let world = World::unmigrated(places, Settings::default()).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    let worker = world.serve_with(&["--roles", "worker"], &[OWN_ADDRESS]);
    let all = world.serve_with(&[], &[OWN_ADDRESS]);
    let (worker, all) = (probes(&worker).await, probes(&all).await);
    for at in [worker, all] {
        wait_until("it is ready", SOON, async || get(at, "/health/ready").await.1 == r#"{"status":"ready"}"#).await;
    }
    let shown = Exposition::scrape(worker).await;
    assert!(!shown.types.contains_key("reprieve_database_up"), "facts are for the role api");
    assert_eq!(shown.sum("reprieve_role_info", &[]), 1.0);

    for queue in ["requests", "purge", "dead"] {
        broker.queue_on_disk(&format!("{}.{queue}", world.namespace)).await;
    }
    broker.kill9();
    wait_until("the worker is not ready", SOON, async || get(worker, "/health/ready").await.0 == 503).await;
    let (_, missing) = probe(worker, "/health/ready").await;
    assert_eq!(parts(&missing), ["broker (worker)"]);
    assert_eq!(probe(worker, "/health/ready").await.1, missing, "and keeps since when");
    wait_until("each role misses it", SOON, async || probe(all, "/health/ready").await.1.len() == 3).await;
    let (status, missing) = probe(all, "/health/ready").await;
    assert_eq!((status, parts(&missing)), (200, vec!["broker (intake)", "broker (relay)", "broker (worker)"]));
    assert_eq!(Exposition::scrape(all).await.sum("reprieve_broker_connected", &[]), 0.0);
    assert_eq!(get(worker, "/health/startup").await.0, 200, "a start that is over stays over");

    broker.start_again().await;
    for at in [worker, all] {
        wait_until("it is ready again", SOON, async || get(at, "/health/ready").await.1 == r#"{"status":"ready"}"#)
            .await;
    }
    let shown = Exposition::scrape(all).await;
    assert!(shown.one("reprieve_reconnects_total", &[("role", "relay")]) >= 1.0);
}

#[tokio::test]
async fn serve_refuses_a_map_that_does_not_fit_the_database_and_names_each_mistake() {
    let world = World::new(Settings::default()).await;
    let broken = world
        .map_text()
        .replace("select id, model_name from heimdall.models", "select id, model_nam from heimdall.models")
        .replace("storage_size_bytes", "name")
        .replace("heimdall.measurement_features", "heimdall.measurement_feature");
    world.write("map.toml", &broken);
    let ended = world.cli(&["serve", "--json"]).await.with(6);
    let error = &ended.json()["error"];
    assert_eq!(error["code"], "broken_map");
    let told = error["details"].as_array().expect("a list");
    for mistake in ["reference query \"active model\"", "measurement_feature", "the size failed"] {
        assert!(
            told.iter().any(|what| what.as_str().is_some_and(|what| what.contains(mistake))),
            "{mistake}: {told:?}"
        );
    }
    assert!(error["message"].as_str().is_some_and(|text| text.contains("does not fit the database")), "{error}");
    assert!(!ended.stderr.contains("consumes"), "no role began: {}", ended.stderr);
}

#[tokio::test]
async fn a_map_that_turns_out_broken_when_the_database_comes_ends_the_service() {
    let (mut postgres, world) = on_own_database().await;
    world.write("map.toml", &world.map_text().replace("model_name", "no_such_column"));
    postgres.stop().expect("ends");
    let mut service = world.serve(&[]);
    service.says("every role waits for it").await;
    postgres.start_again().await.expect("starts again");
    let ended = service.end(Duration::from_secs(60)).await;
    assert_eq!(ended.code(), Some(6), "{}", service.log());
    assert!(service.log().contains("no_such_column"), "{}", service.log());
}
