//! Keys that break what handles them carelessly: URLs, XML, paths, and prefixes that are compared by eye.
//!
//! What a store makes of `a//b` and `a\b` differs (SeaweedFS writes `a/b` for both), so what there is to delete is what
//! [`listed`] shows after they were put, and not this list. All of them are valid for Amazon S3.

use std::collections::BTreeSet;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::EncodingType;

/// The longest key there is, in bytes (S3 User Guide, Naming Amazon S3 objects).
const LONGEST: usize = 1024;

/// What the last part of a key may be. No file of one is a directory of another: SeaweedFS keeps both by one name.
const NAMES: [&str; 42] = [
    // URLs
    "a b",
    "a+b",
    "a%b",
    "a%2Fb",
    "a%252Fb",
    "a%20b",
    "a%00b",
    "a&b=c",
    "a?versionId=null",
    "a#b",
    "a;b,c:d@e$f!g*h(i)j~k",
    "a=b",
    // XML
    "a<b>c",
    "</Key>",
    "]]>",
    "&amp;",
    "&#x41;",
    "it's",
    "\"quoted\"",
    // not in XML 1.0, or not kept by its parsers
    "control\u{1}",
    "control\u{b}",
    "control\u{1f}",
    "control\u{7f}",
    "line\nfeed",
    "carriage\rreturn",
    "tab\tstop",
    "next\u{85}line",
    // Unicode
    "käse",
    "ka\u{308}se",
    "数据集",
    "🗑️👩‍👩‍👧",
    "\u{202e}gpj.exe",
    "مجموعة",
    "\u{feff}mark",
    "\u{10ffff}",
    // paths
    " leading",
    "trailing ",
    ".hidden",
    "trailing.",
    "back\\slash",
    "...",
    "-rf *",
];

/// Keys below a prefix that ends in `/`, the prefix itself among them, each different from the others on any store.
pub fn nasty(prefix: &str) -> Vec<String> {
    let mut keys: Vec<String> = NAMES.map(|name| format!("{prefix}{name}")).into();
    keys.push(prefix.to_owned());
    keys.push(format!("{prefix}empty/directory/"));
    keys.push(format!("{prefix}two//slashes"));
    keys.push(format!("{prefix}\u{1}/in a/directory & more"));
    keys.push(long(prefix, "x"));
    // two bytes each, so that lengths in characters are told from lengths in bytes
    keys.push(long(prefix, "ü"));
    keys
}

/// Keys that look like paths and are none, for stores that keep them as they are.
pub fn pathlike(prefix: &str) -> Vec<String> {
    let names = ["/", "//", "./x", "../x", "x/..", "x/../../../..", "x/./y", "a//b", "a/", "a", "\\", "."];
    names.map(|name| format!("{prefix}{name}")).into()
}

/// Keys with the character that Amazon S3 takes and PostgreSQL does not, at either end and between. SeaweedFS refuses them.
pub fn with_nul(prefix: &str) -> Vec<String> {
    ["\0", "\0x", "x\0", "x\0y", "x\0\0"].map(|name| format!("{prefix}{name}")).into()
}

/// Keys that share all of the prefix but its slash, and some of the nasty ones below such prefixes.
pub fn siblings(prefix: &str) -> Vec<String> {
    let stem = prefix.trim_end_matches('/');
    let ends = ["0", " ", ".", "-", "%2F", "\u{1}", "+", "é", "\n"];
    let names = ["x", "control\u{1}", "a%2Fb", "</Key>"];
    ends.iter().flat_map(|end| names.map(|name| format!("{stem}{end}/{name}"))).chain([format!("{stem}.npy")]).collect()
}

/// Every key below a prefix as the store holds it. Reads at most a few thousand.
pub async fn listed(client: &Client, bucket: &str, prefix: &str) -> BTreeSet<String> {
    let request = client.list_objects_v2().bucket(bucket).prefix(prefix).encoding_type(EncodingType::Url);
    let mut pages = request.into_paginator().send();
    let mut keys = BTreeSet::new();
    while let Some(page) = pages.next().await {
        for object in page.expect("listed").contents() {
            let sent = object.key().expect("a key").replace('+', " ");
            let key = percent_encoding::percent_decode_str(&sent).decode_utf8().expect("UTF-8");
            keys.insert(key.into_owned());
        }
    }
    keys
}

/// A key of the longest length, in parts that a file system takes as names.
fn long(prefix: &str, unit: &str) -> String {
    const PART: usize = 200;
    let mut key = prefix.to_owned();
    let mut part = 0;
    while key.len() + unit.len() <= LONGEST {
        if part + unit.len() > PART && key.len() + 1 + unit.len() <= LONGEST {
            key.push('/');
            part = 0;
        }
        key.push_str(unit);
        part += unit.len();
    }
    key
}
