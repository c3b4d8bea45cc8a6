use aws_sdk_s3::operation::list_object_versions::ListObjectVersionsOutput;
use aws_sdk_s3::types::{BucketVersioningStatus, EncodingType, VersioningConfiguration};

use super::*;

async fn set_versioning(client: &Client, status: BucketVersioningStatus) {
    let configuration = VersioningConfiguration::builder().status(status).build();
    client.put_bucket_versioning().bucket(BUCKET).versioning_configuration(configuration).send().await.unwrap();
}

/// Key, version id, whether it is a marker, whether it is the latest.
type Listed = (String, String, bool, bool);

fn listed(page: &ListObjectVersionsOutput) -> Vec<Listed> {
    let versions = page.versions().iter().map(|version| {
        let id = version.version_id().unwrap().to_owned();
        (version.key().unwrap().to_owned(), id, false, version.is_latest().unwrap())
    });
    let markers = page.delete_markers().iter().map(|marker| {
        let id = marker.version_id().unwrap().to_owned();
        (marker.key().unwrap().to_owned(), id, true, marker.is_latest().unwrap())
    });
    versions.chain(markers).collect()
}

async fn walk(client: &Client, prefix: &str, max_keys: i32) -> Vec<Listed> {
    let mut all = Vec::new();
    let (mut key, mut version) = (None, None);
    loop {
        let page = client
            .list_object_versions()
            .bucket(BUCKET)
            .prefix(prefix)
            .max_keys(max_keys)
            .set_key_marker(key.take())
            .set_version_id_marker(version.take())
            .send()
            .await
            .unwrap();
        all.extend(listed(&page));
        assert_eq!(page.is_truncated(), Some(page.next_key_marker().is_some()));
        (key, version) = (page.next_key_marker, page.next_version_id_marker);
        if key.is_none() {
            return all;
        }
    }
}

#[tokio::test]
async fn versioning_is_off_then_enabled_then_suspended_and_never_off_again() {
    let (server, client) = server().await;
    let status = || async { client.get_bucket_versioning().bucket(BUCKET).send().await.unwrap().status };
    assert_eq!(status().await, None);
    set_versioning(&client, BucketVersioningStatus::Enabled).await;
    assert_eq!(status().await, Some(BucketVersioningStatus::Enabled));
    set_versioning(&client, BucketVersioningStatus::Suspended).await;
    assert_eq!(status().await, Some(BucketVersioningStatus::Suspended));
    assert!(server.store().set_versioning(BUCKET, Versioning::Off).is_err());
}

#[tokio::test]
async fn a_plain_delete_hides_an_object_and_a_delete_by_version_ends_it() {
    let (server, client) = versioned_server().await;
    let old = client.put_object().bucket(BUCKET).key("a").send().await.unwrap().version_id.unwrap();
    let new = server.store().put(BUCKET, "a", "new").unwrap();
    let hidden = batch_of(&client, &["a"]).send().await.unwrap();
    let marker = hidden.deleted()[0].delete_marker_version_id().unwrap();
    assert_eq!((hidden.deleted()[0].delete_marker(), hidden.deleted()[0].version_id()), (Some(true), None));
    assert!(client.list_objects_v2().bucket(BUCKET).send().await.unwrap().contents().is_empty());
    assert_eq!(refusal(client.get_object().bucket(BUCKET).key("a").send().await), refused("NoSuchKey", 404));
    let by_marker = client.get_object().bucket(BUCKET).key("a").version_id(marker).send().await;
    assert_eq!(refusal(by_marker), refused("MethodNotAllowed", 405));
    let by_id = client.get_object().bucket(BUCKET).key("a").version_id(&new).send().await.unwrap();
    assert_eq!((by_id.version_id(), by_id.content_length()), (Some(new.as_str()), Some(3)));

    let restored = client.delete_object().bucket(BUCKET).key("a").version_id(marker).send().await.unwrap();
    assert_eq!((restored.delete_marker(), restored.version_id()), (Some(true), Some(marker)));
    assert_eq!(server.store().keys(BUCKET, ""), ["a"]);
    let answer = batch(&client, vec![named_version("a", &old), named_version("a", &new)]).send().await.unwrap();
    let ids: Vec<_> =
        answer.deleted().iter().map(|entry| (entry.version_id().unwrap(), entry.delete_marker())).collect();
    assert_eq!(ids, [(old.as_str(), None), (new.as_str(), None)]);
    assert!(server.store().versions(BUCKET, "").is_empty());
}

#[tokio::test]
async fn deleting_a_version_twice_succeeds_and_a_made_up_one_does_not() {
    let (server, client) = versioned_server().await;
    let id = server.store().put(BUCKET, "a", "body").unwrap();
    for _ in 0..2 {
        let answer = batch(&client, vec![named_version("a", &id), named_version("a", "made-up")]).send().await.unwrap();
        assert_eq!(deleted(&answer), ["a"]);
        assert_eq!(failed(&answer), [("a", "NoSuchVersion")]);
    }
    let single = client.delete_object().bucket(BUCKET).key("a").version_id("made-up").send().await;
    assert_eq!(refusal(single), refused("InvalidArgument", 400));
}

#[tokio::test]
async fn a_suspended_bucket_has_one_null_version_a_key_and_keeps_the_older_ones() {
    let (server, client) = server().await;
    assert_eq!(server.store().put(BUCKET, "a", "first").unwrap(), "null");
    set_versioning(&client, BucketVersioningStatus::Enabled).await;
    let kept = server.store().put(BUCKET, "a", "second").unwrap();
    set_versioning(&client, BucketVersioningStatus::Suspended).await;
    let put = client.put_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert_eq!(put.version_id(), Some("null"));
    let ids = |server: &EmbeddedS3| -> Vec<_> {
        server.store().versions(BUCKET, "a").into_iter().map(|version| (version.version, version.size)).collect()
    };
    assert_eq!(ids(&server), [("null".to_owned(), Some(0)), (kept.clone(), Some(6))]);
    let marker = client.delete_object().bucket(BUCKET).key("a").send().await.unwrap();
    assert_eq!((marker.delete_marker(), marker.version_id()), (Some(true), Some("null")));
    assert_eq!(ids(&server), [("null".to_owned(), None), (kept.clone(), Some(6))]);
    let answer = batch(&client, vec![named_version("a", "null"), named_version("a", &kept)]).send().await.unwrap();
    assert_eq!(answer.deleted().len(), 2);
    assert!(server.store().versions(BUCKET, "").is_empty());
}

#[tokio::test]
async fn versions_and_markers_are_paged_newest_first_without_gap_or_overlap() {
    let (server, client) = versioned_server().await;
    for round in 0..3 {
        for key in ["a", "a/b", "b", "other"] {
            server.store().put(BUCKET, key, format!("{round}")).unwrap();
        }
        server.store().delete(BUCKET, "b").unwrap();
    }
    let stored: Vec<_> = server.store().versions(BUCKET, "").into_iter().collect();
    assert_eq!(stored.len(), 15);
    for max_keys in [1, 2, 4, 1000] {
        let mut all = walk(&client, "", max_keys).await;
        assert_eq!(all.iter().filter(|(.., latest)| *latest).count(), 4);
        assert!(all.iter().any(|(key, _, marker, latest)| key == "b" && *marker && *latest));
        // The SDK parts versions from markers, so the order across them is not seen; numbered ids tell it.
        all.sort_by(|one, other| one.0.cmp(&other.0).then(other.1.cmp(&one.1)));
        let seen: Vec<_> = all.iter().map(|(key, id, marker, _)| (key.clone(), id.clone(), *marker)).collect();
        let expected: Vec<_> =
            stored.iter().map(|entry| (entry.key.clone(), entry.version.clone(), entry.size.is_none())).collect();
        assert_eq!(seen, expected, "{max_keys} a page");
    }
    assert_eq!(walk(&client, "a", 2).await.len(), 6);
    let first = client.list_object_versions().bucket(BUCKET).prefix("a").max_keys(2).send().await.unwrap();
    let ids: Vec<_> = first.versions().iter().map(|version| version.version_id().unwrap()).collect();
    assert!(ids[0] > ids[1], "newest first");
}

#[tokio::test]
async fn a_listing_goes_on_after_a_version_that_was_deleted_since() {
    let (server, client) = versioned_server().await;
    let ids: Vec<_> = (0..5).map(|round| server.store().put(BUCKET, "a", format!("{round}")).unwrap()).collect();
    server.store().put(BUCKET, "b", "x").unwrap();
    let first = client.list_object_versions().bucket(BUCKET).max_keys(2).send().await.unwrap();
    let shown = listed(&first).iter().map(|(key, id, ..)| named_version(key, id)).collect();
    batch(&client, shown).send().await.unwrap();
    let rest = client
        .list_object_versions()
        .bucket(BUCKET)
        .set_key_marker(first.next_key_marker)
        .set_version_id_marker(first.next_version_id_marker)
        .send()
        .await
        .unwrap();
    let rest: Vec<_> = listed(&rest).into_iter().map(|(key, id, ..)| (key, id)).collect();
    assert_eq!(rest.len(), 4);
    for (place, id) in [(0, &ids[2]), (1, &ids[1]), (2, &ids[0])] {
        assert_eq!(rest[place], ("a".to_owned(), id.clone()));
    }
    assert_eq!(rest[3].0, "b");
}

#[tokio::test]
async fn a_listing_shows_the_rest_again_when_its_null_marker_is_gone() {
    let (server, client) = server().await;
    server.store().put(BUCKET, "a", "null").unwrap();
    server.store().set_versioning(BUCKET, Versioning::Enabled).unwrap();
    let numbered = server.store().put(BUCKET, "a", "numbered").unwrap();
    let after_null = || client.list_object_versions().bucket(BUCKET).key_marker("a").version_id_marker("null").send();
    assert!(listed(&after_null().await.unwrap()).is_empty());
    batch(&client, vec![named_version("a", "null")]).send().await.unwrap();
    assert_eq!(listed(&after_null().await.unwrap()), [("a".to_owned(), numbered, false, true)]);
}

#[tokio::test]
async fn versions_are_listed_with_encoding_delimiter_and_markers_as_asked() {
    let (server, client) = versioned_server().await;
    for key in ["a b", "d/1", "d/2", "e+"] {
        server.store().put(BUCKET, key, "body").unwrap();
    }
    server.store().delete(BUCKET, "a b").unwrap();
    let list = || client.list_object_versions().bucket(BUCKET);
    let page = list().encoding_type(EncodingType::Url).delimiter("/").max_keys(1).send().await.unwrap();
    assert_eq!((page.encoding_type(), page.next_key_marker()), (Some(&EncodingType::Url), Some("a+b")));
    let page = list().encoding_type(EncodingType::Url).delimiter("/").key_marker("a b").send().await.unwrap();
    assert_eq!(page.key_marker(), Some("a+b"));
    assert_eq!(page.common_prefixes()[0].prefix(), Some("d/"));
    assert_eq!(page.versions().iter().filter_map(|version| version.key()).collect::<Vec<_>>(), ["e%2B"]);
    let page = list().delimiter("/").key_marker("a b").max_keys(1).send().await.unwrap();
    assert_eq!((page.next_key_marker(), page.next_version_id_marker()), (Some("d/"), None));
    let orphan = list().version_id_marker("null").send().await;
    assert_eq!(refusal(orphan), refused("InvalidArgument", 400));
}

#[tokio::test]
async fn a_bucket_without_versions_lists_its_objects_as_null_versions() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(1500), "body").unwrap();
    let all = walk(&client, "runs/", 1000).await;
    assert_eq!(all.len(), 1500);
    assert!(all.iter().all(|(_, id, marker, latest)| id == "null" && !marker && *latest));
}
