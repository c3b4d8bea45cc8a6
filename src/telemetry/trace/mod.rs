//! The work that a request causes, as log lines and traces show it: its correlation id in each line, its place in the
//! trace that it came with.
//!
//! Invariant: a trace is never cut here. Where spans are exported what goes out is part of ours, which is a child of the
//! requester's; where they are not, the requester's own context is passed on as it came. Nothing here can hinder the work.
//!
//! Names and attributes are those of OpenTelemetry's semantic conventions for messaging and HTTP.

#[cfg_attr(feature = "otlp", path = "otlp.rs")]
#[cfg_attr(not(feature = "otlp"), path = "none.rs")]
mod spans;

use tracing::{Instrument, Span, field};

pub use self::spans::{Exporting, InvalidExport};
use crate::{
    config::TracesConfig,
    domain::{
        cause::{Cause, CorrelationId, TraceContext},
        tombstone::Tombstone,
    },
    queue::Delivery,
};

/// Begins to export spans, where the configuration says so. Keep what comes back until the process ends.
///
/// # Errors
/// The exporter cannot be made: its environment variables (`OTEL_…`) are wrong.
pub fn start_exporting(config: Option<&TracesConfig>) -> Result<Exporting, InvalidExport> {
    Exporting::start(config)
}

/// Where a span stands to what is around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SpanKind {
    /// Answers a request.
    Server,
    /// Works on a message.
    Consumer,
    /// A part of one of these.
    Internal,
}

/// A span to begin.
#[derive(Debug)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "read where spans are exported"))]
struct NewSpan<'a> {
    name: String,
    kind: SpanKind,
    /// It is part of that one's trace. `None`: of the trace that is being worked on, or a new one.
    parent: Option<&'a TraceContext>,
    /// It came of that one, in a trace of its own.
    link: Option<&'a TraceContext>,
    attributes: Vec<(&'static str, Value)>,
}

/// An attribute's value.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "read where spans are exported"))]
enum Value {
    Text(String),
    Number(i64),
}

/// What a request over HTTP asks for.
#[derive(Debug, Clone, Copy)]
pub struct HttpRequest<'a> {
    /// One that is known, or `_OTHER`.
    pub method: &'static str,
    /// As the router has it.
    pub route: &'a str,
    /// As the client has it.
    pub path: &'a str,
}

/// A request or a task, from its beginning to its end.
#[derive(Debug)]
pub struct Work {
    log: Span,
    span: spans::Started,
}

impl Work {
    /// A request that came by message. Gives back to what it belongs from here on.
    pub fn message(delivery: &Delivery, cause: &Cause) -> (Self, Cause) {
        let mut attributes = of_message(delivery);
        attributes.extend(about(cause));
        let name = format!("process {}", delivery.queue);
        Self::request(
            NewSpan { name, kind: SpanKind::Consumer, parent: cause.trace.as_ref(), link: None, attributes },
            cause,
        )
    }

    /// A request over HTTP. Gives back to what it belongs from here on.
    pub fn http(asked: HttpRequest<'_>, cause: &Cause) -> (Self, Cause) {
        let HttpRequest { method, route, path } = asked;
        let mut attributes = vec![
            text("http.request.method", method),
            text("http.route", route),
            text("url.path", path),
            text("url.scheme", "http"),
        ];
        attributes.extend(about(cause));
        let name = format!("{method} {route}");
        Self::request(
            NewSpan { name, kind: SpanKind::Server, parent: cause.trace.as_ref(), link: None, attributes },
            cause,
        )
    }

    fn request(new: NewSpan<'_>, cause: &Cause) -> (Self, Cause) {
        let span = spans::Started::new(new);
        let cause = Cause { trace: span.context().or_else(|| cause.trace.clone()), ..cause.clone() };
        // as an error, so that no filter of log lines takes the id from the lines that it lets through
        let log = tracing::error_span!("request", correlation_id = cause.correlation_id(), trace_id = field::Empty);
        if let Some(trace) = &cause.trace {
            log.record("trace_id", trace.trace_id());
        }
        (Self { log, span }, cause)
    }

    /// A purge task. It is worked on days after the request that caused it, so its span is linked to that one's trace and
    /// begins one of its own.
    pub fn task(delivery: &Delivery) -> Self {
        let (name, link) = (format!("process {}", delivery.queue), delivery.trace());
        let (kind, attributes) = (SpanKind::Consumer, of_message(delivery));
        let span = spans::Started::new(NewSpan { name, kind, parent: None, link: link.as_ref(), attributes });
        // a message may be forged: what the log shows comes from the tombstone, see `works_on`
        let log = tracing::error_span!("purge", correlation_id = field::Empty, trace_id = field::Empty);
        if let Some(trace) = span.context() {
            log.record("trace_id", trace.trace_id());
        }
        Self { log, span }
    }

    /// Does it.
    pub fn run<T>(self, work: impl Future<Output = T>) -> impl Future<Output = T> {
        self.span.run(Box::pin(work.instrument(self.log)))
    }
}

/// A part of the work that is being done, as a span of its own. On the heap: what a stage keeps while it waits is large, and
/// each layer of futures would have room for it twice.
pub fn part<T>(name: &'static str, work: impl Future<Output = T>) -> impl Future<Output = T> {
    let work = Box::pin(work);
    let new = NewSpan { name: name.into(), kind: SpanKind::Internal, parent: None, link: None, attributes: Vec::new() };
    async move { spans::Started::new(new).run(work).await }
}

/// What is spawned goes on as part of the work that is being done.
pub fn along<F: Future>(work: F) -> impl Future<Output = F::Output> {
    spans::along(Box::pin(work).in_current_span())
}

/// Says which tombstone is being worked on, and with it to what the work belongs.
pub fn works_on(tombstone: &Tombstone) {
    let cause = &tombstone.cause;
    let log = Span::current();
    if let Some(id) = cause.correlation_id() {
        log.record("correlation_id", id);
    }
    if let Some(trace) = cause.trace.as_ref().filter(|_| current().is_none()) {
        log.record("trace_id", trace.trace_id());
    }
    for (name, value) in about(cause) {
        spans::set(name, value);
    }
    spans::set("reprieve.tombstone.id", Value::Text(tombstone.id.to_string()));
    spans::set("reprieve.resource.kind", Value::Text(tombstone.resource.kind.to_string()));
    spans::set("reprieve.resource.id", Value::Text(tombstone.resource.id.to_string()));
}

/// How the work that is being done ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was done, or there is a good reason why not.
    Well,
    /// Something is wrong here.
    Badly,
}

/// Says how the work that is being done ended: a code for programs.
pub fn ended(outcome: &str, end: End) {
    spans::set("reprieve.outcome", Value::Text(outcome.to_owned()));
    if end == End::Badly {
        spans::set("error.type", Value::Text(outcome.to_owned()));
        spans::failed();
    }
}

/// Says with which status a request over HTTP is answered.
pub fn answered(status: u16) {
    spans::set("http.response.status_code", Value::Number(status.into()));
    if status >= 500 {
        spans::set("error.type", Value::Text(status.to_string()));
        spans::failed();
    }
}

/// The span that is being worked in, where spans are exported.
pub fn current() -> Option<TraceContext> {
    spans::current()
}

fn text(name: &'static str, value: &str) -> (&'static str, Value) {
    (name, Value::Text(value.to_owned()))
}

fn about(cause: &Cause) -> impl Iterator<Item = (&'static str, Value)> {
    cause.correlation_id.iter().map(|id| text("reprieve.correlation_id", id.as_str()))
}

/// The ids are the sender's; one that could not stand in a log line does not stand here either.
fn of_message(delivery: &Delivery) -> Vec<(&'static str, Value)> {
    let mut attributes = vec![
        text("messaging.system", "rabbitmq"),
        text("messaging.operation.name", "process"),
        text("messaging.operation.type", "process"),
        text("messaging.destination.name", &delivery.queue),
        ("messaging.message.body.size", Value::Number(i64::try_from(delivery.body.len()).unwrap_or(i64::MAX))),
    ];
    let readable = |id: &Option<String>| id.as_deref().and_then(|id| CorrelationId::parse(id).ok());
    attributes.extend(readable(&delivery.message_id).map(|id| text("messaging.message.id", id.as_str())));
    let conversation = readable(&delivery.correlation_id);
    attributes.extend(conversation.map(|id| text("messaging.message.conversation_id", id.as_str())));
    attributes
}
