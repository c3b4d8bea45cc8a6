use std::time::Instant;

use super::*;

async fn seeded(count: usize) -> (EmbeddedS3, Client) {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(count), "body").unwrap();
    (server, client)
}

const FIRST: &str = "runs/00000.bin";
const SECOND: &str = "runs/00001.bin";

#[tokio::test]
async fn requests_are_refused_as_often_as_asked_and_do_nothing() {
    let (server, client) = seeded(1).await;
    let slow = server.faults().rule(Operation::DeleteObjects, Times::Next(2), Fault::Refuse(Refusal::slow_down()));
    let broken = server.faults().next(Operation::DeleteObjects, Fault::Refuse(Refusal::internal_error()));
    let denied = server.faults().next(None, Fault::Refuse(Refusal::access_denied()));
    for (code, status) in [("SlowDown", 503), ("SlowDown", 503), ("InternalError", 500), ("AccessDenied", 403)] {
        assert_eq!(refusal(batch_of(&client, &[FIRST]).send().await), refused(code, status));
    }
    assert_eq!(server.store().count(BUCKET, ""), 1);
    assert_eq!((slow.met(), broken.met(), denied.met()), (2, 1, 1));
    batch_of(&client, &[FIRST]).send().await.unwrap();
    assert_eq!(server.store().count(BUCKET, ""), 0);
    assert_eq!(server.requests().count(Operation::DeleteObjects), 5);
}

#[tokio::test]
async fn a_rule_for_one_operation_leaves_the_others_alone_until_it_is_stopped() {
    let (server, client) = seeded(1).await;
    let custom = Fault::Refuse(Refusal::error("ServiceUnavailable", 503));
    let rule = server.faults().rule(Operation::ListObjectsV2, Times::Always, custom);
    for _ in 0..3 {
        let listed = client.list_objects_v2().bucket(BUCKET).send().await;
        assert_eq!(refusal(listed), refused("ServiceUnavailable", 503));
        client.head_object().bucket(BUCKET).key(FIRST).send().await.unwrap();
    }
    rule.stop();
    client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!(rule.met(), 3);
    server.faults().rule(None, Times::Always, Fault::Refuse(Refusal::slow_down()));
    assert_eq!(refusal(client.list_buckets().send().await), refused("SlowDown", 503));
    server.faults().clear();
    client.list_buckets().send().await.unwrap();
}

#[tokio::test]
async fn keys_fail_alone_as_often_as_asked() {
    let (server, client) = seeded(3).await;
    server.faults().keys(Keys::Exactly(FIRST.to_owned()), Times::Next(1), KeyFault::fail("SlowDown"));
    let always = server.faults().keys(Keys::Suffix("1.bin".to_owned()), Times::Always, KeyFault::fail("AccessDenied"));
    let all = keys(3);
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    let answer = batch_of(&client, &all).send().await.unwrap();
    assert_eq!(failed(&answer), [(FIRST, "SlowDown"), (SECOND, "AccessDenied")]);
    assert_eq!(deleted(&answer), ["runs/00002.bin"]);
    let answer = batch_of(&client, &all).send().await.unwrap();
    assert_eq!(failed(&answer), [(SECOND, "AccessDenied")]);
    assert_eq!(server.store().keys(BUCKET, ""), [SECOND]);
    assert_eq!(always.met(), 2);
}

#[tokio::test]
async fn an_answer_can_leave_keys_out_or_lie_about_them() {
    for (fault, is_left, is_deleted, code) in [
        (KeyFault::omit(), true, false, None),
        (KeyFault::omit_after_deleting(), false, false, None),
        (KeyFault::lie(), true, true, None),
        (KeyFault::fail_after_deleting("InternalError"), false, false, Some("InternalError")),
    ] {
        let (server, client) = seeded(2).await;
        server.faults().keys(Keys::Prefix(FIRST.to_owned()), Times::Always, fault.clone());
        let answer = batch_of(&client, &[FIRST, SECOND]).send().await.unwrap();
        assert_eq!(deleted(&answer).contains(&FIRST), is_deleted, "{fault:?}");
        assert!(deleted(&answer).contains(&SECOND), "{fault:?}");
        assert_eq!(failed(&answer).first().map(|(_, code)| *code), code, "{fault:?}");
        assert_eq!(server.store().get(BUCKET, FIRST).is_some(), is_left, "{fault:?}");
        assert!(server.store().get(BUCKET, SECOND).is_none(), "{fault:?}");
    }
}

#[tokio::test]
async fn a_key_fault_for_all_keys_leaves_all_out() {
    let (server, client) = seeded(2).await;
    server.faults().keys(Keys::All, Times::Next(2), KeyFault::omit_after_deleting());
    let answer = batch_of(&client, &[FIRST, SECOND]).send().await.unwrap();
    assert!(answer.deleted().is_empty() && answer.errors().is_empty());
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn an_answer_is_lost_after_the_work_is_done() {
    for (loss, code) in [(Refusal::internal_error(), Some("InternalError")), (Refusal::CutConnection, None)] {
        let (server, client) = seeded(2).await;
        let rule = server.faults().next(Operation::DeleteObjects, Fault::LoseAnswer(loss));
        let error = batch_of(&client, &[FIRST]).send().await.unwrap_err();
        assert_eq!(error.code(), code);
        assert_eq!(error.raw_response().is_some(), code.is_some());
        assert_eq!(server.store().keys(BUCKET, ""), [SECOND]);
        assert_eq!(rule.met(), 1);
        batch_of(&client, &[SECOND]).send().await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_is_cut_before_anything_is_done() {
    let (server, client) = seeded(1).await;
    server.faults().next(Operation::DeleteObjects, Fault::Refuse(Refusal::CutConnection));
    let error = batch_of(&client, &[FIRST]).send().await.unwrap_err();
    assert!(error.raw_response().is_none());
    assert_eq!(server.store().count(BUCKET, ""), 1);
}

#[tokio::test]
async fn a_delayed_request_comes_late_but_whole() {
    let (server, client) = seeded(1).await;
    let delay = Duration::from_millis(50);
    server.faults().next(Operation::DeleteObjects, Fault::Delay(delay));
    let begun = Instant::now();
    batch_of(&client, &[FIRST]).send().await.unwrap();
    assert!(begun.elapsed() >= delay);
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn a_gate_holds_requests_until_it_lets_them_pass() {
    let (server, client) = seeded(2).await;
    let gate = Gate::closed();
    server.faults().rule(Operation::DeleteObjects, Times::Always, Fault::Hold(gate.clone()));
    let mut asked = tokio::task::JoinSet::new();
    asked.spawn(batch_of(&client, &[FIRST]).send());
    asked.spawn(batch_of(&client, &[SECOND]).send());
    gate.arrived(2).await;
    assert_eq!(server.store().count(BUCKET, ""), 2);
    gate.let_pass(1);
    asked.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(server.store().count(BUCKET, ""), 1);
    gate.open();
    asked.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn a_request_is_carried_out_although_its_client_died_at_the_gate() {
    let (server, client) = seeded(1).await;
    let gate = Gate::closed();
    let held = server.faults().next(Operation::DeleteObjects, Fault::Hold(gate.clone()));
    let doomed = tokio::spawn(batch_of(&client, &[FIRST]).send());
    gate.arrived(1).await;
    doomed.abort();
    assert!(doomed.await.unwrap_err().is_cancelled());
    assert_eq!((server.store().count(BUCKET, ""), held.met()), (1, 1));
    let after = Gate::closed();
    server.faults().next(Operation::DeleteObjects, Fault::HoldAnswer(after.clone()));
    gate.open();
    after.arrived(1).await;
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn a_gate_can_hold_the_answer_of_work_that_is_done() {
    let (server, client) = seeded(1).await;
    let gate = Gate::closed();
    server.faults().next(Operation::DeleteObjects, Fault::HoldAnswer(gate.clone()));
    let asked = tokio::spawn(batch_of(&client, &[FIRST]).send());
    gate.arrived(1).await;
    assert_eq!(server.store().count(BUCKET, ""), 0);
    assert!(!asked.is_finished());
    gate.open();
    assert_eq!(deleted(&asked.await.unwrap().unwrap()), [FIRST]);
}

#[tokio::test]
async fn a_server_stops_although_requests_wait_at_a_gate() {
    let (server, client) = seeded(1).await;
    let gate = Gate::closed();
    server.faults().next(None, Fault::Hold(gate.clone()));
    let asked = tokio::spawn(client.list_buckets().send());
    gate.arrived(1).await;
    server.stop().await;
    assert!(asked.await.unwrap().is_err());
}

#[tokio::test]
async fn faults_of_different_kinds_add_up() {
    let (server, client) = seeded(1).await;
    let gate = Gate::closed();
    server.faults().next(None, Fault::LoseAnswer(Refusal::slow_down()));
    server.faults().next(None, Fault::Hold(gate.clone()));
    let asked = tokio::spawn(batch_of(&client, &[FIRST]).send());
    gate.arrived(1).await;
    gate.open();
    assert_eq!(refusal(asked.await.unwrap()), refused("SlowDown", 503));
    assert_eq!(server.store().count(BUCKET, ""), 0);
}

#[tokio::test]
async fn a_listing_can_be_cut_short_in_silence() {
    let (server, client) = seeded(3).await;
    server.faults().next(Operation::ListObjectsV2, Fault::CutShort(1));
    let cut = client.list_objects_v2().bucket(BUCKET).send().await.unwrap();
    assert_eq!((cut.contents().len(), cut.is_truncated(), cut.next_continuation_token()), (1, Some(false), None));
    assert_eq!(client.list_objects_v2().bucket(BUCKET).send().await.unwrap().contents().len(), 3);
    server.faults().next(Operation::ListObjectVersions, Fault::CutShort(0));
    let cut = client.list_object_versions().bucket(BUCKET).send().await.unwrap();
    assert_eq!((cut.versions().len(), cut.is_truncated()), (0, Some(false)));
}
