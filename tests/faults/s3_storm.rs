//! Every passing fault of the store at random, on every request, while datasets of all kinds are purged.

use futures_util::future::join_all;

use crate::behind_proxy::{Faulty, PUT, ROWS, settings};
use crate::s3_proxy::Weather;
use crate::support::keys::{listed, nasty};
use crate::support::{SOON, heimdall};
use crate::world::Settings;

#[tokio::test]
async fn in_a_storm_of_passing_faults_every_object_is_still_counted_once() {
    const SEED: u64 = 20_260_101;
    // about every second request
    let weather = Weather {
        errors: 80,
        throttling: 40,
        keys: 300,
        cuts: 100,
        stalls: 2,
        nonsense: 60,
        slow: 60,
        ..Weather::passing()
    };
    // a key that fails four times in a row uses up an attempt, as it should
    let faulty = Faulty::new(Settings { max_attempts: 50, batch_size: 5, ..settings() }).await;
    faulty.proxy.storm(SEED, weather);
    let (sibling, untouched) = faulty.dataset("untouched").await;
    let mut purges = Vec::new();
    for n in 0..10 {
        let (id, prefix) = faulty.dataset(&format!("{n}")).await;
        if n % 3 == 0 {
            heimdall::put_keys(&faulty.world.s3, &faulty.world.bucket, nasty(&prefix)).await;
        }
        let put = listed(&faulty.world.s3, &faulty.world.bucket, &prefix).await.len();
        purges.push((id, i64::try_from(put).expect("some")));
    }
    let mut service = faulty.serve();
    faulty.trash(&purges.iter().map(|(id, _)| *id).collect::<Vec<_>>()).await;
    join_all(purges.iter().map(async |(id, put)| {
        faulty.world.purged("dataset", *id, *put, ROWS).await;
        faulty.went_in_order(*id, *put).await;
    }))
    .await;
    let counts = faulty.proxy.counts();
    assert!(counts.len() >= 12 && counts.values().sum::<u64>() >= 60, "{counts:?}");
    faulty.proxy.calm();
    assert_eq!((faulty.world.objects_below(&untouched).await, faulty.world.rows(sibling).await), (PUT, ROWS));
    assert!(service.terminate(SOON).await.success());
}
