//! What one small purge asks of the database, heard on the wire: with ten thousand of them in a row, that is what they
//! take.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use reprieve::domain::state::State;
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use reprieve::purge::SliceEnd;
use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::bench::{BUCKET, Bench, SIZE, budget};
use crate::support::unique;

/// As many as a purge of three objects and a row may send from claim to receipt, `begin` and `commit` among them.
const MOST_STATEMENTS: usize = 15;

/// The claim, the announcement of the one batch, and the end.
const MOST_TRANSACTIONS: usize = 3;

const MAP: &str = r#"
[[resource]]
kind = "dataset"
table = "plat.datasets"
name = "name"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "synthetic/{id}/"
[[resource.rows]]
table = "plat.samples"
column = "dataset_id"
[[resource.references]]
name = "active model"
query = "select id, name from plat.models where dataset_id = $1 and is_active"
"#;

/// Models that are not active refuse by their foreign key, too.
const TABLES: &str = "create schema plat;
    create table plat.datasets (id uuid primary key, name text not null);
    create table plat.samples (dataset_id uuid not null references plat.datasets, path text not null);
    create table plat.models (id uuid primary key, name text not null, dataset_id uuid references plat.datasets,
        is_active boolean not null)";

/// The statements that went by on all connections, in their order, and how many of them began a transaction.
#[derive(Debug, Default)]
struct Heard {
    statements: Vec<String>,
    transactions: usize,
}

/// Listens to whoever goes through it to a PostgreSQL server without TLS and changes nothing.
struct Wire {
    address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
}

impl Wire {
    async fn before(server: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let (address, heard) = (listener.local_addr().expect("it is bound"), Arc::<Mutex<Heard>>::default());
        let hears = heard.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut from_server, to_server) = TcpStream::connect(server).await.expect("it runs").into_split();
                let (from_client, mut to_client) = client.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
                tokio::spawn(listen(from_client, to_server, hears.clone()));
            }
        });
        Wire { address, heard }
    }

    /// What went by since it was asked last.
    fn take(&self) -> Heard {
        std::mem::take(&mut self.heard.lock().expect("no panic"))
    }
}

/// One connection's messages to the server (PostgreSQL manual, "Message Formats"), until it ends.
async fn listen(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, heard: Arc<Mutex<Heard>>) -> io::Result<()> {
    // the first has no type
    let mut startup = vec![0; 4];
    client.read_exact(&mut startup).await?;
    startup.resize(u32::from_be_bytes(startup[..4].try_into().expect("four")) as usize, 0);
    client.read_exact(&mut startup[4..]).await?;
    server.write_all(&startup).await?;
    let (mut prepared, mut bound, mut is_inside) = (HashMap::new(), String::new(), false);
    loop {
        let mut message = vec![0; 5];
        client.read_exact(&mut message).await?;
        message.resize(1 + u32::from_be_bytes(message[1..5].try_into().expect("four")) as usize, 0);
        client.read_exact(&mut message[5..]).await?;
        let mut texts = message[5..].split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
        let mut text = || texts.next().unwrap_or_default();
        let statement = match message[0] {
            b'P' => {
                prepared.insert(text(), text());
                None
            }
            b'B' => {
                // after the portal's name
                bound = prepared
                    .get(&{
                        text();
                        text()
                    })
                    .cloned()
                    .unwrap_or_default();
                None
            }
            b'E' => Some(bound.clone()),
            b'Q' => Some(text()),
            _ => None,
        };
        if let Some(statement) = statement {
            let first = statement.split_whitespace().next().unwrap_or_default().to_lowercase();
            let mut heard = heard.lock().expect("no panic");
            heard.transactions += usize::from(!is_inside);
            heard.statements.push(statement);
            is_inside = first == "begin" || is_inside && !["commit", "rollback"].contains(&first.as_str());
        }
        server.write_all(&message).await?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_purge_takes_few_statements_and_transactions() {
    let server = PrivatePostgres::start(Options { tcp: true, ..Options::default() }).await.expect("starts");
    let direct = server.create_database(&unique("small")).await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(2).connect(&direct).await.expect("connects");
    let host = direct.split(['@', '/', '?']).nth(3).expect("a URL with a password and a host").to_owned();
    let wire = Wire::before(host.parse().expect("an address and a port")).await;
    let through = direct.replacen(&host, &wire.address.to_string(), 1);
    let bench = Bench::over_database(pool, &through, MAP, TABLES, |_| ()).await;
    let purger = bench.purger();
    let mut fewest: Option<Heard> = None;
    // the first of them reads the catalogue, and a slow machine may let another do so again
    for _ in 0..5 {
        let dataset = Uuid::new_v4();
        bench
            .run(&format!(
                "insert into plat.datasets values ('{dataset}', 'set a');
                 insert into plat.samples values ('{dataset}', 'a sample')"
            ))
            .await;
        (0..3).for_each(|n| bench.objects.memory().put(BUCKET, &format!("synthetic/{dataset}/{n}"), SIZE));
        let id = bench.trash_due("dataset", dataset).await;
        wire.take();
        assert_eq!(purger.run_slice(id, &budget()).await.expect("the database is there"), SliceEnd::Purged);
        let heard = wire.take();
        let end = bench.tombstone(id).await;
        assert_eq!((end.state, end.progress.objects_deleted, end.progress.rows_deleted), (State::Purged, 3, 2));
        assert!(heard.statements.iter().any(|statement| statement.contains("'purging'")), "the claim was heard");
        if fewest.as_ref().is_none_or(|fewest| heard.statements.len() < fewest.statements.len()) {
            fewest = Some(heard);
        }
    }
    let Heard { statements, transactions } = fewest.expect("there were five");
    eprintln!("a small purge: {} statements, {transactions} transactions", statements.len());
    let told = statements.join("\n");
    assert!(statements.len() <= MOST_STATEMENTS, "{} statements, not {MOST_STATEMENTS}:\n{told}", statements.len());
    assert!(transactions <= MOST_TRANSACTIONS, "{transactions} transactions, not {MOST_TRANSACTIONS}:\n{told}");
}
