//! A platform's row that somebody replaces, deletes and inserts anew with its id, whenever it is waited for.

use reprieve::store::StoreError;
use reprieve::trash::TrashError;

use crate::bench::Bench;
use crate::support::{SOON, wait_until};

const MAP: &str = r#"
[[resource]]
kind = "thing"
table = "plat.seen"
id_type = "integer"
soft_delete = "deleted_at"
"#;

/// What Reprieve sees of the table stops each statement that reads the row, after its snapshot: the n-th at the lock n.
const SCHEMA: &str = "create schema plat;
    create table plat.things (id int primary key, deleted_at timestamptz);
    insert into plat.things values (1, null);
    create sequence plat.reads;
    create function plat.stop() returns boolean language plpgsql volatile as $$ begin
        perform pg_advisory_xact_lock_shared(nextval('plat.reads')); return true;
    end $$;
    create view plat.seen as select id, deleted_at from plat.things where plat.stop()";

/// Reads that are stopped: more than are expected.
const STOPS: i64 = 9;

async fn waits_for(bench: &Bench, what: &str) {
    let from = format!(
        "pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and wait_event = '{what}'"
    );
    wait_until(what, SOON, async || bench.count(&from).await == 1).await;
}

#[tokio::test]
async fn a_row_that_is_replaced_each_time_it_is_waited_for_is_looked_for_three_times_and_nothing_has_changed() {
    let bench = Bench::with(MAP, SCHEMA, |_| ()).await;
    let mut stops = bench.pool.acquire().await.expect("the database is there");
    let all = "select pg_advisory_lock(n) from generate_series(1, $1) n";
    sqlx::query(all).bind(STOPS).execute(&mut *stops).await.expect("locked");
    let (bin, request) = (bench.bin.clone(), bench.request("thing", 1));
    let trashing = tokio::spawn(async move { bin.trash(&request).await });
    for look in 0..3_i64 {
        // it has seen the row, and not locked it yet
        waits_for(&bench, "advisory").await;
        let mut replacing = bench.pool.begin().await.expect("begins");
        let replace = "delete from plat.things; insert into plat.things values (1, null)";
        sqlx::raw_sql(replace).execute(&mut *replacing).await.expect("replaced");
        let pass = "select pg_advisory_unlock($1)";
        sqlx::query(pass).bind(2 * look + 1).execute(&mut *stops).await.expect("passes");
        waits_for(&bench, "transactionid").await;
        replacing.commit().await.expect("replaced");
        // whether the row is there at all
        waits_for(&bench, "advisory").await;
        sqlx::query(pass).bind(2 * look + 2).execute(&mut *stops).await.expect("passes");
    }
    let ended = tokio::time::timeout(SOON, trashing).await.expect("there is no fourth look").expect("no panic");
    let error = ended.expect_err("never locked");
    assert!(matches!(error, TrashError::Store(StoreError::Busy(_))), "{error}");
    assert!(error.to_string().contains("it is replaced each time"), "{error}");
    assert_eq!(
        bench.value::<i64>("select last_value from plat.reads").await,
        6,
        "three looks, and after each whether it is there"
    );
    for untold in
        ["reprieve.tombstones", "reprieve.outbox", "reprieve.audit", "plat.things where deleted_at is not null"]
    {
        assert_eq!(bench.count(untold).await, 0, "{untold}");
    }

    sqlx::raw_sql("select pg_advisory_unlock_all()").execute(&mut *stops).await.expect("unlocked");
    bench.trash("thing", 1).await;
    assert_eq!(bench.count("plat.things where deleted_at is not null").await, 1, "left alone, it is trashed");
}
