//! The campaign: datasets, users and operators at work, and everything around them breaking at once; and then the
//! verdict.
//!
//! The same for everybody who plays it is the seed's mix of things and faults, not the moments at which they meet. Its
//! sleeps are how long a fault lasts or somebody idles; nothing is concluded from their having passed.

mod broker;
mod database;
mod dice;
mod fleet;
mod land;
mod line;
mod listener;
mod objects;
mod operators;
mod post;
mod report;
mod settings;
mod tally;
mod users;
mod verdict;

use std::sync::Arc;
use std::time::{Duration, Instant};

use reprieve::embedded::postgres::{Options, PrivatePostgres};
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::broker::Broker;
use self::database::{Database, TRIPWIRE};
use self::fleet::Fleet;
use self::land::{Direct, Land};
use self::listener::Listener;
use self::objects::Objects;
use self::report::Report;
use self::settings::Settings;
use crate::s3_proxy::S3Proxy;
use crate::support::heimdall;
use crate::support::rabbitmq::RabbitMq;
use crate::support::seaweedfs::{self, SeaweedFs};
use crate::tcp_proxy::TcpProxy;
use crate::world::{Places, World};

/// How long it may take until nothing moves any more after the last fault: leases, back-offs and redeliveries of
/// seconds, many at once, on a busy machine.
const CONVERGED: Duration = Duration::from_secs(180);

/// The world's own settings: everything small and soon, so that there are many middles to be hit in.
fn world_settings() -> crate::world::Settings {
    crate::world::Settings {
        window: "2s",
        lease: "2s",
        slice: "1s",
        batch_size: 100,
        redeliver_after: "3s",
        concurrency: 8,
        store: "connect_timeout = \"1s\"\nattempt_timeout = \"2s\"\noperation_timeout = \"5s\"",
        ..crate::world::Settings::default()
    }
}

/// Everything, running and at rest.
struct Stage {
    land: Arc<Land>,
    fleet: Fleet,
    broker: Broker,
    database: Database,
    objects: Objects,
    listener: Listener,
    _ending: tokio_util::sync::DropGuard,
}

impl Stage {
    async fn set(settings: Settings) -> Stage {
        let (server, rabbit, weed) =
            tokio::join!(PrivatePostgres::start(options()), RabbitMq::start(), SeaweedFs::start());
        let server = server.expect("PostgreSQL starts");
        let url = server.create_database("platform").await.expect("a new name");
        let pool = PgPoolOptions::new().max_connections(8).connect(&url).await.expect("our own server");
        heimdall::load(&pool).await;
        let (database_proxy, database_url) = TcpProxy::before(&url);
        let (broker_proxy, amqp_url) = TcpProxy::before(&rabbit.amqp_url());
        let s3_proxy = S3Proxy::start(&weed.endpoint(), seaweedfs::ACCESS_KEY, seaweedfs::SECRET_KEY).await;
        let places = Places { pool: pool.clone(), database_url, s3_endpoint: s3_proxy.endpoint(), amqp_url };
        let world = World::unmigrated(places, world_settings()).await;
        world.cli(&["migrate", "--guards"]).await.with(0);
        let direct = Direct { database: url.clone(), broker: rabbit.amqp_url() };
        let stop = CancellationToken::new();
        let listener = Listener::start(&direct.broker, &world.namespace, stop.clone()).await;
        let land = Arc::new(Land::settle(settings, world, weed.client(), direct).await);
        sqlx::raw_sql(TRIPWIRE).execute(&pool).await.expect("a schema of our own");
        let fleet = Fleet::new(&land);
        let broker = Broker {
            land: Arc::clone(&land),
            server: rabbit,
            proxy: broker_proxy,
            listener: listener.clone(),
            mischief: None,
        };
        broker.on_disk().await;
        let database = Database { land: Arc::clone(&land), server, proxy: database_proxy, url };
        let objects = Objects { land: Arc::clone(&land), server: weed, proxy: s3_proxy };
        Stage { land, fleet, broker, database, objects, listener, _ending: stop.drop_guard() }
    }

    /// Users, operators and faults, all at once, until the time is over.
    async fn play(self) -> Stage {
        let Stage { land, fleet, broker, database, objects, listener, _ending } = self;
        let (apis, end) = (fleet.apis(), Instant::now() + land.settings.faults);
        let mut actors = JoinSet::new();
        for n in 0..3 {
            actors.spawn(users::use_datasets(Arc::clone(&land), format!("user {n}"), end));
            actors.spawn(operators::operate(Arc::clone(&land), format!("operator {n}"), apis.clone(), end));
        }
        actors.spawn(operators::pause_and_resume(Arc::clone(&land), end));
        let (broker, database, objects, fleet) =
            tokio::join!(broker.weather(end), database.weather(end), objects.weather(end), fleet.weather(end));
        while let Some(ended) = actors.join_next().await {
            ended.expect("no actor panics");
        }
        Stage { land, fleet, broker, database, objects, listener, _ending }
    }

    /// What must hold now that nothing moves.
    async fn judge(&self) {
        verdict::judge(&self.land, &self.objects.first_deleted(), self.objects.counts_are_exact()).await;
    }
}

fn options() -> Options {
    Options { tcp: true, settings: vec![("max_connections".into(), "100".into())] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_campaign_of_faults_no_promise_breaks() {
    let settings = Settings::from_env();
    let began = Instant::now();
    let stage = Stage::set(settings).await;
    println!("set up in {:.1?}", began.elapsed());
    let stage = stage.play().await;
    println!("played until {:.1?}", began.elapsed());
    let land = &stage.land;

    // first with every use, hold and refusal that is left from the storm
    operators::resume_all(land).await;
    let first = verdict::settled(land, CONVERGED).await;
    stage.judge().await;
    // and then without: all that was trashed has to end
    users::release_all(land).await;
    operators::settle_all(land).await;
    let second = verdict::settled(land, CONVERGED).await;
    stage.judge().await;
    verdict::all_have_ended(land).await;

    stage.listener.catch_up().await;
    let heard = std::mem::take(&mut *stage.listener.heard.lock().expect("counts"));
    verdict::judge_events(land, &heard).await;
    verdict::judge_requests(land, &heard).await;
    verdict::judge_queues(land).await;
    stage.fleet.moor().await;
    let report = Report::of(&land.tally, settings);
    report.hand_over();
    let after = |took: Option<Duration>| took.map_or("not in time".to_owned(), |took| format!("{took:.1?}"));
    let (first, second) = (after(first), after(second));
    println!("{}still after the last fault: {first}; after the last use: {second}\n{report}", land.tally);
    assert!(report.is_good(), "{report}");
}
