//! A world with a known truth: what there is in the beginning, written down before anything can destroy it.
//!
//! Invariant: nothing here asks Reprieve. Rows and objects are put, counted and looked for by clients of the tests' own,
//! on connections that no fault touches.

use std::collections::BTreeSet;

use aws_sdk_s3::Client;
use reprieve::app::App;
use reprieve::config::Config;
use sqlx::PgPool;
use uuid::Uuid;

use super::dice::Dice;
use super::post::Ledger;
use super::settings::Settings;
use super::tally::Tally;
use crate::support::heimdall::{self, Dataset, Job, Model};
use crate::support::keys::{listed, nasty, siblings};
use crate::world::World;

/// Writes down each row of a dataset that is deleted, and when; with the transaction that deletes it.
const WITNESS: &str = "
create schema truth;
create table truth.gone (dataset uuid not null, at timestamptz not null default clock_timestamp(), what text not null);
create function truth.note() returns trigger language plpgsql security definer as $$
begin
    insert into truth.gone (dataset, what) values ((to_jsonb(old) ->> tg_argv[0])::uuid, tg_table_name);
    return old;
end $$;
create trigger witness after delete on heimdall.synthetic_datasets for each row execute function truth.note('id');
create trigger witness after delete on heimdall.synthetic_iq_samples for each row execute function truth.note('dataset_id');
create trigger witness after delete on heimdall.measurement_features for each row execute function truth.note('dataset_id');
";

/// A dataset as it was made.
#[derive(Debug)]
pub struct Known {
    pub id: Uuid,
    /// Its objects.
    pub keys: BTreeSet<String>,
    /// Objects that are not its own, and look as if they were.
    pub siblings: BTreeSet<String>,
    /// Rows, its own among them.
    pub rows: i64,
    /// Models that can use it.
    pub models: Vec<Uuid>,
}

/// Where the servers are, without a proxy in between.
pub struct Direct {
    pub database: String,
    pub broker: String,
}

/// Everything that acts shares it.
pub struct Land {
    pub settings: Settings,
    pub world: World,
    /// No proxy in between.
    pub pool: PgPool,
    /// No proxy in between.
    pub s3: Client,
    /// The library, on a connection of its own.
    pub app: App,
    pub datasets: Vec<Known>,
    pub jobs: Vec<Uuid>,
    pub tally: Tally,
    /// No proxy in between.
    pub broker_url: String,
    pub ledger: Ledger,
}

impl Land {
    /// Fills the world.
    pub async fn settle(settings: Settings, world: World, s3: Client, direct: Direct) -> Land {
        let pool = world.pool.clone();
        sqlx::raw_sql(WITNESS).execute(&pool).await.expect("a schema of our own");
        let text = std::fs::read_to_string(&world.config).expect("our own file");
        let text = text.replace(&world.database_url, &direct.database);
        let config = Config::load_isolated(&[world.write("operator.toml", &text)]).expect("the world's own");
        let app = App::new(config).await.expect("an address that was just used");
        let mut dice = Dice::of(settings.seed, "land");
        let mut jobs = Vec::new();
        for n in 0..settings.datasets.div_ceil(8) {
            jobs.push(Job::named(&format!("job {n}")).insert(&pool).await);
        }
        let mut datasets = Vec::new();
        for n in 0..settings.datasets {
            let job = dice.chance(40).then(|| *dice.pick(&jobs));
            datasets.push(found(&pool, &s3, &world.bucket, n, job, &mut dice).await);
        }
        let (tally, ledger) = (Tally::default(), Ledger::default());
        Land { settings, pool, s3, app, datasets, jobs, tally, broker_url: direct.broker, ledger, world }
    }

    /// The objects of a dataset that are there. `None`: the store cannot be asked.
    pub async fn objects_of(&self, id: Uuid) -> Option<BTreeSet<String>> {
        let mut keys = self.list(&format!("synthetic/{id}/")).await?;
        keys.extend(self.list(&format!("synthetic/dataset-{id}/")).await?);
        Some(keys)
    }

    /// Whether there is an object at this very key.
    pub async fn has(&self, key: &str) -> bool {
        self.s3.head_object().bucket(&self.world.bucket).key(key).send().await.is_ok()
    }

    /// Every key below a prefix. `None`: the store cannot be asked.
    pub async fn list(&self, prefix: &str) -> Option<BTreeSet<String>> {
        let mut keys = BTreeSet::new();
        let request = self.s3.list_objects_v2().bucket(&self.world.bucket).prefix(prefix);
        let mut pages = request.encoding_type(aws_sdk_s3::types::EncodingType::Url).into_paginator().send();
        while let Some(page) = pages.next().await {
            keys.extend(page.ok()?.contents().iter().filter_map(|object| Some(plain(object.key()?))));
        }
        Some(keys)
    }
}

/// A key as it was put: a listing shows it url-encoded.
fn plain(key: &str) -> String {
    percent_encoding::percent_decode_str(&key.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// How many objects: few, mostly, and each edge of a batch of 1000.
fn size(n: usize, dice: &mut Dice) -> u32 {
    match n {
        0 => 0,
        1 => 1,
        2 => 999,
        3 => 1000,
        4 => 1001,
        _ => *dice.weighted(&[(1, 0), (2, 1), (10, 12), (6, 50), (2, 180), (u32::from(n % 50 == 5), 3000)]),
    }
}

async fn found(pool: &PgPool, s3: &Client, bucket: &str, n: usize, job: Option<Uuid>, dice: &mut Dice) -> Known {
    const RECEIVERS: u32 = 4;
    let objects = size(n, dice);
    let samples = objects.min(40) / RECEIVERS;
    let features = dice.between(0, 5);
    let features = u32::try_from(features).expect("at most 5");
    let dataset =
        Dataset { samples, receivers: RECEIVERS, features, created_by: job, ..Dataset::iq_raw(&format!("set {n}")) };
    let id = dataset.insert(pool).await;
    let mut keys: Vec<String> = (0..objects).map(|at| heimdall::key(id, at / RECEIVERS, at % RECEIVERS)).collect();
    if n % 4 == 1 {
        keys.extend(nasty(&format!("synthetic/{id}/")));
    }
    if n % 9 == 2 {
        // the layout of old, and the key that is its whole prefix
        keys.push(format!("synthetic/dataset-{id}/0.npy"));
        keys.push(format!("synthetic/dataset-{id}/"));
    }
    let mut siblings = siblings(&format!("synthetic/{id}/"));
    if n % 4 != 1 {
        siblings.truncate(3);
    }
    let (put, beside) = (keys.len(), siblings.len());
    // directories last: SeaweedFS forgets one that is put while the first file below it is
    let (directories, files): (Vec<String>, Vec<String>) = keys.into_iter().partition(|key| key.ends_with('/'));
    heimdall::put_keys(s3, bucket, files).await;
    heimdall::put_keys(s3, bucket, directories).await;
    heimdall::put_keys(s3, bucket, siblings).await;
    // as the store spells them, which makes one slash of two
    let mut siblings = listed(s3, bucket, &format!("synthetic/{id}")).await;
    let mut keys: BTreeSet<String> = listed(s3, bucket, &format!("synthetic/dataset-{id}/")).await;
    keys.extend(siblings.extract_if(.., |key| key.starts_with(&format!("synthetic/{id}/"))));
    assert_eq!((keys.len(), siblings.len()), (put, beside), "each key that was put is there by itself");
    let mut models = Vec::new();
    for version in 0..dice.below(3) {
        let name = format!("model of set {n}");
        let version = i32::try_from(version).expect("below 3");
        models.push(Model { version, datasets: vec![id], ..Model::named(&name) }.insert(pool).await);
    }
    let rows = i64::from(1 + samples + features);
    Known { id, keys, siblings, rows, models }
}
