//! Messages that are wrong, forged, early, late or doubled: each is answered or set aside, and none does harm.

use lapin::BasicProperties;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::support::heimdall::{Model, Shape};
use crate::world::{Settings, World};

const REASON: &str = "x-reprieve-reason";
const SHAPE: Shape = Shape { samples: 5, receivers: 4 };

fn long_window() -> Settings {
    Settings { window: "1h", ..Settings::default() }
}

fn request(op: &str, id: impl std::fmt::Display) -> Value {
    json!({ "v": 1, "op": op, "kind": "dataset", "id": id.to_string(), "actor": "service" })
}

/// `request` with one field set.
fn with(mut request: Value, field: &str, value: impl Into<Value>) -> Value {
    request[field] = value.into();
    request
}

async fn tombstones(world: &World) -> i64 {
    let sql = "select count(*) from reprieve.tombstones";
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("counted")
}

#[tokio::test]
async fn a_request_that_can_never_be_carried_out_is_set_aside_with_its_reason_and_holds_nothing_up() {
    let world = World::new(long_window()).await;
    let (id, put) = world.dataset("kept", SHAPE).await;
    let service = world.serve(&[]);
    let amqp = Amqp::beside(&world, &service).await;
    let trash = || request("trash", id);
    let text = |value: Value| value.to_string().into_bytes();
    let bodies: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "not a valid message"),
        (b"trash it".to_vec(), "not a valid message"),
        (b"\xff\xfe\x00".to_vec(), "not a valid message"),
        (b"[1]".to_vec(), "`v`"),
        (text(with(trash(), "v", 2)), "unknown version 2"),
        (text(with(trash(), "v", "1")), "unknown version"),
        (text(with(trash(), "op", "shred")), "shred"),
        (text(with(trash(), "kind", "planet")), "planet"),
        (text(with(trash(), "kind", "")), "kind"),
        (text(with(trash(), "id", "../other")), "malformed id"),
        (text(with(trash(), "id", "")), "malformed id"),
        (text(with(trash(), "id", json!({ "$ne": null }))), "id"),
        (text(with(trash(), "id", "' or true --")), "malformed id"),
        (text(with(trash(), "actor", "  ")), "actor"),
        (text(with(trash(), "actor", "a\u{7}b")), "actor"),
        (text(with(trash(), "with", json!(["planet"]))), "planet"),
        (text(with(trash(), "with", json!(["job"]))), "no children"),
        (text(with(trash(), "retention", "-7d")), "retention"),
        (text(with(trash(), "dry_run", true)), "dry_run"),
        (text(with(request("restore", id), "retention", "7d")), "retention"),
        ([b"{\"v\":1,\"x\":\"", &vec![b'x'; 1 << 20][..], b"\"}"].concat(), "too large"),
        (vec![b'['; 60_000], "not a valid message"),
        // PostgreSQL stores no NUL, neither in text nor in json
        (text(with(trash(), "reason", "a\u{0}b")), "NUL"),
        (text(with(trash(), "kind", "a\u{0}b")), "NUL"),
        (text(with(trash(), "id", "a\u{0}b")), "NUL"),
        (text(with(trash(), "a\u{0}b", 1)), "NUL"),
    ];
    for (body, _) in &bodies {
        let id = Uuid::new_v4().to_string();
        amqp.publish("requests", body, BasicProperties::default().with_message_id(id.into())).await;
    }
    for (body, reason) in &bodies {
        let dead = amqp.dead_letter().await;
        assert_eq!(&dead.body, body, "as it was sent, in the order of sending");
        let said = dead.headers.get(REASON).unwrap_or_else(|| panic!("no reason: {dead:?}"));
        assert!(said.contains(reason), "{said:?} should speak of {reason:?}");
    }
    assert_eq!(tombstones(&world).await, 0);
    assert_eq!(amqp.ask(&trash()).await["status"], "trashed", "the next good one is carried out");
    assert_eq!(world.objects(id).await, put);
    assert!(!service.log().contains("reconnect"), "no bad message costs a connection:\n{}", service.log());
    assert_eq!(amqp.depth("dead").await, 0);
}

#[tokio::test]
async fn odd_properties_of_a_message_do_not_hold_up_the_next() {
    let world = World::new(long_window()).await;
    let (id, _) = world.dataset("kept", SHAPE).await;
    let service = world.serve(&[]);
    let amqp = Amqp::beside(&world, &service).await;
    let body = request("restore", id).to_string().into_bytes();
    let base = BasicProperties::default;
    let long = "x".repeat(255);
    for properties in [
        base().with_message_id("a\u{0}b".into()),
        base().with_message_id(long.as_str().into()),
        base().with_message_id("".into()).with_reply_to("".into()),
        base().with_reply_to("a\u{0}b".into()).with_correlation_id("c\u{0}d".into()),
        base().with_reply_to("nobody listens".into()).with_correlation_id(long.as_str().into()),
        base().with_reply_to(long.as_str().into()),
        // an answer to ourselves would be a request, and its refusal another
        base().with_reply_to(format!("{}.requests", world.namespace).into()),
        base().with_reply_to(format!("{}.purge", world.namespace).into()),
        base().with_expiration("60000".into()).with_type("x".into()).with_app_id("y".into()),
    ] {
        amqp.publish("requests", &body, properties).await;
    }
    let answer = amqp.ask(&request("trash", id)).await;
    assert_eq!(answer["status"], "trashed", "{answer:#}");
    assert!(amqp.try_take(&format!("{}.dead", world.namespace)).await.is_none(), "refusals are no dead letters");
    assert_eq!(amqp.depth("requests").await, 0);
}

#[tokio::test]
async fn refusals_are_answered_with_a_code_and_the_details() {
    let world = World::new(long_window()).await;
    let (used, _) = world.dataset("used", SHAPE).await;
    let (kept, _) = world.dataset("benchmark-v1", SHAPE).await;
    let (held, _) = world.dataset("held", SHAPE).await;
    Model { datasets: vec![used], production: true, ..Model::named("in production") }.insert(&world.pool).await;
    world.json(&["hold", "dataset", &held.to_string(), "--reason", "audit"]).await;
    let service = world.serve(&[]);
    let amqp = Amqp::beside(&world, &service).await;
    for (asked, code, says) in [
        (request("trash", used), "in_use", "in production"),
        (request("trash", kept), "protected", "protected"),
        (request("trash", held), "held", "audit"),
        (request("trash", Uuid::nil()), "not_found", "there is no"),
        (request("restore", kept), "not_in_trash", "not in the trash"),
        (request("purge", kept), "not_in_trash", "not in the trash"),
        (request("trash", "nonsense"), "malformed_id", "UUID"),
        (with(request("trash", kept), "v", 3), "malformed", "version 3"),
        (with(request("trash", held), "retention", "0s"), "invalid_request", "retention"),
    ] {
        let answer = amqp.ask(&asked).await;
        assert_eq!((&answer["ok"], &answer["error"]["code"]), (&json!(false), &json!(code)), "{asked}: {answer:#}");
        assert!(answer["error"]["message"].as_str().expect("text").contains(says), "{answer:#}");
    }
    assert_eq!(tombstones(&world).await, 0);
}

#[tokio::test]
async fn a_request_delivered_twice_is_carried_out_once_and_answered_the_same() {
    let world = World::new(long_window()).await;
    let (id, _) = world.dataset("once", SHAPE).await;
    let service = world.serve(&["--roles", "intake,relay"]);
    let _another = world.serve(&["--roles", "intake"]);
    let amqp = Amqp::beside(&world, &service).await;
    let replies = amqp.reply_queue().await;
    let send = async |times: usize| {
        let properties =
            BasicProperties::default().with_message_id("m-1".into()).with_reply_to(replies.as_str().into());
        let mut answers = Vec::new();
        for _ in 0..times {
            amqp.publish("requests", request("trash", id).to_string().as_bytes(), properties.clone()).await;
        }
        for _ in 0..times {
            answers.push(amqp.take(&replies).await.json());
        }
        answers
    };
    let answers = send(5).await;
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer["status"] == "trashed"), "{answers:#?}");
    assert_eq!(amqp.ask(&request("restore", id)).await["status"], "restored");
    // a late duplicate must not put it back into the trash
    assert_eq!(send(1).await, answers[..1]);
    assert_eq!((world.stands(id).await.state.as_str(), tombstones(&world).await), ("restored", 1));
}

#[tokio::test]
async fn forged_and_early_purge_tasks_do_nothing() {
    let world = World::new(long_window()).await;
    let (waiting, put) = world.dataset("waiting", SHAPE).await;
    let (restored, _) = world.dataset("restored", SHAPE).await;
    let (live, _) = world.dataset("live", SHAPE).await;
    let tombstone = |answer: Value| answer["tombstone"]["tombstone_id"].as_str().expect("an id").to_owned();
    let early = tombstone(world.trash("dataset", waiting).await);
    let closed = tombstone(world.trash("dataset", restored).await);
    world.json(&["restore", "dataset", &restored.to_string()]).await;
    let service = world.serve(&[]);
    let amqp = Amqp::beside(&world, &service).await;
    let rounds = 5;
    for _ in 0..rounds {
        for id in [early.as_str(), &closed, &Uuid::new_v4().to_string(), &live.to_string()] {
            let task = json!({ "v": 1, "tombstone_id": id }).to_string();
            amqp.publish("purge", task.as_bytes(), BasicProperties::default()).await;
        }
    }
    for (body, reason) in [
        (&b"purge!"[..], "not a valid message"),
        (b"{}", "`v`"),
        (br#"{"v":9,"tombstone_id":"x"}"#, "version 9"),
        (br#"{"v":1,"tombstone_id":"x"}"#, "UUID"),
        (br#"{"v":1,"tombstone_id":"00000000-0000-0000-0000-000000000000","force":true}"#, "force"),
    ] {
        amqp.publish("purge", body, BasicProperties::default()).await;
        let dead = amqp.dead_letter().await;
        assert_eq!(dead.body, body);
        assert!(dead.headers[REASON].contains(reason), "{:?} should speak of {reason}", dead.headers);
    }
    let looked_at = || service.log().matches("slice ended").count();
    crate::support::wait_until("all were looked at", crate::support::SOON, async || looked_at() >= rounds * 4).await;
    for id in [waiting, restored, live] {
        assert_eq!((world.objects(id).await, world.rows(id).await), (put, 1 + 5 + 3));
    }
    assert_eq!(world.stands(waiting).await.state, "trashed");
    let outbox: Vec<(bool,)> = sqlx::query_as(
        "select available_at > now() + interval '50 minutes' from reprieve.outbox where topic = 'purge'",
    )
    .fetch_all(&world.pool)
    .await
    .expect("read");
    assert_eq!(outbox, [(true,)], "the one task waits for the end of its window");
}
