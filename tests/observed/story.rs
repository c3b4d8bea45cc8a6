//! A platform in trouble, as an operator would see it: datasets are trashed by HTTP, message and command, refused,
//! restored, held, purged from a store that throttles and fails, blocked, stuck; and somebody sends nonsense.
//!
//! Three processes: one with every role but the worker, two workers whose metrics are at `service.listen`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use lapin::BasicProperties;
use reprieve::embedded::keeper::free_port;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::process::Service;
use crate::support::heimdall::{self, Dataset, Job, Model};
use crate::support::synthetic_s3::{Faults, Options, Rule, SyntheticS3};
use crate::support::{SOON, rabbitmq, wait_until};
use crate::web::Web;
use crate::world::{PURGED, Places, Settings, World};

/// What the store grants. The largest dataset takes minutes at this rate, so there is a middle to look at.
const KEYS_A_SECOND: u32 = 2_000;

/// The platform's recordings have 1.5 MB each.
const OBJECT_BYTES: u64 = 1_500_000;

/// Below the prefix of the dataset that is being purged while everything is looked at.
const GIANT: u64 = 400_000;

pub struct Story {
    // before the world with their logs
    services: Vec<Service>,
    pub world: World,
    pub s3: SyntheticS3,
    amqp: Amqp,
    web: Web,
    api: u16,
    workers: [u16; 2],
    named: std::sync::atomic::AtomicU32,
}

/// A dataset that stays in the trash, in a state that somebody has to look at.
pub struct Patients {
    pub stuck: Uuid,
    pub blocked: Uuid,
}

impl Story {
    /// Servers, and the three processes, connected.
    pub async fn begin() -> Story {
        let faults = Faults { seed: 7, unavailable: 0.02, key_errors: 0.002, cut: 0.005 };
        let latency = Duration::from_millis(15);
        let keys_a_second = Some(KEYS_A_SECOND);
        let s3 = SyntheticS3::start(Options { latency, faults, keys_a_second, ..Options::default() });
        let ((pool, database_url), broker) = tokio::join!(heimdall::fresh(), rabbitmq::shared());
        let places = Places { pool, database_url, s3_endpoint: s3.endpoint(), amqp_url: broker.amqp_url() };
        let settings = Settings {
            lease: "30s",
            slice: "10s",
            batch_size: 250,
            concurrency: 8,
            max_attempts: 2,
            redeliver_after: "1m",
            ..Settings::default()
        };
        let world = World::unmigrated(places, settings).await;
        world.cli(&["migrate", "--guards"]).await.with(0);
        let [api, one, other] = [(); 3].map(|()| free_port().expect("a port is free"));
        let serve = |roles: &str, variable: &str, port: u16| {
            let listen = format!("127.0.0.1:{port}");
            let log = ("REPRIEVE__SERVICE__LOG", "reprieve=info,lapin=off,warn");
            world.serve_with(&["--roles", roles], &[log, (variable, listen.as_str())])
        };
        let services = vec![
            serve("api,intake,relay,sweeper", "REPRIEVE__API__LISTEN", api),
            serve("worker", "REPRIEVE__SERVICE__LISTEN", one),
            serve("worker", "REPRIEVE__SERVICE__LISTEN", other),
        ];
        let amqp = Amqp::beside(&world, &services[0]).await;
        for worker in &services[1..] {
            worker.says("worker consumes").await;
        }
        let web = Web::new();
        Story { services, world, s3, amqp, web, api, workers: [one, other], named: 0.into() }
    }

    /// Where the metrics are.
    pub fn ports(&self) -> [u16; 3] {
        [self.api, self.workers[0], self.workers[1]]
    }

    /// A dataset with this many objects, and a tenth as many rows.
    pub async fn dataset(&self, objects: u64) -> Uuid {
        let number = self.named.fetch_add(1, Ordering::Relaxed);
        let samples = u32::try_from(objects / 10).expect("not that many").min(5_000);
        let id = Dataset { samples, ..Dataset::iq_raw(&format!("set {number}")) }.insert(&self.world.pool).await;
        let prefix = format!("synthetic/{id}/");
        self.s3.add(&self.world.bucket, Rule { bytes: OBJECT_BYTES, ..Rule::new(prefix, objects) });
        let size = "update heimdall.synthetic_datasets set storage_size_bytes = $2 where id = $1";
        let bytes = i64::try_from(objects * OBJECT_BYTES).expect("not that many");
        sqlx::query(size).bind(id).bind(bytes).execute(&self.world.pool).await.expect("updated");
        id
    }

    /// Asks the API for something, and insists on the status of its answer.
    pub async fn http(&self, what: &str, kind: &str, id: Uuid, mut body: Value, status: u16) {
        body["actor"] = "alice".into();
        if what == "trash" {
            body["dry_run"] = false.into();
        }
        let address = format!("http://127.0.0.1:{}/v1/resources/{kind}/{id}/{what}", self.api);
        let answer = self.web.post(&address, &body).await.expect("the API answers");
        assert_eq!(answer.0, status, "{what} {kind}: {:?}", answer.1);
    }

    /// By the API, with a window of its own.
    pub async fn trash(&self, id: Uuid, retention: &str) {
        self.http("trash", "dataset", id, json!({ "retention": retention }), 200).await;
    }

    /// By message.
    pub async fn ask(&self, op: &str, id: Uuid) -> Value {
        let asked = json!({ "v": 1, "op": op, "kind": "dataset", "id": id.to_string(), "actor": "etl" });
        self.amqp.ask(&asked).await
    }

    /// Somebody publishes what is no request.
    pub async fn nonsense(&self) {
        self.amqp.publish("requests", b"delete everything", BasicProperties::default()).await;
    }

    /// Everything that can happen to a resource, once; returns when it has, with one that is stuck and one that is
    /// blocked.
    pub async fn opening(&self) -> Patients {
        let world = &self.world;
        let small = [self.dataset(300).await, self.dataset(40).await, self.dataset(0).await];
        self.trash(small[0], "1s").await;
        assert_eq!(self.ask("trash", small[1]).await["status"], "trashed");
        world.trash("dataset", small[2]).await;

        let used = self.dataset(10).await;
        Model { datasets: vec![used], active: true, ..Model::named("detector") }.insert(&world.pool).await;
        self.http("trash", "dataset", used, json!({}), 409).await;
        let regretted = self.dataset(10).await;
        self.trash(regretted, "7d").await;
        self.http("restore", "dataset", regretted, json!({}), 200).await;
        let held = self.dataset(10).await;
        self.trash(held, "1s").await;
        self.http("hold", "dataset", held, json!({ "reason": "an audit" }), 200).await;
        for window in ["30m", "10h", "3d"] {
            self.trash(self.dataset(1_000).await, window).await;
        }
        let job = Job::named("night run").insert(&world.pool).await;
        self.http("trash", "job", job, json!({ "retention": "1s" }), 200).await;
        self.nonsense().await;

        let patients = Patients { stuck: self.stuck().await, blocked: self.blocked().await };
        for id in small {
            world.until_state(id, "purged").await;
        }
        world.until_state(job, "purged").await;
        world.until_state(patients.stuck, "stuck").await;
        world.until_state(patients.blocked, "blocked").await;
        // the point of no return is behind it
        self.http("restore", "dataset", patients.stuck, json!({}), 409).await;
        wait_until("the nonsense is set aside", SOON, async || self.amqp.depth("dead").await > 0).await;
        patients
    }

    /// A dataset whose row the platform keeps from being deleted.
    pub async fn stuck(&self) -> Uuid {
        let id = self.dataset(20).await;
        let keep = format!(
            "create or replace function heimdall.keep() returns trigger language plpgsql as 'begin return null; end';
             create or replace trigger keep before delete on heimdall.synthetic_datasets
             for each row when (old.id = '{id}') execute function heimdall.keep()"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(keep)).execute(&self.world.pool).await.expect("a trigger");
        self.trash(id, "1s").await;
        id
    }

    /// A dataset that an active model names where no guard looks: in JSON, behind another.
    pub async fn blocked(&self) -> Uuid {
        let (first, id) = (self.dataset(1).await, self.dataset(20).await);
        self.trash(id, "3s").await;
        let name = format!("mixture {id}");
        Model { datasets: vec![first, id], active: true, ..Model::named(&name) }.insert(&self.world.pool).await;
        id
    }

    /// A purge that goes on for minutes, in the middle of its objects, after the store has asked for less.
    pub async fn giant(&self) -> Uuid {
        let giant = self.dataset(GIANT).await;
        self.trash(giant, "1s").await;
        let put = i64::try_from(GIANT).expect("not that many");
        self.world.until_in_the_middle(giant, put).await;
        let throttled = &self.s3.counts().throttled;
        wait_until("the store throttles", PURGED, async || throttled.load(Ordering::Relaxed) > 0).await;
        giant
    }

    /// A platform's weeks in fast motion, for a picture: a trickle of deletions, a burst of them, a pause, and what
    /// people regret or come too late for.
    pub async fn goes_on(&self, time: Duration) {
        let seconds = time.as_secs();
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        for second in 0..seconds {
            ticks.tick().await;
            self.trickle(second).await;
            if second == seconds / 3 {
                for _ in 0..60 {
                    self.trash(self.dataset(150).await, "20s").await;
                }
            } else if second == seconds / 2 {
                self.blocked().await;
                self.world.cli(&["pause", "--all", "--reason", "the store is moved"]).await.with(0);
            } else if second == seconds * 5 / 8 {
                self.world.cli(&["resume", "--all"]).await.with(0);
                self.nonsense().await;
            }
        }
    }

    async fn trickle(&self, second: u64) {
        let dataset = self.dataset(100 + second * 37 % 900).await;
        match second % 8 {
            0 => drop(self.ask("trash", dataset).await),
            1 => drop(self.world.trash("dataset", dataset).await),
            2 => {
                self.trash(dataset, "1h").await;
                self.http("restore", "dataset", dataset, json!({}), 200).await;
            }
            3 => {
                let name = format!("detector {second}");
                Model { datasets: vec![dataset], active: true, ..Model::named(&name) }.insert(&self.world.pool).await;
                self.http("trash", "dataset", dataset, json!({}), 409).await;
            }
            4 => self.trash(dataset, "2d").await,
            _ => self.trash(dataset, "5s").await,
        }
    }

    /// None of the processes has ended.
    pub fn lives(&mut self) -> bool {
        !self.services.iter_mut().any(Service::has_ended)
    }
}
