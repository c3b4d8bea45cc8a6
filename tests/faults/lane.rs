//! A world in which processes die: services and commands that end at a fail point, and the end that all of it must
//! come to.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;

use reprieve::config::Config;
use reprieve::domain::ids::ResourceRef;
use reprieve::domain::retention::Retention;
use reprieve::domain::tombstone::Provenance;
use reprieve::store::Store;
use reprieve::trash::{TrashBin, TrashRequest};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::process::Service;
use crate::support::heimdall::{self, Shape};
use crate::support::wait_until;
use crate::world::{PURGED, Settings, World};

/// SIGABRT, as the fail points end a process.
const ABORTED: i32 = 6;

/// Three batches below the first prefix, with [`settings`].
const SHAPE: Shape = Shape { samples: 12, receivers: 1 };

/// Two batches below the second prefix.
const OLDER_LAYOUT: usize = 6;

/// Objects that are named one by one and are its alone.
const ATTACHED: u32 = 7;

/// What the map says of them.
const NAMED: &str = "[[resource.objects]]
store = \"main\"
bucket = \"BUCKET\"
keys = \"select key from heimdall.attachments where dataset_id = $1\"
named_by = \"select key, dataset_id from heimdall.attachments where key = any($1)\"
";

/// The dataset, its samples, its features.
const ROWS: i64 = 1 + 12 + 3;

/// Small batches, and leases that run out soon.
fn settings() -> Settings {
    Settings { lease: "1s", batch_size: 5, redeliver_after: "2s", ..Settings::default() }
}

/// Short chunks, so that there is more than one; a relay that dies keeps nobody waiting.
const ALWAYS: [(&str, &str); 2] = [("REPRIEVE__PURGE__ROW_CHUNK", "5"), ("REPRIEVE__RELAY__LEASE", "1s")];

/// A dataset and what must become of it.
#[derive(Debug, Clone, Copy)]
pub struct Doomed {
    pub id: Uuid,
    /// Objects below its prefixes.
    pub put: i64,
    pub rows: i64,
}

pub struct Lane {
    pub world: World,
    pub bin: TrashBin,
    pub amqp: Amqp,
    /// A dataset that nobody trashes.
    pub bystander: Doomed,
    /// Every event of the datasets.
    events: String,
    /// What came out of it: by tombstone and event, the ids of the messages.
    told: BTreeMap<(String, String), BTreeSet<String>>,
}

impl Lane {
    pub async fn new() -> Lane {
        let world = World::new(settings()).await;
        let map = world.config.with_file_name("map.toml");
        let text = std::fs::read_to_string(&map).expect("the world's map");
        let named = NAMED.replace("BUCKET", &world.bucket);
        let text = text.replacen("[[resource.objects]]", &format!("{named}[[resource.objects]]"), 1);
        std::fs::write(&map, text).expect("our own directory");
        sqlx::raw_sql("create table heimdall.attachments (dataset_id uuid, key text)")
            .execute(&world.pool)
            .await
            .expect("a new table");
        // the queues, before anything is published
        let mut first = world.serve(&[]);
        let amqp = Amqp::beside(&world, &first).await;
        let events = amqp.listen(".events", "dataset.*").await;
        first.kill9();
        let config = Config::load(std::slice::from_ref(&world.config)).unwrap_or_else(|error| panic!("{error}"));
        let bin = TrashBin::new(Store::new(&config.database).expect("a URL"), &config);
        let bystander = dataset(&world).await;
        Lane { world, bin, amqp, bystander, events, told: BTreeMap::new() }
    }

    /// A dataset in both layouts, with an object beside its prefix.
    pub async fn dataset(&self) -> Doomed {
        dataset(&self.world).await
    }

    /// The same with two batches of objects that are named one by one, and one that the bystander names as well.
    pub async fn with_attachments(&self) -> Doomed {
        let Doomed { id, put, rows } = self.dataset().await;
        let keys: Vec<String> = (0..=ATTACHED).map(|n| format!("attached/{id}/{n}")).collect();
        let named = |of: Uuid, keys: &[String]| {
            let values: Vec<String> = keys.iter().map(|key| format!("('{of}', '{key}')")).collect();
            format!("insert into heimdall.attachments values {}", values.join(", "))
        };
        self.run(&named(id, &keys)).await;
        self.run(&named(self.bystander.id, &keys[2..3])).await;
        heimdall::put_keys(&self.world.s3, &self.world.bucket, keys).await;
        Doomed { id, put: put + i64::from(ATTACHED), rows }
    }

    /// What is left of them.
    pub async fn attachments(&self, of: Doomed) -> i64 {
        self.world.objects_below(&format!("attached/{}/", of.id)).await
    }

    /// The same with an object that a store which lists by path shows after others that it comes before.
    pub async fn unsorted(&self) -> Doomed {
        let Doomed { id, put, rows } = self.dataset().await;
        heimdall::put_keys(&self.world.s3, &self.world.bucket, vec![format!("synthetic/{id}/1-x.npy")]).await;
        Doomed { id, put: put + 1, rows }
    }

    pub fn resource(&self, of: Doomed) -> ResourceRef {
        self.bin.resource("dataset", &of.id.to_string()).expect("a kind of the map")
    }

    pub async fn trash(&self, of: Doomed, window: Option<&str>) {
        let retention = window.map(|window| Retention::parse(window).expect("a window"));
        let request = TrashRequest { resource: self.resource(of), with: Vec::new(), retention, by: tester() };
        self.bin.trash(&request).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Trashes it, and lets its window pass.
    pub async fn trash_due(&self, of: Doomed) {
        self.trash(of, None).await;
        let id = of.id;
        self.run(&format!(
            "update reprieve.tombstones set trashed_at = now() - interval '2 minutes',
                 purge_after = now() - interval '1 minute', next_attempt_at = now() - interval '1 minute'
             where resource_id = '{id}';
             update reprieve.outbox set available_at = now() - interval '1 minute' where topic = 'purge' and tombstone_id =
                 (select id from reprieve.tombstones where resource_id = '{id}')"
        ))
        .await;
    }

    /// Statements of the test's own.
    pub async fn run(&self, sql: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.world.pool).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub async fn count(&self, from: &str) -> i64 {
        let sql = AssertSqlSafe(format!("select count(*) from {from}"));
        sqlx::query_scalar(sql).fetch_one(&self.world.pool).await.unwrap_or_else(|error| panic!("{from}: {error}"))
    }

    /// A service without fail points.
    pub fn serve(&self, env: &[(&str, &str)]) -> Service {
        self.world.serve_with(&[], &[&ALWAYS, env].concat())
    }

    /// A service that dies there.
    pub fn doomed_service(&self, failpoints: &str, env: &[(&str, &str)]) -> Service {
        self.serve(&[&[("FAILPOINTS", failpoints)], env].concat())
    }

    /// A service with these fail points, which must die, and at that point.
    pub async fn a_service_dies_at(&self, point: &str, failpoints: &str, env: &[(&str, &str)]) {
        died_at(&mut self.doomed_service(failpoints, env), point).await;
    }

    /// The same of a command.
    pub async fn a_command_dies_at(&self, point: &str, args: &[&str]) {
        let mut command = self.world.command(args);
        command.env("FAILPOINTS", format!("{point}=return"));
        died_at(&mut self.world.spawn(command), point).await;
    }

    /// Waits for the end of the purge, and holds it against what there was.
    pub async fn is_purged(&mut self, of: Doomed) {
        let Doomed { id, put, rows } = of;
        self.world.until_state(id, "purged").await;
        assert_eq!((self.objects(of).await, self.world.rows(id).await), (0, 0), "left of {id}");
        let receipts: Vec<Value> =
            sqlx::query_scalar("select details from reprieve.audit where event = 'purged' and resource_id = $1")
                .bind(id.to_string())
                .fetch_all(&self.world.pool)
                .await
                .expect("reads");
        let [receipt] = &receipts[..] else { panic!("one receipt: {receipts:#?}") };
        let n = |pointer: &str| receipt.pointer(pointer).and_then(Value::as_i64).expect("a number");
        assert_eq!(n("/objects/listed"), put, "{receipt:#}");
        assert_eq!(n("/objects/deleted") + n("/objects/absent"), put, "{receipt:#}");
        assert_eq!((n("/objects/failed"), n("/objects/unknown")), (0, 0), "{receipt:#}");
        assert_eq!((n("/rows_deleted"), &receipt["row_deleted"]), (rows, &Value::Bool(true)), "{receipt:#}");
        assert_eq!(self.uploads(of).await, 0, "unfinished uploads left of {id}");
        // those that a process aborted right before it died are in no figure
        assert!(n("/uploads_aborted") <= 2, "{receipt:#}");
        let begun = format!("reprieve.audit where event = 'purge_begun' and resource_id = '{id}'");
        assert_eq!(self.count(&begun).await, 1, "one point of no return");
        self.is_told_once(of, "purge_begun").await;
        self.is_told_once(of, "purged").await;
        assert_eq!(self.world.objects_below(&beside(id)).await, 1, "the object beside its prefix is not its own");
        self.bystander_is_whole().await;
    }

    /// Waits until nothing is under way, and then that the event has gone out, as one message, however often.
    pub async fn is_told_once(&mut self, of: Doomed, event: &str) {
        let nothing = "reprieve.outbox where topic <> 'purge'";
        wait_until("every event is sent", PURGED, async || self.count(nothing).await == 0).await;
        while let Some(taken) = self.amqp.try_take(&self.events).await {
            let text = |field: &str| taken.json()[field].as_str().expect("text").to_owned();
            let key = (text("id"), text("event"));
            self.told.entry(key).or_default().insert(taken.message_id.clone().expect("an id"));
        }
        let told = self.told.get(&(of.id.to_string(), event.to_owned())).map_or(0, BTreeSet::len);
        assert_eq!(told, 1, "{event} of {}", of.id);
    }

    pub async fn objects(&self, of: Doomed) -> i64 {
        let older = format!("synthetic/dataset-{}/", of.id);
        self.world.objects(of.id).await + self.world.objects_below(&older).await
    }

    /// Its unfinished uploads.
    async fn uploads(&self, of: Doomed) -> usize {
        let listed = self.world.s3.list_multipart_uploads().bucket(&self.world.bucket).send().await.expect("listed");
        let ours = upload_keys(of.id);
        listed.uploads().iter().filter(|upload| ours.iter().any(|key| upload.key() == Some(key))).count()
    }

    pub async fn bystander_is_whole(&self) {
        assert_eq!(self.uploads(self.bystander).await, 2);
        self.is_whole(self.bystander).await;
    }

    /// It has lost nothing.
    pub async fn is_whole(&self, of: Doomed) {
        assert_eq!((self.objects(of).await, self.world.rows(of.id).await), (of.put, of.rows), "{}", of.id);
    }

    /// Nothing is to be done or sent, and nobody holds a lease; the queues are empty when the service has ended.
    pub async fn is_quiet(&self, mut service: Service) {
        // from here on it heeds a signal
        service.says("serving").await;
        assert!(self.world.is_quiet(PURGED).await, "tasks or messages are left over");
        assert_eq!(self.count("reprieve.tombstones where num_nonnulls(lease_owner, lease_until) > 0").await, 0);
        let depths = async || {
            let amqp = &self.amqp;
            (amqp.depth("purge").await, amqp.depth("requests").await)
        };
        wait_until("the queues are empty", PURGED, async || depths().await == (0, 0)).await;
        let status = service.terminate(PURGED).await;
        assert!(status.success(), "{status}");
        // what was handed out and not answered would be back
        assert_eq!((depths().await, self.amqp.depth("dead").await), ((0, 0), 0));
    }
}

async fn dataset(world: &World) -> Doomed {
    let (id, put) = world.dataset(&Uuid::new_v4().to_string(), SHAPE).await;
    for key in upload_keys(id) {
        world.s3.create_multipart_upload().bucket(&world.bucket).key(key).send().await.expect("begun");
    }
    let older = (0..OLDER_LAYOUT).map(|n| format!("synthetic/dataset-{id}/{n}.npy"));
    let keys = older.chain([format!("{}1.npy", beside(id))]).collect();
    heimdall::put_keys(&world.s3, &world.bucket, keys).await;
    Doomed { id, put: put + i64::try_from(OLDER_LAYOUT).expect("few"), rows: ROWS }
}

/// One below each of a dataset's prefixes.
fn upload_keys(id: Uuid) -> [String; 2] {
    [format!("synthetic/{id}/big.npy"), format!("synthetic/dataset-{id}/big.npy")]
}

/// A prefix that begins like the dataset's own.
fn beside(id: Uuid) -> String {
    format!("synthetic/{id}-2/")
}

pub async fn died_at(process: &mut Service, point: &str) {
    let status = process.end(PURGED).await;
    assert_eq!(status.signal(), Some(ABORTED), "{point}: {status}\n{}", process.log());
    let last_words = format!("fail point {point}: the process dies here");
    assert!(process.log().contains(&last_words), "{}", process.log());
}

pub fn tester() -> Provenance {
    Provenance::parse("tester", "test", None).expect("a name")
}
