//! What takes its process down every time, or panics every time, is bounded, spaced, visible and never lost.

use lapin::BasicProperties;
use serde_json::json;

use crate::lane::{Lane, died_at};
use crate::support::wait_until;
use crate::world::PURGED;

/// More lives than any bound here allows.
const MOST_LIVES: usize = 12;

#[tokio::test]
async fn a_purge_that_kills_every_worker_becomes_stuck_with_the_reason_and_a_retry_ends_it() {
    const POINT: &str = "empty.written";
    let attempts = [("REPRIEVE__PURGE__MAX_ATTEMPTS", "3")];
    let mut lane = Lane::new().await;
    let doomed = lane.dataset().await;
    lane.trash_due(doomed).await;
    let mut lives = 0;
    let survivor = loop {
        lives += 1;
        assert!(lives < MOST_LIVES, "it goes on for ever");
        let mut service = lane.doomed_service(&format!("{POINT}=return"), &attempts);
        wait_until("it dies, or is stuck", PURGED, async || {
            service.has_ended() || lane.world.stands(doomed.id).await.state == "stuck"
        })
        .await;
        if !service.has_ended() {
            break service;
        }
        died_at(&mut service, POINT).await;
    };
    assert_eq!(lives, 4, "three have died, and the fourth set it aside");
    let stuck = lane.world.stands(doomed.id).await;
    let reason = stuck.last_error.expect("a reason");
    assert_eq!(reason, "its worker died or fell silent; 3 times in a row without getting further");
    assert_eq!(lane.count("reprieve.audit where event = 'stuck'").await, 1);
    lane.is_told_once(doomed, "stuck").await;
    lane.is_whole(doomed).await;
    drop(survivor);
    lane.world.cli(&["retry", "dataset", &doomed.id.to_string(), "--execute"]).await.with(0);
    let service = lane.serve(&attempts);
    lane.is_purged(doomed).await;
    lane.is_quiet(service).await;
}

#[tokio::test]
async fn a_claim_that_kills_every_worker_waits_visibly_and_loses_nothing() {
    const POINT: &str = "claim.looked";
    let mut lane = Lane::new().await;
    let doomed = lane.dataset().await;
    lane.trash_due(doomed).await;
    let noted = async || {
        let now = lane.world.stands(doomed.id).await;
        (now.state == "trashed").then_some(now.last_error).flatten()
    };
    let mut lives = 0;
    let mut reason = None;
    while reason.is_none() {
        lives += 1;
        assert!(lives < MOST_LIVES, "nobody notes it");
        let mut service = lane.doomed_service(&format!("{POINT}=return"), &[]);
        wait_until("it dies, or is noted", PURGED, async || {
            reason = noted().await;
            service.has_ended() || reason.is_some()
        })
        .await;
        if reason.is_none() {
            died_at(&mut service, POINT).await;
        }
    }
    assert!(lives > 3, "a crash or two are ordinary: {lives} lives");
    assert!(reason.expect("noted").contains("never answered"));
    let waits: i32 = sqlx::query_scalar("select waits from reprieve.tombstones where resource_id = $1")
        .bind(doomed.id.to_string())
        .fetch_one(&lane.world.pool)
        .await
        .expect("reads");
    assert!(waits > 0, "the next look is spaced");
    lane.is_whole(doomed).await;
    let service = lane.serve(&[]);
    lane.is_purged(doomed).await;
    lane.is_quiet(service).await;
}

#[tokio::test]
async fn a_claim_that_panics_every_time_is_tried_ever_later_and_destroys_nothing() {
    let mut lane = Lane::new().await;
    let doomed = lane.dataset().await;
    lane.trash_due(doomed).await;
    let panicking = lane.doomed_service("claim.looked=panic", &[]);
    let panics = async || panicking.log().matches("claim panicked").count();
    wait_until("it panics again and again", PURGED, async || panics().await >= 4).await;
    let spaced = "reprieve.tombstones where waits >= 3 and next_attempt_at > now() and last_error like '%panicked%'";
    wait_until("it waits, and says why", PURGED, async || lane.count(spaced).await == 1).await;
    assert_eq!(lane.world.stands(doomed.id).await.state, "trashed");
    lane.is_whole(doomed).await;
    drop(panicking);
    let _service = lane.serve(&[]);
    lane.is_purged(doomed).await;
}

#[tokio::test]
async fn a_request_that_kills_the_intake_goes_to_the_dead_letters_alone() {
    const POINT: &str = "intake.uncommitted";
    const LIMIT: usize = 3;
    let lane = Lane::new().await;
    // a namespace of its own, whose queues have another limit
    let namespace = format!("{}.few", lane.world.namespace);
    let limit = LIMIT.to_string();
    let env = [("REPRIEVE__BROKER__DELIVERY_LIMIT", limit.as_str()), ("REPRIEVE__BROKER__NAMESPACE", &namespace)];
    let mut first = lane.serve(&env);
    first.says("intake consumes").await;
    first.kill9();
    let amqp = lane.amqp.of(&namespace);
    let (poison, good) = (lane.dataset().await, [lane.dataset().await, lane.dataset().await, lane.dataset().await]);
    for of in [&[poison][..], &good].concat() {
        let request = json!({ "v": 1, "op": "trash", "kind": "dataset", "id": of.id.to_string(), "actor": "service" });
        let properties = BasicProperties::default().with_message_id(of.id.to_string().into());
        amqp.publish("requests", request.to_string().as_bytes(), properties).await;
    }
    let mut lives = 0;
    while amqp.depth("dead").await == 0 {
        lives += 1;
        assert!(lives < MOST_LIVES, "the broker hands it out for ever");
        let mut service = lane.doomed_service(&format!("{POINT}=return"), &env);
        wait_until("it dies, or the poison is gone", PURGED, async || {
            service.has_ended() || amqp.depth("dead").await > 0
        })
        .await;
    }
    assert!(lives > LIMIT, "{lives} lives");
    let service = lane.serve(&env);
    // the broker moves what it has given up on when it hands out the next
    wait_until("the others are carried out, or set aside too", PURGED, async || {
        let carried_out = lane.count("reprieve.tombstones").await;
        carried_out == 3 || carried_out + i64::from(amqp.depth("dead").await) > 3
    })
    .await;
    assert_eq!(amqp.depth("dead").await, 1, "one, and not those that were handed out beside it");
    for of in good {
        lane.world.until_state(of.id, "purged").await;
    }
    assert_eq!(amqp.dead_letter().await.message_id, Some(poison.id.to_string()));
    lane.is_whole(poison).await;
    drop(service);
}
