use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, EncodingType};

use super::*;

const PART: usize = 5 * 1024 * 1024;

async fn start(client: &Client, key: &str) -> String {
    client.create_multipart_upload().bucket(BUCKET).key(key).send().await.unwrap().upload_id.unwrap()
}

async fn put_part(client: &Client, key: &str, id: &str, number: i32, body: Vec<u8>) -> CompletedPart {
    let asked = client.upload_part().bucket(BUCKET).key(key).upload_id(id).part_number(number).body(body.into());
    let done = asked.send().await.unwrap();
    CompletedPart::builder().part_number(number).set_e_tag(done.e_tag).build()
}

fn complete(
    client: &Client,
    key: &str,
    id: &str,
    parts: &[&CompletedPart],
) -> aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder {
    let parts = parts.iter().map(|part| (*part).clone()).collect();
    let upload = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
    client.complete_multipart_upload().bucket(BUCKET).key(key).upload_id(id).multipart_upload(upload)
}

#[tokio::test]
async fn an_upload_is_no_object_before_it_is_completed() {
    let (server, client) = server().await;
    let id = start(&client, "big").await;
    let one = put_part(&client, "big", &id, 1, vec![1; PART]).await;
    let two = put_part(&client, "big", &id, 2, vec![2; 10]).await;
    assert_eq!(server.store().count(BUCKET, ""), 0);
    assert_eq!(server.store().uploads(BUCKET, ""), ["big"]);
    let done = complete(&client, "big", &id, &[&one, &two]).send().await.unwrap();
    assert!(done.e_tag().unwrap().ends_with("-2\""));
    let body = server.store().get(BUCKET, "big").unwrap();
    assert_eq!((body.len(), body[PART - 1], body[PART]), (PART + 10, 1, 2));
    assert!(server.store().uploads(BUCKET, "").is_empty());
    assert_eq!(refusal(complete(&client, "big", &id, &[&one]).send().await), refused("NoSuchUpload", 404));
}

#[tokio::test]
async fn an_upload_ends_only_when_its_parts_are_named_right() {
    let (server, client) = server().await;
    let id = start(&client, "a").await;
    let one = put_part(&client, "a", &id, 1, vec![1; 10]).await;
    let two = put_part(&client, "a", &id, 2, vec![2; 10]).await;
    let other = CompletedPart::builder().part_number(1).e_tag("\"other\"").build();
    for (parts, code) in [
        (vec![&two, &one], "InvalidPartOrder"),
        (vec![&other], "InvalidPart"),
        (vec![&one, &two], "EntityTooSmall"),
        (vec![], "MalformedXML"),
    ] {
        assert_eq!(refusal(complete(&client, "a", &id, &parts).send().await), refused(code, 400));
        assert_eq!(server.store().uploads(BUCKET, ""), ["a"]);
    }
    complete(&client, "a", &id, &[&two]).send().await.unwrap();
    assert_eq!(server.store().get(BUCKET, "a").unwrap().as_ref(), [2; 10]);
}

#[tokio::test]
async fn an_aborted_upload_is_gone() {
    let (server, client) = server().await;
    let id = start(&client, "a").await;
    put_part(&client, "a", &id, 1, vec![1; 10]).await;
    client.abort_multipart_upload().bucket(BUCKET).key("a").upload_id(&id).send().await.unwrap();
    assert!(server.store().uploads(BUCKET, "").is_empty());
    let again = client.abort_multipart_upload().bucket(BUCKET).key("a").upload_id(&id).send().await;
    assert_eq!(refusal(again), refused("NoSuchUpload", 404));
    let late = client.upload_part().bucket(BUCKET).key("a").upload_id(&id).part_number(1).send().await;
    assert_eq!(refusal(late), refused("NoSuchUpload", 404));
}

#[tokio::test]
async fn uploads_are_listed_below_a_prefix_in_pages() {
    let (_server, client) = server().await;
    let mut expected = Vec::new();
    for key in ["p/a", "p/a", "p/b c", "p/d", "q"] {
        expected.push((key.to_owned(), start(&client, key).await));
    }
    expected.pop();
    for max_uploads in [1, 2, 3, 1000] {
        let mut all = Vec::new();
        let (mut key, mut id) = (None, None);
        loop {
            let page = client
                .list_multipart_uploads()
                .bucket(BUCKET)
                .prefix("p/")
                .max_uploads(max_uploads)
                .set_key_marker(key.take())
                .set_upload_id_marker(id.take())
                .send()
                .await
                .unwrap();
            let uploads = page.uploads().iter();
            all.extend(
                uploads.map(|upload| (upload.key().unwrap().to_owned(), upload.upload_id().unwrap().to_owned())),
            );
            (key, id) = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) {
                break;
            }
        }
        assert_eq!(all, expected, "{max_uploads} a page");
    }
    let by_key = client.list_multipart_uploads().bucket(BUCKET).key_marker("p/a");
    let page = by_key.encoding_type(EncodingType::Url).send().await.unwrap();
    assert_eq!(page.uploads().iter().filter_map(|upload| upload.key()).collect::<Vec<_>>(), ["p/b+c", "p/d", "q"]);
    let folded = client.list_multipart_uploads().bucket(BUCKET).delimiter("/").send().await;
    assert_eq!(refusal(folded), refused("NotImplemented", 501));
}
