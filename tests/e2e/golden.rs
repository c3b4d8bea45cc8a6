//! The formats of messages, pinned: what other services parse must not change by accident. Ids, times and host names
//! are replaced by words. After an intended change: `GOLDEN=write cargo test --test e2e golden`, and raise `v` unless
//! every reader can live with it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::support::heimdall::{Dataset, Model, Shape};
use crate::support::seaweedfs;
use crate::world::{Settings, World};

/// Holds `found` against `tests/golden/{name}.json`.
fn holds(name: &str, found: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.json"));
    let text = format!("{found:#}\n");
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&path, &text).expect("the directory is there");
    }
    let pinned = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, pinned, "{} differs", path.display());
}

/// Replaces what differs from run to run.
struct Normal {
    words: Vec<(String, &'static str)>,
}

impl Normal {
    fn of(&self, value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.clone(), self.field(name, value))).collect()
            }
            Value::Array(items) => items.iter().map(|item| self.of(item)).collect(),
            Value::String(text) if text.contains("NoSuchBucket") => "<what the store said>".into(),
            Value::String(text) => {
                self.words.iter().fold(text.clone(), |text, (from, to)| text.replace(from, to)).into()
            }
            other => other.clone(),
        }
    }

    fn field(&self, name: &str, value: &Value) -> Value {
        match (name, value) {
            (_, Value::Null) => Value::Null,
            ("trashed_at" | "purge_after" | "next_attempt_at" | "purging_at" | "closed_at" | "lease_until", _) => {
                assert!(value.is_string(), "{name}: {value}");
                "<time>".into()
            }
            ("tombstone_id", _) => "<tombstone>".into(),
            ("seconds", _) => "<seconds>".into(),
            ("correlation_id", _) => "<correlation>".into(),
            ("actor", Value::String(actor)) if actor.starts_with("worker ") => "worker <process>".into(),
            _ => self.of(value),
        }
    }
}

#[tokio::test]
async fn message_formats_are_as_pinned() {
    let world = World::new(Settings::default()).await;
    // locations come sorted, so the id decides their order
    let dataset = Dataset { id: Uuid::from_u128(7), features: 3, ..Dataset::iq_raw("golden") };
    let (id, _) = world.dataset_like(dataset, Shape { samples: 3, receivers: 4 }).await;
    let (used, _) = world.dataset("used", Shape { samples: 1, receivers: 4 }).await;
    let model = Model { datasets: vec![used], active: true, ..Model::named("localiser") }.insert(&world.pool).await;
    let normal = Normal {
        words: vec![
            (id.to_string(), "<dataset>"),
            (used.to_string(), "<dataset in use>"),
            (model.to_string(), "<model>"),
            (world.bucket.clone(), "<bucket>"),
            (seaweedfs::shared().await.endpoint(), "<endpoint>"),
        ],
    };
    let service = world.serve(&[]);
    let amqp = Amqp::beside(&world, &service).await;
    let events = amqp.listen(".events", "dataset.#").await;
    let tasks = amqp.listen("", "purge").await;

    let ask = |op: &str, id: Uuid| json!({ "v": 1, "op": op, "kind": "dataset", "id": id.to_string(), "actor": "alice", "reason": "old" });
    let mut trash_for_an_hour = ask("trash", id);
    trash_for_an_hour["retention"] = "1h".into();
    let pin = |name: &str, value: &Value| holds(name, &normal.of(value));
    pin("reply_refused_in_use", &amqp.ask(&ask("trash", used)).await);
    pin("reply_refused_malformed", &amqp.ask(&json!({ "v": 2 })).await);
    pin("reply_trashed", &amqp.ask(&trash_for_an_hour).await);
    pin("reply_already_trashed", &amqp.ask(&ask("trash", id)).await);
    pin("reply_purge_waiting", &amqp.ask(&ask("purge", id)).await);
    pin("reply_restored", &amqp.ask(&ask("restore", id)).await);
    pin("reply_already_restored", &amqp.ask(&ask("restore", id)).await);
    amqp.ask(&ask("trash", id)).await;
    world.until_state(id, "purged").await;
    pin("purge_task", &amqp.take(&tasks).await.json());

    // in use when it is due, and then without a bucket
    let spare = Dataset { id: Uuid::from_u128(8), ..Dataset::iq_raw("spare") };
    let (spare, _) = world.dataset_like(spare, Shape { samples: 1, receivers: 4 }).await;
    let normal = Normal { words: [vec![(spare.to_string(), "<dataset>")], normal.words].concat() };
    amqp.ask(&ask("trash", spare)).await;
    let sneaked = Model { id: model, datasets: vec![used, spare], active: true, ..Model::named("localiser") };
    sqlx::query("delete from heimdall.models").execute(&world.pool).await.expect("deleted");
    sneaked.insert(&world.pool).await;
    world.until_state(spare, "blocked").await;
    crate::versions::delete_bucket(&world).await;
    sqlx::query("delete from heimdall.models").execute(&world.pool).await.expect("deleted");
    world.until_state(spare, "stuck").await;
    world.s3.create_bucket().bucket(&world.bucket).send().await.expect("created again");
    world.json(&["retry", "dataset", &spare.to_string(), "--execute", "--actor", "olga"]).await;
    world.until_state(spare, "purged").await;

    let (mut seen, mut ends) = (BTreeMap::new(), 0);
    while ends < 2 {
        let event = amqp.take(&events).await.json();
        let name = event["event"].as_str().expect("a name").to_owned();
        ends += usize::from(name == "purged");
        // the first of each name
        seen.entry(name).or_insert(event);
    }
    let names = ["blocked", "purge_begun", "purged", "restored", "retried", "stuck", "trashed"];
    assert_eq!(seen.keys().collect::<Vec<_>>(), names);
    for (name, event) in &seen {
        holds(&format!("event_{name}"), &normal.of(event));
    }
}
