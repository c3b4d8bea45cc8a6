//! Requests that the intake cannot answer, as while the broker blocks whoever publishes and goes on handing out.

use std::time::Duration;

use async_trait::async_trait;
use reprieve::intake::Intake;
use reprieve::queue::local::{LocalQueue, LocalRequest};
use reprieve::queue::{Answer, Consumer, Delivery, Depths, PublishOutcome, Publisher, QueueError, Source, TaskQueue};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::bench::Bench;
use crate::support::{SOON, wait_until};

/// Takes no copies: what would become a dead letter or be put off stays unanswered.
#[derive(Debug)]
struct NoCopies<T>(T);

fn refused() -> QueueError {
    QueueError { doing: "publish a copy".into(), reason: "no answer from the broker in time".into() }
}

#[async_trait]
impl TaskQueue for NoCopies<LocalQueue> {
    async fn prepare(&self) -> Result<(), QueueError> {
        self.0.prepare().await
    }
    async fn publisher(&self) -> Result<Box<dyn Publisher>, QueueError> {
        self.0.publisher().await
    }
    async fn consumer(&self, source: Source, prefetch: u16) -> Result<Box<dyn Consumer>, QueueError> {
        Ok(Box::new(NoCopies(self.0.consumer(source, prefetch).await?)))
    }
    async fn depths(&self) -> Result<Depths, QueueError> {
        self.0.depths().await
    }
}

#[async_trait]
impl Consumer for NoCopies<Box<dyn Consumer>> {
    async fn next(&mut self) -> Result<Option<Delivery>, QueueError> {
        let next = self.0.next().await?;
        Ok(next.map(|delivery| Delivery { answer: Box::new(NoCopies(delivery.answer)), ..delivery }))
    }
    async fn cancel(&mut self) -> Result<(), QueueError> {
        self.0.cancel().await
    }
}

#[async_trait]
impl Answer for NoCopies<Box<dyn Answer>> {
    async fn ack(self: Box<Self>) -> Result<bool, QueueError> {
        self.0.ack().await
    }
    async fn requeue(self: Box<Self>) -> Result<bool, QueueError> {
        self.0.requeue().await
    }
    async fn put_off(self: Box<Self>) -> Result<bool, QueueError> {
        Err(refused())
    }
    async fn dead_letter(self: Box<Self>, _: &str) -> Result<bool, QueueError> {
        Err(refused())
    }
}

fn send(queue: &LocalQueue, body: impl ToString) {
    let request = LocalRequest { body: body.to_string().into_bytes(), ..LocalRequest::default() };
    assert_eq!(queue.publish_request(request), PublishOutcome::Confirmed);
}

async fn bench_and_queue() -> (Bench, LocalQueue) {
    let queue = LocalQueue::default();
    queue.prepare().await.expect("prepares");
    (Bench::heimdall().await, queue)
}

#[tokio::test]
async fn one_that_was_handed_out_before_and_cannot_be_set_aside_holds_up_no_other() {
    let (bench, queue) = bench_and_queue().await;
    send(&queue, "not json");
    let mut dead = queue.consumer(Source::Requests, 1).await.expect("consumes");
    dead.next().await.expect("hands out").expect("one");
    drop(dead);
    let id = bench.dataset("set a", 1).await;
    send(&queue, json!({ "v": 1, "op": "trash", "kind": "dataset", "id": id, "actor": "a" }));
    let intake = Intake::new(bench.bin.clone(), bench.metrics.clone()).expect("fine");
    let (stop, no_copies) = (CancellationToken::new(), NoCopies(queue.clone()));
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { intake.run(&no_copies, &stop).await }
    });
    wait_until("the other is carried out", SOON, async || bench.count("reprieve.tombstones").await == 1).await;
    stop.cancel();
    running.await.expect("no panic").expect("ends");
    assert_eq!(queue.depths().await.expect("shows").requests, 1, "the first is back");
}

#[tokio::test]
async fn when_no_place_is_left_for_another_the_intake_connects_anew() {
    let (bench, queue) = bench_and_queue().await;
    for _ in 0..20 {
        send(&queue, "not json");
    }
    let intake = Intake::new(bench.bin.clone(), bench.metrics.clone()).expect("fine");
    let (stop, no_copies) = (CancellationToken::new(), NoCopies(queue.clone()));
    let ended = tokio::time::timeout(Duration::from_secs(30), intake.run(&no_copies, &stop)).await;
    let why = ended.expect("does not wait for ever").expect_err("says why").to_string();
    assert!(why.contains("answer requests"), "{why}");
    assert_eq!(queue.depths().await.expect("shows").requests, 20, "nothing is lost");
}
