//! The campaign: hundreds of datasets, users and operators at work, and everything around them breaking at once; and then
//! the verdict.
//!
//! The same for everybody who plays it is the seed's mix of things and faults, not the moments at which they meet.

mod dice;
mod fleet;
mod land;
mod listener;
mod operators;
mod post;
mod settings;
mod tally;
mod users;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::fleet::Fleet;
use self::land::{Direct, Land};
use self::listener::Listener;
use self::settings::Settings;
use crate::support::{rabbitmq, seaweedfs};
use crate::world::{Places, World};

/// How long it may take until nothing moves any more after the last fault: leases, back-offs and redeliveries of
/// seconds, many at once, on a busy machine.
const CONVERGED: Duration = Duration::from_secs(120);

/// The world's own settings: everything small and soon, so that there are many middles to be hit in.
fn world_settings() -> crate::world::Settings {
    crate::world::Settings {
        window: "2s",
        lease: "2s",
        slice: "1s",
        batch_size: 100,
        redeliver_after: "3s",
        max_attempts: 10,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_campaign_of_faults_no_promise_breaks() {
    let settings = Settings::from_env();
    let servers = seaweedfs::shared().await;
    let world = World::unmigrated(Places::shared().await, world_settings()).await;
    world.cli(&["migrate", "--guards"]).await.with(0);
    let direct = Direct { database: world.database_url.clone(), broker: rabbitmq::shared().await.amqp_url() };
    let stop = CancellationToken::new();
    let _ending = stop.clone().drop_guard();
    let listener = Listener::start(&direct.broker, &world.namespace, stop).await;
    let land = Arc::new(Land::settle(settings, world, servers.client(), direct).await);
    let fleet = Fleet::new(&land);
    let (apis, end) = (fleet.apis(), Instant::now() + settings.faults);
    let mut actors = JoinSet::new();
    for n in 0..3 {
        actors.spawn(users::use_datasets(Arc::clone(&land), format!("user {n}"), end));
    }
    for n in 0..3 {
        actors.spawn(operators::operate(Arc::clone(&land), format!("operator {n}"), apis.clone(), end));
    }
    actors.spawn(operators::pause_and_resume(Arc::clone(&land), end));
    let fleet = fleet.weather(end).await;
    while let Some(ended) = actors.join_next().await {
        ended.expect("no actor panics");
    }

    operators::resume_all(&land).await;
    let first = verdict::settled(&land, CONVERGED).await;
    listener.catch_up().await;
    verdict::judge(&land, &Default::default(), true).await;
    users::release_all(&land).await;
    operators::settle_all(&land).await;
    let second = verdict::settled(&land, CONVERGED).await;
    verdict::judge(&land, &Default::default(), true).await;
    listener.catch_up().await;
    let heard = std::mem::take(&mut *listener.heard.lock().expect("counts"));
    verdict::judge_events(&land, &heard).await;
    verdict::judge_requests(&land, &heard).await;
    fleet.moor().await;
    println!(
        "{settings:?}\nconverged {first:?} after the last fault, and {second:?} after the last use\n{}",
        land.tally
    );
    let broken = land.tally.broken_promises();
    assert!(broken.is_empty(), "{} promises were broken:\n{}", broken.len(), broken.join("\n"));
}
