//! Other services' requests, as they come by message.

use reprieve::domain::state::State;
use reprieve::intake::Intake;
use reprieve::purge::SliceEnd;
use reprieve::queue::local::{LocalQueue, LocalReply, LocalRequest};
use reprieve::queue::{PublishOutcome, TaskQueue};
use reprieve::relay::Relay;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bench::{Bench, by};
use crate::support::heimdall::{Dataset, Job, Model};
use crate::support::{SOON, wait_until};

const REPLIES: &str = "platform.replies";

struct Service {
    bench: Bench,
    queue: LocalQueue,
    stop: CancellationToken,
    roles: JoinSet<()>,
}

impl Service {
    async fn new() -> Service {
        let bench = Bench::heimdall().await;
        let (queue, stop, mut roles) = (LocalQueue::default(), CancellationToken::new(), JoinSet::new());
        queue.prepare().await.expect("prepares");
        queue.open_replies(REPLIES);
        let relay = Relay::new(bench.store.clone(), bench.config.relay.clone(), bench.metrics.clone()).expect("fine");
        let (its_queue, its_stop) = (queue.clone(), stop.clone());
        roles.spawn(async move { relay.run(&its_queue, &its_stop).await.expect("relays") });
        Service { bench, queue, stop, roles }.with_another_intake()
    }

    fn with_another_intake(mut self) -> Service {
        let intake = Intake::new(self.bench.bin.clone(), self.bench.metrics.clone()).expect("fine");
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        self.roles.spawn(async move { intake.run(&queue, &stop).await.expect("takes in") });
        self
    }

    fn send(&self, message_id: Option<&str>, body: impl ToString) {
        let request = LocalRequest {
            body: body.to_string().into_bytes(),
            message_id: message_id.map(str::to_owned),
            reply_to: Some(REPLIES.into()),
            correlation_id: Some("c-1".into()),
            ..LocalRequest::default()
        };
        assert_eq!(self.queue.publish_request(request), PublishOutcome::Confirmed);
    }

    /// The next reply, which must carry the request's correlation id.
    async fn reply(&self) -> Value {
        let mut replies: Vec<LocalReply> = Vec::new();
        wait_until("a reply comes", SOON, async || {
            replies.extend(self.queue.take_replies(REPLIES));
            !replies.is_empty()
        })
        .await;
        assert_eq!((replies.len(), replies[0].correlation_id.as_deref()), (1, Some("c-1")));
        serde_json::from_slice(&replies[0].body).expect("JSON")
    }

    async fn ask(&self, message_id: Option<&str>, body: Value) -> Value {
        self.send(message_id, body);
        self.reply().await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn op(op: &str, kind: &str, id: impl ToString) -> Value {
    json!({ "v": 1, "op": op, "kind": kind, "id": id.to_string(), "actor": "training-service", "reason": "user asked" })
}

#[tokio::test]
async fn trash_restore_and_purge_are_carried_out_and_answered() {
    let service = Service::new().await;
    let dataset = service.bench.dataset("set a", 2).await;
    let trashed = service.ask(None, op("trash", "dataset", dataset)).await;
    assert_eq!((&trashed["ok"], &trashed["status"]), (&true.into(), &"trashed".into()));
    let id: Uuid = trashed["result"]["tombstone"]["tombstone_id"].as_str().expect("an id").parse().expect("a UUID");
    let entry = service.bench.told(reprieve::domain::ids::TombstoneId(id), "trashed").await;
    assert_eq!((entry.actor.as_str(), entry.origin.as_str()), ("training-service", "message"));
    assert_eq!(service.ask(None, op("trash", "dataset", dataset)).await["status"], "already_trashed");
    assert_eq!(service.ask(None, op("purge", "dataset", dataset)).await["status"], "waiting");
    assert_eq!(service.ask(None, op("restore", "dataset", dataset)).await["status"], "restored");
    assert_eq!(service.ask(None, op("restore", "dataset", dataset)).await["status"], "already_restored");
    let live = service.ask(None, op("purge", "dataset", dataset)).await;
    assert_eq!((&live["ok"], &live["error"]["code"]), (&false.into(), &"not_in_trash".into()));
}

#[tokio::test]
async fn a_cascade_by_message_takes_the_children_along_and_says_which() {
    let service = Service::new().await;
    let job = Job::named("generation").insert(&service.bench.pool).await;
    let dataset = Dataset { created_by: Some(job), ..Dataset::iq_raw("a") }.insert(&service.bench.pool).await;
    let mut request = op("trash", "job", job);
    request["with"] = json!(["dataset"]);
    request["retention"] = json!("30d");
    let answer = service.ask(None, request).await;
    let children = answer["result"]["children"].as_array().expect("a list");
    assert_eq!((children.len(), &children[0]["id"]), (1, &dataset.to_string().into()));
    let long = "reprieve.tombstones where purge_after > now() + interval '29 days'";
    assert_eq!(service.bench.count(long).await, 2);
}

#[tokio::test]
async fn a_duplicate_is_answered_the_same_and_carried_out_once_even_after_a_restore() {
    let service = Service::new().await;
    let dataset = service.bench.dataset("set a", 1).await;
    let first = service.ask(Some("m-1"), op("trash", "dataset", dataset)).await;
    assert_eq!(service.ask(Some("m-1"), op("trash", "dataset", dataset)).await, first);
    service.ask(Some("m-2"), op("restore", "dataset", dataset)).await;
    let late = service.ask(Some("m-1"), op("trash", "dataset", dataset)).await;
    assert_eq!(late, first, "the old answer, and no second deletion");
    let states = "reprieve.tombstones where state = 'restored'";
    assert_eq!((service.bench.count("reprieve.tombstones").await, service.bench.count(states).await), (1, 1));
    let anew = service.ask(Some("m-3"), op("trash", "dataset", dataset)).await;
    assert_eq!(anew["status"], "trashed", "a new request is a new request");
}

#[tokio::test]
async fn two_wishes_under_one_message_id_are_not_taken_for_one() {
    let service = Service::new().await;
    let (a, b) = (service.bench.dataset("set a", 2).await, service.bench.dataset("set b", 2).await);
    let trashed = service.bench.trash("dataset", b).await;
    let first = service.ask(Some("1"), op("trash", "dataset", a)).await;
    for _ in 0..2 {
        let other = service.ask(Some("1"), op("restore", "dataset", b)).await;
        assert_eq!((&other["ok"], &other["op"]), (&false.into(), &"restore".into()));
        assert_eq!(other["error"]["code"], "message_id_reused");
    }
    assert_eq!(service.bench.state(trashed).await, State::Trashed, "nothing was carried out");
    let told = format!("reprieve.audit where event = 'refused' and resource_id = '{b}' and actor = 'training-service'");
    assert_eq!(service.bench.count(&told).await, 2);
    assert_eq!(service.ask(Some("1"), op("trash", "dataset", a)).await, first, "the first keeps its answer");
    assert_eq!(service.ask(Some("2"), op("restore", "dataset", b)).await["status"], "restored");
    assert_eq!(service.queue.dead_letters(), [], "a refusal is an answer");
}

#[tokio::test]
async fn a_refusal_is_answered_with_who_uses_it_and_kept_in_the_audit_log() {
    let service = Service::new().await;
    let dataset = service.bench.dataset("set a", 1).await;
    Model { active: true, datasets: vec![dataset], ..Model::named("m") }.insert(&service.bench.pool).await;
    let refused = service.ask(Some("m-1"), op("trash", "dataset", dataset)).await;
    assert_eq!((&refused["ok"], &refused["error"]["code"]), (&false.into(), &"in_use".into()));
    assert_eq!(refused["error"]["details"]["blockers"][0]["label"], "m");
    let kept: Value = service.bench.value("select details from reprieve.audit where event = 'refused'").await;
    assert_eq!((&kept["code"], &kept["op"]), (&"in_use".into(), &"trash".into()));
    let unknown = service.ask(None, op("trash", "dataset", Uuid::new_v4())).await;
    assert_eq!(unknown["error"]["code"], "not_found");
    let resource = service.bench.resource("dataset", dataset);
    service.bench.run("delete from heimdall.models").await;
    service.bench.bin.hold(&resource, &by("bob", None)).await.expect("holds");
    assert_eq!(service.ask(None, op("trash", "dataset", dataset)).await["error"]["code"], "held");
    assert_eq!(service.bench.count("reprieve.audit where event = 'refused' and actor = 'training-service'").await, 3);
    assert_eq!(service.bench.count("reprieve.tombstones").await, 0);
    assert_eq!(service.queue.dead_letters(), [], "a refusal is an answer");
}

#[tokio::test]
async fn what_can_never_be_carried_out_goes_to_the_dead_letters_with_the_reason() {
    let service = Service::new().await;
    let dataset = service.bench.dataset("set a", 1).await;
    let mut unknown_field = op("trash", "dataset", dataset);
    unknown_field["dry_run"] = json!(true);
    let mut short = op("trash", "dataset", dataset);
    short["retention"] = json!("0d");
    let mut nameless = op("trash", "dataset", dataset);
    nameless["actor"] = json!("  ");
    let cases: [(String, &str); 8] = [
        ("not json".into(), "not a valid message"),
        (json!({ "op": "trash" }).to_string(), "`v`"),
        (json!({ "v": 2, "op": "trash" }).to_string(), "unknown version 2"),
        (op("trash", "model", dataset).to_string(), "unknown kind"),
        (op("trash", "dataset", "set a").to_string(), "malformed id"),
        (unknown_field.to_string(), "dry_run"),
        (short.to_string(), "retention"),
        (nameless.to_string(), "actor"),
    ];
    for (at, (body, reason)) in cases.iter().enumerate() {
        service.send(None, body);
        assert_eq!(service.reply().await["ok"], false, "{body}");
        wait_until("it is set aside", SOON, async || service.queue.dead_letters().len() > at).await;
        let dead = service.queue.dead_letters().pop().expect("one more");
        assert!(dead.reason.contains(reason), "{}: {reason}", dead.reason);
        assert_eq!(dead.message.body, body.as_bytes(), "as it was sent");
    }
    assert_eq!(service.bench.count("reprieve.tombstones").await, 0);
}

#[tokio::test]
async fn a_refusal_half_way_through_leaves_nothing_of_the_request_behind() {
    let service = Service::new().await;
    let bench = &service.bench;
    let job = Job::named("generation").insert(&bench.pool).await;
    for name in ["a", "b"] {
        Dataset { created_by: Some(job), ..Dataset::iq_raw(name) }.insert(&bench.pool).await;
    }
    let went = bench.trash_job_with_datasets(job).await.expect("goes");
    let lost = went.children[1].id;
    bench.make_due(lost).await;
    assert_eq!(bench.slice(lost).await, SliceEnd::Purged);
    // the job and the first dataset are taken back before the second is found gone
    let refused = service.ask(Some("m-1"), op("restore", "job", job)).await;
    assert_eq!(refused["error"]["code"], "past_return");
    assert_eq!(bench.state(went.tombstone.id).await, State::Trashed);
    assert_eq!(bench.count("reprieve.audit where event = 'restored'").await, 0);
    let mut partial = op("restore", "job", job);
    partial["partial"] = json!(true);
    assert_eq!(service.ask(Some("m-2"), partial).await["status"], "restored");
    assert_eq!(bench.count("reprieve.tombstones where state = 'restored'").await, 2);
}

#[tokio::test]
async fn a_duplicate_that_meets_the_first_on_another_machine_waits_for_its_answer() {
    let service = Service::new().await.with_another_intake();
    let bench = &service.bench;
    let dataset = bench.dataset("set a", 1).await;
    let mut holder = bench.pool.begin().await.expect("begins");
    let lock = "select from heimdall.synthetic_datasets where id = $1 for update";
    sqlx::query(lock).bind(dataset).execute(&mut *holder).await.expect("locks");
    service.send(Some("m-1"), op("trash", "dataset", dataset));
    service.send(Some("m-1"), op("trash", "dataset", dataset));
    bench.until_waiting("one waits for the row, the other for the first", 2).await;
    holder.rollback().await.expect("rolls back");
    let mut replies = Vec::new();
    wait_until("both are answered", SOON, async || {
        replies.extend(service.queue.take_replies(REPLIES));
        replies.len() == 2
    })
    .await;
    assert_eq!(replies[0].body, replies[1].body);
    let answer: Value = serde_json::from_slice(&replies[0].body).expect("JSON");
    assert_eq!(answer["status"], "trashed");
    assert_eq!(bench.count("reprieve.audit where event = 'trashed'").await, 1);
}

#[tokio::test]
async fn a_request_that_nobody_can_carry_out_now_is_answered_and_harms_no_other() {
    let service = Service::new().await;
    let dataset = service.bench.dataset("set a", 1).await;
    let job = Job::named("generation").insert(&service.bench.pool).await;
    service.bench.run("alter table heimdall.models rename column is_active to active").await;
    let refused = service.ask(Some("m-1"), op("trash", "dataset", dataset)).await;
    assert_eq!(refused["error"]["code"], "unavailable");
    assert!(refused["error"]["message"].as_str().is_some_and(|why| why.contains("active model")), "{refused}");
    assert_eq!(service.ask(None, op("trash", "job", job)).await["status"], "trashed");
    assert_eq!(service.bench.count("reprieve.tombstones where kind = 'dataset'").await, 0);
    service.bench.run("alter table heimdall.models rename column active to is_active").await;
    let again = service.ask(Some("m-1"), op("trash", "dataset", dataset)).await;
    assert_eq!(again["status"], "trashed", "what nobody could carry out is not remembered as refused");
}
