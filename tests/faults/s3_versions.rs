//! Whether a bucket keeps versions is asked of a store that answers nonsense: in doubt nothing is called empty.

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};

use crate::behind_proxy::{Faulty, PUT, ROWS, SHAPE, settings};
use crate::s3_proxy::{Fault, Op, Work};
use crate::support::heimdall;

#[tokio::test]
async fn no_version_is_left_behind_because_a_store_did_not_say_that_it_keeps_them() {
    let faulty = Faulty::new(settings()).await;
    let world = &faulty.world;
    let keeps = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
    let put = world.s3.put_bucket_versioning().bucket(&world.bucket).versioning_configuration(keeps);
    put.send().await.expect("it can keep versions");
    let (id, prefix) = faulty.dataset("versioned").await;
    heimdall::put_objects(&world.s3, &world.bucket, id, SHAPE).await;
    world.s3.delete_object().bucket(&world.bucket).key(heimdall::key(id, 0, 0)).send().await.expect("a marker");

    let asks = || crate::s3_proxy::On::from(Op::GetBucketVersioning).bucket(&world.bucket);
    let rules = [
        Fault::EmptyOk,
        Fault::ErrorInOk,
        Fault::Garbage,
        Fault::CutBody,
        Fault::CutChunked,
        Fault::InternalError(Work::Left),
    ]
    .map(|fault| faulty.proxy.next(asks(), fault));
    let _service = faulty.serve();
    faulty.trash(&[id]).await;
    world.purged("dataset", id, 2 * PUT + 1, ROWS).await;
    assert!(rules.iter().all(|rule| rule.met() == 1), "{:?}", faulty.proxy.counts());
    let left = world.s3.list_object_versions().bucket(&world.bucket).prefix(prefix).send().await.expect("listed");
    assert_eq!((left.versions().len(), left.delete_markers().len()), (0, 0));
}
