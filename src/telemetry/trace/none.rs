//! Spans in a build without the feature `otlp`: there are none.

use super::{NewSpan, Value};
use crate::{config::TracesConfig, domain::cause::TraceContext};

/// Never made: nothing can be wrong with an export that is not there.
#[derive(Debug, thiserror::Error)]
#[error("this build exports no traces")]
pub struct InvalidExport;

/// The export of spans.
#[derive(Debug)]
pub struct Exporting;

impl Exporting {
    #[expect(clippy::unnecessary_wraps, reason = "as in a build with the feature")]
    pub(super) fn start(_: Option<&TracesConfig>) -> Result<Self, InvalidExport> {
        Ok(Self)
    }

    /// Sends what is left.
    #[expect(clippy::unused_async, reason = "as in a build with the feature")]
    pub async fn end(self) {}
}

#[derive(Debug)]
pub(super) struct Started;

impl Started {
    pub(super) fn new(_: NewSpan<'_>) -> Self {
        Self
    }

    pub(super) fn context(&self) -> Option<TraceContext> {
        None
    }

    pub(super) async fn run<T>(self, work: impl Future<Output = T>) -> T {
        work.await
    }
}

pub(super) fn along<F: Future>(work: F) -> F {
    work
}

pub(super) fn current() -> Option<TraceContext> {
    None
}

pub(super) fn set(_: &'static str, _: Value) {}

pub(super) fn failed() {}
