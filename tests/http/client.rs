//! An HTTP client of a few lines, so that a test can send what no proper client would.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Asserts that it is a problem document of this status and code, and gives it back.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.header("content-type")), (status, Some("application/problem+json")), "{self:?}");
        let problem = self.json();
        assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(status.into()), Some(code)));
        assert_eq!(problem["type"], format!("urn:reprieve:problem:{code}"));
        for member in ["title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {problem}");
        }
        problem
    }

    /// Asserts 200 and gives the document.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!((self.status, self.header("content-type")), (200, Some("application/json")), "{self:?}");
        self.json()
    }
}

/// A request; `headers` in place of the usual ones where they have the same name, left out where the value is empty.
pub async fn send(to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = TcpStream::connect(to).await.expect("connects");
    let (host, length) = (to.to_string(), body.len().to_string());
    let mut usual = vec![("host", host.as_str()), ("connection", "close")];
    if method == "POST" {
        usual.extend([("content-type", "application/json"), ("content-length", length.as_str())]);
    }
    usual.retain(|(name, _)| headers.iter().all(|(other, _)| name != other));
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in usual.iter().chain(headers).filter(|(_, value)| !value.is_empty()) {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("\r\n{body}");
    // a server that has seen enough answers and closes before it has read everything
    let _ = stream.write_all(text.as_bytes()).await;
    read(&mut stream).await
}

/// Reads an answer until the server closes.
pub async fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes).await;
    assert!(ended.is_ok() || !bytes.is_empty(), "{ended:?}");
    let text = String::from_utf8(bytes).expect("utf-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.lines();
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line").parse().expect("a number");
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}
