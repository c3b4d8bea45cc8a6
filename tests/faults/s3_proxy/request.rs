//! A request as the client sent it, and what it asks for.

use bytes::Bytes;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method};
use percent_encoding::percent_decode_str;

use super::fault::Op;
use super::xml::{self, Entry};

/// A request that was read whole.
pub struct Asked {
    pub parts: Parts,
    pub body: Bytes,
    pub op: Op,
    pub bucket: String,
    /// The prefix of a listing, the key of an object, the keys of a DeleteObjects; empty strings for none.
    pub subjects: Vec<String>,
    /// What a DeleteObjects names.
    pub objects: Vec<Entry>,
}

impl Asked {
    pub fn new(parts: Parts, body: Bytes) -> Asked {
        let path = parts.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        let (bucket, key) = (decoded(bucket), decoded(key));
        let parameter = |name: &str| parameter(parts.uri.query().unwrap_or_default(), name);
        let op = match parts.method {
            _ if bucket.is_empty() => Op::Other,
            Method::GET if !key.is_empty() => Op::Other,
            Method::GET if parameter("versions").is_some() => Op::ListObjectVersions,
            Method::GET if parameter("list-type").is_some() => Op::ListObjectsV2,
            Method::GET if parameter("versioning").is_some() => Op::GetBucketVersioning,
            Method::POST if key.is_empty() && parameter("delete").is_some() => Op::DeleteObjects,
            Method::DELETE if !key.is_empty() && parameter("uploadId").is_none() => Op::DeleteObject,
            _ => Op::Other,
        };
        let objects = match op {
            Op::DeleteObjects => xml::entries(&body).unwrap_or_default(),
            _ => Vec::new(),
        };
        let subjects = match op {
            Op::DeleteObjects => objects.iter().map(|object| object.key.clone()).collect(),
            _ if op.lists() => vec![parameter("prefix").unwrap_or_default()],
            _ => vec![key],
        };
        Asked { parts, body, op, bucket, subjects, objects }
    }

    /// The same for the same request made again.
    pub fn identity(&self) -> String {
        // the SDK signs in headers, so that its URLs are the same each time
        self.parts.uri.to_string()
    }
}

/// An answer of the store, read whole.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn xml(status: u16, body: String) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/xml"));
        Answer { status, headers, body: body.into() }
    }

    pub fn error(status: u16, code: &str) -> Answer {
        Answer::xml(status, xml::error(code, "by the fault proxy"))
    }

    pub fn retry_after(mut self, seconds: u32) -> Answer {
        self.headers.insert(hyper::header::RETRY_AFTER, seconds.into());
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn decoded(raw: &str) -> String {
    percent_decode_str(raw).decode_utf8_lossy().into_owned()
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let found =
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|(key, _)| *key == name)?;
    Some(decoded(&found.1.replace('+', " ")))
}
