//! A floor for the benchmarks: what a client reaches that signs, sends and looks for `<Key>`, and does nothing else.
//!
//! One listing, one page after the other, and up to [`DELETES`] DeleteObjects in flight. It parses no XML, looks at no
//! outcome and verifies nothing, so it is a bound to hold an engine against and not a way to delete anything.
//!
//! usage: bench-bare ENDPOINT BUCKET PREFIX, with the credentials in the usual variables

use std::time::SystemTime;

use aws_sdk_s3::config::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4::SigningParams;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::task::JoinSet;

/// Of 8, 16 and 32 this is the best on SeaweedFS on two cores.
const DELETES: usize = 16;

#[derive(Clone)]
struct Bare {
    http: Client<HttpConnector, Full<Bytes>>,
    bucket: String,
    credentials: Credentials,
}

impl Bare {
    async fn send(&self, method: &str, query: &str, body: Bytes) -> String {
        let uri = format!("{}?{query}", self.bucket);
        let identity = self.credentials.clone().into();
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        let params = SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .expect("all of them are set");
        let signable = SignableRequest::new(method, &uri, std::iter::empty(), SignableBody::Bytes(&body));
        let signed = sign(signable.expect("a valid request"), &params.into()).expect("it can be signed");
        let mut request = Request::builder().method(method).uri(&uri).body(Full::new(body)).expect("a valid request");
        signed.into_parts().0.apply_to_request_http1x(&mut request);
        let answer = self.http.request(request).await.expect("it is answered");
        assert!(answer.status().is_success(), "{method} {query}: {}", answer.status());
        let body = answer.into_body().collect().await.expect("the answer is whole").to_bytes();
        String::from_utf8(body.into()).expect("UTF-8")
    }

    async fn page(&self, prefix: &str, after: &str) -> String {
        let [prefix, after] = [prefix, after].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC));
        let query = format!("list-type=2&max-keys=1000&prefix={prefix}&start-after={after}");
        self.send("GET", &query, Bytes::new()).await
    }

    /// The keys as they are in the page, so whatever is escaped there is escaped here.
    async fn delete(self, page: String) {
        let mut body = String::with_capacity(page.len());
        body.push_str("<Delete><Quiet>true</Quiet>");
        for key in keys(&page) {
            body.extend(["<Object><Key>", key, "</Key></Object>"]);
        }
        body.push_str("</Delete>");
        self.send("POST", "delete", body.into()).await;
    }
}

fn keys(page: &str) -> impl DoubleEndedIterator<Item = &str> {
    let after_tags: Vec<&str> = page.split("<Key>").skip(1).collect();
    after_tags.into_iter().filter_map(|rest| rest.split('<').next())
}

#[tokio::main]
async fn main() {
    let [endpoint, bucket, prefix] = [1, 2, 3].map(|n| std::env::args().nth(n).expect("ENDPOINT BUCKET PREFIX"));
    let variable = |name: &str| std::env::var(name).expect("credentials in the usual variables");
    let credentials =
        Credentials::new(variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"), None, None, "environment");
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let http = Client::builder(TokioExecutor::new()).build(connector);
    let bare = Bare { http, bucket: format!("{endpoint}/{bucket}"), credentials };

    let (mut deletes, mut after) = (JoinSet::new(), String::new());
    loop {
        let page = bare.page(&prefix, &after).await;
        let Some(last) = keys(&page).next_back() else { break };
        after = last.to_owned();
        let is_last = !page.contains("<IsTruncated>true");
        if deletes.len() >= DELETES {
            deletes.join_next().await.expect("there are some").expect("no panic");
        }
        deletes.spawn(bare.clone().delete(page));
        if is_last {
            break;
        }
    }
    while let Some(done) = deletes.join_next().await {
        done.expect("no panic");
    }
}
