//! HTTP, as a monitoring system and a client of the API speak it.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// Keeps its connections. For the runtime of one test.
#[derive(Debug, Clone)]
pub struct Web(Client<HttpConnector, Full<Bytes>>);

impl Web {
    pub fn new() -> Web {
        Web(Client::builder(TokioExecutor::new()).build_http())
    }

    /// The status and the body; `None` without an answer.
    pub async fn get(&self, address: &str) -> Option<(u16, Bytes)> {
        self.ask(Request::get(address).body(Full::default()).expect("an address")).await
    }

    /// Posts JSON.
    pub async fn post(&self, address: &str, body: &Value) -> Option<(u16, Bytes)> {
        let request = Request::post(address).header("content-type", "application/json");
        self.ask(request.body(Full::from(body.to_string())).expect("an address")).await
    }

    async fn ask(&self, request: Request<Full<Bytes>>) -> Option<(u16, Bytes)> {
        let answer = self.0.request(request).await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.into_body().collect().await.ok()?.to_bytes()))
    }
}
