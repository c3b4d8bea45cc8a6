//! A collector of traces: takes spans by OTLP over HTTP, as protobuf, and keeps them. On loopback, for one test.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::{SOON, wait_until};

/// A span as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub service: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty for the first of its trace.
    pub parent: String,
    /// Trace and span of each.
    pub links: Vec<(String, String)>,
    pub kind: SpanKind,
    pub is_error: bool,
    pub ended: bool,
    attributes: Vec<KeyValue>,
}

impl Seen {
    /// An attribute as text. `None`: it has none of that name.
    pub fn attribute(&self, name: &str) -> Option<String> {
        value(&self.attributes, name)
    }

    /// As a message carries it on.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.id)
    }
}

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// Answers 503.
    Refuses,
    /// Takes the connection and never answers.
    Silent,
}

#[derive(Debug)]
struct Shared {
    mood: Mood,
    requests: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

/// A running collector; ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    pub endpoint: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Collector {
    pub async fn start(mood: Mood) -> Collector {
        let shared = Arc::new(Shared { mood, requests: AtomicUsize::new(0), seen: Mutex::default() });
        let routes = Router::new().route("/v1/traces", post(take)).with_state(shared.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let task = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
        Collector { endpoint, shared, task }
    }

    /// How many requests have come.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic while it was held").clone()
    }

    /// Waits for a span that is as `condition` says.
    pub async fn span(&self, what: &str, condition: impl Fn(&Seen) -> bool) -> Seen {
        let mut found = None;
        wait_until(format!("a span: {what}"), SOON, async || {
            found = self.spans().into_iter().find(&condition);
            found.is_some()
        })
        .await;
        found.expect("just found")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    match shared.mood {
        Mood::Takes => {}
        Mood::Refuses => return (StatusCode::SERVICE_UNAVAILABLE, Vec::new()),
        Mood::Silent => std::future::pending().await,
    }
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).expect("a request for spans");
    let mut seen = shared.seen.lock().expect("no panic while it was held");
    for resource in request.resource_spans {
        let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = value(&attributes, "service.name").unwrap_or_default();
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        seen.extend(spans.map(|span| read(&service, span)));
    }
    (StatusCode::OK, Vec::new())
}

fn read(service: &str, span: Span) -> Seen {
    Seen {
        service: service.to_owned(),
        kind: span.kind(),
        is_error: span.status.as_ref().is_some_and(|status| status.code() == SpanStatus::Error),
        ended: span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0,
        name: span.name,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
        attributes: span.attributes,
    }
}

fn value(attributes: &[KeyValue], name: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
