//! Queries and XML, read and written by hand: no tree, no reflection, one pass.

use std::fmt::Write;

use hyper::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::objects::{Page, Range};

pub(super) const NO_VERSIONING: &str = "<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>";
pub(super) const LOCATION: &str = "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>";

/// What `encoding-type=url` leaves as it is.
const URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

const DATED: &str = "2026-01-01T00:00:00.000Z";
const ETAG: &str = "&quot;d41d8cd98f00b204e9800998ecf8427e&quot;";
const PAGE: usize = 1000;

/// A request that is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        Refusal { status, code, message: message.to_owned() }
    }

    pub(super) fn malformed(message: &str) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, "MalformedXML", message)
    }

    pub(super) fn no_bucket() -> Self {
        Refusal::new(StatusCode::NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist")
    }

    pub(super) fn no_lock() -> Self {
        Refusal::new(StatusCode::NOT_FOUND, "ObjectLockConfigurationNotFoundError", "no object lock")
    }

    pub(super) fn unavailable() -> Self {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "Please try again")
    }

    pub(super) fn slow_down() -> Self {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "Please reduce your request rate")
    }

    pub(super) fn not_implemented(what: &str) -> Self {
        Refusal::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", what)
    }

    pub(super) fn body(&self) -> String {
        format!("<Error><Code>{}</Code><Message>{}</Message></Error>", self.code, escaped(&self.message))
    }
}

/// `/bucket/key`, decoded.
pub(super) fn bucket_and_key(path: &str) -> (String, String) {
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    (bucket.to_owned(), percent_decode_str(key).decode_utf8_lossy().into_owned())
}

/// A query string, decoded.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(raw: &str) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = raw.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// What of a bucket is asked for, where it is not its objects.
    pub(super) fn subresource(&self) -> Option<&'static str> {
        ["versioning", "location", "uploads", "object-lock", "versions", "policy", "acl", "tagging"]
            .into_iter()
            .find(|name| self.has(name))
    }
}

/// A listing that was asked for: objects (either version of the protocol), or versions.
#[derive(Debug)]
pub(super) struct Listing<'q> {
    bucket: &'q str,
    prefix: &'q str,
    after: String,
    delimiter: &'q str,
    most: usize,
    encoded: bool,
    form: Form,
}

#[derive(Debug, PartialEq)]
enum Form {
    V1,
    V2,
    Versions,
}

impl<'q> Listing<'q> {
    pub(super) fn asked(bucket: &'q str, query: &'q Query, versions: bool) -> Result<Self, Refusal> {
        let text = |name: &str| query.get(name).unwrap_or_default();
        let invalid = |what: &str| Refusal::new(StatusCode::BAD_REQUEST, "InvalidArgument", what);
        let form = match (versions, text("list-type")) {
            (true, _) => Form::Versions,
            (false, "2") => Form::V2,
            (false, _) => Form::V1,
        };
        let after = match form {
            Form::V1 => text("marker").to_owned(),
            Form::Versions => text("key-marker").to_owned(),
            Form::V2 => match query.get("continuation-token") {
                Some(token) => unhex(token).ok_or_else(|| invalid("continuation-token"))?,
                None => text("start-after").to_owned(),
            },
        };
        let most = match query.get("max-keys") {
            Some(number) => number.parse::<usize>().map_err(|_| invalid("max-keys"))?.min(PAGE),
            None => PAGE,
        };
        let encoded = query.get("encoding-type") == Some("url");
        Ok(Listing { bucket, prefix: text("prefix"), after, delimiter: text("delimiter"), most, encoded, form })
    }

    pub(super) fn range(&self) -> Range<'_> {
        Range { prefix: self.prefix, after: &self.after, delimiter: self.delimiter, most: self.most }
    }

    pub(super) fn body(&self, page: &Page) -> String {
        let mut xml = String::with_capacity(1024 + page.objects.len() * 320);
        let root = if self.form == Form::Versions { "ListVersionsResult" } else { "ListBucketResult" };
        let _ = write!(
            xml,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>{}</Name><Prefix>{}</Prefix><MaxKeys>{}</MaxKeys><IsTruncated>{}</IsTruncated>",
            escaped(self.bucket),
            self.text(self.prefix),
            self.most,
            page.next.is_some()
        );
        if self.encoded {
            xml.push_str("<EncodingType>url</EncodingType>");
        }
        if !self.delimiter.is_empty() {
            let _ = write!(xml, "<Delimiter>{}</Delimiter>", self.text(self.delimiter));
        }
        self.next(&mut xml, page);
        for (key, bytes) in &page.objects {
            self.object(&mut xml, key, *bytes);
        }
        for common in &page.common {
            let _ = write!(xml, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", self.text(common));
        }
        let _ = write!(xml, "</{root}>");
        xml
    }

    fn next(&self, xml: &mut String, page: &Page) {
        if self.form == Form::V2 {
            let _ = write!(xml, "<KeyCount>{}</KeyCount>", page.objects.len() + page.common.len());
        }
        let Some(next) = &page.next else { return };
        let _ = match self.form {
            Form::V1 => write!(xml, "<NextMarker>{}</NextMarker>", self.text(next)),
            Form::V2 => write!(xml, "<NextContinuationToken>{}</NextContinuationToken>", hex(next)),
            Form::Versions => write!(
                xml,
                "<NextKeyMarker>{}</NextKeyMarker><NextVersionIdMarker>null</NextVersionIdMarker>",
                self.text(next)
            ),
        };
    }

    fn object(&self, xml: &mut String, key: &str, bytes: u64) {
        let versions = self.form == Form::Versions;
        let (open, close) = if versions {
            ("<Version><VersionId>null</VersionId><IsLatest>true</IsLatest><Key>", "</Version>")
        } else {
            ("<Contents><Key>", "</Contents>")
        };
        xml.push_str(open);
        if is_plain(key) {
            xml.push_str(key)
        } else {
            xml.push_str(&self.text(key))
        }
        let _ = write!(xml, "</Key><LastModified>{DATED}</LastModified><ETag>{ETAG}</ETag><Size>{bytes}</Size>");
        xml.push_str("<StorageClass>STANDARD</StorageClass>");
        xml.push_str(close);
    }

    fn text(&self, raw: &str) -> String {
        if self.encoded { utf8_percent_encode(raw, URL).to_string() } else { escaped(raw) }
    }
}

/// Whether neither encoding nor escaping changes it.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/'))
}

/// A DeleteObjects, as read.
#[derive(Debug)]
pub(super) struct ToDelete {
    pub(super) keys: Vec<String>,
    quiet: bool,
}

impl ToDelete {
    /// An error for each that fails, and what was deleted unless it was to be quiet.
    pub(super) fn answer(&self, failing: &[bool]) -> String {
        let mut xml = String::with_capacity(256 + self.keys.iter().map(|key| key.len() + 40).sum::<usize>());
        xml.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        xml.push_str("<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for (key, fails) in self.keys.iter().zip(failing) {
            if self.quiet && !fails {
                continue;
            }
            xml.push_str(if *fails { "<Error><Key>" } else { "<Deleted><Key>" });
            if is_plain(key) {
                xml.push_str(key)
            } else {
                xml.push_str(&escaped(key))
            }
            let failed = "</Key><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";
            xml.push_str(if *fails { failed } else { "</Key></Deleted>" });
        }
        xml.push_str("</DeleteResult>");
        xml
    }
}

/// Reads the body of a DeleteObjects: every `<Key>`, in order, and whether to be quiet.
pub(super) fn keys_to_delete(body: &[u8]) -> Result<ToDelete, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::malformed("not UTF-8"))?;
    if !text.contains("<Delete") || !text.contains("</Delete>") {
        return Err(Refusal::malformed("not a Delete"));
    }
    let mut keys = Vec::with_capacity(1000);
    let mut rest = text;
    while let Some((_, found)) = rest.split_once("<Key>") {
        let (key, after) = found.split_once("</Key>").ok_or_else(|| Refusal::malformed("a Key without an end"))?;
        keys.push(unescaped(key)?);
        rest = after;
    }
    Ok(ToDelete { keys, quiet: text.contains("<Quiet>true</Quiet>") })
}

pub(super) fn buckets(names: &[&str]) -> String {
    let each = names
        .iter()
        .map(|name| format!("<Bucket><Name>{}</Name><CreationDate>{DATED}</CreationDate></Bucket>", escaped(name)));
    format!(
        "<ListAllMyBucketsResult><Owner><ID>test</ID></Owner><Buckets>{}</Buckets></ListAllMyBucketsResult>",
        each.collect::<String>()
    )
}

pub(super) fn no_uploads(bucket: &str) -> String {
    format!(
        "<ListMultipartUploadsResult><Bucket>{}</Bucket><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        escaped(bucket)
    )
}

fn escaped(text: &str) -> String {
    let mut xml = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '"' => xml.push_str("&quot;"),
            '\r' => xml.push_str("&#13;"),
            other => xml.push(other),
        }
    }
    xml
}

fn unescaped(xml: &str) -> Result<String, Refusal> {
    if !xml.contains('&') {
        return Ok(xml.to_owned());
    }
    let mut text = String::with_capacity(xml.len());
    let mut rest = xml;
    while let Some((before, entity)) = rest.split_once('&') {
        let (name, after) = entity.split_once(';').ok_or_else(|| Refusal::malformed("an entity without an end"))?;
        text.push_str(before);
        text.push(entity_char(name).ok_or_else(|| Refusal::malformed("an unknown entity"))?);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

fn entity_char(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        numbered => {
            let number = numbered.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)?
        }
    })
}

fn hex(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn unhex(hex: &str) -> Option<String> {
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    String::from_utf8((0..hex.len()).step_by(2).map(byte).collect::<Option<Vec<u8>>>()?).ok()
}
