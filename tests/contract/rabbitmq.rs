//! What RabbitMQ alone can do to us while it runs: differ, refuse, and route replies.

use std::collections::BTreeSet;

use futures_util::{FutureExt, StreamExt};
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::{AMQPValue, FieldTable},
};
use reprieve::queue::{
    Outgoing, PublishOutcome, Source, Target, TaskQueue,
    rabbitmq::{RabbitQueue, RabbitSettings},
};
use tokio_util::sync::CancellationToken;

use crate::{
    bench::{Raw, header, message, next, settings, task, within},
    support::rabbitmq::{self, RabbitMq},
};

pub(crate) const CONFIRMED: PublishOutcome = PublishOutcome::Confirmed;

/// A prepared namespace on the shared broker, its settings, and a connection of the operator's.
async fn shared() -> (RabbitQueue, RabbitSettings, Raw) {
    let url = rabbitmq::shared().await.amqp_url();
    let settings = settings(&url);
    let raw = Raw::open(&settings, &url).await;
    let queue = RabbitQueue::new(settings.clone());
    queue.prepare().await.expect("prepares");
    (queue, settings, raw)
}

pub(crate) async fn publish(queue: &RabbitQueue, window: &[Outgoing]) -> Vec<PublishOutcome> {
    let mut publisher = queue.publisher().await.expect("connects");
    within(publisher.publish(window)).await.expect("publishes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_declared_otherwise_is_named_with_its_argument_and_the_way_out() {
    let (_, settings, _raw) = shared().await;
    let other = RabbitQueue::new(RabbitSettings { delivery_limit: 99, ..settings.clone() });
    let error = other.prepare().await.expect_err("differs").to_string();
    for part in [".requests", "x-delivery-limit", "'99'", "declare = false"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    let kept = RabbitQueue::new(RabbitSettings { delivery_limit: 99, declare: false, ..settings });
    kept.prepare().await.expect("takes it as it is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifying_names_what_is_missing_and_creates_nothing() {
    let settings = RabbitSettings { declare: false, ..settings(&rabbitmq::shared().await.amqp_url()) };
    let queue = RabbitQueue::new(settings.clone());
    for _ in 0..2 {
        let error = queue.prepare().await.expect_err("is missing").to_string();
        assert!(error.contains(&format!("{}.dead", settings.namespace)), "{error}");
        assert!(error.contains("NOT_FOUND") && error.contains("declare = true"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_explained_and_not_shown() {
    let url = rabbitmq::shared().await.amqp_url().replace("guest:guest@", "guest:hunter2@");
    let queue = RabbitQueue::new(settings(&url));
    let error = queue.prepare().await.expect_err("is refused");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("wrong user or password") && shown.contains("guest"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_broker_and_an_unknown_vhost_are_errors_in_time() {
    let closed = settings("amqp://guest:hunter2@127.0.0.1:1/%2f");
    let error = within(RabbitQueue::new(closed).publisher()).await.expect_err("is closed").to_string();
    assert!(error.contains("127.0.0.1:1") && !error.contains("hunter2"), "{error}");

    // No TLS there: a handshake that fails, rather than a thread that panics and a connection that hangs.
    let tls = settings(&rabbitmq::shared().await.amqp_url().replace("amqp://", "amqps://"));
    let error = within(RabbitQueue::new(tls).publisher()).await.expect_err("no TLS").to_string();
    assert!(!error.contains("in time"), "{error}");

    let url = rabbitmq::shared().await.amqp_url().replace("/%2f", "/");
    let error = within(RabbitQueue::new(settings(&url)).publisher()).await.expect_err("no such vhost").to_string();
    assert!(error.contains("empty vhost"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_by_the_default_exchange_is_answered_by_direct_reply_to() {
    let (queue, settings, raw) = shared().await;
    let mut consumer = queue.consumer(Source::Requests, 1).await.expect("consumes");
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let direct = "amq.rabbitmq.reply-to";
    let replies = raw.channel.basic_consume(direct.into(), "".into(), options, FieldTable::default()).await;
    let properties = BasicProperties::default().with_reply_to(direct.into()).with_correlation_id("c-1".into());
    raw.publish("", &format!("{}.requests", settings.namespace), b"{}", properties).await;

    let came = next(&mut consumer).await;
    let mut reply = message(Target::Reply(came.reply_to.expect("wants a reply")), "{\"ok\":1}");
    reply.correlation_id = came.correlation_id;
    assert_eq!(publish(&queue, &[reply]).await, [CONFIRMED]);
    assert!(came.answer.ack().await.expect("acks"));

    let got = within(replies.expect("consumes").next()).await.expect("still consumes").expect("arrives");
    assert_eq!(got.data, b"{\"ok\":1}");
    assert_eq!(got.properties.correlation_id().as_ref().expect("has it").as_str(), "c-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_out_is_persistent_json_with_id_time_and_sender() {
    let (queue, settings, raw) = shared().await;
    let sent = task("{}");
    assert_eq!(publish(&queue, std::slice::from_ref(&sent)).await, [CONFIRMED]);
    let came = raw.take(&format!("{}.purge", settings.namespace), 1).await.remove(0).properties;
    assert_eq!(*came.delivery_mode(), Some(2));
    assert_eq!(came.content_type().as_ref().expect("has one").as_str(), "application/json");
    assert_eq!(came.message_id().as_ref().expect("has one").as_str(), sent.id.to_string());
    assert_eq!(came.app_id().as_ref().expect("has one").as_str(), "reprieve");
    assert!(came.timestamp().expect("has one") > 1_700_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_never_enter_our_own_queues() {
    let (queue, settings, raw) = shared().await;
    let names = ["requests", "purge", "dead"].map(|name| format!("{}.{name}", settings.namespace));
    let replies = names.map(|name| message(Target::Reply(name), "{}"));
    assert_eq!(publish(&queue, &replies).await, [CONFIRMED; 3]);
    let depths = queue.depths().await.expect("shows its depths");
    assert_eq!((depths.requests, depths.purge, depths.dead), (0, 0, 0));
    drop(raw);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_binding_comes_and_goes_confirmed_means_in_the_queue() {
    let (queue, settings, raw) = shared().await;
    let name = format!("{}.purge", settings.namespace);
    let window: Vec<_> = (0..4000).map(|n| task(&n.to_string())).collect();
    let done = CancellationToken::new();
    let flap = async {
        let (queue, exchange) = (name.as_str(), settings.namespace.as_str());
        while !done.is_cancelled() {
            let none = FieldTable::default();
            let unbind = raw.channel.queue_unbind(queue.into(), exchange.into(), "purge".into(), none.clone());
            unbind.await.expect("unbinds");
            let options = QueueBindOptions::default();
            let bind = raw.channel.queue_bind(queue.into(), exchange.into(), "purge".into(), options, none);
            bind.await.expect("binds");
        }
    };
    let publish = async {
        let outcomes = publish(&queue, &window).await;
        done.cancel();
        outcomes
    };
    let (outcomes, ()) = tokio::join!(publish, flap);
    let ids = |wanted: fn(&PublishOutcome) -> bool| -> BTreeSet<String> {
        let chosen = window.iter().zip(&outcomes).filter(|(_, outcome)| wanted(outcome));
        chosen.map(|(sent, _)| sent.id.to_string()).collect()
    };
    let confirmed = ids(|outcome| *outcome == CONFIRMED);
    let returned = ids(|outcome| matches!(outcome, PublishOutcome::Returned(_)));
    assert_eq!(confirmed.len() + returned.len(), window.len());
    assert!(!confirmed.is_empty() && !returned.is_empty(), "a mix: {} of {}", returned.len(), window.len());
    let taken = raw.take(&name, confirmed.len()).await;
    let there = taken.iter().map(|came| came.properties.message_id().as_ref().expect("has one").to_string());
    let wrong = there.collect::<BTreeSet<_>>().symmetric_difference(&confirmed).count();
    assert_eq!(wrong, 0, "of {} confirmed and {} returned", confirmed.len(), returned.len());
    assert_eq!(queue.depths().await.expect("shows its depths").purge, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_closes_the_channel_does_not_take_its_neighbours_along() {
    let (queue, settings, raw) = shared().await;
    let mut publisher = queue.publisher().await.expect("connects");
    let events = format!("{}.events", settings.namespace);
    raw.channel.exchange_delete(events.as_str().into(), ExchangeDeleteOptions::default()).await.expect("deletes");
    let window: Vec<_> = (0..20)
        .map(|n| if n % 7 == 3 { message(Target::Events("dataset.trashed".to_owned()), "{}") } else { task("{}") })
        .collect();
    for _ in 0..10 {
        let outcomes = within(publisher.publish(&window)).await.expect("the connection lives");
        for (sent, outcome) in window.iter().zip(outcomes) {
            match outcome {
                PublishOutcome::Confirmed => assert_eq!(sent.target, Target::Purge),
                PublishOutcome::Refused(reason) => {
                    assert_ne!(sent.target, Target::Purge);
                    assert!(reason.contains(&events) && reason.contains("NOT_FOUND"), "{reason}");
                }
                PublishOutcome::Returned(reason) | PublishOutcome::Unconfirmed(reason) => {
                    panic!("not refused: {reason}")
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_dropped_in_the_middle_of_a_window_is_not_used_again() {
    let (queue, _, _raw) = shared().await;
    let mut publisher = queue.publisher().await.expect("connects");
    let window: Vec<_> = (0..200).map(|n| task(&n.to_string())).collect();
    assert!(publisher.publish(&window).now_or_never().is_none());
    let error = within(publisher.publish(&[task("next")])).await.expect_err("is broken").to_string();
    assert!(error.contains("abandoned"), "{error}");
    assert!(within(publisher.publish(&[])).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_does_not_expire_and_survives_a_foreign_user_id() {
    let (queue, settings, raw) = shared().await;
    let mut headers = FieldTable::default();
    headers.insert("x-list".into(), AMQPValue::FieldArray(vec![AMQPValue::LongInt(1)].into()));
    let properties = BasicProperties::default()
        .with_user_id("guest".into())
        .with_expiration("60000".into())
        .with_priority(3)
        .with_content_type("text/plain".into())
        .with_headers(headers);
    raw.publish(&settings.namespace, "requests", b"?", properties).await;
    let mut consumer = queue.consumer(Source::Requests, 1).await.expect("consumes");
    let long = "ö".repeat(100_000);
    assert!(next(&mut consumer).await.answer.dead_letter(&long).await.expect("is set aside"));

    let dead = raw.take(&format!("{}.dead", settings.namespace), 1).await.remove(0);
    assert_eq!(dead.data, b"?");
    let properties = dead.properties;
    assert_eq!((properties.expiration(), properties.user_id()), (&None, &None));
    assert_eq!((*properties.priority(), *properties.delivery_mode()), (Some(3), Some(2)));
    assert_eq!(properties.content_type().as_ref().expect("is kept").as_str(), "text/plain");
    assert!(properties.headers().as_ref().expect("has some").contains_key("x-list"));
    let shown = |name| header(&properties, name).expect("has it");
    assert_eq!(shown("x-reprieve-expiration"), "60000");
    assert_eq!(shown("x-reprieve-user-id"), "guest");
    assert_eq!(shown("x-reprieve-exchange"), settings.namespace);
    assert_eq!(shown("x-reprieve-routing-key"), "requests");
    assert_eq!(shown("x-reprieve-queue"), format!("{}.requests", settings.namespace));
    assert!(shown("x-reprieve-reason").starts_with("ööö"));
}

/// Headers are never split: whoever publishes with RabbitMQ's own 128 KiB may send some that are longer than our frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_and_bodies_that_are_longer_than_a_frame_come_in_and_go_to_the_dead_letters() {
    let (queue, settings, raw) = shared().await;
    let mut headers = FieldTable::default();
    headers.insert("x-long".into(), AMQPValue::LongString("h".repeat(100_000).into()));
    let body = vec![b'b'; 1_000_000];
    let properties = BasicProperties::default().with_headers(headers);
    raw.publish(&settings.namespace, "purge", &body, properties).await;
    raw.publish(&settings.namespace, "purge", b"next", BasicProperties::default()).await;
    let mut consumer = queue.consumer(Source::Purge, 2).await.expect("consumes");
    let long = next(&mut consumer).await;
    assert!(long.body == body);
    assert!(long.answer.dead_letter("too long").await.expect("is set aside"));
    assert_eq!(next(&mut consumer).await.body, b"next");
    let dead = raw.take(&format!("{}.dead", settings.namespace), 1).await.remove(0);
    assert!(dead.data == body);
    assert_eq!(header(&dead.properties, "x-reprieve-reason").expect("says why"), "too long");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_count_that_the_sender_has_made_up_is_not_the_brokers() {
    let (queue, settings, raw) = shared().await;
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(1000));
    raw.publish(&settings.namespace, "purge", b"?", BasicProperties::default().with_headers(headers)).await;
    for redeliveries in 0..3 {
        let mut consumer = queue.consumer(Source::Purge, 1).await.expect("consumes");
        assert_eq!(next(&mut consumer).await.redeliveries, redeliveries);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_dead_letter_queue_a_message_stays_where_it_is() {
    let (queue, settings, raw) = shared().await;
    let dead = format!("{}.dead", settings.namespace);
    raw.channel.queue_delete(dead.as_str().into(), Default::default()).await.expect("deletes");
    publish(&queue, &[task("kept")]).await;
    let mut consumer = queue.consumer(Source::Purge, 1).await.expect("consumes");
    let error = next(&mut consumer).await.answer.dead_letter("why").await.expect_err("nowhere to go").to_string();
    assert!(error.contains(&dead) && error.contains("NO_ROUTE"), "{error}");
    drop(consumer);
    let mut consumer = queue.consumer(Source::Purge, 1).await.expect("consumes");
    assert_eq!(next(&mut consumer).await.body, b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_permission_is_told_which_one_and_may_verify() {
    let broker = RabbitMq::start().await;
    let granted = settings(&broker.amqp_url());
    RabbitQueue::new(granted.clone()).prepare().await.expect("prepares");
    broker.ctl(&["add_user", "service", "hunter2"]);
    broker.ctl(&["set_permissions", "service", "^$", ".*", ".*"]);

    let url = broker.amqp_url().replace("guest:guest@", "service:hunter2@");
    let limited = RabbitSettings { url: url.into(), ..granted };
    RabbitQueue::new(RabbitSettings { declare: false, ..limited.clone() }).prepare().await.expect("verifies");
    let elsewhere = RabbitSettings { namespace: "elsewhere".to_owned(), ..limited };
    let error = RabbitQueue::new(elsewhere).prepare().await.expect_err("may not").to_string();
    for part in ["ACCESS_REFUSED", "elsewhere.dead", "`configure`", "declare = false"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    assert!(!error.contains("hunter2"), "{error}");
}
