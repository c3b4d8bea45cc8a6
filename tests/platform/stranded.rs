//! Connections to the database that die without a word: nothing comes any more, not even an error.

use std::time::Duration;

use reprieve::domain::state::State;
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use reprieve::purge::SliceEnd;
use sqlx::postgres::PgPoolOptions;

use crate::bench::{Bench, budget};
use crate::support::{SOON, unique};
use crate::tcp_proxy::TcpProxy;

const MAP: &str = r#"
[[resource]]
kind = "thing"
table = "plat.things"
id_type = "text"
[[resource.objects]]
store = "main"
bucket = "heimdall-synthetic-iq"
prefix = "things/{id}/"
[[resource.rows]]
table = "plat.parts"
column = "thing"
"#;

/// Deletes wait where the trigger is.
const TABLES: &str = "create schema plat;
    create table plat.things (id text primary key);
    create table plat.parts (thing text);
    create function plat.waits() returns trigger language plpgsql as $$ begin
        perform pg_advisory_xact_lock(8); return old; end $$";

/// A bench whose own connections go through a proxy; `bench.pool` does not. Its server ends with the test.
async fn behind_a_proxy() -> (Bench, TcpProxy, PrivatePostgres) {
    let server = PrivatePostgres::start(Options { tcp: true, ..Options::default() }).await.expect("starts");
    let direct = server.create_database(&unique("stranded")).await.expect("a new name");
    let pool = PgPoolOptions::new().max_connections(8).connect(&direct).await.expect("connects");
    let (proxy, through) = TcpProxy::before(&direct);
    let bench = Bench::over_database(pool, &through, MAP, TABLES, |config| {
        config.database.acquire_timeout = Duration::from_secs(2);
        config.database.statement_timeout = Duration::from_secs(1);
    })
    .await;
    (bench, proxy, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_dies_among_the_rows_or_at_the_end_is_waited_for_no_longer_than_a_statement_may_take() {
    let (bench, proxy, _server) = behind_a_proxy().await;
    for table in ["plat.parts", "plat.things"] {
        let thing = format!("of-{table}");
        bench
            .run(&format!("insert into plat.things values ('{thing}'); insert into plat.parts values ('{thing}')"))
            .await;
        let id = bench.trash_due("thing", &thing).await;
        bench
            .run(&format!("create trigger waits before delete on {table} for each row execute function plat.waits()"))
            .await;
        let mut gate = bench.pool.acquire().await.expect("a connection");
        sqlx::query("select pg_advisory_lock(8)").execute(&mut *gate).await.expect("locks");
        let worker = bench.purger();
        let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
        bench.until_waiting("the delete waits", 1).await;
        assert!(proxy.strand() > 0);
        let ended = tokio::time::timeout(2 * SOON, working).await.expect("it waits for ever").expect("no panic");
        let end = ended.expect("new connections are to be had");
        assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("no answer within")), "{table}: {end:?}");
        assert!(proxy.count("stranded") > 0, "{:?}", proxy.counts());
        let waiting = bench.tombstone(id).await;
        assert_eq!((waiting.state, waiting.attempts, waiting.lease_until), (State::Purging, 0, None), "an outage");
        sqlx::query("select pg_advisory_unlock(8)").execute(&mut *gate).await.expect("unlocks");
        drop(gate);
        bench.run(&format!("drop trigger waits on {table}")).await;
        bench.make_due(id).await;
        assert_eq!(bench.slice(id).await, SliceEnd::Purged);
        assert_eq!(bench.tombstone(id).await.progress.rows_deleted, 2);
    }
}
