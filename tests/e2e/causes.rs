//! To what a request belongs elsewhere: its correlation id and its trace go through everything that comes of it, from
//! the request to the receipt, whichever way it came.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::amqp::{Amqp, Taken};
use crate::client::send;
use crate::exposition::address_in;
use crate::process::Service;
use crate::support::heimdall::Shape;
use crate::world::{Settings, World};

const SHAPE: Shape = Shape { samples: 5, receivers: 4 };
pub const JSON_LOG: (&str, &str) = ("REPRIEVE__SERVICE__LOG_FORMAT", "json");

/// The trace that a request is part of, as its sender has it.
pub const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: &str = "vendor=a1,other=b2";

/// Properties with these headers.
pub fn with_headers(headers: &[(&str, &str)]) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), AMQPValue::LongString(LongString::from(*value)));
    }
    BasicProperties::default().with_headers(table)
}

pub fn request(op: &str, id: Uuid) -> Value {
    json!({ "v": 1, "op": op, "kind": "dataset", "id": id.to_string(), "actor": "alice" })
}

/// The events of a dataset by name, each with the message that brought it, up to that one.
pub async fn events_until(amqp: &Amqp, queue: &str, last: &str) -> BTreeMap<String, Taken> {
    let mut events = BTreeMap::new();
    while !events.contains_key(last) {
        let event = amqp.take(queue).await;
        events.insert(event.json()["event"].as_str().expect("a name").to_owned(), event);
    }
    events
}

/// Every line of a log, which must all be JSON.
fn lines(service: &Service) -> Vec<Value> {
    let log = service.log();
    // the last one may not be whole yet
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// A field of the spans that a line stands in.
fn span_field<'a>(line: &'a Value, name: &str) -> Option<&'a str> {
    let spans = line["spans"].as_array()?;
    spans.iter().find_map(|span| span[name].as_str())
}

async fn api_of(service: &Service) -> SocketAddr {
    service.says("api listens").await;
    address_in(&service.log(), "api listens")
}

#[tokio::test]
async fn what_a_message_brings_with_it_is_in_its_reply_its_events_its_receipt_and_every_log_line_of_the_work() {
    let world = World::new(Settings::default()).await;
    let (id, put) = world.dataset("followed", SHAPE).await;
    let (other, _) = world.dataset("other", SHAPE).await;
    let rows = world.rows(id).await;
    let service = world.serve_with(&[], &[JSON_LOG]);
    let amqp = Amqp::beside(&world, &service).await;
    let (events, tasks) = (amqp.listen(".events", "dataset.#").await, amqp.listen("", "purge").await);
    let replies = amqp.reply_queue().await;
    let properties = with_headers(&[("traceparent", PARENT), ("tracestate", STATE)])
        .with_correlation_id("order-17".into())
        .with_message_id("m-1".into())
        .with_reply_to(replies.as_str().into());
    amqp.publish("requests", request("trash", id).to_string().as_bytes(), properties).await;

    let carries = |taken: &Taken| {
        let header = |name: &str| taken.headers.get(name).map(String::as_str);
        assert_eq!(taken.correlation_id.as_deref(), Some("order-17"), "{taken:?}");
        assert_eq!((header("traceparent"), header("tracestate")), (Some(PARENT), Some(STATE)), "{taken:?}");
    };
    let reply = amqp.take(&replies).await;
    carries(&reply);
    assert_eq!(reply.json()["result"]["tombstone"]["correlation_id"], "order-17");
    let events = events_until(&amqp, &events, "purged").await;
    assert_eq!(events.keys().collect::<Vec<_>>(), ["purge_begun", "purged", "trashed"]);
    for event in events.values() {
        carries(event);
        assert_eq!(event.json()["correlation_id"], "order-17");
    }
    carries(&amqp.take(&tasks).await);
    let receipt = world.purged("dataset", id, put, rows).await;
    assert_eq!(receipt["correlation_id"], "order-17");

    // another's, with an id of its own, meanwhile
    world.json(&["trash", "dataset", &other.to_string(), "--execute", "--correlation-id", "elsewhere"]).await;
    world.until_state(other, "purged").await;
    service.says("\"message\":\"purged\"").await;
    let of = |id: Uuid| lines(&service).into_iter().filter(move |line| line.to_string().contains(&id.to_string()));
    let tombstone: Uuid = sqlx::query_scalar("select id from reprieve.tombstones where resource_id = $1")
        .bind(id.to_string())
        .fetch_one(&world.pool)
        .await
        .expect("it has one");
    let told: Vec<Value> = of(id).chain(of(tombstone)).collect();
    for line in &told {
        assert_eq!(span_field(line, "correlation_id"), Some("order-17"), "{line}");
        assert_eq!(span_field(line, "trace_id"), Some(TRACE), "{line}");
    }
    let said = |text: &str| told.iter().filter(|line| line["message"] == text).count();
    assert!(said("request carried out") == 1 && said("purging") >= 1, "{told:#?}");
    assert!(of(other).all(|line| span_field(&line, "correlation_id") == Some("elsewhere")));

    let purged: Vec<Value> = of(id).filter(|line| line["message"] == "purged").collect();
    assert_eq!(purged.len(), 1, "one line a purge: {purged:#?}");
    for (field, figure) in [
        ("objects.listed", "/objects/listed"),
        ("objects.deleted", "/objects/deleted"),
        ("objects.absent", "/objects/absent"),
        ("objects.older_versions", "/objects/older_versions"),
        ("objects.delete_markers", "/objects/delete_markers"),
        ("uploads_aborted", "/uploads_aborted"),
        ("bytes_freed", "/bytes_freed"),
        ("rows_deleted", "/rows_deleted"),
        ("duration_s", "/seconds"),
    ] {
        assert!(purged[0][field].is_number(), "{field} in {}", purged[0]);
        assert_eq!(Some(&purged[0][field]), receipt.pointer(figure), "{field}");
    }
}

#[tokio::test]
async fn what_cannot_be_kept_is_left_out_and_never_ends_a_log_line_or_refuses_a_request() {
    let world = World::new(Settings { window: "1h", ..Settings::default() }).await;
    let service = world.serve_with(&[], &[JSON_LOG]);
    let amqp = Amqp::beside(&world, &service).await;
    let (events, replies) = (amqp.listen(".events", "dataset.#").await, amqp.reply_queue().await);
    let injected = "x\n{\"level\":\"ERROR\",\"message\":\"forged\"}";
    let long = "c".repeat(255);
    for (correlation_id, parent, kept, trace) in [
        (Some(injected), PARENT, "m-0", Some(PARENT)),
        (Some("with space"), "00-0-0-00", "m-1", None),
        (Some("ümläut"), "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "m-2", None),
        (None, "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "m-3", None),
        (Some(long.as_str()), "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", &long, Some(PARENT)),
    ] {
        let (id, _) = world.dataset(&crate::support::unique("odd"), Shape { samples: 1, receivers: 1 }).await;
        let message_id = format!("m-{}", kept.strip_prefix("m-").unwrap_or("9"));
        let mut properties = with_headers(&[("traceparent", parent), ("tracestate", "not valid")])
            .with_message_id(message_id.into())
            .with_reply_to(replies.as_str().into());
        if let Some(raw) = correlation_id {
            properties = properties.with_correlation_id(raw.into());
        }
        amqp.publish("requests", request("trash", id).to_string().as_bytes(), properties).await;
        let reply = amqp.take(&replies).await;
        assert_eq!(reply.json()["status"], "trashed");
        assert_eq!(reply.correlation_id.as_deref(), correlation_id, "an answer is known by what its asker gave");
        let event = amqp.take(&events).await;
        assert_eq!(event.json()["correlation_id"], kept);
        assert_eq!(event.correlation_id.as_deref(), Some(kept));
        assert_eq!(event.headers.get("traceparent").map(String::as_str), trace, "{parent}");
        assert!(!event.headers.contains_key("tracestate"), "{event:?}");
    }
    let lines = lines(&service);
    assert!(lines.iter().all(|line| line["message"] != "forged"));
    assert_eq!(lines.iter().filter(|line| line["message"] == "correlation id left out").count(), 3);
}

#[tokio::test]
async fn a_request_over_http_is_answered_with_its_id_and_goes_on_with_its_trace() {
    let world = World::new(Settings { window: "1h", ..Settings::default() }).await;
    let service = world.serve_with(&[], &[JSON_LOG]);
    let (api, amqp) = (api_of(&service).await, Amqp::beside(&world, &service).await);
    let events = amqp.listen(".events", "dataset.#").await;
    let trash = async |headers: &[(&str, &str)]| {
        let (id, _) = world.dataset(&crate::support::unique("asked for"), Shape { samples: 1, receivers: 1 }).await;
        let body = json!({ "actor": "alice", "dry_run": false }).to_string();
        let answer = send(api, "POST", &format!("/v1/resources/dataset/{id}/trash"), headers, &body).await;
        assert_eq!(answer.ok()["status"], "trashed");
        let event = amqp.take(&events).await;
        let given = answer.header("x-request-id").expect("each answer names it").to_owned();
        assert_eq!(event.json()["correlation_id"], given);
        assert_eq!(answer.ok()["result"]["tombstone"]["correlation_id"], given);
        let of_this = lines(&service).into_iter().filter(|line| line["id"] == id.to_string()).collect::<Vec<_>>();
        assert!(!of_this.is_empty(), "it is in the log");
        assert!(of_this.iter().all(|line| span_field(line, "correlation_id") == Some(&given)), "{of_this:#?}");
        (given, event)
    };
    let (given, event) = trash(&[("X-Request-Id", "req-1"), ("traceparent", PARENT), ("tracestate", STATE)]).await;
    assert_eq!((given.as_str(), event.headers["traceparent"].as_str()), ("req-1", PARENT));
    assert_eq!(event.headers["tracestate"], STATE);
    for headers in [
        &[][..],
        &[("x-request-id", "two words"), ("traceparent", "nonsense")],
        &[("x-request-id", "a"), ("x-request-id", "b"), ("traceparent", PARENT), ("traceparent", PARENT)],
    ] {
        let (made, event) = trash(headers).await;
        assert!(Uuid::parse_str(&made).is_ok(), "one of our own: {made}");
        assert!(!event.headers.contains_key("traceparent"), "{event:?}");
    }
    let refused = send(api, "POST", "/v1/resources/planet/1/trash", &[("x-request-id", "req-2")], "{}").await;
    assert_eq!((refused.status, refused.header("x-request-id")), (404, Some("req-2")), "refusals name it too");
}

#[tokio::test]
async fn a_command_has_an_id_of_its_own_or_the_one_that_it_is_given() {
    let world = World::new(Settings { window: "1h", ..Settings::default() }).await;
    let (id, _) = world.dataset("by hand", SHAPE).await;
    let of = |entry: &Value| entry["correlation_id"].as_str().expect("each has one").to_owned();
    let mut command = world.command(&["trash", "dataset", &id.to_string(), "--execute", "--json"]);
    command.env("REPRIEVE_CORRELATION_ID", "ticket-4711").env("TRACEPARENT", PARENT);
    let trashed = crate::process::Ended::of(command).await.with(0).json();
    assert_eq!(of(&trashed["tombstone"]), "ticket-4711");
    world.json(&["restore", "dataset", &id.to_string()]).await;
    let shown = world.json(&["show", "dataset", &id.to_string()]).await;
    let ids: Vec<String> = shown["history"].as_array().expect("entries").iter().map(of).collect();
    assert_eq!(ids[0], "ticket-4711");
    assert!(Uuid::parse_str(&ids[1]).is_ok(), "the restore is another run: {ids:?}");
    let kept: Vec<(Option<String>,)> =
        sqlx::query_as("select traceparent from reprieve.outbox where topic = 'event' order by id")
            .fetch_all(&world.pool)
            .await
            .expect("read");
    assert_eq!(kept, [(Some(PARENT.to_owned()),), (None,)]);
    let listed = world.json(&["list", "--all", "--correlation-id", "ticket-4711"]).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
    assert_eq!(world.json(&["list", "--all", "--correlation-id", "ticket-4712"]).await, json!([]));
    for malformed in ["two words", "a\nb", "", &"x".repeat(256)] {
        let args = ["restore", "dataset", &id.to_string(), "--correlation-id", malformed];
        let ended = world.cli(&args).await.with(2);
        assert!(ended.stderr.contains("correlation id"), "{}", ended.stderr);
    }
    // a variable that is set to nothing is as good as none, as with other variables
    let mut command = world.command(&["restore", "dataset", &id.to_string()]);
    command.env("REPRIEVE_CORRELATION_ID", "");
    crate::process::Ended::of(command).await.with(0);
    let ended = world.cli(&["list", "--correlation-id", ""]).await.with(2);
    assert!(ended.stderr.contains("correlation id"), "{}", ended.stderr);
}
