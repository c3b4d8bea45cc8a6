//! Processes whose clocks are wrong. The database's clock decides, and no process's own.

use std::path::PathBuf;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::process::Service;
use crate::support::heimdall::Shape;
use crate::support::seaweedfs::SeaweedFs;
use crate::support::{SOON, wait_until};
use crate::world::{Places, Settings, World};

const SHAPE: Shape = Shape { samples: 100, receivers: 5 };

/// libfaketime, which changes what a process is told of the time of day; its monotonic clock stays.
fn faketime() -> PathBuf {
    let triplets = std::fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let found = triplets.map(|triplet| triplet.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.is_file());
    found.expect("libfaketime is not in /usr/lib/*/faketime; `scripts/setup test` installs it (package faketime)")
}

/// A full process whose clock is wrong by `offset`, such as `+7m`.
async fn serve_at(world: &World, offset: &str, seconds: i64) -> Service {
    let library = faketime();
    let library = library.to_str().expect("utf-8");
    let fake = [
        ("LD_PRELOAD", library),
        ("FAKETIME", offset),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_NO_CACHE", "1"),
    ];
    let service = world.serve_with(&[], &fake);
    service.says("worker consumes").await;
    let log = service.log();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
    let said = OffsetDateTime::parse(first["timestamp"].as_str().expect("a time"), &Rfc3339).expect("RFC 3339");
    let off = (said - OffsetDateTime::now_utc()).whole_seconds() - seconds;
    assert!(off.abs() < 60, "its clock is wrong by {offset}: it says {said}");
    service
}

#[tokio::test]
async fn workers_whose_clocks_are_fourteen_minutes_apart_keep_the_databases_time_and_each_others_leases() {
    // a window and a lease far shorter than the clocks are apart
    let settings = Settings { window: "4s", lease: "2s", batch_size: 25, ..Settings::default() };
    let world = World::new(settings).await;
    let mut datasets = Vec::new();
    for n in 0..6 {
        let (id, put) = world.dataset(&format!("set {n}"), SHAPE).await;
        datasets.push((id, put, world.rows(id).await));
    }
    let services = [serve_at(&world, "+7m", 420).await, serve_at(&world, "-7m", -420).await];
    for (id, ..) in &datasets {
        world.trash("dataset", *id).await;
    }
    for (id, put, rows) in datasets {
        world.purged("dataset", id, put, rows).await;
        let sql = "select bool_and(a.at >= t.trashed_at + interval '4 seconds') from reprieve.tombstones t
                   join reprieve.audit a on a.tombstone_id = t.id and a.event = 'purge_begun' where t.resource_id = $1";
        let kept: bool = sqlx::query_scalar(sql).bind(id.to_string()).fetch_one(&world.pool).await.expect("begun");
        assert!(kept, "not before its time");
        assert_eq!(world.stands(id).await.fence, 1, "no lease was taken from its owner");
    }
    assert!(world.is_quiet(Duration::from_secs(30)).await, "no task and no message is left over");
    for service in &services {
        let log = service.log();
        assert!(!log.contains("lease lost") && !log.contains("no longer certain"), "{log}");
        assert!(log.contains("\"purged\""), "both have purged:\n{log}");
    }
}

/// Answers every request as Amazon's S3 answers one that is signed at the wrong time.
async fn refuse_signatures(listener: TcpListener) {
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>RequestTimeTooSkewed</Code><Message>The difference \
                between the request time and the current time is too large.</Message></Error>";
    let answer = format!("HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    while let Ok((mut connection, _)) = listener.accept().await {
        let mut request = [0; 8192];
        // it is all the same what it asks, and a client that has gone needs no answer
        let _ = connection.read(&mut request).await;
        let _ = connection.write_all(answer.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_store_that_refuses_the_time_of_a_signature_is_waited_for_and_the_reason_is_told() {
    let mut store = SeaweedFs::start().await;
    let places = Places { s3_endpoint: store.endpoint(), ..Places::shared().await };
    // so few attempts that refusals which counted as such would leave it stuck
    let world = World::unmigrated(places, Settings { max_attempts: 2, batch_size: 100, ..Settings::default() }).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    let (id, put) = world.dataset("skewed", SHAPE).await;
    let rows = world.rows(id).await;
    // SeaweedFS takes whatever time a signature names
    store.kill9();
    let address = store.endpoint().replace("http://", "");
    let mut listener = None;
    wait_until("its port is free", SOON, async || {
        listener = TcpListener::bind(&address).await.ok();
        listener.is_some()
    })
    .await;
    let refusing = tokio::spawn(refuse_signatures(listener.expect("just bound")));
    let _skewed = serve_at(&world, "-20m", -1_200).await;
    world.trash("dataset", id).await;
    let waits = world.until("three deliveries have failed", id, |now| now.fence >= 4 || now.state == "stuck").await;
    assert_eq!(waits.state, "purging", "waited for, and not stuck: {waits:?}");
    let told = "select string_agg(distinct details ->> 'reason', ';') from reprieve.audit where event = 'purge_failed'";
    let told: Option<String> = sqlx::query_scalar(told).fetch_one(&world.pool).await.expect("answers");
    assert!(told.as_deref().is_some_and(|why| why.contains("RequestTimeTooSkewed")), "{told:?}");
    assert_eq!(world.rows(id).await, rows, "rows outlive every object");
    refusing.abort();
    assert!(refusing.await.is_err_and(|ended| ended.is_cancelled()));
    store.start_again().await;
    world.purged("dataset", id, put, rows).await;
}
