//! Spans by OpenTelemetry, sent to a collector by OTLP over HTTP.
//!
//! Invariant: nothing waits for a collector but the end of the process, and that for no longer than [`AT_THE_END`]. Spans
//! wait in a queue of 2048; what does not fit is dropped in silence; what a collector does not take is dropped, and said so
//! once.
//!
//! The client is the one that the AWS SDK brings for S3, so that there is one HTTP stack and one TLS stack.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::HttpRequest,
    },
    http::Headers,
};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId, global,
    trace::{
        FutureExt, Link, SpanContext, SpanKind as OtelKind, Status, TraceContextExt, TraceState, Tracer, TracerProvider,
    },
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample},
};
use tokio::runtime::Handle;

use super::{NewSpan, SpanKind, Value};
use crate::{config::TracesConfig, domain::cause::TraceContext};

/// For one request to the collector.
const FOR_A_REQUEST: Duration = Duration::from_secs(10);

/// For what is left when the process ends.
const AT_THE_END: Duration = Duration::from_secs(5);

/// Below the base address, as OTLP has it.
const PATH: &str = "/v1/traces";

/// Which library the spans are from.
const SCOPE: &str = "reprieve";

/// The exporter cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be exported: {0}")]
pub struct InvalidExport(String);

/// The export of spans, if there is one.
#[derive(Debug)]
pub struct Exporting(Option<SdkTracerProvider>);

impl Exporting {
    pub(super) fn start(config: Option<&TracesConfig>) -> Result<Self, InvalidExport> {
        let Some(config) = config else { return Ok(Self(None)) };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new(&config.endpoint)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}{PATH}", config.endpoint))
            .with_timeout(FOR_A_REQUEST)
            .build()
            .map_err(|error| InvalidExport(error.to_string()))?;
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Follow { ratio: config.sample_ratio })
            .with_resource(resource)
            .build();
        global::set_tracer_provider(provider.clone());
        tracing::info!(endpoint = config.endpoint, sample_ratio = config.sample_ratio, "traces are exported");
        Ok(Self(Some(provider)))
    }

    /// Sends what is left, if the collector takes it in time.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        // it blocks, and its requests need the runtime meanwhile
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(AT_THE_END));
        match tokio::time::timeout(AT_THE_END, sent).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not exported"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last spans were not exported in time"),
        }
    }
}

/// A purge is a trace of its own, and is sampled if the trace is that caused it: a link to a span that nobody kept, or from
/// one, shows nothing.
#[derive(Debug, Clone)]
struct Follow {
    ratio: f64,
}

impl ShouldSample for Follow {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &OtelKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent_span = parent.map(|parent| parent.span().span_context().clone()).filter(SpanContext::is_valid);
        let followed = parent_span.as_ref().or(links.first().map(|link| &link.span_context));
        let Some(followed) = followed else {
            return Sampler::TraceIdRatioBased(self.ratio)
                .should_sample(parent, trace_id, name, kind, attributes, links);
        };
        let decision = if followed.is_sampled() { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        let trace_state = parent_span.map(|span| span.trace_state().clone()).unwrap_or_default();
        SamplingResult { decision, attributes: Vec::new(), trace_state }
    }
}

/// A span that has begun.
#[derive(Debug)]
pub(super) struct Started(Context);

impl Started {
    pub(super) fn new(new: NewSpan<'_>) -> Self {
        let parent = match new.parent.and_then(to_otel) {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::current(),
        };
        let tracer = global::tracer_provider().tracer(SCOPE);
        let builder = tracer
            .span_builder(new.name)
            .with_kind(match new.kind {
                SpanKind::Server => OtelKind::Server,
                SpanKind::Consumer => OtelKind::Consumer,
                SpanKind::Internal => OtelKind::Internal,
            })
            .with_attributes(new.attributes.into_iter().map(|(name, value)| attribute(name, value)))
            .with_links(new.link.and_then(to_otel).map(|link| Link::new(link, Vec::new(), 0)).into_iter().collect());
        let span = tracer.build_with_context(builder, &parent);
        Self(parent.with_span(span))
    }

    pub(super) fn context(&self) -> Option<TraceContext> {
        from_otel(self.0.span().span_context())
    }

    pub(super) async fn run<T>(self, work: impl Future<Output = T>) -> T {
        // also of work that is dropped half-way
        let ending = Ending(self.0.clone());
        let done = work.with_context(self.0).await;
        drop(ending);
        done
    }
}

struct Ending(Context);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

pub(super) fn along<F: Future>(work: F) -> impl Future<Output = F::Output> {
    work.with_current_context()
}

pub(super) fn current() -> Option<TraceContext> {
    from_otel(Context::current().span().span_context())
}

pub(super) fn set(name: &'static str, value: Value) {
    Context::current().span().set_attribute(attribute(name, value));
}

pub(super) fn failed() {
    Context::current().span().set_status(Status::error(""));
}

fn attribute(name: &'static str, value: Value) -> KeyValue {
    match value {
        Value::Text(text) => KeyValue::new(name, text),
        Value::Number(number) => KeyValue::new(name, number),
    }
}

fn to_otel(context: &TraceContext) -> Option<SpanContext> {
    let mut parts = context.traceparent().split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    let state = context.tracestate().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    Some(SpanContext::new(trace, span, flags, true, state))
}

fn from_otel(context: &SpanContext) -> Option<TraceContext> {
    if !context.is_valid() {
        return None;
    }
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    TraceContext::parse(&format!("00-{trace}-{span}-{flags:02x}"), Some(&context.trace_state().header()))
}

/// Sends requests to the collector from the thread of the exporter, which has no runtime of its own.
#[derive(Debug)]
struct Client {
    connector: SharedHttpConnector,
    runtime: Handle,
    /// For messages.
    endpoint: String,
    /// The last request failed, and that was said.
    is_away: Arc<AtomicBool>,
}

impl Client {
    fn new(endpoint: &str) -> Result<Self, InvalidExport> {
        let settings =
            HttpConnectorSettings::builder().connect_timeout(FOR_A_REQUEST).read_timeout(FOR_A_REQUEST).build();
        let sleep = aws_smithy_async::rt::sleep::default_async_sleep();
        let connector = aws_smithy_http_client::default_connector(&settings, sleep)
            .ok_or_else(|| InvalidExport("this build has no HTTP client".into()))?;
        let is_away = Arc::default();
        Ok(Self { connector, runtime: Handle::current(), endpoint: endpoint.to_owned(), is_away })
    }

    /// Says once that the collector is away, and once that it is back.
    fn tell(&self, failure: Option<&str>) {
        let was_away = self.is_away.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) if !was_away => {
                tracing::warn!(endpoint = self.endpoint, error, "traces are not exported, spans are dropped meanwhile");
            }
            None if was_away => tracing::info!(endpoint = self.endpoint, "traces are exported again"),
            Some(_) | None => {}
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchange = exchange(self.connector.clone(), request);
        let exchange = self.runtime.spawn(async move { tokio::time::timeout(FOR_A_REQUEST, exchange).await });
        let answer = match exchange.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("no answer in time".into()),
            Err(error) => Err(error.into()),
        };
        let failure = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("the collector answered {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        self.tell(failure.as_deref());
        answer
    }
}

async fn exchange(connector: SharedHttpConnector, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (head, body) = request.into_parts();
    let mut sent = HttpRequest::new(SdkBody::from(body));
    sent.set_method(head.method.as_str())?;
    sent.set_uri(head.uri.to_string())?;
    copy(&head.headers, sent.headers_mut())?;
    let answer = connector.call(sent).await?;
    let status = answer.status().as_u16();
    let body = ByteStream::new(answer.into_body()).collect().await?.into_bytes();
    Ok(Response::builder().status(status).body(body)?)
}

fn copy(from: &axum::http::HeaderMap, to: &mut Headers) -> Result<(), HttpError> {
    for (name, value) in from {
        to.insert(name.as_str().to_owned(), value.to_str()?.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn context(traceparent: &str) -> SpanContext {
        to_otel(&TraceContext::parse(traceparent, None).unwrap()).unwrap()
    }

    /// Whether a span with this parent and this link is kept.
    fn keeps(ratio: f64, parent: Option<&str>, link: Option<&str>) -> bool {
        let parent = parent.map(|parent| Context::new().with_remote_span_context(context(parent)));
        let links: Vec<Link> = link.map(|link| Link::new(context(link), Vec::new(), 0)).into_iter().collect();
        let trace = TraceId::from_hex("0af7651916cd43dd8448eb211c80319c").unwrap();
        let sampled = Follow { ratio }.should_sample(parent.as_ref(), trace, "a", &OtelKind::Consumer, &[], &links);
        sampled.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn a_purge_is_kept_when_its_request_was_and_the_ratio_is_for_what_begins_here() {
        for ratio in [0.0, 1.0] {
            assert!(keeps(ratio, Some(SAMPLED), None) && keeps(ratio, None, Some(SAMPLED)));
            assert!(!keeps(ratio, Some(UNSAMPLED), None) && !keeps(ratio, None, Some(UNSAMPLED)));
            assert!(!keeps(ratio, Some(UNSAMPLED), Some(SAMPLED)), "its own trace decides first");
            assert_eq!(keeps(ratio, None, None), ratio > 0.5);
        }
    }

    #[test]
    fn a_context_goes_through_the_sdk_and_comes_back_the_same() {
        for state in [None, Some("vendor=a1,t1@other=b2"), Some("a=!~ {}")] {
            let context = TraceContext::parse(SAMPLED, state).unwrap();
            assert_eq!(from_otel(&to_otel(&context).unwrap()), Some(context));
        }
        assert_eq!(from_otel(&SpanContext::empty_context()), None);
    }
}
