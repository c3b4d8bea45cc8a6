//! The private servers of a benchmark, in a process of their own: commands in, answers out, one JSON document a line.
//!
//! It ends, and every server with it, when its standard input does. The synthetic S3 runs inside this process, so that
//! its processor time is nobody else's; the others are processes of their own.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reprieve::embedded::postgres::{Options as PostgresOptions, PrivatePostgres};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use support::heimdall;
use support::rabbitmq::RabbitMq;
use support::seaweedfs::{self, SeaweedFs};
use support::synthetic_s3::{Faults, Names, Options, Rule, SyntheticS3};

/// Between looks at the database; the time itself is taken from what the database wrote down.
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// A synthetic S3, instead of the one before. Answers with its endpoint.
    Synthetic {
        #[serde(default)]
        latency_ms: u64,
        #[serde(default)]
        seed: u64,
        #[serde(default)]
        unavailable: f64,
        #[serde(default)]
        key_errors: f64,
        #[serde(default)]
        cut: f64,
        keys_a_second: Option<u32>,
    },
    /// Objects on the synthetic S3.
    Add { bucket: String, prefix: String, count: u64, names: Shape },
    /// What the synthetic S3 has left and was asked.
    Counts { bucket: String },
    /// A PostgreSQL, by its URL.
    Postgres,
    /// A statement; the rows of a query, as objects.
    Sql { url: String, statement: String },
    /// Waits until a query of one value says true; whether it did.
    Until { url: String, query: String, seconds: u64 },
    /// A RabbitMQ, by its URL.
    Rabbitmq,
    /// A SeaweedFS, by its endpoint and credentials.
    Seaweedfs,
    /// Objects of 80 bytes on the SeaweedFS, of the same shapes.
    Put { bucket: String, prefix: String, count: u64, names: Shape },
    /// How many objects the SeaweedFS has below a prefix.
    Left { bucket: String, prefix: String },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Shape {
    Flat,
    Heimdall,
    Hex,
}

impl Shape {
    fn names(self) -> Names {
        match self {
            Shape::Flat => Names::Padded,
            Shape::Heimdall => Names::Recordings { receivers: 5 },
            Shape::Hex => Names::Hex,
        }
    }
}

#[derive(Default)]
struct Servers {
    synthetic: Option<SyntheticS3>,
    postgres: Option<PrivatePostgres>,
    rabbitmq: Option<RabbitMq>,
    seaweedfs: Option<SeaweedFs>,
}

impl Servers {
    async fn carry_out(&mut self, command: Command) -> Value {
        match command {
            Command::Synthetic { latency_ms, seed, unavailable, key_errors, cut, keys_a_second } => {
                let faults = Faults { seed, unavailable, key_errors, cut };
                let latency = Duration::from_millis(latency_ms);
                let server = SyntheticS3::start(Options { latency, faults, keys_a_second, ..Options::default() });
                json!({ "endpoint": self.synthetic.insert(server).endpoint() })
            }
            Command::Add { bucket, prefix, count, names } => {
                let rule = Rule { names: names.names(), ..Rule::new(prefix, count) };
                self.synthetic.as_ref().expect("it was started").add(&bucket, rule);
                json!({})
            }
            Command::Counts { bucket } => counts(self.synthetic.as_ref().expect("it was started"), &bucket),
            Command::Postgres => {
                // flushed to the disk, as nobody's real one is not
                let settings = [("fsync", "on"), ("full_page_writes", "on"), ("shared_buffers", "256MB")];
                let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
                let server = PrivatePostgres::start(PostgresOptions { tcp: true, settings }).await.expect("it starts");
                json!({ "url": self.postgres.insert(server).url() })
            }
            Command::Sql { url, statement } => sql(&url, &statement).await,
            Command::Until { url, query, seconds } => {
                let mut conn = PgConnection::connect(&url).await.expect("it runs");
                let deadline = Instant::now() + Duration::from_secs(seconds);
                let mut holds = false;
                while !holds && Instant::now() < deadline {
                    tokio::time::sleep(POLL).await;
                    holds = sqlx::query_scalar(AssertSqlSafe(query.as_str()))
                        .fetch_one(&mut conn)
                        .await
                        .expect("it is SQL");
                }
                json!({ "holds": holds })
            }
            Command::Rabbitmq => json!({ "url": self.rabbitmq.insert(RabbitMq::start().await).amqp_url() }),
            Command::Seaweedfs => {
                let server = self.seaweedfs.insert(SeaweedFs::start().await);
                let (endpoint, access, secret) = (server.endpoint(), seaweedfs::ACCESS_KEY, seaweedfs::SECRET_KEY);
                json!({ "endpoint": endpoint, "access_key": access, "secret_key": secret })
            }
            Command::Put { bucket, prefix, count, names } => self.put(&bucket, prefix, count, names).await,
            Command::Left { bucket, prefix } => {
                let client = self.seaweedfs.as_ref().expect("it was started").client();
                json!({ "left": support::keys::listed(&client, &bucket, &prefix).await.len() })
            }
        }
    }

    async fn put(&self, bucket: &str, prefix: String, count: u64, names: Shape) -> Value {
        let client = self.seaweedfs.as_ref().expect("it was started").client();
        // it may be there already
        let _ = client.create_bucket().bucket(bucket).send().await;
        let rule = Rule { names: names.names(), ..Rule::new(prefix, count) };
        let keys = heimdall::put_keys(&client, bucket, rule.keys().collect()).await;
        json!({ "put": keys.len() })
    }
}

async fn sql(url: &str, statement: &str) -> Value {
    let mut conn = PgConnection::connect(url).await.expect("it runs");
    if !statement.trim_start().starts_with("select") {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut conn).await.expect("it is SQL");
        return json!({});
    }
    let query = format!("select coalesce(json_agg(found), '[]') from ({statement}) found");
    let rows: Value = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut conn).await.expect("it is SQL");
    json!({ "rows": rows })
}

fn counts(server: &SyntheticS3, bucket: &str) -> Value {
    let counts = server.counts();
    let all = BTreeMap::from([
        ("lists", &counts.lists),
        ("batch_deletes", &counts.batch_deletes),
        ("single_deletes", &counts.single_deletes),
        ("others", &counts.others),
        ("refused", &counts.refused),
        ("throttled", &counts.throttled),
        ("cut", &counts.cut),
        ("failed_keys", &counts.failed_keys),
        ("deleted_keys", &counts.deleted_keys),
        ("deleted_again", &counts.deleted_again),
        ("peak", &counts.peak),
    ]);
    let mut shown: BTreeMap<&str, u64> = all.into_iter().map(|(name, n)| (name, n.load(Ordering::Relaxed))).collect();
    shown.insert("left", server.left_in(bucket));
    shown.insert("strangers", counts.strangers.lock().expect("no panic under it").len() as u64);
    json!(shown)
}

#[tokio::main]
async fn main() {
    let mut servers = Servers::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("it can be read");
        let command = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let answer = servers.carry_out(command).await;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).expect("somebody reads");
    }
}
