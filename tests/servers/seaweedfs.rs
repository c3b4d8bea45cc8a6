use aws_sdk_s3::primitives::ByteStream;

use crate::support::seaweedfs::{self, SeaweedFs};
use crate::support::unique;

#[tokio::test]
async fn it_keeps_objects_over_a_crash() {
    let mut server = SeaweedFs::start().await;
    let (client, bucket) = (server.client(), server.fresh_bucket().await);
    let body = ByteStream::from_static(b"hello");
    client.put_object().bucket(&bucket).key("a/b").body(body).send().await.expect("put");

    server.kill9();
    let listed = client.list_objects_v2().bucket(&bucket).send().await;
    assert!(listed.is_err(), "it is down");
    server.start_again().await;
    let listed = client.list_objects_v2().bucket(&bucket).send().await.expect("listed");
    assert_eq!(listed.contents().iter().filter_map(|object| object.key()).collect::<Vec<_>>(), ["a/b"]);
}

#[tokio::test]
async fn it_refuses_a_wrong_secret_and_a_missing_bucket() {
    let server = seaweedfs::shared().await;
    let stranger = seaweedfs::client(&server.endpoint(), seaweedfs::ACCESS_KEY, "wrong");
    assert!(stranger.list_buckets().send().await.is_err(), "the secret counts");
    let request = server.client().put_object().bucket(unique("missing")).key("a").send();
    let error = request.await.expect_err("there is no such bucket").into_service_error();
    assert_eq!(error.meta().code(), Some("NoSuchBucket"));
}
