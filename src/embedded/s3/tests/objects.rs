use std::collections::BTreeMap;

use aws_sdk_s3::primitives::ByteStream;

use super::*;

#[tokio::test]
async fn buckets_are_made_listed_looked_at_and_deleted() {
    let (server, client) = server().await;
    client.create_bucket().bucket("archive").send().await.unwrap();
    assert_eq!(refusal(client.create_bucket().bucket("archive").send().await), refused("BucketAlreadyOwnedByYou", 409));
    client.head_bucket().bucket("archive").send().await.unwrap();
    assert!(client.head_bucket().bucket("nowhere").send().await.unwrap_err().into_service_error().is_not_found());
    let listed = client.list_buckets().send().await.unwrap();
    assert_eq!(listed.buckets().iter().filter_map(|bucket| bucket.name()).collect::<Vec<_>>(), ["archive", BUCKET]);

    let first = client.list_buckets().max_buckets(1).send().await.unwrap();
    let second =
        client.list_buckets().max_buckets(1).set_continuation_token(first.continuation_token).send().await.unwrap();
    assert_eq!(second.buckets()[0].name(), Some(BUCKET));
    assert_eq!(second.continuation_token, None);

    client.delete_bucket().bucket("archive").send().await.unwrap();
    assert_eq!(refusal(client.delete_bucket().bucket("archive").send().await), refused("NoSuchBucket", 404));
    assert_eq!(server.store().buckets(), [BUCKET]);
}

#[tokio::test]
async fn a_bucket_that_holds_anything_cannot_be_deleted() {
    let (server, client) = versioned_server().await;
    server.store().put(BUCKET, "a", "body").unwrap();
    assert_eq!(refusal(client.delete_bucket().bucket(BUCKET).send().await), refused("BucketNotEmpty", 409));
    server.store().delete(BUCKET, "a").unwrap();
    assert_eq!(refusal(client.delete_bucket().bucket(BUCKET).send().await), refused("BucketNotEmpty", 409));
}

#[tokio::test]
async fn an_object_reads_as_it_was_written() {
    let (server, client) = server().await;
    let put = client
        .put_object()
        .bucket(BUCKET)
        .key("a")
        .body(ByteStream::from_static(b"hello world"))
        .content_type("text/plain")
        .metadata("owner", "me")
        .send()
        .await
        .unwrap();
    // md5 of "hello world", from md5sum(1)
    assert_eq!(put.e_tag(), Some("\"5eb63bbbe01eeed093cb22bb8f5acdc3\""));
    let head = client.head_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert_eq!((head.content_length(), head.e_tag(), head.version_id()), (Some(11), put.e_tag(), None));
    let got = client.get_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert_eq!(got.content_type(), Some("text/plain"));
    assert_eq!(got.metadata().unwrap()["owner"], "me");
    assert_eq!(got.body.collect().await.unwrap().to_vec(), b"hello world");

    let part = client.get_object().bucket(BUCKET).key("a").range("bytes=6-").send().await.unwrap();
    assert_eq!(part.content_range(), Some("bytes 6-10/11"));
    assert_eq!(part.body.collect().await.unwrap().to_vec(), b"world");
    let beyond = client.get_object().bucket(BUCKET).key("a").range("bytes=11-").send().await;
    assert_eq!(refusal(beyond), refused("InvalidRange", 416));

    assert_eq!(refusal(client.get_object().bucket(BUCKET).key("b").send().await), refused("NoSuchKey", 404));
    let absent = client.head_object().bucket(BUCKET).key("b").send().await.unwrap_err();
    assert!(absent.into_service_error().is_not_found());
    assert_eq!(server.store().get(BUCKET, "a").unwrap(), "hello world");
}

#[tokio::test]
async fn a_body_of_some_megabytes_goes_both_ways() {
    let (_server, client) = server().await;
    let body: Vec<u8> = (0..8_000_000_u32).map(|place| place as u8).collect();
    client.put_object().bucket(BUCKET).key("big").body(body.clone().into()).send().await.unwrap();
    let got = client.get_object().bucket(BUCKET).key("big").send().await.unwrap();
    assert!(got.body.collect().await.unwrap().to_vec() == body);
}

#[tokio::test]
async fn clients_with_the_usual_checksums_are_served_too() {
    let (server, client) = server().await;
    let usual = client
        .config()
        .to_builder()
        .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
        .response_checksum_validation(ResponseChecksumValidation::WhenSupported);
    let client = Client::from_conf(usual.build());
    let body = vec![7; 300_000];
    client.put_object().bucket(BUCKET).key("a").body(body.clone().into()).send().await.unwrap();
    assert!(server.store().get(BUCKET, "a").unwrap() == body);
    let got = client.get_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert!(got.body.collect().await.unwrap().to_vec() == body);
}

#[tokio::test]
async fn a_write_can_ask_that_nothing_is_overwritten() {
    let (_server, client) = server().await;
    let put = || client.put_object().bucket(BUCKET).key("a").body(ByteStream::from_static(b"x"));
    let first = put().if_none_match("*").send().await.unwrap();
    assert_eq!(refusal(put().if_none_match("*").send().await), refused("PreconditionFailed", 412));
    put().if_match(first.e_tag().unwrap()).send().await.unwrap();
    assert_eq!(refusal(put().if_match("\"other\"").send().await), refused("PreconditionFailed", 412));
}

#[tokio::test]
async fn keys_are_names_and_never_paths() {
    let (server, client) = server().await;
    let odd = [
        "/",
        "//",
        "a//b",
        "a/",
        "a/./b",
        "../other/x",
        "..",
        ".",
        "a b+c%20",
        "ü/😀",
        "tab\there",
        "bell\u{7}",
        "q?x=1&y#z",
    ];
    for key in odd {
        client.put_object().bucket(BUCKET).key(key).body(key.as_bytes().to_vec().into()).send().await.unwrap();
    }
    let mut sorted: Vec<_> = odd.to_vec();
    sorted.sort_unstable();
    assert_eq!(server.store().keys(BUCKET, ""), sorted);
    for key in odd {
        let got = client.get_object().bucket(BUCKET).key(key).send().await.unwrap();
        assert_eq!(got.body.collect().await.unwrap().to_vec(), key.as_bytes());
        client.delete_object().bucket(BUCKET).key(key).send().await.unwrap();
    }
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn a_wrong_secret_a_wrong_key_and_no_signature_are_refused() {
    let (server, _) = server().await;
    let wrong = Options { secret_key: "guessed".to_owned().into(), ..Options::default() };
    let answer = client_with(&server, &wrong).list_objects_v2().bucket(BUCKET).send().await;
    assert_eq!(refusal(answer), refused("SignatureDoesNotMatch", 403));
    let unknown = Options { access_key: "nobody".to_owned(), ..Options::default() };
    let answer = client_with(&server, &unknown).list_objects_v2().bucket(BUCKET).send().await;
    assert_eq!(refusal(answer).1, 403);
    let unsigned = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(server.endpoint())
        .region(Region::new(REGION))
        .allow_no_auth()
        .force_path_style(true)
        .build();
    let answer = Client::from_conf(unsigned).list_objects_v2().bucket(BUCKET).send().await;
    assert_eq!(refusal(answer), refused("AccessDenied", 403));
    assert_eq!(server.requests().total(), 0, "what is not signed right is not counted");
}

#[tokio::test]
async fn what_the_server_does_not_have_it_says_so() {
    let (server, client) = server().await;
    assert_eq!(refusal(client.get_bucket_acl().bucket(BUCKET).send().await), refused("NotImplemented", 501));
    assert_eq!(server.requests().count(Operation::Unsupported), 1);
}

#[tokio::test]
async fn a_stopped_server_frees_its_port_and_starts_again_empty() {
    let (server, client) = server().await;
    let port = server.endpoint().rsplit(':').next().unwrap().parse().unwrap();
    server.stop().await;
    assert!(client.list_buckets().send().await.is_err());
    let again = EmbeddedS3::start(Options { port: Some(port), ..Options::default() }).await.unwrap();
    assert!(client.list_buckets().send().await.unwrap().buckets().is_empty());
    assert!(EmbeddedS3::start(Options { port: Some(port), ..Options::default() }).await.is_err());
    drop(again);
    let mut tries = 0;
    while client.list_buckets().send().await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "a dropped server stops");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_are_counted_and_logged_in_order() {
    let (server, client) = server().await;
    client.put_object().bucket(BUCKET).key("a").send().await.unwrap();
    batch_of(&client, &["a"]).send().await.unwrap();
    client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    let log: Vec<_> = server.requests().log().into_iter().map(|entry| (entry.operation, entry.key)).collect();
    let expected = [
        (Operation::PutObject, Some("a".to_owned())),
        (Operation::DeleteObjects, None),
        (Operation::ListObjectsV2, None),
    ];
    assert_eq!(log, expected);
    let counts: BTreeMap<_, _> = expected.iter().map(|(operation, _)| (*operation, 1)).collect();
    for (operation, count) in counts {
        assert_eq!(server.requests().count(operation), count);
    }
    server.requests().clear();
    assert_eq!(server.requests().total(), 0);
}
