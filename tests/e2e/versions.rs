//! A bucket that keeps versions: old versions and delete markers go too, or nothing is really gone.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};

use crate::support::heimdall::{self, Dataset, Shape};
use crate::world::{Settings, World};

/// Versions and delete markers below a prefix.
async fn versions(world: &World, prefix: &str) -> (usize, usize) {
    let (mut found, mut key, mut version) = ((0, 0), None, None);
    loop {
        let listing = world.s3.list_object_versions().bucket(&world.bucket).prefix(prefix);
        let page = listing.set_key_marker(key).set_version_id_marker(version).send().await.expect("listed");
        found = (found.0 + page.versions().len(), found.1 + page.delete_markers().len());
        if page.is_truncated() != Some(true) {
            return found;
        }
        (key, version) = (page.next_key_marker, page.next_version_id_marker);
    }
}

/// Empties and deletes the world's bucket.
pub async fn delete_bucket(world: &World) {
    let mut pages = world.s3.list_objects_v2().bucket(&world.bucket).into_paginator().send();
    while let Some(page) = pages.next().await {
        for key in page.expect("listed").contents().iter().filter_map(|object| object.key()) {
            world.s3.delete_object().bucket(&world.bucket).key(key).send().await.expect("deleted");
        }
    }
    world.s3.delete_bucket().bucket(&world.bucket).send().await.expect("deleted");
}

#[tokio::test]
async fn every_version_and_delete_marker_goes_and_those_of_others_stay() {
    let world = World::new(Settings { batch_size: 50, ..Settings::default() }).await;
    let keeps = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let put = world.s3.put_bucket_versioning().bucket(&world.bucket).versioning_configuration(keeps);
    put.send().await.expect("it can keep versions");
    let shape = Shape { samples: 60, receivers: 4 };
    let (id, put) = world.dataset_like(Dataset::iq_raw("versioned"), shape).await;
    let (other, _) = world.dataset("other", Shape { samples: 5, receivers: 4 }).await;
    // written twice, and some of it deleted by hand
    heimdall::put_objects(&world.s3, &world.bucket, id, shape).await;
    let prefix = format!("synthetic/{id}/");
    for sample in 0..20 {
        let key = heimdall::key(id, sample, 0);
        world.s3.delete_object().bucket(&world.bucket).key(key).send().await.expect("a marker");
    }
    for n in 0..5 {
        let key = format!("{prefix}notes/{n}.txt");
        world
            .s3
            .put_object()
            .bucket(&world.bucket)
            .key(key)
            .body(ByteStream::from_static(b"x"))
            .send()
            .await
            .expect("put");
    }
    let (stored, markers) = versions(&world, &prefix).await;
    assert_eq!((stored, markers), (2 * 240 + 5, 20));
    assert_eq!(put, 240);

    let upload = world.s3.create_multipart_upload().bucket(&world.bucket).key(format!("{prefix}big"));
    upload.send().await.expect("begun");

    let plan = world.cli(&["trash", "dataset", &id.to_string()]).await.with(0).stdout;
    let line = plan.lines().find(|line| line.contains(&prefix)).unwrap_or_else(|| panic!("{plan}"));
    // behind newer ones, and those behind a delete marker
    assert!(line.contains("505, of which 260 older versions and 20 delete markers"), "{plan}");
    assert!(line.ends_with(" 1"), "an unfinished upload: {plan}");

    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    let shown = world.cli(&["show", "dataset", &id.to_string(), "--count"]).await.with(0).stdout;
    assert!(shown.contains("now below its prefixes"), "{shown}");
    let total = i64::try_from(stored + markers).expect("some hundred");
    world.purged("dataset", id, total, 1 + 60).await;
    assert_eq!(versions(&world, &prefix).await, (0, 0));
    assert_eq!(versions(&world, &format!("synthetic/{other}/")).await, (20, 0), "others stay");
}
