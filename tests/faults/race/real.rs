//! The same race with real binaries that purge from a real S3 store.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reprieve::config::Config;
use reprieve::domain::tombstone::Provenance;
use reprieve::store::Store;
use reprieve::trash::{IfChildrenLost, TrashBin, TrashError, TrashRequest};
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

use super::SEED;
use super::actors::{Isolation, Use, uses};
use super::tally::{Outcome, Tally};
use crate::support::heimdall::Shape;
use crate::world::{Settings, World};

const DATASETS: usize = 30;
const ACTIVATORS: usize = 16;
const SHAPE: Shape = Shape { samples: 1, receivers: 4 };

struct Field {
    world: World,
    pool: sqlx::PgPool,
    bin: TrashBin,
    datasets: Vec<Uuid>,
    tally: Tally,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_guards_and_real_workers_no_committed_use_loses_its_dataset() {
    let seed = crate::environment::seed(SEED);
    println!("race, real: FAULTS_SEED={seed}");
    let world = World::new(Settings { batch_size: 2, ..Settings::default() }).await;
    let mut datasets = Vec::new();
    for n in 0..DATASETS {
        datasets.push(world.dataset(&format!("set {n}"), SHAPE).await.0);
    }
    let mut config = Config::load(std::slice::from_ref(&world.config)).expect("the world's own");
    config.database.max_connections = DATASETS as u32;
    let bin = TrashBin::new(Store::new(&config.database).expect("its URL is fine"), &config);
    let pool = PgPoolOptions::new().max_connections(ACTIVATORS as u32).connect(&world.database_url).await;
    let _workers = [world.serve(&[]), world.serve(&[])];
    let field = Field { world, pool: pool.expect("connects"), bin, datasets, tally: Tally::default() };
    let stream = |n: usize| StdRng::seed_from_u64(seed.wrapping_add(n as u64));
    let over = tokio_util::sync::CancellationToken::new();
    let lives = async {
        let each = field.datasets.iter().enumerate().map(|(n, id)| field.live_and_die(*id, stream(n)));
        futures_util::future::join_all(each).await;
        over.cancel();
    };
    let uses = (0..ACTIVATORS).map(|n| field.put_to_use(stream(1_000 + n), &over));
    tokio::join!(lives, futures_util::future::join_all(uses));

    let tally = &field.tally;
    println!("{tally}");
    assert_eq!(tally.violations(), Vec::<String>::new());
    for isolation in Isolation::ALL {
        assert!(
            tally.committed(isolation) >= 3 && tally.refused(isolation) >= 3,
            "both orders, {isolation:?}: {tally}"
        );
    }
    assert_eq!(field.world.objects_below("").await, 0, "all were purged in the end");
    let receipts = "select count(*) from reprieve.audit where event = 'purged'";
    let receipts: i64 = sqlx::query_scalar(receipts).fetch_one(&field.world.pool).await.expect("counted");
    assert_eq!(receipts, DATASETS as i64, "one receipt each");
}

impl Field {
    /// Trashes it, perhaps restores it, and in the end lets it be purged.
    async fn live_and_die(&self, id: Uuid, mut chance: StdRng) {
        let by = Provenance::parse("racer", "test", None).expect("a name");
        let resource = self.bin.resource("dataset", &id.to_string()).expect("of the map");
        let request = TrashRequest { resource: resource.clone(), with: Vec::new(), retention: None, by: by.clone() };
        tokio::time::sleep(Duration::from_millis(chance.random_range(500..5_000))).await;
        loop {
            tokio::time::sleep(Duration::from_millis(chance.random_range(20..200))).await;
            match self.bin.trash(&request).await {
                Ok(_) => self.tally.live(|lives| lives.trashed += 1),
                Err(TrashError::Refused { .. }) => {
                    self.tally.live(|lives| lives.trash_refused += 1);
                    continue;
                }
                // it waits for uses that are not committed yet
                Err(TrashError::Store(error)) if error.is_transient() => {
                    self.tally.live(|lives| lives.busy += 1);
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            if chance.random_bool(0.5) {
                // up to the end of the window, where the claim comes
                tokio::time::sleep(Duration::from_millis(chance.random_range(0..1_300))).await;
                match self.bin.restore(&resource, IfChildrenLost::Refuse, &by).await {
                    Ok(_) => {
                        self.tally.live(|lives| lives.restored += 1);
                        continue;
                    }
                    Err(TrashError::PastReturn { .. }) => {}
                    Err(TrashError::Store(error)) if error.is_transient() => self.tally.live(|lives| lives.busy += 1),
                    Err(error) => panic!("{error}"),
                }
            }
            self.world.until_state(id, "purged").await;
            self.tally.live(|lives| lives.purged += 1);
            return;
        }
    }

    async fn put_to_use(&self, mut chance: StdRng, over: &tokio_util::sync::CancellationToken) {
        while !over.is_cancelled() {
            let id = self.datasets[chance.random_range(0..DATASETS)];
            let isolation = Isolation::ALL[chance.random_range(0..3)];
            let way = Use::ALL[chance.random_range(0..4)];
            self.tally.begin(u64::MAX);
            match self.attempt(id, isolation, way, &mut chance).await {
                Some(outcome) => self.tally.end(isolation, way, outcome),
                None => self.tally.call_off(),
            }
        }
    }

    /// As in the larger race, with transactions that are often older than a whole restore window.
    async fn attempt(&self, id: Uuid, isolation: Isolation, way: Use, chance: &mut StdRng) -> Option<Outcome> {
        let row = Uuid::new_v4();
        if !way.prepare_row(&self.pool, row, id).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return None;
        }
        let mut tx = self.pool.begin_with(isolation.begin()).await.expect("begins");
        sqlx::query("select from heimdall.models limit 1").execute(&mut *tx).await.expect("takes its snapshot");
        let old = if chance.random_bool(0.3) { 2_500 } else { 100 };
        tokio::time::sleep(Duration::from_millis(chance.random_range(0..old))).await;
        let used = match uses(&mut tx, way.begin(row, id)).await {
            Ok(Some(_)) => tx.commit().await,
            Ok(None) => return Some(Outcome::Gone),
            Err(error) => Err(error),
        };
        if let Err(error) = used {
            return Some(Outcome::of(&error));
        }
        let began = Instant::now();
        tokio::time::sleep(Duration::from_millis(chance.random_range(0..200))).await;
        let (objects, rows) = (self.world.objects(id).await, self.world.rows(id).await);
        let mut tx = self.pool.begin_with(Isolation::ReadCommitted.begin()).await.expect("begins");
        let still = uses(&mut tx, way.end(row)).await.expect("ends a use");
        tx.commit().await.expect("commits");
        if still != Some(id) || objects != 4 || rows != 1 + 1 + 3 {
            let what = format!("{id} used for {:?}: {objects} objects, {rows} rows, {still:?}", began.elapsed());
            self.tally.violation(what);
        }
        Some(Outcome::Used)
    }
}
