//! Memory stays bounded: however many objects one dataset has, and however many tombstones are due at once.
//!
//! Measured with an unoptimised build, peak RSS (`VmHWM`), half of it the program's own text: one process with all
//! roles and 16 delete requests in flight 94 MiB for 100,000 objects and 102 MiB for 1,000,000; two workers 51 MiB each
//! and a relay with a sweeper 58 MiB for 1,000 tombstones due at once. With fewer objects the pages
//! ahead and the requests in flight never come to their number, so the small dataset is large, too. The number of
//! tombstones is 1,000; `FAULTS_COUNT=10000` makes it ten times that.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::amqp::Amqp;
use crate::crowd::{Crowd, Peak, count};
use crate::process::Service;
use crate::support::synthetic_s3::Options;
use crate::support::wait_until;
use crate::world::{Settings, World};

const MIB: u64 = 1 << 20;

/// Child rows of the large dataset.
const ROWS: u32 = 10_000;

/// No knob of its own in a world: the log is not what is measured, and a busy machine must not cost a lease.
const ENV: [(&str, &str); 3] = [
    ("REPRIEVE__SERVICE__LOG", "reprieve=info,warn"),
    ("REPRIEVE__PURGE__LEASE", "30s"),
    ("REPRIEVE__PURGE__ROW_CHUNK", "5000"),
];

fn settings() -> Settings {
    // several slices for the large one
    Settings { slice: "2s", redeliver_after: "60s", concurrency: 16, ..Settings::default() }
}

/// Purges one dataset with this many objects in a process of its own, and says how much memory that took at most.
async fn peak_of_one(objects: u64) -> u64 {
    let crowd = Crowd::new(settings(), Options::default()).await;
    let id = crowd.giant("giant", objects, ROWS).await;
    let began = Instant::now();
    let mut service = crowd.world.serve_with(&[], &ENV);
    crowd.world.trash("dataset", id).await;
    let limit = Duration::from_secs(120 + objects / 1_000);
    wait_until("it is purged", limit, async || {
        assert!(!service.has_ended(), "{}", service.log());
        crowd.world.stands(id).await.state == "purged"
    })
    .await;
    let took = began.elapsed();
    let peak = service.peak_rss();
    let expected = objects.try_into().expect("not that many");
    let receipt = crowd.world.purged("dataset", id, expected, i64::from(ROWS) + 1).await;
    assert_eq!(receipt["objects"]["deleted"], expected, "{receipt:#}");
    assert!(crowd.world.stands(id).await.fence > 1 || objects < 50_000, "it took several slices");
    crowd.all_are_gone(&[id], objects).await;
    let batches = crowd.s3.counts().batch_deletes.load(Ordering::Relaxed);
    assert!(batches >= objects / 1000 && batches <= objects / 1000 * 11 / 10 + 10, "{batches} batches");
    eprintln!("{objects} objects and {ROWS} rows: {took:.1?}, peak RSS {:.1} MiB", mib(peak));
    peak
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_with_ten_times_the_objects_takes_no_more_memory() {
    const BOUND: u64 = 118 * MIB;
    // what varies from run to run; in proportion it would be hundreds
    const MARGIN: u64 = 20 * MIB;
    const OBJECTS: u64 = 1_000_000;
    let small = peak_of_one(OBJECTS / 10).await;
    let large = peak_of_one(OBJECTS).await;
    assert!(large < BOUND, "{:.1} MiB", mib(large));
    assert!(large < small + MARGIN, "{:.1} MiB, and {:.1} MiB for a tenth", mib(large), mib(small));
}

/// What is looked at while thousands of purges run.
#[derive(Default)]
struct Peaks {
    queued: Peak,
    connections: Peak,
}

impl Peaks {
    async fn look(&self, crowd: &Crowd, amqp: &Amqp) {
        self.queued.saw(u64::from(amqp.depth("purge").await));
        let connections = "select count(*) from pg_stat_activity
                           where datname = current_database() and application_name = 'reprieve'";
        self.connections.saw(crowd.number(connections).await.try_into().expect("a count"));
    }
}

fn serve(world: &World, roles: &str) -> Service {
    let env: Vec<_> = ENV.into_iter().chain([("REPRIEVE__RELAY__MAX_QUEUED", "500")]).collect();
    world.serve_with(&["--roles", roles], &env)
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_tombstones_due_at_once_are_purged_by_two_workers_within_bounds() {
    const BOUND: u64 = 88 * MIB;
    const MAX_QUEUED: u64 = 500;
    const WINDOW: u64 = 256;
    /// Each process's own pool.
    const POOL: u64 = 22;
    let crowd = Crowd::new(settings(), Options::default()).await;
    let ids: Vec<Uuid> = crowd.small(count()).await;
    let began = Instant::now();
    crowd.trash_all(&ids).await;
    eprintln!("{} trashed by the library: {:.1?}", ids.len(), began.elapsed());
    crowd.until_due().await;
    let mut rest = serve(&crowd.world, "relay,sweeper");
    rest.says("relay publishes").await;
    let amqp = Amqp::connect(&crowd.world).await;
    let began = Instant::now();
    let mut workers = [serve(&crowd.world, "worker"), serve(&crowd.world, "worker")];
    let peaks = Peaks::default();
    let limit = Duration::from_secs(120 + u64::from(count()) / 10);
    wait_until("all of them are purged", limit, async || {
        assert!(!rest.has_ended() && workers.iter_mut().all(|worker| !worker.has_ended()), "one has ended");
        peaks.look(&crowd, &amqp).await;
        crowd.purged().await >= ids.len() as i64
    })
    .await;
    let took = began.elapsed();
    let memory = [&rest, &workers[0], &workers[1]].map(Service::peak_rss);
    let cpu = [&rest, &workers[0], &workers[1]].map(|process| process.cpu_time().as_secs_f64());
    let per_second = ids.len() as f64 / took.as_secs_f64();
    let [of_rest, one, other] = memory.map(mib);
    eprintln!(
        "{} tombstones: {took:.1?}, {per_second:.0} a second; peak RSS: workers {one:.1} and {other:.1} MiB, relay with \
         sweeper {of_rest:.1} MiB; CPU {cpu:.1?} s; {} queued and {} connections at most",
        ids.len(),
        peaks.queued.get(),
        peaks.connections.get()
    );
    let objects = (0..ids.len() as u64).map(|number| number % 4).sum();
    crowd.all_are_gone(&ids, objects).await;
    assert!(memory.iter().all(|peak| *peak < BOUND), "{memory:?}");
    assert!(peaks.queued.get() <= MAX_QUEUED + WINDOW, "{} were queued", peaks.queued.get());
    assert!(peaks.connections.get() <= 3 * POOL, "{} connections", peaks.connections.get());
    crowd.table_sizes().await;
}
