//! A job with its datasets: all or nothing, there and back, and the job's row goes last.

use serde_json::{Value, json};
use sqlx::postgres::PgDatabaseError;
use uuid::Uuid;

use crate::support::heimdall::{Dataset, Job, Model, Shape};
use crate::world::{Settings, World};

const SHAPE: Shape = Shape { samples: 30, receivers: 4 };
const ROWS: i64 = 1 + 30;

async fn count(world: &World, sql: &'static str, id: Uuid) -> i64 {
    sqlx::query_scalar(sql).bind(id).fetch_one(&world.pool).await.expect("counted")
}

async fn job_rows(world: &World, id: Uuid) -> i64 {
    count(world, "select count(*) from heimdall.training_jobs where id = $1", id).await
}

#[tokio::test]
async fn a_job_goes_with_its_datasets_whole_or_not_at_all_and_its_row_goes_last() {
    let world = World::new(Settings { window: "2s", batch_size: 20, ..Settings::default() }).await;
    let job = Job::named("generation").insert(&world.pool).await;
    let of_job = |name: &str| Dataset { created_by: Some(job), ..Dataset::iq_raw(name) };
    let (one, put) = world.dataset_like(of_job("one"), SHAPE).await;
    let (two, _) = world.dataset_like(of_job("two"), SHAPE).await;
    let (apart, _) = world.dataset("of nobody", SHAPE).await;
    let model = Model { datasets: vec![two], active: true, ..Model::named("localiser") }.insert(&world.pool).await;
    let id = job.to_string();
    let trash = ["trash", "job", &id, "--with", "dataset", "--execute"];

    let refused = world.cli(&trash).await.with(3);
    assert!(refused.stderr.contains("localiser") && refused.stderr.contains(&two.to_string()), "{}", refused.stderr);
    let written: (i64, i64) =
        sqlx::query_as("select (select count(*) from reprieve.tombstones), (select count(*) from reprieve.outbox)")
            .fetch_one(&world.pool)
            .await
            .expect("counted");
    assert_eq!(written, (0, 0), "refused whole");

    let deactivate = "update heimdall.models set is_active = false where id = $1";
    sqlx::query(deactivate).bind(model).execute(&world.pool).await.expect("deactivated");
    let trashed = world.json(&trash).await;
    assert_eq!(trashed["children"].as_array().map(Vec::len), Some(2), "{trashed:#}");
    // what is in the trash takes no new use, however it is asked for
    let activate = "update heimdall.models set is_active = true where id = $1";
    let guarded = sqlx::query(activate).bind(model).execute(&world.pool).await.expect_err("guarded");
    let guarded = guarded.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    let hint = guarded.and_then(PgDatabaseError::hint).unwrap_or_default();
    assert!(hint.contains(&format!("reprieve restore dataset {two}")), "{guarded:?}");
    let restored = world.json(&["restore", "job", &id]).await;
    assert_eq!(restored["children"].as_array().map(Vec::len), Some(2), "{restored:#}");
    sqlx::query(activate).bind(model).execute(&world.pool).await.expect("free again");
    sqlx::query(deactivate).bind(model).execute(&world.pool).await.expect("deactivated");
    assert_eq!(world.json(&["list"]).await, json!([]));

    // by itself it takes no children along
    let alone = world.json(&["trash", "job", &id]).await;
    assert_eq!(alone["members"].as_array().map(Vec::len), Some(1), "{alone:#}");

    let watch = tokio::spawn({
        let pool = world.pool.clone();
        async move {
            // in one snapshot: is there ever a dataset of the job without the job?
            let sql = "select (select count(*) from heimdall.training_jobs where id = $1),
                              (select count(*) from heimdall.synthetic_datasets where id in ($2, $3))";
            loop {
                let (jobs, datasets): (i64, i64) =
                    sqlx::query_as(sql).bind(job).bind(one).bind(two).fetch_one(&pool).await.expect("counted");
                assert!(jobs == 1 || datasets == 0, "the job went before {datasets} of its datasets");
                if jobs == 0 {
                    return;
                }
            }
        }
    });
    world.json(&trash).await;
    let _service = world.serve(&[]);
    for dataset in [one, two] {
        world.purged("dataset", dataset, put, ROWS).await;
    }
    world.until_state(job, "purged").await;
    watch.await.expect("in order");
    assert_eq!(job_rows(&world, job).await, 0);
    let shown = world.json(&["show", "job", &id]).await;
    assert_eq!(shown["receipt"]["row_deleted"], json!(true), "{:#}", shown["receipt"]);
    assert_eq!(shown["receipt"]["objects"]["listed"], json!(0));
    assert_eq!((world.objects(apart).await, world.rows(apart).await), (put, ROWS + 3));
    assert_eq!(count(&world, "select count(*) from heimdall.models where id = $1", model).await, 1, "models stay");
}

#[tokio::test]
async fn a_job_trashed_alone_leaves_its_datasets() {
    let world = World::new(Settings::default()).await;
    let job = Job::named("generation").insert(&world.pool).await;
    let (kept, put) = world.dataset_like(Dataset { created_by: Some(job), ..Dataset::iq_raw("kept") }, SHAPE).await;
    let _service = world.serve(&[]);
    world.trash("job", job).await;
    world.until_state(job, "purged").await;
    assert_eq!(job_rows(&world, job).await, 0);
    assert_eq!((world.objects(kept).await, world.rows(kept).await), (put, ROWS));
    assert!(world.try_stands(kept).await.is_none());
}

#[tokio::test]
async fn what_comes_into_use_during_the_window_is_blocked_and_purged_once_it_is_free() {
    let world = World::new(Settings { window: "1s", ..Settings::default() }).await;
    let (id, put) = world.dataset("contested", SHAPE).await;
    world.trash("dataset", id).await;
    // a list in json is nothing that a guard could watch: the claim's own look finds it
    let other = Dataset::iq_raw("other").insert(&world.pool).await;
    let model =
        Model { datasets: vec![other, id], active: true, ..Model::named("sneaked in") }.insert(&world.pool).await;
    let _service = world.serve(&[]);
    world.until_state(id, "blocked").await;
    let shown = world.json(&["show", "dataset", &id.to_string()]).await;
    assert_eq!(shown["tombstone"]["blockers"][0]["label"], json!("sneaked in"), "{shown:#}");
    assert!(world.cli(&["list"]).await.with(0).stdout.contains("sneaked in"));
    assert_eq!((world.objects(id).await, world.rows(id).await), (put, ROWS + 3));
    let blocked = |shown: &Value| {
        let events = shown["history"].as_array().expect("entries").iter();
        events.filter(|entry| entry["event"] == "blocked").count()
    };
    assert_eq!(blocked(&shown), 1, "the same blockers are told once");

    sqlx::query("delete from heimdall.models where id = $1").bind(model).execute(&world.pool).await.expect("deleted");
    world.purged("dataset", id, put, ROWS + 3).await;
}
