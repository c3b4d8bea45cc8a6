//! Spans of the real program at a collector: whose child each is, what it is linked to, and that nothing waits for them.

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;

use crate::amqp::Amqp;
use crate::causes::{JSON_LOG, PARENT, TRACE, events_until, request, with_headers};
use crate::client::send;
use crate::collector::{Collector, Mood, Seen};
use crate::exposition::address_in;
use crate::process::Service;
use crate::support::heimdall::Shape;
use crate::world::{Settings, World};

const SHAPE: Shape = Shape { samples: 5, receivers: 4 };
/// For a process that is told to end: its own limit for what is under way, and that for spans.
const ENDS: Duration = Duration::from_secs(30);

/// `serve` that exports to `collector`, as soon as it can or, with a long `delay` in milliseconds, at the end.
fn serve(world: &World, collector: &Collector, delay: &str) -> Service {
    let endpoint = ("REPRIEVE__TRACES__ENDPOINT", collector.endpoint.as_str());
    world.serve_with(&[], &[JSON_LOG, endpoint, ("OTEL_BSP_SCHEDULE_DELAY", delay)])
}

#[tokio::test]
async fn a_request_is_a_child_of_its_sender_and_the_purge_is_linked_to_the_request() {
    let world = World::new(Settings::default()).await;
    let (id, _) = world.dataset("traced", SHAPE).await;
    let collector = Collector::start(Mood::Takes).await;
    let service = serve(&world, &collector, "100");
    let amqp = Amqp::beside(&world, &service).await;
    let events = amqp.listen(".events", "dataset.#").await;
    let properties = with_headers(&[("traceparent", PARENT), ("tracestate", "vendor=a1")])
        .with_correlation_id("order-17".into())
        .with_message_id("m-1".into());
    amqp.publish("requests", request("trash", id).to_string().as_bytes(), properties).await;
    let events = events_until(&amqp, &events, "purged").await;
    let carried = |event: &str| events[event].headers["traceparent"].clone();

    let requests = format!("process {}.requests", world.namespace);
    let asked = collector.span(&requests, |span| span.name == requests).await;
    assert_eq!((asked.trace.as_str(), asked.parent.as_str()), (TRACE, "00f067aa0ba902b7"));
    assert_eq!((asked.kind, asked.service.as_str(), asked.ended), (SpanKind::Consumer, "reprieve", true));
    for (name, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", &format!("{}.requests", world.namespace)),
        ("messaging.message.id", "m-1"),
        ("messaging.message.conversation_id", "order-17"),
        ("reprieve.correlation_id", "order-17"),
        ("reprieve.outcome", "carried_out"),
    ] {
        assert_eq!(asked.attribute(name).as_deref(), Some(value), "{name} of {asked:?}");
    }
    assert_eq!(carried("trashed"), asked.traceparent(), "what comes of it goes on from there");
    assert_eq!(events["trashed"].headers["tracestate"], "vendor=a1");

    let tasks = format!("process {}.purge", world.namespace);
    let begun = |span: &Seen| span.name == tasks && span.traceparent() == carried("purge_begun");
    let purge = collector.span(&tasks, begun).await;
    assert_eq!(purge.links, [(asked.trace.clone(), asked.id.clone())]);
    assert!(purge.parent.is_empty() && purge.trace != TRACE, "days later it is a trace of its own: {purge:?}");
    assert_eq!((purge.kind, purge.is_error), (SpanKind::Consumer, false));
    assert_eq!(purge.attribute("reprieve.correlation_id").as_deref(), Some("order-17"));
    assert_eq!(purge.attribute("reprieve.resource.id"), Some(id.to_string()));
    assert_eq!(purge.attribute("reprieve.outcome").as_deref(), Some("purged"));
    for stage in ["empty", "uploads", "verify", "rows", "finish"] {
        let span = collector.span(stage, |span| span.name == stage && span.parent == purge.id).await;
        assert_eq!((span.trace.as_str(), span.kind), (purge.trace.as_str(), SpanKind::Internal));
        if stage == "finish" {
            assert_eq!(carried("purged"), span.traceparent());
        }
    }
    assert!(service.log().contains(&format!("\"trace_id\":\"{}\"", purge.trace)), "log lines lead to the trace");
}

#[tokio::test]
async fn what_was_not_exported_yet_is_when_the_service_ends_and_an_unsampled_trace_stays_so() {
    let world = World::new(Settings { window: "1h", ..Settings::default() }).await;
    let collector = Collector::start(Mood::Takes).await;
    let mut service = serve(&world, &collector, "3600000");
    service.says("api listens").await;
    let (api, amqp) = (address_in(&service.log(), "api listens"), Amqp::beside(&world, &service).await);
    let events = amqp.listen(".events", "dataset.#").await;
    let body = json!({ "actor": "alice", "dry_run": false }).to_string();
    let trash = async |parent: &str| {
        let (id, _) = world.dataset(&crate::support::unique("asked for"), Shape { samples: 1, receivers: 1 }).await;
        let path = format!("/v1/resources/dataset/{id}/trash");
        let answer = send(api, "POST", &path, &[("traceparent", parent), ("x-request-id", "req-1")], &body).await;
        assert_eq!(answer.ok()["status"], "trashed");
        amqp.take(&events).await.headers["traceparent"].clone()
    };
    let sampled = trash(PARENT).await;
    let unsampled = trash("00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-00f067aa0ba902b7-00").await;
    assert!(unsampled.starts_with("00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-") && unsampled.ends_with("-00"), "{unsampled}");
    send(api, "GET", "/health/live", &[], "").await;
    assert_eq!(collector.requests(), 0);

    assert!(service.terminate(ENDS).await.success());
    let spans = collector.spans();
    let server: Vec<_> = spans.iter().filter(|span| span.kind == SpanKind::Server).collect();
    assert_eq!(server.len(), 1, "neither the unsampled one nor the probe: {spans:#?}");
    assert_eq!((server[0].name.as_str(), server[0].traceparent()), ("POST /v1/resources/{kind}/{id}/trash", sampled));
    assert_eq!((server[0].trace.as_str(), server[0].parent.as_str()), (TRACE, "00f067aa0ba902b7"));
    assert_eq!(server[0].attribute("http.response.status_code").as_deref(), Some("200"));
    assert!(server[0].attribute("url.path").is_some_and(|path| path.ends_with("/trash")), "{server:?}");
    assert_eq!(server[0].attribute("reprieve.correlation_id").as_deref(), Some("req-1"));
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_holds_up_neither_a_purge_nor_the_end() {
    for mood in [Mood::Refuses, Mood::Silent] {
        let world = World::new(Settings::default()).await;
        let (id, put) = world.dataset("unseen", SHAPE).await;
        let rows = world.rows(id).await;
        let collector = Collector::start(mood).await;
        let mut service = serve(&world, &collector, "100");
        world.trash("dataset", id).await;
        world.purged("dataset", id, put, rows).await;
        let api = address_in(&service.log(), "api listens");
        // the first request to a silent one lasts as long as it may
        let least = if mood == Mood::Silent { 1 } else { 3 };
        crate::support::wait_until("it has tried", crate::support::SOON, async || {
            send(api, "GET", "/v1/tombstones", &[], "").await.ok();
            collector.requests() >= least
        })
        .await;
        assert!(service.terminate(ENDS).await.success());
        if mood == Mood::Refuses {
            assert_eq!(service.log().matches("traces are not exported").count(), 1, "said once: {}", service.log());
        }
        assert!(collector.spans().is_empty());
    }
}

#[tokio::test]
async fn an_address_that_is_none_is_a_mistake_in_the_configuration() {
    let world = World::new(Settings::default()).await;
    for (address, says) in [("localhost:4318", "address"), ("http://user:hunter2@host", "OTEL_EXPORTER_OTLP_HEADERS")] {
        let mut command = world.command(&["serve"]);
        command.env("REPRIEVE__TRACES__ENDPOINT", address);
        let ended = crate::process::Ended::of(command).await.with(6);
        assert!(ended.stderr.contains("traces.endpoint") && ended.stderr.contains(says), "{}", ended.stderr);
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
    }
}
