//! Another service asks by message, with the documented example: the whole life of a large dataset.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use uuid::Uuid;

use crate::process::Ended;
use crate::support::heimdall::{Dataset, Model, Shape, put_keys};
use crate::world::{OBJECT_BYTES, Settings, World};

/// Runs `examples/trash_dataset.py`.
async fn example(world: &World, id: Uuid, op: &str) -> Ended {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(python.is_file(), "pika is not installed; `scripts/setup test` installs it");
    let mut command = Command::new(python);
    command.arg(root.join("examples/trash_dataset.py")).args([&id.to_string(), op, "no longer needed"]);
    command.env("AMQP_URL", &world.amqp_url).env("NAMESPACE", &world.namespace).env("ACTOR", "alice");
    Ended::of(command).await
}

#[tokio::test]
async fn a_dataset_of_ten_thousand_objects_that_a_python_script_trashes_is_gone_after_its_window_and_nothing_else_is() {
    const LARGE: Shape = Shape { samples: 2000, receivers: 5 };
    const SMALL: Shape = Shape { samples: 10, receivers: 4 };
    let world = World::new(Settings { window: "10s", ..Settings::default() }).await;
    let (doomed, put) = world.dataset_like(Dataset { features: 70, ..Dataset::iq_raw("doomed") }, LARGE).await;
    assert_eq!(put, 10_000);
    let rows = world.rows(doomed).await;
    assert_eq!(rows, 1 + 2000 + 70);
    let (used, _) = world.dataset("used", SMALL).await;
    let (restored, _) = world.dataset("restored", SMALL).await;
    Model { datasets: vec![used], active: true, ..Model::named("localiser 7") }.insert(&world.pool).await;
    // what a prefix without its slash would take along
    let siblings = ["0/1/RX_000.npy", "-x/1/RX_000.npy", ".npy"].map(|rest| format!("synthetic/{doomed}{rest}"));
    put_keys(&world.s3, &world.bucket, siblings.to_vec()).await;
    // the older layout belongs to it
    put_keys(&world.s3, &world.bucket, vec![format!("synthetic/dataset-{doomed}/old.npy")]).await;

    let service = world.serve(&[]);
    service.says("intake consumes").await;
    let refused = example(&world, used, "trash").await.with(3).json();
    assert_eq!((&refused["ok"], &refused["error"]["code"]), (&Value::Bool(false), &"in_use".into()));
    assert!(refused["error"]["message"].as_str().expect("text").contains("localiser 7"), "{refused:#}");
    assert_eq!(refused["error"]["details"]["blockers"][0]["label"], "localiser 7");

    let trashed = example(&world, doomed, "trash").await.with(0).json();
    assert_eq!((&trashed["ok"], &trashed["status"]), (&Value::Bool(true), &"trashed".into()));
    assert_eq!(example(&world, doomed, "trash").await.with(0).json()["status"], "already_trashed");
    assert_eq!(example(&world, restored, "trash").await.with(0).json()["status"], "trashed");
    assert_eq!(example(&world, restored, "restore").await.with(0).json()["status"], "restored");

    // the window is open: everything is there
    let (objects, rows_now) = (world.objects(doomed).await, world.rows(doomed).await);
    let still_open: bool =
        sqlx::query_scalar("select purge_after > now() from reprieve.tombstones where resource_id = $1")
            .bind(doomed.to_string())
            .fetch_one(&world.pool)
            .await
            .expect("asked");
    assert!(still_open, "this machine is too slow for the window of this test");
    assert_eq!((objects, rows_now), (put, rows));

    let receipt = world.purged("dataset", doomed, put + 1, rows).await;
    assert_eq!(receipt["bytes_freed"], (put + 1) * OBJECT_BYTES);
    assert_eq!(receipt["trashed_by"], "alice");
    assert_eq!(receipt["name"], "doomed");
    assert_eq!(world.objects_below(&format!("synthetic/dataset-{doomed}")).await, 0);

    let survivors = world.objects_below(&format!("synthetic/{doomed}")).await;
    assert_eq!(survivors, i64::try_from(siblings.len()).expect("a few"), "siblings by prefix");
    for id in [used, restored] {
        assert_eq!((world.objects(id).await, world.rows(id).await), (40, 1 + 10 + 3), "untouched");
    }
    assert_eq!(world.stands(restored).await.state, "restored");
    assert!(world.try_stands(used).await.is_none(), "a refusal leaves no tombstone");
    let refusals: i64 = sqlx::query_scalar("select count(*) from reprieve.audit where event = 'refused'")
        .fetch_one(&world.pool)
        .await
        .expect("counted");
    assert_eq!(refusals, 1, "and is kept in the audit log");
}
