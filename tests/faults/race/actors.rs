//! Who races: datasets that are trashed, restored and purged, and platform transactions that put them to use.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use reprieve::domain::ids::TombstoneId;
use reprieve::objects::ObjectStore;
use reprieve::purge::SliceEnd;
use reprieve::trash::TrashError;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use super::tally::{Outcome, Tally};
use crate::bench::{BUCKET, Bench, budget};

/// Objects of each dataset.
const OBJECTS: u32 = 3;

/// How the platform's transactions are isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Isolation {
    pub const ALL: [Self; 3] = [Self::ReadCommitted, Self::RepeatableRead, Self::Serializable];

    pub fn begin(self) -> &'static str {
        match self {
            Self::ReadCommitted => "begin isolation level read committed",
            Self::RepeatableRead => "begin isolation level repeatable read",
            Self::Serializable => "begin isolation level serializable",
        }
    }
}

/// How the platform puts a dataset to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    ActivateModel,
    InsertActiveModel,
    StartJob,
    InsertRunningJob,
}

impl Use {
    pub const ALL: [Self; 4] = [Self::ActivateModel, Self::InsertActiveModel, Self::StartJob, Self::InsertRunningJob];

    /// The idle row, for those that are put to use by an update.
    fn prepare(self) -> Option<&'static str> {
        match self {
            Self::ActivateModel => Some(
                "insert into heimdall.models (id, model_name, synthetic_dataset_id) values ('{row}', '{row}', '{dataset}')",
            ),
            Self::StartJob => Some(
                "insert into heimdall.training_jobs (id, job_name, status, config, total_epochs, dataset_id)
                 values ('{row}', '{row}', 'completed', '{}', 1, '{dataset}')",
            ),
            Self::InsertActiveModel | Self::InsertRunningJob => None,
        }
    }

    /// The statement that puts a dataset to use; it gives back what it uses.
    fn begins(self) -> &'static str {
        match self {
            Self::ActivateModel => {
                "update heimdall.models set is_active = true where id = '{row}' returning synthetic_dataset_id"
            }
            Self::InsertActiveModel => {
                "insert into heimdall.models (id, model_name, synthetic_dataset_id, is_active)
                 values ('{row}', '{row}', '{dataset}', true) returning synthetic_dataset_id"
            }
            Self::StartJob => {
                "update heimdall.training_jobs set status = 'running' where id = '{row}' returning dataset_id"
            }
            Self::InsertRunningJob => {
                "insert into heimdall.training_jobs (id, job_name, status, config, total_epochs, dataset_id)
                 values ('{row}', '{row}', 'running', '{}', 1, '{dataset}') returning dataset_id"
            }
        }
    }

    /// The statement that ends the use; it gives back what was used to the end.
    fn ends(self) -> &'static str {
        match self {
            Self::ActivateModel | Self::InsertActiveModel => {
                "update heimdall.models set is_active = false where id = '{row}' returning synthetic_dataset_id"
            }
            Self::StartJob | Self::InsertRunningJob => {
                "update heimdall.training_jobs set status = 'completed' where id = '{row}' returning dataset_id"
            }
        }
    }

    /// Writes the idle row, where it needs one. `false`: the dataset is gone.
    pub async fn prepare_row(self, pool: &PgPool, row: Uuid, dataset: Uuid) -> bool {
        let Some(sql) = self.prepare() else { return true };
        sqlx::query(AssertSqlSafe(filled(sql, row, dataset))).execute(pool).await.is_ok()
    }

    pub fn begin(self, row: Uuid, dataset: Uuid) -> String {
        filled(self.begins(), row, dataset)
    }

    pub fn end(self, row: Uuid) -> String {
        filled(self.ends(), row, Uuid::nil())
    }
}

fn filled(sql: &str, row: Uuid, dataset: Uuid) -> String {
    sql.replace("{row}", &row.to_string()).replace("{dataset}", &dataset.to_string())
}

/// One dataset, and when it was, or may have been, in the trash.
#[derive(Debug)]
pub struct Life {
    id: Uuid,
    /// Each from before it was trashed until after it was restored or purged; the last may be open.
    trashed: Mutex<Vec<(Instant, Option<Instant>)>>,
}

impl Life {
    /// Whether a tombstone may have been open between these instants.
    fn was_in_the_trash(&self, from: Instant, to: Instant) -> bool {
        let trashed = self.trashed.lock().expect("no panic");
        trashed.iter().any(|(began, ended)| *began <= to && ended.is_none_or(|ended| ended >= from))
    }

    fn trash_begins(&self) {
        self.trashed.lock().expect("no panic").push((Instant::now(), None));
    }

    fn trash_refused(&self) {
        self.trashed.lock().expect("no panic").pop();
    }

    fn trash_ends(&self) {
        self.trashed.lock().expect("no panic").last_mut().expect("it was trashed").1 = Some(Instant::now());
    }
}

pub struct Arena {
    bench: Bench,
    /// The platform's own connections.
    pool: PgPool,
    attempts: u64,
    slots: Vec<Mutex<Arc<Life>>>,
    pub tally: Tally,
}

impl Arena {
    pub async fn new(bench: Bench, pool: PgPool, attempts: u64, slots: usize) -> Arena {
        let mut lives = Vec::new();
        for _ in 0..slots {
            lives.push(Mutex::new(born(&bench).await));
        }
        Arena { bench, pool, attempts, slots: lives, tally: Tally::default() }
    }

    fn is_over(&self) -> bool {
        self.tally.attempts() >= self.attempts
    }

    fn life(&self, slot: usize) -> Arc<Life> {
        self.slots[slot].lock().expect("no panic").clone()
    }

    /// Trashes the slot's dataset again and again; restores it, or purges it, or both at once.
    pub async fn live_and_die(&self, slot: usize, mut chance: StdRng) {
        while !self.is_over() {
            let life = self.life(slot);
            tokio::time::sleep(Duration::from_millis(chance.random_range(10..90))).await;
            let Some(tombstone) = self.trash(&life).await else { continue };
            pause(&mut chance, 4).await;
            let purged = match chance.random_range(0..3) {
                0 => self.restore(&life).await,
                1 => self.purge(&life, tombstone).await,
                _ => {
                    let (restored, purged) = tokio::join!(self.restore(&life), self.purge(&life, tombstone));
                    restored || purged
                }
            };
            if purged {
                let next = born(&self.bench).await;
                *self.slots[slot].lock().expect("no panic") = next;
            }
        }
    }

    async fn trash(&self, life: &Life) -> Option<TombstoneId> {
        life.trash_begins();
        match self.bench.try_trash("dataset", life.id).await {
            Ok(trashed) => {
                self.tally.live(|lives| lives.trashed += 1);
                self.bench.make_due(trashed.tombstone.id).await;
                Some(trashed.tombstone.id)
            }
            Err(TrashError::Refused { .. }) => {
                life.trash_refused();
                self.tally.live(|lives| lives.trash_refused += 1);
                None
            }
            Err(TrashError::Store(error)) if error.is_transient() => {
                life.trash_refused();
                self.tally.live(|lives| lives.busy += 1);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// `true`: it is purged. It may have to be tried again, for one that is open would be trashed no more.
    async fn restore(&self, life: &Life) -> bool {
        loop {
            match self.bench.try_restore("dataset", life.id).await {
                Ok(_) => {
                    life.trash_ends();
                    self.tally.live(|lives| lives.restored += 1);
                    return false;
                }
                Err(TrashError::PastReturn { .. }) => return true,
                Err(TrashError::Store(error)) if error.is_transient() => self.tally.live(|lives| lives.busy += 1),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// `true`: it is purged.
    async fn purge(&self, life: &Life, tombstone: TombstoneId) -> bool {
        let purger = self.bench.purger();
        loop {
            match purger.run_slice(tombstone, &budget()).await {
                Ok(SliceEnd::Purged) => {
                    life.trash_ends();
                    self.tally.live(|lives| lives.purged += 1);
                    return true;
                }
                Ok(SliceEnd::Blocked(_)) => {
                    self.tally.live(|lives| lives.blocked += 1);
                    return self.restore(life).await;
                }
                Ok(SliceEnd::Nothing(_)) => return false,
                Ok(SliceEnd::Failed(_)) | Err(_) => {
                    self.tally.live(|lives| lives.busy += 1);
                    self.bench.make_due(tombstone).await;
                }
                Ok(end) => panic!("{end:?}"),
            }
        }
    }

    /// Puts datasets to use, one after the other, and looks at each at the end of the use.
    pub async fn put_to_use(&self, mut chance: StdRng) {
        while self.tally.begin(self.attempts) {
            let life = self.life(chance.random_range(0..self.slots.len()));
            let isolation = Isolation::ALL[chance.random_range(0..3)];
            let way = Use::ALL[chance.random_range(0..4)];
            match self.attempt(&life, isolation, way, &mut chance).await {
                Some(outcome) => self.tally.end(isolation, way, outcome),
                None => self.tally.call_off(),
            }
        }
    }

    /// `None`: the dataset was gone before there was anything to attempt.
    async fn attempt(&self, life: &Life, isolation: Isolation, way: Use, chance: &mut StdRng) -> Option<Outcome> {
        let row = Uuid::new_v4();
        if !way.prepare_row(&self.pool, row, life.id).await {
            return None;
        }
        let began = Instant::now();
        let mut tx = self.pool.begin_with(isolation.begin()).await.expect("begins");
        if chance.random_bool(0.7) {
            sqlx::query("select from heimdall.models limit 1").execute(&mut *tx).await.expect("takes its snapshot");
            pause(chance, 15).await;
        }
        let used = uses(&mut tx, way.begin(row, life.id)).await;
        let committed = match used {
            Ok(Some(_)) => {
                pause(chance, 3).await;
                tx.commit().await
            }
            // the purge has set the column to null, so this uses nothing
            Ok(None) => return Some(Outcome::Gone),
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            return Some(self.refused(life, began, &error));
        }
        pause(chance, 5).await;
        self.end_of_use(life, way.end(row)).await;
        Some(Outcome::Used)
    }

    /// Why an attempt was refused, which must be true.
    fn refused(&self, life: &Life, began: Instant, error: &sqlx::Error) -> Outcome {
        let outcome = Outcome::of(error);
        if outcome == Outcome::InTheTrash && !life.was_in_the_trash(began, Instant::now()) {
            self.tally.violation(format!("{} was refused and was not in the trash: {error}", life.id));
        }
        outcome
    }

    /// Nothing may be missing at the end of a use.
    async fn end_of_use(&self, life: &Life, sql: String) {
        let mut tx = self.pool.begin_with(Isolation::ReadCommitted.begin()).await.expect("begins");
        let used = uses(&mut tx, sql).await.expect("ends a use");
        let sql = "select (select count(*) from heimdall.synthetic_datasets where id = $1),
                          coalesce((select string_agg(state, ',') from reprieve.tombstones
                               where resource_id = $1::text and state not in ('restored')), '')";
        let (rows, state): (i64, String) =
            sqlx::query_as(sql).bind(life.id).fetch_one(&mut *tx).await.expect("the database answers");
        let objects = self.objects(life.id).await;
        tx.commit().await.expect("commits");
        // without a guard it may be trashed under a use that its references do not know; here nothing may
        if used != Some(life.id) || rows != 1 || objects != OBJECTS as usize || !state.is_empty() {
            let what = format!("{} in use: row {rows}, objects {objects}, used {used:?}, tombstone {state:?}", life.id);
            self.tally.violation(what);
        }
    }

    async fn objects(&self, dataset: Uuid) -> usize {
        let page = self.bench.objects.memory().list(BUCKET, &format!("synthetic/{dataset}/"), None).await;
        page.expect("the bucket is there").entries.len()
    }

    /// After the end: what is purged is gone, and what is not is there, rows and objects alike.
    pub async fn everything_is_as_it_says(&self) {
        let sql = "select d.id is not null, t.resource_id::uuid, t.states from
                       (select resource_id, array_agg(state order by trashed_at, id) as states
                        from reprieve.tombstones group by resource_id) t
                   left join heimdall.synthetic_datasets d on d.id::text = t.resource_id";
        let all: Vec<(bool, Uuid, Vec<String>)> =
            sqlx::query_as(sql).fetch_all(&self.bench.pool).await.expect("the database answers");
        assert!(!all.is_empty());
        for (exists, id, states) in all {
            let purged = states.iter().filter(|state| *state == "purged").count();
            let objects = self.objects(id).await;
            let fits = if exists { purged == 0 && objects == OBJECTS as usize } else { purged == 1 && objects == 0 };
            if !fits || states.iter().any(|state| matches!(state.as_str(), "purging" | "stuck")) {
                self.tally.violation(format!("{id}: row {exists}, objects {objects}, {states:?}"));
            }
        }
        let receipts = self.bench.count("reprieve.audit where event = 'purged'").await;
        assert_eq!(receipts, i64::try_from(self.tally.lives().purged).expect("some thousand"), "one receipt each");
        let trials = self.bench.count("reprieve.tombstones where actor = 'guard'").await;
        assert_eq!(trials, 0, "a guard's trial leaves nothing behind");
    }
}

/// Runs one statement that gives back a dataset's id.
pub async fn uses(conn: &mut PgConnection, sql: String) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(conn).await
}

async fn born(bench: &Bench) -> Arc<Life> {
    let id = bench.dataset(&Uuid::new_v4().to_string(), OBJECTS).await;
    Arc::new(Life { id, trashed: Mutex::default() })
}

/// Up to so many milliseconds, and often none: this is chance, not a wait for anything.
async fn pause(chance: &mut StdRng, most: u64) {
    if chance.random_bool(0.6) {
        tokio::time::sleep(Duration::from_micros(chance.random_range(0..most * 1_000))).await;
    }
}
