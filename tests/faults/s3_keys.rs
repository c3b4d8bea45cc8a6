//! Keys that break careless handling, end to end: all of them go, each is counted once, and their siblings stay.

use std::collections::BTreeSet;

use reprieve::embedded::s3::{EmbeddedS3, Options};
use uuid::Uuid;

use crate::support::heimdall::{Shape, put_keys};
use crate::support::keys::{self, listed};
use crate::support::seaweedfs::{ACCESS_KEY, SECRET_KEY};
use crate::world::{Places, Settings, World};

fn settings() -> Settings {
    Settings { batch_size: 20, ..Settings::default() }
}

/// Purges a dataset, and looks at every key of the bucket but those of the purge that shares its stem.
async fn purged_exactly(world: &World, id: Uuid, siblings: Vec<String>) {
    let prefix = format!("synthetic/{id}/");
    let put = listed(&world.s3, &world.bucket, &prefix).await.len();
    let rows = world.rows(id).await;
    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    world.purged("dataset", id, i64::try_from(put).expect("some"), rows).await;
    let left = listed(&world.s3, &world.bucket, prefix.trim_end_matches('/')).await;
    assert_eq!(left, siblings.into_iter().collect(), "its siblings and nothing else");
}

#[tokio::test]
async fn the_nastiest_keys_are_deleted_exactly_and_their_siblings_stay() {
    let world = World::new(settings()).await;
    let (id, _) = world.dataset("nasty", Shape { samples: 4, receivers: 5 }).await;
    let prefix = format!("synthetic/{id}/");
    let nasty = put_keys(&world.s3, &world.bucket, keys::nasty(&prefix)).await;
    let siblings = put_keys(&world.s3, &world.bucket, keys::siblings(&prefix)).await;
    let there = listed(&world.s3, &world.bucket, &prefix).await;
    let changed: Vec<&String> = nasty.iter().filter(|key| !there.contains(*key)).collect();
    assert_eq!(changed, [&format!("{prefix}back\\slash"), &format!("{prefix}two//slashes")], "as SeaweedFS does");
    assert_eq!(there.len(), nasty.len() + 20);
    purged_exactly(&world, id, siblings).await;
}

#[tokio::test]
async fn keys_that_look_like_paths_are_deleted_by_name_where_a_store_keeps_them() {
    let options = Options { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.to_owned().into(), port: None };
    let store = EmbeddedS3::start(options).await.expect("a port is free");
    let places = Places { s3_endpoint: store.endpoint(), ..Places::shared().await };
    let world = World::unmigrated(places, settings()).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    let (id, _) = world.dataset("paths", Shape { samples: 1, receivers: 4 }).await;
    let prefix = format!("synthetic/{id}/");
    let put = [keys::nasty(&prefix), keys::pathlike(&prefix)].concat();
    let put: BTreeSet<String> = put_keys(&world.s3, &world.bucket, put).await.into_iter().collect();
    let there = listed(&world.s3, &world.bucket, &prefix).await;
    assert!(put.is_subset(&there), "{:?}", put.difference(&there));
    let stem = prefix.trim_end_matches('/').to_owned();
    let siblings = [keys::siblings(&prefix), keys::pathlike(&format!("{stem}-")), vec![stem]].concat();
    let siblings = put_keys(&world.s3, &world.bucket, siblings).await;
    purged_exactly(&world, id, siblings).await;
}
