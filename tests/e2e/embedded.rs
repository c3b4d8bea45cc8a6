//! `demo` and `dev`: nothing is installed but PostgreSQL, nothing of the caller's is touched, nothing stays.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::exposition::get;
use crate::process::{Ended, Service, reprieve};
use crate::support::{SOON, wait_until};
use crate::world::{Settings, World};

const DEMO: Duration = Duration::from_secs(100);

#[tokio::test]
async fn the_demo_tells_the_whole_story_and_touches_nothing_of_the_callers() {
    let world = World::new(Settings::default()).await;
    let mut command = reprieve();
    command.arg("demo").current_dir(world.dir());
    // the surroundings of somebody who has a production
    command.env("REPRIEVE_CONFIG", &world.config).env("REPRIEVE__DATABASE__URL", &world.database_url);
    command.env("REPRIEVE__STORES__MAIN__ENDPOINT", "http://127.0.0.1:9").env("PGHOST", "127.0.0.1").env("PGPORT", "9");
    command.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").env("HTTP_PROXY", "http://127.0.0.1:9");
    let before = databases(&world).await;
    let ended = Ended::within(DEMO, command).await.with(0);
    let mut rest = ended.stdout.as_str();
    for landmark in [
        "Nothing of yours is touched",
        "3 datasets",
        "is refused",
        "active model",
        "is taken back",
        "is refused:",
        "restored dataset",
        "the window has passed",
        "verified: a fresh listing of its prefixes is empty",
        "The receipt",
        "8000 objects put, 8000 gone",
        "Everything else is where it was",
        "the whole story",
    ] {
        rest = rest.split_once(landmark).unwrap_or_else(|| panic!("{landmark:?} is missing in {}", ended.stdout)).1;
    }
    let correlation = ended.stdout.split("\"correlation_id\": ").nth(1).expect("is in the receipt");
    assert!(correlation.starts_with('"'), "each receipt has one: {correlation}");
    assert!(!ended.stdout.contains('\u{1b}'), "no terminal codes outside of a terminal");
    assert_eq!(databases(&world).await, before);
    assert_eq!(world.json(&["list", "--all"]).await, json!([]));
}

async fn databases(world: &World) -> i64 {
    let sql = "select count(*) from information_schema.tables where table_schema in ('heimdall', 'reprieve')";
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("counted")
}

#[tokio::test]
async fn what_makes_no_sense_for_a_platform_in_a_box_is_refused() {
    let world = World::new(Settings::default()).await;
    let config = world.config.display().to_string();
    for (args, says) in [
        (&["dev", "--window", "0s"][..], "1s or more"),
        (&["--config", &config, "dev"], "--config is for the other commands"),
        (&["demo", "--config", &config], "--config is for the other commands"),
    ] {
        let mut command = reprieve();
        command.args(args);
        let ended = Ended::of(command).await.with(2);
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_development_platform_takes_commands_and_goes_without_a_trace() {
    let world = World::new(Settings::default()).await;
    let mut command = reprieve();
    command.args(["dev", "--port", "0", "--window", "2s"]).current_dir(world.dir());
    let mut dev = Service::spawn(command, &world.dir().join("dev.log"));
    dev.says("In another terminal").await;
    dev.says("serving").await;
    let log = dev.log();
    let after =
        |text: &str| log.split(text).nth(1).and_then(|rest| rest.split_whitespace().next()).expect("is printed");
    let config = PathBuf::from(after("reprieve --config "));
    assert!(log.contains(&format!("{} --config ", env!("CARGO_BIN_EXE_reprieve"))), "as it was typed: {log}");
    let port: u16 = after("http://127.0.0.1:").split('/').next().and_then(|port| port.parse().ok()).expect("a port");
    assert_eq!(get(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/health/ready").await.0, 200, "what it says holds");
    let mut second = reprieve();
    second.args(["dev", "--port", &port.to_string()]);
    let ended = Ended::of(second).await.with(1);
    assert_eq!(ended.stderr.matches("Address already in use").count(), 1, "{ended:?}");
    assert!(
        ended.stderr.contains("cannot listen")
            && ended.stderr.contains("--port")
            && !ended.all().contains("is running"),
        "{ended:?}"
    );
    let cli = async |args: &[&str]| {
        let mut command = reprieve();
        command.arg("--config").arg(&config).args(args);
        Ended::of(command).await
    };
    let text = std::fs::read_to_string(&config).expect("is there");
    let socket = text.split("host=").nth(1).and_then(|rest| rest.split(['&', '"']).next()).expect("a directory");
    let socket = PathBuf::from(percent_encoding::percent_decode_str(socket).decode_utf8().expect("utf-8").into_owned());
    assert!(socket.is_dir());

    cli(&["check"]).await.with(0);
    assert!(cli(&["list"]).await.with(0).stdout.contains("the trash is empty"));
    let lines: Vec<&str> = log.lines().collect();
    let id_of = |what: &str| {
        let line = lines.iter().find(|line| line.contains(what)).expect("is printed");
        line.split("dataset ").nth(1).and_then(|rest| rest.split(' ').next()).expect("an id").to_owned()
    };
    cli(&["trash", "dataset", &id_of("in use: refused")]).await.with(3);
    let free = id_of("--execute");
    cli(&["trash", "dataset", &free, "--execute"]).await.with(0);
    wait_until("it is purged", Duration::from_secs(60), async || {
        cli(&["list", "--state", "purged"]).await.with(0).stdout.contains(&free)
    })
    .await;

    let status = dev.terminate(SOON).await;
    assert!(status.success(), "{status}: {}", dev.log());
    assert!(!config.exists(), "its files are gone");
    assert!(!socket.exists(), "its PostgreSQL is gone");
}
