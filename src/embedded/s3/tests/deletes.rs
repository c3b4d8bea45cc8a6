use super::*;

fn all(keys: &[String]) -> Vec<ObjectIdentifier> {
    keys.iter().map(|key| named(key)).collect()
}

#[tokio::test]
async fn a_batch_deletes_what_it_names_and_nothing_else() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(1001), "body").unwrap();
    let mut batch_keys = keys(1000);
    let answer = batch(&client, all(&batch_keys)).send().await.unwrap();
    assert_eq!(deleted(&answer), batch_keys);
    assert!(failed(&answer).is_empty());
    assert_eq!(server.store().keys(BUCKET, ""), ["runs/01000.bin"]);
    // What is not there deletes well, as does a key named twice.
    batch_keys.truncate(2);
    batch_keys.push(batch_keys[0].clone());
    let answer = batch(&client, all(&batch_keys)).send().await.unwrap();
    assert_eq!(deleted(&answer).len(), 3);
}

#[tokio::test]
async fn a_batch_of_1001_keys_is_refused_whole() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(1001), "body").unwrap();
    let answer = batch(&client, all(&keys(1001))).send().await;
    assert_eq!(refusal(answer), refused("MalformedXML", 400));
    assert_eq!(server.store().count(BUCKET, ""), 1001);
}

#[tokio::test]
async fn an_empty_batch_is_refused() {
    let (_server, client) = server().await;
    assert_eq!(refusal(batch(&client, Vec::new()).send().await), refused("MalformedXML", 400));
}

#[tokio::test]
async fn a_quiet_batch_names_only_what_failed() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(3), "body").unwrap();
    server.faults().keys(Keys::Suffix("1.bin".to_owned()), Times::Always, KeyFault::fail("InternalError"));
    let delete = Delete::builder().set_objects(Some(all(&keys(3)))).quiet(true).build().unwrap();
    let answer = client.delete_objects().bucket(BUCKET).delete(delete).send().await.unwrap();
    assert!(answer.deleted().is_empty());
    assert_eq!(failed(&answer), [("runs/00001.bin", "InternalError")]);
    assert_eq!(server.store().keys(BUCKET, ""), ["runs/00001.bin"]);
}

#[tokio::test]
async fn a_key_that_xml_cannot_carry_fails_its_whole_batch_but_deletes_alone() {
    let (server, client) = server().await;
    for key in ["good", "bad\u{1}", "odd\u{fffe}"] {
        server.store().put(BUCKET, key, "body").unwrap();
    }
    for bad in ["bad\u{1}", "odd\u{fffe}"] {
        assert_eq!(refusal(batch_of(&client, &["good", bad]).send().await), refused("MalformedXML", 400));
        client.delete_object().bucket(BUCKET).key(bad).send().await.unwrap();
    }
    assert_eq!(server.store().keys(BUCKET, ""), ["good"]);
}

#[tokio::test]
async fn keys_that_xml_must_escape_survive_a_batch() {
    let (server, client) = server().await;
    let odd = ["a&b<c>\"d'", "line\r\nbreak\t", "  spaces  ", "a//b", "../x", "&amp;", "😀 ü", "]]>"];
    server.store().put_all(BUCKET, odd.map(str::to_owned), "body").unwrap();
    let answer = batch_of(&client, &odd).send().await.unwrap();
    assert_eq!(deleted(&answer), odd);
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn keys_that_cannot_be_fail_alone() {
    let (server, client) = server().await;
    server.store().put(BUCKET, "good", "body").unwrap();
    let long = "x".repeat(1025);
    let answer = batch_of(&client, &["good", &long]).send().await.unwrap();
    assert_eq!(deleted(&answer), ["good"]);
    assert_eq!(failed(&answer), [(long.as_str(), "KeyTooLongError")]);
}

#[tokio::test]
async fn a_batch_without_a_checksum_or_with_conditions_is_refused() {
    let (server, client) = server().await;
    server.store().put(BUCKET, "a", "body").unwrap();
    let bare = batch_of(&client, &["a"])
        .customize()
        .mutate_request(|request| {
            let names: Vec<_> = request.headers().iter().map(|(name, _)| name.to_owned()).collect();
            for name in names.iter().filter(|name| name.starts_with("x-amz-checksum-")) {
                request.headers_mut().remove(name.as_str());
            }
        })
        .send()
        .await;
    assert_eq!(refusal(bare), refused("InvalidRequest", 400));
    let conditional = ObjectIdentifier::builder().key("a").size(4).build().unwrap();
    assert_eq!(refusal(batch(&client, vec![conditional]).send().await), refused("NotImplemented", 501));
    let conditional = client.delete_object().bucket(BUCKET).key("a").if_match_size(4).send().await;
    assert_eq!(refusal(conditional), refused("NotImplemented", 501));
    assert_eq!(server.store().count(BUCKET, ""), 1);
}

#[tokio::test]
async fn what_has_another_etag_than_the_one_asked_for_is_not_deleted() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, ["a", "b", "c"].map(str::to_owned), "body").unwrap();
    let head = client.head_object().bucket(BUCKET).key("a").send().await.unwrap();
    let right = head.e_tag().unwrap();
    let named = |key: &str, etag: &str| ObjectIdentifier::builder().key(key).e_tag(etag).build().unwrap();
    let asked = vec![named("a", right), named("b", "\"x\""), named("gone", right)];
    let answer = batch(&client, asked).send().await.unwrap();
    assert_eq!(deleted(&answer), ["a"]);
    assert_eq!(failed(&answer), [("b", "PreconditionFailed"), ("gone", "NoSuchKey")]);
    let single = |key: &str, etag: &str| client.delete_object().bucket(BUCKET).key(key).if_match(etag).send();
    assert_eq!(refusal(single("b", "\"x\"").await), refused("PreconditionFailed", 412));
    assert_eq!(refusal(single("gone", right).await), refused("NoSuchKey", 404));
    single("b", right).await.unwrap();
    single("c", "*").await.unwrap();
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn deleting_in_a_bucket_that_is_not_there_says_so() {
    let (_server, client) = server().await;
    let delete = Delete::builder().objects(named("a")).build().unwrap();
    let answer = client.delete_objects().bucket("nowhere").delete(delete).send().await;
    assert_eq!(refusal(answer), refused("NoSuchBucket", 404));
}
