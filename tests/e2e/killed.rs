//! kill -9 at any moment: the end and its receipt are the same.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::json;

use crate::amqp::Amqp;
use crate::support::heimdall::Shape;
use crate::world::{Settings, World};

/// 2,600 objects in batches of 100: 26 chances to be killed in between.
const SHAPE: Shape = Shape { samples: 520, receivers: 5 };
const SMALL_BATCHES: Settings = Settings {
    window: "1s",
    lease: "1s",
    slice: "30s",
    batch_size: 100,
    concurrency: 2,
    redeliver_after: "2s",
    max_attempts: 10,
    purge: "",
    store: "",
};

#[tokio::test]
async fn a_worker_killed_in_the_middle_is_replaced_and_the_receipt_counts_every_object_once() {
    let world = World::new(SMALL_BATCHES).await;
    let (id, put) = world.dataset("half-way", SHAPE).await;
    let rows = world.rows(id).await;
    let _rest = world.serve(&["--roles", "relay,sweeper"]);
    let mut worker = world.serve(&["--roles", "worker"]);
    world.trash("dataset", id).await;

    let killed_at = world.until_in_the_middle(id, put).await;
    worker.kill9();
    assert_eq!(world.rows(id).await, rows, "rows outlive every object");
    let refused = world.cli(&["restore", "dataset", &id.to_string()]).await.with(5);
    assert!(refused.stderr.contains("listed objects"), "{}", refused.stderr);

    let _worker = world.serve(&["--roles", "worker"]);
    world.purged("dataset", id, put, rows).await;
    assert!(world.stands(id).await.fence > killed_at.fence, "the other one had a fence of its own");
}

#[tokio::test]
async fn workers_killed_again_and_again_converge_to_the_same_end() {
    let world = World::new(SMALL_BATCHES).await;
    let mut datasets = Vec::new();
    for name in ["first", "second", "third"] {
        let (id, put) = world.dataset(name, Shape { samples: 300, receivers: 4 }).await;
        datasets.push((id, put, world.rows(id).await));
    }
    let _rest = world.serve(&["--roles", "relay,sweeper"]);
    for (id, ..) in &datasets {
        world.trash("dataset", *id).await;
    }
    // always two at work, and the older of them dies; each a little later in its life than the one before
    let mut older = world.serve(&["--roles", "worker"]);
    let mut kills = 0;
    while kills < 12 {
        let mut younger = world.serve(&["--roles", "worker"]);
        younger.says("worker consumes").await;
        let moved = world.moves_on(&datasets.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), kills * 40).await;
        older.kill9();
        kills += 1;
        std::mem::swap(&mut older, &mut younger);
        if !moved {
            break;
        }
    }
    assert!(kills >= 3, "it was over too soon to be a test: {kills} kills");
    for (id, put, rows) in datasets {
        world.purged("dataset", id, put, rows).await;
    }
    drop(older);
    assert!(world.is_quiet(Duration::from_secs(30)).await, "no task and no message is left over");
}

#[tokio::test]
async fn services_killed_while_they_take_requests_lose_none_and_carry_each_out_once() {
    const DATASETS: usize = 25;
    let shape = Shape { samples: 2, receivers: 4 };
    let world = World::new(SMALL_BATCHES).await;
    let mut ids = Vec::new();
    for n in 0..DATASETS {
        ids.push(world.dataset(&format!("set {n}"), shape).await.0);
    }
    let mut service = world.serve(&[]);
    let amqp = Amqp::beside(&world, &service).await;
    let replies = amqp.reply_queue().await;
    for (n, id) in ids.iter().enumerate() {
        let request = json!({ "v": 1, "op": "trash", "kind": "dataset", "id": id.to_string(), "actor": "service" });
        let properties = BasicProperties::default()
            .with_message_id(id.to_string().into())
            .with_correlation_id(id.to_string().into())
            .with_reply_to(replies.as_str().into());
        amqp.publish("requests", request.to_string().as_bytes(), properties).await;
        if n % 5 == 4 {
            service.kill9();
            service = world.serve(&[]);
        }
    }
    let mut answered = BTreeMap::new();
    while answered.len() < DATASETS {
        let reply = amqp.take(&replies).await;
        let status = reply.json()["status"].as_str().expect("done").to_owned();
        let id = reply.correlation_id.expect("given back");
        // one that is answered twice is answered the same
        assert_eq!(answered.insert(id, status.clone()).unwrap_or(status.clone()), status);
    }
    assert!(answered.values().all(|status| status == "trashed"), "{answered:#?}");
    for id in ids {
        world.purged("dataset", id, 8, 1 + 2 + 3).await;
    }
    assert_eq!((amqp.depth("dead").await, amqp.depth("requests").await), (0, 0));
    assert!(world.is_quiet(Duration::from_secs(30)).await, "no task and no message is left over");
}
