//! Triggers on the platform's tables, and the race that they end.

use reprieve::purge::SliceEnd;
use reprieve::store::guards;
use reprieve::trash::TrashError;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::bench::Bench;
use crate::support::heimdall::Model;

async fn guarded() -> Bench {
    let bench = Bench::heimdall().await;
    let mut conn = bench.store.conn().await.expect("a connection");
    assert_eq!(guards::install(&mut conn, &bench.config.map).await.expect("installs"), 1);
    assert_eq!(guards::install(&mut conn, &bench.config.map).await.expect("installs again"), 1);
    let states = guards::states(&mut conn, &bench.config.map).await.expect("reads");
    assert!(states.len() == 1 && states[0].installed && states[0].kind == "dataset", "{states:?}");
    drop(conn);
    bench
}

fn activate(model: Uuid) -> String {
    format!("update heimdall.models set is_active = true where id = '{model}'")
}

/// What the platform is told, and the hint.
fn told(error: &sqlx::Error) -> (String, String) {
    let error = error.as_database_error().expect("of the database");
    let error = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    (error.message().to_owned(), error.hint().unwrap_or_default().to_owned())
}

/// A dataset and an idle model trained on it.
async fn trained(bench: &Bench) -> (Uuid, Uuid) {
    let dataset = bench.dataset("set a", 2).await;
    (dataset, Model { datasets: vec![dataset], ..Model::named("m") }.insert(&bench.pool).await)
}

#[tokio::test]
async fn what_is_in_the_trash_cannot_be_used_and_the_error_says_how_to_restore_it() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    bench.trash("dataset", dataset).await;
    let refused = bench.try_run(&activate(model)).await.expect_err("in the trash");
    let (message, hint) = told(&refused);
    assert_eq!(message, format!("dataset {dataset} is in the trash (trashed) and cannot be used"));
    assert_eq!(hint, format!("Restore it first: reprieve restore dataset {dataset}"));
    let insert = format!(
        "insert into heimdall.models (model_name, synthetic_dataset_id, is_production) values ('new', '{dataset}', true)"
    );
    assert!(told(&bench.try_run(&insert).await.expect_err("a new use")).0.contains("in the trash"));

    bench.restore("dataset", dataset).await;
    bench.run(&activate(model)).await;
    bench.run(&insert).await;
}

#[tokio::test]
async fn what_is_no_new_use_is_none_of_the_guards_business() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    let other = bench.dataset("set b", 1).await;
    bench.trash("dataset", dataset).await;
    for sql in [
        format!("update heimdall.models set description = 'x', model_name = 'renamed' where id = '{model}'"),
        format!("insert into heimdall.models (model_name, synthetic_dataset_id) values ('idle', '{dataset}')"),
        "insert into heimdall.models (model_name, is_active) values ('of nothing', true)".to_owned(),
        format!(
            "insert into heimdall.models (model_name, is_active, synthetic_dataset_id) values ('of b', true, '{other}')"
        ),
        format!("update heimdall.models set synthetic_dataset_id = null, is_active = true where id = '{model}'"),
    ] {
        bench.run(&sql).await;
    }
}

#[tokio::test]
async fn a_use_from_before_may_go_on_and_end() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    let id = bench.trash("dataset", dataset).await;
    // a use that came without the guard, as with a dump restored without triggers
    bench
        .run(&format!(
            "alter table heimdall.models disable trigger user; {}; alter table heimdall.models enable trigger user",
            activate(model)
        ))
        .await;
    bench.run("update heimdall.models set description = 'still running', is_production = true").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Blocked(1));
    bench.run("update heimdall.models set is_active = false, is_production = false").await;
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.count("heimdall.models where synthetic_dataset_id is null").await, 1);
}

#[tokio::test]
async fn past_the_point_of_no_return_the_hint_says_that_it_is_too_late() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    bench.objects.ignore(&crate::support::heimdall::key(dataset, 0, 0));
    let id = bench.trash_due("dataset", dataset).await;
    assert!(matches!(bench.slice(id).await, SliceEnd::Failed(_)));
    let (message, hint) = told(&bench.try_run(&activate(model)).await.expect_err("too late"));
    assert!(message.contains("(purging)") && hint.contains("cannot be restored"), "{message}: {hint}");
}

#[tokio::test]
async fn a_guard_works_for_a_platform_user_who_may_not_read_our_tables() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    bench.trash("dataset", dataset).await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    let mut conn = bench.pool.acquire().await.expect("a connection");
    let run = async |conn: &mut PgConnection, sql: String| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(conn).await;
    let grants = format!(
        "create role {role}; grant usage on schema heimdall to {role}; grant all on all tables in schema heimdall to {role}; set role {role}"
    );
    run(&mut conn, grants).await.expect("a role");
    let denied = run(&mut conn, "select * from reprieve.tombstones".into()).await.expect_err("not theirs");
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    let refused = run(&mut conn, activate(model)).await.expect_err("in the trash");
    assert!(told(&refused).0.contains("in the trash"), "{refused}");
    // the guard carries its arguments out with its owner's rights, so only its owner makes triggers of it
    let may_look = format!("reset role; grant usage on schema reprieve to {role}; set role {role}");
    run(&mut conn, may_look).await.expect("grants");
    let own = "create temp table bait (x text);
               create trigger own before insert on bait for each row
                   execute function reprieve.guard('dataset', 'bait', 'x', 'x', 'true')";
    let refused = run(&mut conn, own.into()).await.expect_err("not theirs to use");
    assert!(told(&refused).0.starts_with("permission denied for function"), "{refused}");
    run(&mut conn, format!("reset role; drop owned by {role}; drop role {role}")).await.expect("removes it");
}

const ONE_WAITS: &str = "one of them waits for the other";

#[tokio::test]
async fn when_the_trash_comes_first_the_activation_waits_for_it_and_is_refused() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    let mut tx = bench.store.begin().await.expect("begins");
    bench.bin.trash_in(&mut tx, &bench.request("dataset", dataset)).await.expect("goes");
    let pool = bench.pool.clone();
    let activation =
        tokio::spawn(async move { sqlx::raw_sql(sqlx::AssertSqlSafe(activate(model))).execute(&pool).await });
    bench.until_waiting(ONE_WAITS, 1).await;
    reprieve::store::commit(tx).await.expect("commits");
    let refused = activation.await.expect("no panic").expect_err("it came second");
    assert!(told(&refused).0.contains("in the trash"), "{refused}");
    assert_eq!(bench.count("heimdall.models where is_active").await, 0);
}

#[tokio::test]
async fn when_the_activation_comes_first_the_trash_waits_for_it_and_is_refused() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    let mut platform = bench.pool.begin().await.expect("begins");
    sqlx::raw_sql(sqlx::AssertSqlSafe(activate(model))).execute(&mut *platform).await.expect("activates");
    let (bin, request) = (bench.bin.clone(), bench.request("dataset", dataset));
    let trash = tokio::spawn(async move { bin.trash(&request).await });
    bench.until_waiting(ONE_WAITS, 1).await;
    platform.commit().await.expect("commits");
    let refused = trash.await.expect("no panic").expect_err("it came second");
    assert!(matches!(&refused, TrashError::Refused { refusals, .. } if refusals.blockers[0].label == "m"), "{refused}");
    assert_eq!(bench.count("reprieve.tombstones").await, 0);
}

#[tokio::test]
async fn when_the_activation_rolls_back_the_trash_that_waited_goes_through() {
    let bench = guarded().await;
    let (dataset, model) = trained(&bench).await;
    let mut platform = bench.pool.begin().await.expect("begins");
    sqlx::raw_sql(sqlx::AssertSqlSafe(activate(model))).execute(&mut *platform).await.expect("activates");
    let (bin, request) = (bench.bin.clone(), bench.request("dataset", dataset));
    let trash = tokio::spawn(async move { bin.trash(&request).await });
    bench.until_waiting(ONE_WAITS, 1).await;
    platform.rollback().await.expect("rolls back");
    assert!(!trash.await.expect("no panic").expect("nobody uses it").already);
}

#[tokio::test]
async fn a_transaction_older_than_the_trash_is_refused_under_every_isolation_level() {
    for level in [
        "begin isolation level read committed",
        "begin isolation level repeatable read",
        "begin isolation level serializable",
    ] {
        let bench = guarded().await;
        let (dataset, model) = trained(&bench).await;
        let mut platform = bench.pool.begin_with(level).await.expect("begins");
        sqlx::query("select from heimdall.models").execute(&mut *platform).await.expect("takes its snapshot");
        bench.trash("dataset", dataset).await;
        let activated = sqlx::raw_sql(sqlx::AssertSqlSafe(activate(model))).execute(&mut *platform).await;
        let (message, hint) = told(&activated.expect_err("in the trash"));
        assert!(message.contains("is in the trash"), "{level}: {message}");
        assert!(hint.contains("restore"), "{level}: {hint}");
        platform.rollback().await.expect("rolls back");
        // a later one is told how to get it back, and one after that uses it
        assert!(told(&bench.try_run(&activate(model)).await.expect_err("still")).1.contains("reprieve restore"));
        bench.restore("dataset", dataset).await;
        let mut platform = bench.pool.begin_with(level).await.expect("begins");
        sqlx::raw_sql(sqlx::AssertSqlSafe(activate(model))).execute(&mut *platform).await.expect("restored");
        platform.commit().await.expect("commits");
        assert_eq!(bench.count("reprieve.tombstones").await, 1, "the guard's trial leaves nothing behind");
    }
}

#[tokio::test]
async fn a_guard_that_could_never_refuse_anything_is_not_installed() {
    for (from, to, reason) in [
        ("column = \"synthetic_dataset_id\"", "column = \"synthetic_datset_id\"", "synthetic_datset_id"),
        ("column = \"synthetic_dataset_id\"", "column = \"model_name\"", "operator does not exist"),
        ("when = \"is_active or", "when = \"is_aktive or", "is_aktive"),
    ] {
        let bench = Bench::with(&crate::bench::HEIMDALL.replace(from, to), "", |_| ()).await;
        let mut tx = bench.store.begin().await.expect("begins");
        let refused = guards::install(&mut tx, &bench.config.map).await.expect_err("a typing error").to_string();
        assert!(refused.contains(reason) && refused.contains("active model"), "{refused}");
        drop(tx);
        Model { active: true, ..Model::named("m") }.insert(&bench.pool).await;
    }
}

#[tokio::test]
async fn a_guard_that_cannot_work_or_was_made_from_another_map_is_told_apart_before_it_is_needed() {
    let bench = guarded().await;
    let url: String = secrecy::ExposeSecret::expose_secret(&bench.config.database.url).to_string();
    let mut conn = bench.store.conn().await.expect("a connection");
    for (when, mistaken) in [("is_activ", true), ("is_active", false)] {
        let map =
            crate::bench::HEIMDALL.replace("when = \"is_active or is_production\"", &format!("when = \"{when}\""));
        let other = crate::bench::load_config(&url, &map);
        let states = guards::states(&mut conn, &other.map).await.expect("reads");
        assert!(!states[0].installed, "{when}: {states:?}");
        assert_eq!(states[0].mistake.as_deref().is_some_and(|why| why.contains("is_activ")), mistaken, "{states:?}");
    }
}

#[tokio::test]
async fn the_history_of_a_resource_spans_all_of_its_stays_in_the_trash() {
    let bench = Bench::heimdall().await;
    let dataset = bench.dataset("set a", 1).await;
    bench.trash("dataset", dataset).await;
    bench.restore("dataset", dataset).await;
    bench.trash("dataset", dataset).await;
    let mut conn = bench.store.conn().await.expect("a connection");
    let resource = bench.resource("dataset", dataset);
    let history = reprieve::store::audit::of_resource(&mut conn, &resource).await.expect("reads");
    let events: Vec<&str> = history.iter().map(|entry| entry.event.as_str()).collect();
    assert_eq!(events, ["trashed", "restored", "trashed"]);
}
