use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::types::{BucketVersioningStatus, Delete, EncodingType, ObjectIdentifier};

use crate::support::seaweedfs;
use crate::support::synthetic_s3::{Faults, Names, Options, Rule, SyntheticS3};
use crate::support::{SOON, wait_until};

fn client(server: &SyntheticS3) -> Client {
    seaweedfs::client(&server.endpoint(), "anybody", "anything")
}

/// A client that sends each request once.
fn hasty_client(server: &SyntheticS3) -> Client {
    Client::from_conf(client(server).config().to_builder().retry_config(RetryConfig::disabled()).build())
}

async fn delete(client: &Client, keys: &[String]) -> Result<usize, Option<String>> {
    let named = keys.iter().map(|key| ObjectIdentifier::builder().key(key).build().expect("it has a key"));
    let delete = Delete::builder().set_objects(Some(named.collect())).build().expect("it has objects");
    match client.delete_objects().bucket("b").delete(delete).send().await {
        Ok(answer) => Ok(answer.deleted().len()),
        Err(error) => Err(error.into_service_error().meta().code().map(ToOwned::to_owned)),
    }
}

async fn keys(client: &Client, prefix: &str, most: i32) -> Vec<String> {
    let request = client.list_objects_v2().bucket("b").prefix(prefix).max_keys(most).encoding_type(EncodingType::Url);
    let mut pages = request.into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.expect("listed");
        assert!(page.contents().len() <= usize::try_from(most).expect("small"));
        let decoded = page.contents().iter().map(|object| {
            let sent = object.key().expect("a key").replace('+', " ");
            percent_encoding::percent_decode_str(&sent).decode_utf8_lossy().into_owned()
        });
        keys.extend(decoded);
    }
    keys
}

#[tokio::test]
async fn it_lists_in_order_what_its_rules_say_and_no_longer_what_was_deleted() {
    let server = SyntheticS3::start(Options::default());
    let client = client(&server);
    server.add("b", Rule::new("a/", 2_500));
    server.add("b", Rule { before: "x & <y>/".into(), after: " +é".into(), ..Rule::new("c/", 3) });
    server.add("b", Rule::new("empty/", 0));
    let listed = keys(&client, "a/", 1000).await;
    assert_eq!(
        (listed.len(), listed[0].as_str(), listed[2_499].as_str()),
        (2_500, "a/000000000.npy", "a/000002499.npy")
    );
    assert!(listed.is_sorted());
    assert_eq!(keys(&client, "c/", 2).await[1], "c/x & <y>/000000001 +é");
    assert_eq!(keys(&client, "", 999).await.len(), 2_503, "over rules");
    assert_eq!(keys(&client, "a/00000001", 7).await, listed[10..20], "a part of a rule");
    assert!(keys(&client, "empty/", 10).await.is_empty());

    let gone: Vec<String> = listed[5..1_005].to_vec();
    assert_eq!(delete(&client, &gone).await, Ok(1000));
    let strange = keys(&client, "c/", 10).await[2].clone();
    client.delete_object().bucket("b").key(&strange).send().await.expect("deleted");
    assert_eq!(keys(&client, "a/", 100).await, [&listed[..5], &listed[1_005..]].concat());
    assert_eq!((server.left("b", "a/"), server.left("b", "c/"), server.left_in("b")), (1_500, 2, 1_502));
    let after =
        client.list_objects_v2().bucket("b").start_after("a/000002497.npy").max_keys(2).send().await.expect("listed");
    let after: Vec<_> = after.contents().iter().filter_map(|object| object.key()).collect();
    assert_eq!(after, ["a/000002498.npy", "a/000002499.npy"]);
}

#[tokio::test]
async fn it_folds_what_lies_beyond_a_delimiter() {
    let server = SyntheticS3::start(Options::default());
    let client = client(&server);
    for rule in [Rule::new("p/one/", 1_000), Rule::new("p/two/a/", 5), Rule::new("p/two/b/", 5), Rule::new("q/", 2)] {
        server.add("b", rule);
    }
    for most in [1, 2, 1000] {
        let mut pages =
            client.list_objects_v2().bucket("b").delimiter("/").max_keys(most).prefix("p/").into_paginator().send();
        let mut common = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.expect("listed");
            assert!(page.contents().is_empty());
            common.extend(page.common_prefixes().iter().filter_map(|common| common.prefix().map(ToOwned::to_owned)));
        }
        assert_eq!(common, ["p/one/", "p/two/"], "{most} a page");
    }
    let flat = client.list_objects_v2().bucket("b").delimiter("/").prefix("q/").send().await.expect("listed");
    assert_eq!((flat.contents().len(), flat.common_prefixes().len()), (2, 0));
}

#[tokio::test]
async fn it_refuses_what_s3_refuses_and_counts_what_it_is_asked() {
    let server = SyntheticS3::start(Options { latency: Duration::from_millis(30), ..Options::default() });
    let client = client(&server);
    server.add("b", Rule::new("a/", 2_000));
    let listed = keys(&client, "a/", 1000).await;
    assert_eq!(delete(&client, &listed[..1001]).await, Err(Some("MalformedXML".to_owned())));
    assert_eq!(server.left("b", "a/"), 2_000, "all or nothing");
    let twice = listed[..10].to_vec();
    assert_eq!((delete(&client, &twice).await, delete(&client, &twice).await), (Ok(10), Ok(10)));
    delete(&client, &["a/nobody".to_owned(), "b/000000001.npy".to_owned()]).await.expect("as on S3");
    let counts = server.counts();
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((get(&counts.deleted_keys), get(&counts.deleted_again), get(&counts.batch_deletes)), (10, 10, 3));
    assert_eq!((get(&counts.lists), get(&counts.listed_keys), get(&counts.refused)), (2, 2_000, 1));
    assert_eq!(*counts.strangers.lock().expect("no panic"), ["a/nobody", "b/000000001.npy"]);
    let together = futures_util::future::join_all((0..8).map(|_| client.head_bucket().bucket("b").send())).await;
    assert!(together.iter().all(Result::is_ok));
    assert!(get(&counts.peak) >= 2, "requests of several connections run at the same time");

    let missing = client.list_objects_v2().bucket("none").send().await.expect_err("no such bucket");
    assert_eq!(missing.into_service_error().meta().code(), Some("NoSuchBucket"));
    let versioning = client.get_bucket_versioning().bucket("b").send().await.expect("answers");
    assert!(versioning.status().is_none_or(|status| *status != BucketVersioningStatus::Enabled));
    let versions = client.list_object_versions().bucket("b").prefix("a/").max_keys(5).send().await.expect("listed");
    assert_eq!((versions.versions().len(), versions.is_truncated()), (5, Some(true)));
    assert!(versions.versions().iter().all(|version| version.version_id() == Some("null")));
}

#[tokio::test]
async fn keys_of_every_shape_are_listed_in_order_and_found_again() {
    for names in [Names::Padded, Names::Hex, Names::Recordings { receivers: 5 }, Names::Recordings { receivers: 1 }] {
        let server = SyntheticS3::start(Options::default());
        let client = client(&server);
        let rule = Rule { names, ..Rule::new("a/", 2_345) };
        let all: Vec<String> = rule.keys().collect();
        server.add("b", rule);
        assert!(all.is_sorted_by(|a, b| a < b), "{names:?}");
        assert_eq!(keys(&client, "a/", 1000).await, all, "{names:?}");
        // a page may begin at any key, deleted or not, and between keys
        let beyond = [all[1_200].clone(), format!("{}!", all[1_200]), all[1_201].trim_end_matches("npy").to_owned()];
        assert_eq!(delete(&client, &all[..2_000]).await, Err(Some("MalformedXML".to_owned())));
        assert_eq!(delete(&client, &all[1_000..1_400]).await, Ok(400));
        for after in beyond {
            let page = client.list_objects_v2().bucket("b").prefix("a/").start_after(&after).max_keys(3).send().await;
            let page = page.expect("listed");
            let shown: Vec<_> = page.contents().iter().filter_map(|object| object.key()).collect();
            assert_eq!(shown, all[1_400..1_403], "{names:?} after {after}");
        }
        assert_eq!(server.left("b", "a/"), 1_945);
        for almost in ["a/00.npy", "a/01/RX_000.npy", "a/1/RX_7.npy", "a/000009999.npy", "a/ffffffffffffffff.npy"] {
            delete(&client, &[almost.to_owned()]).await.expect("as on S3");
        }
        assert_eq!(server.counts().strangers.lock().expect("no panic").len(), 5, "{names:?}");
    }
}

#[tokio::test]
async fn a_directory_for_each_sample_is_one_common_prefix() {
    let server = SyntheticS3::start(Options::default());
    let client = client(&server);
    server.add("b", Rule { names: Names::Recordings { receivers: 5 }, ..Rule::new("a/", 60) });
    let request = client.list_objects_v2().bucket("b").prefix("a/").delimiter("/").max_keys(5);
    let mut pages = request.into_paginator().send();
    let mut samples = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.expect("listed");
        samples.extend(page.common_prefixes().iter().filter_map(|common| common.prefix().map(ToOwned::to_owned)));
    }
    let as_text = ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"].map(|sample| format!("a/{sample}/"));
    assert_eq!(samples, as_text);
}

#[tokio::test]
async fn what_is_refused_is_not_done_and_what_is_cut_is() {
    let with = |faults| SyntheticS3::start(Options { faults, ..Options::default() });
    let keys: Vec<String> = Rule::new("a/", 1_000).keys().collect();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);

    let server = with(Faults { unavailable: 1.0, ..Faults::default() });
    server.add("b", Rule::new("a/", 1_000));
    assert_eq!(delete(&hasty_client(&server), &keys).await, Err(Some("ServiceUnavailable".to_owned())));
    assert_eq!((server.left_in("b"), count(&server.counts().refused)), (1_000, 1));

    let server = with(Faults { cut: 1.0, ..Faults::default() });
    server.add("b", Rule::new("a/", 1_000));
    assert_eq!(delete(&hasty_client(&server), &keys).await, Err(None), "no answer, no code");
    assert_eq!((server.left_in("b"), count(&server.counts().cut)), (0, 1));

    let mut left = Vec::new();
    for _ in 0..2 {
        let server = with(Faults { seed: 3, key_errors: 0.5, ..Faults::default() });
        server.add("b", Rule::new("a/", 1_000));
        let deleted = delete(&hasty_client(&server), &keys).await.expect("a 200");
        assert_eq!(server.left_in("b") + deleted as u64, 1_000);
        assert_eq!(count(&server.counts().failed_keys), server.left_in("b"));
        left.push(server.left_in("b"));
    }
    assert!(left[0] == left[1] && (400..600).contains(&left[0]), "half of them, the same each time: {left:?}");
}

#[tokio::test]
async fn it_grants_as_many_keys_a_second_as_it_may_and_refuses_the_rest_whole() {
    let server = SyntheticS3::start(Options { keys_a_second: Some(10), ..Options::default() });
    let client = hasty_client(&server);
    server.add("b", Rule::new("a/", 100));
    let keys: Vec<String> = Rule::new("a/", 100).keys().collect();
    let began = Instant::now();
    assert_eq!(delete(&client, &keys[..11]).await, Err(Some("SlowDown".to_owned())), "more than there ever is");
    assert_eq!((server.left_in("b"), server.counts().throttled.load(Ordering::Relaxed)), (100, 1));
    assert_eq!(delete(&client, &keys[..10]).await, Ok(10), "a second's worth at once");
    wait_until("another second's worth", SOON, async || delete(&client, &keys[10..20]).await.is_ok()).await;
    assert!(began.elapsed() >= Duration::from_millis(990), "{:?}", began.elapsed());
    assert_eq!(server.left_in("b"), 80);
}

/// One request on an open connection; what the answer's body says.
fn raw(stream: &mut TcpStream, method: &str, path: &str, body: &str) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: s3\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).expect("sent");
    let mut answer = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let n = stream.read(&mut chunk).expect("answers");
        assert!(n > 0, "the connection stays open");
        answer.extend_from_slice(&chunk[..n]);
        let text = std::str::from_utf8(&answer).unwrap_or_default();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(ToOwned::to_owned));
        if body.len() >= length.expect("a length").parse::<usize>().expect("a number") {
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            return body.to_owned();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_can_list_and_delete_a_hundred_thousand_objects_in_seconds() {
    const OBJECTS: u64 = 100_000;
    let server = SyntheticS3::start(Options::default());
    server.add("b", Rule::new("a/", OBJECTS));
    let mut stream = TcpStream::connect(server.endpoint().trim_start_matches("http://")).expect("it listens");
    let (mut listing, mut deleting) = (Duration::ZERO, Duration::ZERO);
    loop {
        let began = Instant::now();
        let page = raw(&mut stream, "GET", "/b?list-type=2&prefix=a/", "");
        listing += began.elapsed();
        let keys: Vec<&str> =
            page.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>")).map(|(key, _)| key).collect();
        if keys.is_empty() {
            break;
        }
        let objects: String = keys.iter().map(|key| format!("<Object><Key>{key}</Key></Object>")).collect();
        let began = Instant::now();
        raw(&mut stream, "POST", "/b?delete", &format!("<Delete><Quiet>true</Quiet>{objects}</Delete>"));
        deleting += began.elapsed();
    }
    assert_eq!(server.left("b", "a/"), 0);
    assert_eq!(server.counts().deleted_keys.load(Ordering::Relaxed), OBJECTS);
    let per_second = |time: Duration| OBJECTS as f64 / time.as_secs_f64();
    eprintln!("{:.0} keys a second listed, {:.0} deleted", per_second(listing), per_second(deleting));
    // an unoptimised build on a busy machine; the server must never be what a test waits for
    assert!(listing + deleting < Duration::from_secs(30), "{listing:?} and {deleting:?}");
}
