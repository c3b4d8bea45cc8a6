//! Keys that break careless handling, end to end: all of them go, each is counted once, and their siblings stay.

use std::collections::BTreeSet;

use crate::support::heimdall::{self, Shape};
use crate::support::keys;
use crate::world::{Settings, World};

#[tokio::test]
async fn the_nastiest_keys_are_deleted_exactly_and_their_siblings_stay() {
    let world = World::new(Settings { batch_size: 20, ..Settings::default() }).await;
    let shape = Shape { samples: 4, receivers: 5 };
    let (id, ordinary) = world.dataset("nasty", shape).await;
    let prefix = format!("synthetic/{id}/");
    let nasty = keys::nasty(&prefix);
    heimdall::put_keys(&world.s3, &world.bucket, nasty.clone()).await;
    let siblings = heimdall::put_keys(&world.s3, &world.bucket, keys::siblings(&prefix)).await;
    let rows = world.rows(id).await;

    let below = keys::listed(&world.s3, &world.bucket, &prefix).await;
    let kept: Vec<&String> = nasty.iter().filter(|key| below.contains(*key)).collect();
    let lost: Vec<&String> = nasty.iter().filter(|key| !below.contains(*key)).collect();
    println!("{} kept, changed by the store: {lost:?}", kept.len());
    println!("{:?}", below.iter().filter(|key| !nasty.contains(*key) && !key.contains("RX_")).collect::<Vec<_>>());
    let put = i64::try_from(below.len()).expect("some");
    assert!(put > ordinary);

    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    world.purged("dataset", id, put, rows).await;
    assert_eq!(keys::listed(&world.s3, &world.bucket, &prefix).await, BTreeSet::new());
    let stem = prefix.trim_end_matches('/');
    let left = keys::listed(&world.s3, &world.bucket, stem).await;
    assert_eq!(left, siblings.into_iter().collect(), "siblings");
}
