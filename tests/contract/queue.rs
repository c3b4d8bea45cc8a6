//! The contract of [`TaskQueue`](reprieve::queue::TaskQueue).

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;
use reprieve::domain::cause::TraceContext;
use reprieve::queue::{
    Outgoing, PublishOutcome, Source, Target,
    local::{LocalReply, LocalRequest},
};

use crate::{
    bench::{Bench, DELIVERY_LIMIT, Dead, LIMIT, message, next, request, task, within},
    support::wait_until,
};

macro_rules! contract {
    ($($name:ident,)*) => {
        mod local {
            $(#[tokio::test] async fn $name() { super::$name(crate::bench::Bench::local()).await; })*
        }
        mod rabbitmq {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(crate::bench::Bench::rabbitmq().await).await; })*
        }
    };
}

contract! {
    an_acked_message_is_gone,
    a_request_arrives_with_its_bytes_and_properties,
    unanswered_deliveries_come_back_when_their_consumer_is_dropped,
    a_requeued_delivery_comes_again_however_often,
    a_delivery_that_is_put_off_comes_after_the_others_as_new_and_whole,
    answers_to_a_dropped_consumer_say_false_and_do_nothing,
    a_dead_letter_keeps_body_properties_and_reason,
    a_message_that_came_back_too_often_becomes_a_dead_letter,
    no_more_than_the_prefetch_is_handed_out,
    two_thousand_messages_are_confirmed_and_come_once_each,
    exactly_the_unroutable_mandatory_messages_are_returned,
    a_trace_goes_on_in_the_headers_of_what_is_published,
    events_without_a_listener_are_confirmed,
    replies_carry_their_correlation_id_and_vanish_without_a_queue,
    preparing_twice_and_side_by_side_keeps_what_is_there,
    a_publisher_sees_how_many_tasks_wait_and_goes_on_when_it_cannot,
    a_consumer_of_a_missing_queue_is_an_error,
    a_consumer_ends_when_its_queue_is_deleted,
    a_cancelled_consumer_answers_what_it_has_and_gives_back_the_rest,
    a_cancelled_wait_loses_no_message,
}

const CONFIRMED: PublishOutcome = PublishOutcome::Confirmed;

async fn an_acked_message_is_gone(bench: Bench) {
    let bench = bench.prepared().await;
    let sent = task("{\"n\":1}");
    assert_eq!(bench.publish(std::slice::from_ref(&sent)).await, [CONFIRMED]);
    assert_eq!(bench.depth(Source::Purge).await, 1);

    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    let came = next(&mut consumer).await;
    assert_eq!((came.body, came.message_id, came.redeliveries), (sent.body, Some(sent.id.to_string()), 0));
    assert!(came.answer.ack().await.expect("acks"));

    // Whatever was not acked would be back by the time the next message is handed out.
    drop(consumer);
    bench.publish(&[task("2")]).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    assert_eq!(next(&mut consumer).await.body, b"2");
}

async fn a_request_arrives_with_its_bytes_and_properties(bench: Bench) {
    let bench = bench.prepared().await;
    let sent = LocalRequest {
        body: vec![0, 0xff, 0xfe, b'{'],
        message_id: Some("theirs".to_owned()),
        reply_to: Some("nobody".to_owned()),
        correlation_id: Some("c-1".to_owned()),
        headers: BTreeMap::from([("x-custom".to_owned(), "wert äöü".to_owned())]),
    };
    bench.request(sent.clone()).await;
    let mut consumer = bench.queue.consumer(Source::Requests, 1).await.expect("consumes");
    let came = next(&mut consumer).await;
    let got = LocalRequest {
        body: came.body,
        message_id: came.message_id,
        reply_to: came.reply_to,
        correlation_id: came.correlation_id,
        headers: came.headers,
    };
    assert_eq!(got, sent);

    bench.request(LocalRequest::default()).await;
    assert!(came.answer.ack().await.expect("acks"));
    let empty = next(&mut consumer).await;
    assert_eq!((empty.body, empty.message_id, empty.reply_to), (vec![], None, None));
}

async fn unanswered_deliveries_come_back_when_their_consumer_is_dropped(bench: Bench) {
    let bench = bench.prepared().await;
    bench.publish(&[task("a"), task("b"), task("c")]).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 10).await.expect("consumes");
    let first = next(&mut consumer).await;
    drop(next(&mut consumer).await);
    assert!(first.answer.ack().await.expect("acks"));
    drop(consumer);

    let mut consumer = bench.queue.consumer(Source::Purge, 10).await.expect("consumes");
    let (b, c) = (next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!(BTreeSet::from([b.body, c.body]), BTreeSet::from([b"b".to_vec(), b"c".to_vec()]));
    assert_eq!(b.redeliveries, 1);
}

async fn a_requeued_delivery_comes_again_however_often(bench: Bench) {
    let bench = bench.prepared().await;
    bench.publish(&[task("again")]).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    let mut counts = BTreeSet::new();
    for _ in 0..5 * DELIVERY_LIMIT {
        let came = next(&mut consumer).await;
        assert_eq!(came.body.as_slice(), b"again");
        counts.insert(came.redeliveries);
        assert!(came.answer.requeue().await.expect("requeues"));
    }
    assert_eq!(counts, (0..=DELIVERY_LIMIT / 2).collect(), "it counts, and stops in time");
    assert_eq!(bench.queue.depths().await.expect("shows its depths").dead, 0);
}

async fn a_delivery_that_is_put_off_comes_after_the_others_as_new_and_whole(bench: Bench) {
    let bench = bench.prepared().await;
    let sent = LocalRequest {
        body: b"first".to_vec(),
        message_id: Some("theirs".to_owned()),
        reply_to: Some("somewhere".to_owned()),
        correlation_id: Some("c-1".to_owned()),
        headers: BTreeMap::from([("x-custom".to_owned(), "kept".to_owned())]),
    };
    bench.request(sent.clone()).await;
    bench.request(request("second")).await;
    let mut consumer = bench.queue.consumer(Source::Requests, 1).await.expect("consumes");
    for _ in 0..5 * DELIVERY_LIMIT {
        let first = next(&mut consumer).await;
        assert_eq!((first.body.as_slice(), first.redeliveries), (b"first".as_slice(), 0));
        let came = (first.message_id, first.reply_to, first.correlation_id, first.headers);
        let LocalRequest { message_id, reply_to, correlation_id, headers, .. } = sent.clone();
        assert_eq!(came, (message_id, reply_to, correlation_id, headers));
        assert!(first.answer.put_off().await.expect("puts off"));
        let second = next(&mut consumer).await;
        assert_eq!((second.body.as_slice(), second.redeliveries), (b"second".as_slice(), 0));
        assert!(second.answer.put_off().await.expect("puts off"));
    }
    let depths = bench.queue.depths().await.expect("shows its depths");
    assert!(depths.requests <= 2 && depths.dead == 0, "no more and no fewer than there were: {depths:?}");
}

async fn a_trace_goes_on_in_the_headers_of_what_is_published(bench: Bench) {
    let bench = bench.prepared().await;
    let state = format!("vendor={}", "x".repeat(256));
    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some(&state));
    let traced = Outgoing { trace: trace.clone(), correlation_id: Some("c".repeat(255)), ..task("traced") };
    assert_eq!(bench.publish(&[traced.clone(), task("untraced")]).await, [CONFIRMED, CONFIRMED]);
    let mut consumer = bench.queue.consumer(Source::Purge, 2).await.expect("consumes");
    let came = next(&mut consumer).await;
    assert_eq!((came.trace(), came.correlation_id.as_ref()), (trace, traced.correlation_id.as_ref()));
    assert!(came.queue.ends_with("purge"), "{}", came.queue);
    assert_eq!(next(&mut consumer).await.trace(), None);
}

async fn answers_to_a_dropped_consumer_say_false_and_do_nothing(bench: Bench) {
    let bench = bench.prepared().await;
    bench.publish(&[task("a"), task("b"), task("c")]).await;
    let mut old = bench.queue.consumer(Source::Purge, 3).await.expect("consumes");
    let (a, b, c) = (next(&mut old).await, next(&mut old).await, next(&mut old).await);
    drop(old);

    let mut new = bench.queue.consumer(Source::Purge, 3).await.expect("consumes");
    let again = [next(&mut new).await, next(&mut new).await, next(&mut new).await];
    assert!(!a.answer.ack().await.expect("is stale"));
    assert!(!b.answer.put_off().await.expect("is stale"));
    assert!(!c.answer.dead_letter("stale").await.expect("is stale"));
    for delivery in again {
        assert!(delivery.answer.ack().await.expect("acks"));
    }
    let depths = bench.queue.depths().await.expect("shows its depths");
    assert_eq!((depths.purge, depths.dead), (0, 0));
}

async fn a_dead_letter_keeps_body_properties_and_reason(bench: Bench) {
    let bench = bench.prepared().await;
    let sent = LocalRequest {
        body: b"\xffnot json".to_vec(),
        message_id: Some("theirs".to_owned()),
        correlation_id: Some("c-1".to_owned()),
        headers: BTreeMap::from([("x-custom".to_owned(), "kept".to_owned())]),
        reply_to: None,
    };
    bench.request(sent.clone()).await;
    let mut consumer = bench.queue.consumer(Source::Requests, 1).await.expect("consumes");
    assert!(next(&mut consumer).await.answer.dead_letter("no JSON: ünlesbar").await.expect("is set aside"));

    assert_eq!(bench.queue.depths().await.expect("shows its depths").dead, 1);
    let expected = Dead {
        body: sent.body,
        reason: "no JSON: ünlesbar".to_owned(),
        message_id: sent.message_id,
        correlation_id: sent.correlation_id,
        header: Some("kept".to_owned()),
    };
    assert_eq!(bench.dead_letters(1).await, [expected]);
    bench.request(request("next")).await;
    assert_eq!(next(&mut consumer).await.body, b"next", "it is off its own queue, and holds up nobody");
}

async fn a_message_that_came_back_too_often_becomes_a_dead_letter(bench: Bench) {
    let bench = bench.prepared().await;
    bench.publish(&[task("poison")]).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    for _ in 0..=DELIVERY_LIMIT {
        // as with a process that dies of it
        drop(next(&mut consumer).await);
        drop(consumer);
        consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    }
    let dead = async || bench.queue.depths().await.expect("shows its depths").dead == 1;
    wait_until("set aside by the broker", LIMIT, dead).await;
    let dead = bench.dead_letters(1).await;
    assert_eq!((dead[0].body.as_slice(), dead[0].reason.as_str()), (b"poison".as_slice(), "delivery_limit"));
}

async fn no_more_than_the_prefetch_is_handed_out(bench: Bench) {
    let bench = bench.prepared().await;
    let window: Vec<_> = (0..5).map(|n| task(&n.to_string())).collect();
    bench.publish(&window).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 2).await.expect("consumes");
    let (first, _second) = (next(&mut consumer).await, next(&mut consumer).await);
    assert_eq!(bench.depth(Source::Purge).await, 3);
    assert!(consumer.next().now_or_never().is_none());

    assert!(first.answer.ack().await.expect("acks"));
    assert_eq!(next(&mut consumer).await.body, b"2");
    assert_eq!(bench.depth(Source::Purge).await, 2);
}

async fn two_thousand_messages_are_confirmed_and_come_once_each(bench: Bench) {
    let bench = bench.prepared().await;
    let window: Vec<_> = (0..2000).map(|n| task(&n.to_string())).collect();
    let outcomes = bench.publish(&window).await;
    assert_eq!(outcomes.len(), 2000);
    assert!(outcomes.iter().all(|outcome| *outcome == CONFIRMED));

    let mut consumer = bench.queue.consumer(Source::Purge, 100).await.expect("consumes");
    let mut came = BTreeSet::new();
    for _ in 0..2000 {
        let delivery = next(&mut consumer).await;
        assert!(came.insert(delivery.message_id.clone().expect("has an id")), "twice: {delivery:?}");
        assert!(delivery.answer.ack().await.expect("acks"));
    }
    assert_eq!(came, window.iter().map(|sent| sent.id.to_string()).collect());
}

async fn exactly_the_unroutable_mandatory_messages_are_returned(bench: Bench) {
    let bench = bench.prepared().await;
    bench.delete(Source::Purge).await;
    let replies = bench.open_replies().await;
    let targets = [
        Target::Purge,
        Target::Reply(replies.clone()),
        Target::Events("dataset.trashed".to_owned()),
        Target::Reply("nobody".to_owned()),
    ];
    // Irregular, so that no fixed shift between messages and returns could look right.
    let window: Vec<Outgoing> =
        (0..1500_usize).map(|n| message(targets[(n * n + n / 7) % 4].clone(), &n.to_string())).collect();
    let outcomes = bench.publish(&window).await;
    for (sent, outcome) in window.iter().zip(&outcomes) {
        let returned = matches!(outcome, PublishOutcome::Returned(_));
        assert_eq!(returned, sent.target == Target::Purge, "{:?}: {outcome:?}", sent.target);
        assert!(returned || *outcome == CONFIRMED, "{outcome:?}");
    }
    let answered = window.iter().filter(|sent| sent.target == targets[1]).count();
    assert_eq!(bench.replies(&replies, answered).await.len(), answered);
}

async fn events_without_a_listener_are_confirmed(bench: Bench) {
    let bench = bench.prepared().await;
    let event = message(Target::Events("dataset.purged".to_owned()), "{}");
    assert_eq!(bench.publish(&[event]).await, [CONFIRMED]);
    assert_eq!(bench.publish(&[]).await, []);
}

async fn replies_carry_their_correlation_id_and_vanish_without_a_queue(bench: Bench) {
    let bench = bench.prepared().await;
    let name = bench.open_replies().await;
    let mut reply = message(Target::Reply(name.clone()), "{\"accepted\":true}");
    reply.correlation_id = Some("c-1".to_owned());
    let lost = message(Target::Reply("gone-since".to_owned()), "{}");
    let nameless = message(Target::Reply(String::new()), "{}");
    let overlong = message(Target::Reply("x".repeat(300)), "{}");
    assert_eq!(bench.publish(&[lost, nameless, overlong, reply.clone()]).await, [CONFIRMED; 4]);
    let expected = LocalReply { body: reply.body, correlation_id: reply.correlation_id };
    assert_eq!(bench.replies(&name, 1).await, [expected]);
}

async fn preparing_twice_and_side_by_side_keeps_what_is_there(bench: Bench) {
    let side_by_side = tokio::join!(bench.queue.prepare(), bench.queue.prepare(), bench.queue.prepare());
    assert!(matches!(side_by_side, (Ok(()), Ok(()), Ok(()))), "{side_by_side:?}");
    assert_eq!(bench.publish(&[task("kept")]).await, [CONFIRMED]);
    bench.queue.prepare().await.expect("prepares again");
    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    assert_eq!(next(&mut consumer).await.body, b"kept");
}

async fn a_publisher_sees_how_many_tasks_wait_and_goes_on_when_it_cannot(bench: Bench) {
    let mut publisher = bench.queue.publisher().await.expect("connects");
    for _ in 0..2 {
        publisher.tasks_waiting().await.expect_err("there is no queue yet");
    }
    let bench = bench.prepared().await;
    let mut publisher = bench.queue.publisher().await.expect("connects");
    for n in 0..3 {
        assert_eq!(publisher.tasks_waiting().await.expect("sees it"), n);
        assert_eq!(publisher.publish(&[task("1")]).await.expect("publishes"), [CONFIRMED]);
        wait_until("the broker counts it", LIMIT, async || bench.depth(Source::Purge).await == n + 1).await;
    }
    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    assert!(next(&mut consumer).await.answer.ack().await.expect("acks"));
    drop(consumer);
    wait_until("the broker counts it", LIMIT, async || bench.depth(Source::Purge).await == 2).await;
    assert_eq!(publisher.tasks_waiting().await.expect("sees it"), 2);
}

async fn a_consumer_of_a_missing_queue_is_an_error(bench: Bench) {
    let error = bench.queue.consumer(Source::Purge, 1).await.expect_err("is missing").to_string();
    assert!(error.contains("no ") && error.to_lowercase().contains("purge"), "{error}");
}

async fn a_consumer_ends_when_its_queue_is_deleted(bench: Bench) {
    let bench = bench.prepared().await;
    bench.publish(&[task("held")]).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 1).await.expect("consumes");
    let _held = next(&mut consumer).await;
    let (ended, ()) = tokio::join!(within(consumer.next()), bench.delete(Source::Purge));
    assert!(matches!(ended, Ok(None)), "{ended:?}");
    assert!(matches!(within(consumer.next()).await, Ok(None)));
}

async fn a_cancelled_consumer_answers_what_it_has_and_gives_back_the_rest(bench: Bench) {
    let bench = bench.prepared().await;
    bench.publish(&[task("a"), task("b"), task("c")]).await;
    let mut consumer = bench.queue.consumer(Source::Purge, 10).await.expect("consumes");
    let held = next(&mut consumer).await;
    within(consumer.cancel()).await.expect("cancels");
    within(consumer.cancel()).await.expect("cancels twice");
    assert!(matches!(within(consumer.next()).await, Ok(None)));
    wait_until("the rest is back", LIMIT, async || bench.depth(Source::Purge).await == 2).await;
    assert!(held.answer.ack().await.expect("acks"));
    drop(consumer);

    let mut consumer = bench.queue.consumer(Source::Purge, 10).await.expect("consumes");
    let rest = BTreeSet::from([next(&mut consumer).await.body, next(&mut consumer).await.body]);
    assert_eq!(rest, BTreeSet::from([b"b".to_vec(), b"c".to_vec()]));
    assert_eq!(bench.depth(Source::Purge).await, 0);
}

async fn a_cancelled_wait_loses_no_message(bench: Bench) {
    let bench = bench.prepared().await;
    let mut consumer = bench.queue.consumer(Source::Purge, 0).await.expect("consumes");
    let window: Vec<_> = (0..200).map(|n| task(&n.to_string())).collect();
    let consume = async {
        let mut came = Vec::new();
        while came.len() < window.len() {
            if let Some(delivery) = consumer.next().now_or_never() {
                let delivery = delivery.expect("still consumes").expect("has not ended");
                came.push(delivery.message_id.clone().expect("has an id"));
                assert!(delivery.answer.ack().await.expect("acks"));
            }
            tokio::task::yield_now().await;
        }
        came
    };
    let (outcomes, came) = tokio::join!(bench.publish(&window), within(consume));
    assert!(outcomes.iter().all(|outcome| *outcome == CONFIRMED));
    assert_eq!(came, window.iter().map(|sent| sent.id.to_string()).collect::<Vec<_>>());
}
