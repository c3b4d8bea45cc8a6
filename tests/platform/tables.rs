//! What the tables refuse, whoever asks.

use uuid::Uuid;

use reprieve::store::facts::Fact;

use crate::bench::{Bench, alice};
use crate::support::heimdall::Job;

async fn refused(bench: &Bench, sql: &str) -> String {
    match bench.try_run(sql).await {
        Ok(()) => panic!("not refused: {sql}"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn the_audit_log_can_be_added_to_and_nothing_else() {
    let bench = Bench::heimdall().await;
    bench.trash("dataset", bench.dataset("set a", 1).await).await;
    for sql in [
        "update reprieve.audit set actor = 'nobody'",
        "delete from reprieve.audit",
        "truncate reprieve.audit",
        "truncate reprieve.tombstones, reprieve.outbox, reprieve.audit",
        "update reprieve.audit set id = default where false or true",
    ] {
        let why = refused(&bench, sql).await;
        assert!(why.contains("append-only"), "{sql}: {why}");
    }
    assert_eq!(bench.count("reprieve.audit").await, 1);
}

#[tokio::test]
async fn figures_that_do_not_add_up_are_refused() {
    let bench = Bench::heimdall().await;
    bench.trash("dataset", bench.dataset("set a", 1).await).await;
    for set in [
        "objects_deleted = 1",
        "objects_listed = 2, objects_deleted = 1",
        "objects_unknown = 1",
        "objects_listed = -1, objects_deleted = -1",
        "objects_failed = 1, objects_unknown = -1",
        "bytes_freed = -1",
        "uploads_aborted = -1",
        "versions_gone = 1",
        "objects_listed = 1, objects_deleted = 1, versions_gone = 1, markers_gone = 1",
        "retry_at = now()",
        "rows_deleted = -1",
        "attempts = -1",
    ] {
        let why = refused(&bench, &format!("update reprieve.tombstones set {set}")).await;
        assert!(why.contains("check constraint"), "{set}: {why}");
    }
    bench.run("update reprieve.tombstones set objects_listed = 4, objects_deleted = 1, objects_absent = 1, objects_failed = 1, objects_unknown = 1").await;
}

#[tokio::test]
async fn states_that_contradict_their_dates_are_refused() {
    let bench = Bench::heimdall().await;
    bench.trash("dataset", bench.dataset("set a", 1).await).await;
    for set in [
        "state = 'gone'",
        "state = 'purging'",
        "state = 'restored'",
        "purging_at = now()",
        "closed_at = now()",
        "state = 'purged', closed_at = now()",
        "purge_after = trashed_at - interval '1 second'",
    ] {
        let why = refused(&bench, &format!("update reprieve.tombstones set {set}")).await;
        assert!(why.contains("check constraint"), "{set}: {why}");
    }
}

#[tokio::test]
async fn a_resource_has_one_open_tombstone_and_any_number_of_closed_ones() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    bench.trash("dataset", dataset).await;
    let copy = |id: Uuid| {
        format!(
            "insert into reprieve.tombstones (id, kind, resource_id, actor, origin, purge_after, locations, next_attempt_at)
             select '{id}', kind, resource_id, actor, origin, now(), locations, now() from reprieve.tombstones limit 1"
        )
    };
    let why = refused(&bench, &copy(Uuid::new_v4())).await;
    assert!(why.contains("tombstones_open"), "{why}");
    for _ in 0..3 {
        bench.restore("dataset", dataset).await;
        bench.trash("dataset", dataset).await;
    }
    assert_eq!(bench.count("reprieve.tombstones").await, 4);
}

#[tokio::test]
async fn a_tombstone_has_one_waiting_task() {
    let bench = Bench::heimdall().await;
    let id = bench.trash("dataset", bench.dataset("set a", 1).await).await;
    let why = refused(
        &bench,
        &format!("insert into reprieve.outbox (id, topic, destination, payload, tombstone_id) values (gen_random_uuid(), 'purge', '', '{{}}', '{id}')"),
    )
    .await;
    assert!(why.contains("outbox_one_task"), "{why}");
}

#[tokio::test]
async fn the_relay_and_the_lists_read_in_the_order_of_an_index() {
    let bench = Bench::heimdall().await;
    for (index, query) in [
        (
            "outbox_tasks",
            "select id from reprieve.outbox
             where topic = 'purge' and available_at <= now() and (leased_until is null or leased_until < now())
             order by available_at, id limit 100 for update skip locked",
        ),
        (
            "outbox_messages",
            "select id from reprieve.outbox
             where topic <> 'purge' and available_at <= now() and (leased_until is null or leased_until < now())
             order by available_at, id limit 100 for update skip locked",
        ),
        ("tombstones_by_age", "select * from reprieve.tombstones order by trashed_at desc, id desc limit 100"),
    ] {
        let mut tx = bench.pool.begin().await.expect("begins");
        // on tables without rows the planner would rather read and sort
        sqlx::raw_sql("set local enable_seqscan = off; set local enable_bitmapscan = off")
            .execute(&mut *tx)
            .await
            .expect("sets");
        let explain = format!("explain {query}");
        let plan: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(explain)).fetch_all(&mut *tx).await.expect("plans");
        let plan = plan.join("\n");
        assert!(plan.contains(index) && !plan.contains("Sort"), "{plan}");
    }
}

#[tokio::test]
async fn a_scrape_reads_what_is_open_and_passes_over_what_was_closed() {
    let bench = Bench::heimdall().await;
    // many were closed long ago, some are open
    let many = "
        insert into reprieve.tombstones (id, kind, resource_id, actor, origin, state, trashed_at, purge_after,
                                         locations, next_attempt_at, closed_at)
        select gen_random_uuid(), 'dataset', n::text, 'a', 'cli', case when n <= 300 then 'trashed' else 'restored' end,
               now() - interval '2 days', now() - interval '1 day', '[]', now(), case when n > 300 then now() end
        from generate_series(1, 30000) as n;
        analyze reprieve.tombstones;";
    sqlx::raw_sql(many).execute(&bench.pool).await.expect("written");
    let explain = format!("explain {}", reprieve::store::facts::STATEMENT);
    let plan: Vec<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(explain)).fetch_all(&bench.pool).await.expect("plans");
    let plan = plan.join("\n");
    assert!(!plan.contains("Seq Scan on tombstones"), "{plan}");
    let mut conn = bench.store.conn().await.expect("a connection");
    let facts = reprieve::store::facts::read(&mut conn).await.expect("reads");
    let open = |fact: &Fact| matches!(fact, Fact::Open { count: 300, coming_due: [0, 0, 0], oldest_overdue, .. } if *oldest_overdue > 86_000.0);
    assert_eq!(facts.iter().filter(|fact| open(fact)).count(), 1, "{facts:?}");
}

#[tokio::test]
async fn what_is_held_is_not_overdue_nor_is_what_went_along_with_it() {
    let bench = Bench::heimdall().await;
    let (held, other) = (bench.dataset("held", 1).await, bench.dataset("other", 1).await);
    let job = Job { status: "completed", ..Job::named("job") }.insert(&bench.pool).await;
    bench.run(&format!("update heimdall.synthetic_datasets set created_by_job_id = '{job}' where id = '{held}'")).await;
    bench.trash_job_with_datasets(job).await.expect("both go");
    let late = async |hours: u32, resource: Uuid| {
        bench
            .run(&format!(
                "update reprieve.tombstones set trashed_at = now() - interval '9 days',
                     purge_after = now() - interval '{hours} hours' where resource_id = '{resource}'"
            ))
            .await;
    };
    let overdue = async |kind: &str| {
        let mut conn = bench.store.conn().await.expect("a connection");
        let facts = reprieve::store::facts::read(&mut conn).await.expect("reads");
        let hours = facts.into_iter().find_map(|fact| match fact {
            Fact::Open { kind: of, oldest_overdue, .. } if of == kind => Some(oldest_overdue / 3600.0),
            _ => None,
        });
        hours.expect("one is open").round()
    };
    late(50, job).await;
    late(40, held).await;
    assert_eq!((overdue("job").await, overdue("dataset").await), (50.0, 40.0));
    bench.bin.hold(&bench.resource("job", job), &alice()).await.expect("holds");
    assert_eq!((overdue("job").await, overdue("dataset").await), (0.0, 0.0));
    bench.trash("dataset", other).await;
    late(7, other).await;
    assert_eq!(overdue("dataset").await, 7.0, "of those that nobody holds");
    bench.bin.release(&bench.resource("job", job), &alice()).await.expect("releases");
    assert_eq!((overdue("job").await, overdue("dataset").await), (50.0, 40.0));
}

#[tokio::test]
async fn a_purge_that_began_late_is_late_since_then_and_what_waits_for_a_date_is_told_from_what_is_stuck() {
    let bench = Bench::heimdall().await;
    for (name, state) in [("began", "purging"), ("locked", "stuck"), ("stuck", "stuck")] {
        let id = bench.trash("dataset", bench.dataset(name, 1).await).await;
        bench
            .run(&format!(
                "update reprieve.tombstones
                 set state = '{state}', trashed_at = now() - interval '9 days', purge_after = now() - interval '50 hours',
                     purging_at = now() - interval '7 hours',
                     retry_at = case when '{name}' = 'locked' then now() + interval '300 days' end
                 where id = '{id}'"
            ))
            .await;
    }
    let mut conn = bench.store.conn().await.expect("a connection");
    let facts = reprieve::store::facts::read(&mut conn).await.expect("reads");
    let found = |wanted: &str| {
        facts.iter().find_map(|fact| match fact {
            Fact::Open { state, count, locked, oldest_overdue, .. } if state == wanted => {
                Some((*count, *locked, (oldest_overdue / 3600.0).round()))
            }
            _ => None,
        })
    };
    assert_eq!((found("purging"), found("stuck")), (Some((1, 0, 7.0)), Some((2, 1, 7.0))));
}

#[tokio::test]
async fn check_looks_through_a_connection_that_cannot_write() {
    let bench = Bench::heimdall().await;
    let mut conn = bench.store.conn().await.expect("a connection");
    reprieve::store::inspect::look_only(&mut conn).await.expect("sets it");
    let refused = sqlx::query("delete from heimdall.models").execute(&mut *conn).await.expect_err("refused");
    assert!(refused.to_string().contains("read-only"), "{refused}");
}
