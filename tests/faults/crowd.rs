//! Many datasets on a synthetic store: made, trashed and counted by the thousand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use reprieve::app::App;
use reprieve::config::Config;
use reprieve::domain::tombstone::Provenance;
use reprieve::trash::TrashRequest;
use uuid::Uuid;

use crate::support::synthetic_s3::{Options, Rule, SyntheticS3};
use crate::support::{heimdall, rabbitmq, wait_until};
use crate::world::{Places, Settings, World};

/// How many tombstones, and how many hundreds of objects, the tests with many of them take: what a short run has time
/// for, or `FAULTS_COUNT` if that is more.
pub fn count() -> u32 {
    crate::environment::count(1_000).try_into().expect("no test could take that many")
}

/// Trashes in flight.
const AT_ONCE: usize = 8;

/// A world whose store is synthetic.
pub struct Crowd {
    pub world: World,
    pub s3: SyntheticS3,
    sibling: String,
}

/// Objects of a dataset that nobody trashes; they have to be there in the end.
const SIBLING: u64 = 100;

impl Crowd {
    pub async fn new(settings: Settings, options: Options) -> Crowd {
        let s3 = SyntheticS3::start(options);
        let ((pool, database_url), broker) = tokio::join!(heimdall::fresh(), rabbitmq::shared());
        let places = Places { pool, database_url, s3_endpoint: s3.endpoint(), amqp_url: broker.amqp_url() };
        let world = World::unmigrated(places, settings).await;
        world.cli(&["migrate", "--guards"]).await.with(0);
        let sibling = format!("synthetic/{}/", Uuid::new_v4());
        s3.add(&world.bucket, Rule::new(&sibling, SIBLING));
        Crowd { world, s3, sibling }
    }

    /// A dataset with this many objects; below a prefix that begins like its own lie somebody else's.
    pub async fn giant(&self, name: &str, objects: u64, rows: u32) -> Uuid {
        let dataset = heimdall::Dataset { samples: rows, ..heimdall::Dataset::iq_raw(name) };
        let id = dataset.insert(&self.world.pool).await;
        self.s3.add(&self.world.bucket, Rule::new(format!("synthetic/{id}/"), objects));
        self.s3.add(&self.world.bucket, Rule::new(format!("synthetic/{id}-copy/"), SIBLING));
        id
    }

    /// Datasets with none to three objects each.
    pub async fn small(&self, datasets: u32) -> Vec<Uuid> {
        let ids: Vec<Uuid> = (0..datasets).map(|_| Uuid::new_v4()).collect();
        sqlx::query(
            "insert into heimdall.synthetic_datasets (id, name, num_samples, config, dataset_type)
             select id, 'small ' || id, 0, '{}', 'iq_raw' from unnest($1::uuid[]) as id",
        )
        .bind(&ids)
        .execute(&self.world.pool)
        .await
        .expect("datasets");
        for (number, id) in (0_u64..).zip(&ids) {
            self.s3.add(&self.world.bucket, Rule::new(format!("synthetic/{id}/"), number % 4));
        }
        ids
    }

    /// Trashes them as a service of the platform would that has the library, a few at a time.
    pub async fn trash_all(&self, ids: &[Uuid]) {
        let config = Config::load_isolated(std::slice::from_ref(&self.world.config)).expect("our own configuration");
        let bin = App::new(config).await.expect("a URL of our own").trash;
        stream::iter(ids)
            .for_each_concurrent(AT_ONCE, async |id| {
                let by = Provenance::parse("crowd", "test", None).expect("a name");
                let resource = bin.resource("dataset", &id.to_string()).expect("a kind of the map");
                let request = TrashRequest { resource, with: Vec::new(), retention: None, by };
                bin.trash(&request).await.expect("nothing uses it");
            })
            .await;
        bin.store().close().await;
    }

    /// Waits until the windows of all that is in the trash are over.
    pub async fn until_due(&self) {
        let early = "select count(*) from reprieve.tombstones where purge_after > now()";
        wait_until("all of them are due", crate::support::SOON, async || self.number(early).await == 0).await;
    }

    pub async fn number(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.world.pool).await.expect("counted")
    }

    pub async fn purged(&self) -> i64 {
        self.number("select count(*) from reprieve.tombstones where state = 'purged'").await
    }

    /// Prints how large our tables have become, and how many of their updates left the indexes alone.
    pub async fn table_sizes(&self) {
        let sizes: Vec<(String, i64, i64, i64, i64, i64)> = sqlx::query_as(
            "select relname::text, n_live_tup, pg_table_size(relid), pg_indexes_size(relid), n_tup_upd, n_tup_hot_upd
             from pg_stat_user_tables where schemaname = 'reprieve' order by 3 desc limit 3",
        )
        .fetch_all(&self.world.pool)
        .await
        .expect("read");
        for (table, rows, heap, indexes, updates, hot) in sizes {
            eprintln!(
                "{table}: {rows} rows, {} KiB and {} KiB of indexes, {updates} updates, {hot} of them HOT",
                heap / 1024,
                indexes / 1024
            );
        }
    }

    /// Holds the end against what there was: every one of them is purged with one receipt, nothing of them is left, and
    /// nobody asked for anything else to be deleted.
    pub async fn all_are_gone(&self, ids: &[Uuid], objects: u64) {
        assert!(self.world.is_quiet(Duration::from_secs(60)).await, "something is left to do");
        let n = ids.len() as i64;
        assert_eq!(self.purged().await, n);
        let receipts = "select count(*) from reprieve.audit where event = 'purged'";
        assert_eq!(self.number(receipts).await, n, "one receipt each");
        let resources = "select count(distinct resource_id) from reprieve.audit where event = 'purged'";
        assert_eq!(self.number(resources).await, n, "one receipt each");
        let deleted =
            "select sum((details #>> '{objects,deleted}')::bigint + (details #>> '{objects,absent}')::bigint)::bigint
                       from reprieve.audit where event = 'purged'";
        assert_eq!(self.number(deleted).await, objects as i64, "the receipts");
        assert_eq!(self.number("select count(*) from heimdall.synthetic_datasets").await, 0, "rows are left");
        assert_eq!(self.s3.left(&self.world.bucket, &self.sibling), SIBLING, "the sibling");
        let left: u64 = ids.iter().map(|id| self.s3.left(&self.world.bucket, &format!("synthetic/{id}/"))).sum();
        assert_eq!(left, 0, "objects are left");
        let counts = self.s3.counts();
        assert_eq!(counts.deleted_keys.load(Ordering::Relaxed), objects);
        assert!(counts.strangers.lock().expect("no panic").is_empty(), "{:?}", counts.strangers);
    }
}

/// The highest value that was seen.
#[derive(Debug, Default)]
pub struct Peak(AtomicU64);

impl Peak {
    pub fn saw(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
