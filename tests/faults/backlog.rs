//! A backlog stays where it is counted once: in the outbox. And however long it is, every purge gets its turn.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::amqp::Amqp;
use crate::crowd::{Crowd, count};
use crate::support::synthetic_s3::Options;
use crate::support::{SOON, wait_until};
use crate::world::Settings;

/// Tasks that may wait in the broker, and what one look of the only relay may add to them.
const MAX_QUEUED: u32 = 100;
const WINDOW: u32 = 64;

const ENV: [(&str, &str); 5] = [
    ("REPRIEVE__SERVICE__LOG", "reprieve=info,warn"),
    ("REPRIEVE__PURGE__LEASE", "30s"),
    ("REPRIEVE__RELAY__MAX_QUEUED", "100"),
    ("REPRIEVE__RELAY__WINDOW", "64"),
    ("REPRIEVE__SWEEPER__INTERVAL", "50ms"),
];

/// Waits until the sweeper has looked once more from its beginning to its end: it forgets an old answer each time.
async fn sweeps(crowd: &Crowd) {
    sqlx::query(
        "insert into reprieve.requests (message_id, answered_at, digest, answer)
         values ('old', now() - interval '10 years', '', 'null')",
    )
    .execute(&crowd.world.pool)
    .await
    .expect("an old answer");
    let forgotten = "select count(*) from reprieve.requests";
    wait_until("a sweep ends", SOON, async || crowd.number(forgotten).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_wait_for_a_worker_do_not_multiply_in_the_broker() {
    const ROUNDS: usize = 4;
    let settings = Settings { redeliver_after: "1s", ..Settings::default() };
    let crowd = Crowd::new(settings, Options::default()).await;
    let ids = crowd.small(count() / 3).await;
    crowd.trash_all(&ids).await;
    crowd.until_due().await;
    let rest = crowd.world.serve_with(&["--roles", "relay,sweeper"], &ENV);
    rest.says("relay publishes").await;
    let amqp = Amqp::connect(&crowd.world).await;
    wait_until("the queue is full", SOON, async || amqp.depth("purge").await >= MAX_QUEUED).await;
    for round in 0..ROUNDS {
        // every task in the queue is taken for lost once more, and written again
        let since: time::OffsetDateTime =
            sqlx::query_scalar("select now()").fetch_one(&crowd.world.pool).await.expect("the time");
        wait_until("the tasks in the queue are written again", SOON, async || {
            let rewritten: i64 = sqlx::query_scalar(
                "select count(*) from reprieve.tombstones t where t.queued_at is not null and exists
                     (select from reprieve.outbox o where o.tombstone_id = t.id and o.topic = 'purge'
                      and now() > $1 + interval '1100 milliseconds')",
            )
            .bind(since)
            .fetch_one(&crowd.world.pool)
            .await
            .expect("counted");
            rewritten >= i64::from(MAX_QUEUED)
        })
        .await;
        sweeps(&crowd).await;
        let queued = amqp.depth("purge").await;
        assert!((MAX_QUEUED..=MAX_QUEUED + WINDOW).contains(&queued), "round {round}: {queued} wait in the broker");
        let outbox = crowd.number("select count(*) from reprieve.outbox where topic = 'purge'").await;
        assert!(outbox <= ids.len() as i64, "round {round}: {outbox} rows for {} tombstones", ids.len());
    }
    let events = "select count(*) from reprieve.outbox where topic = 'event'";
    assert_eq!(crowd.number(events).await, 0, "events are not held back");

    let _worker = crowd.world.serve_with(&["--roles", "worker"], &ENV);
    let limit = Duration::from_secs(300 + u64::from(count()) / 20);
    wait_until("all of them are purged", limit, async || crowd.purged().await == ids.len() as i64).await;
    let objects = (0..ids.len() as u64).map(|number| number % 4).sum();
    crowd.all_are_gone(&ids, objects).await;
    wait_until("the queue is empty", SOON, async || amqp.depth("purge").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giant_with_many_slices_does_not_keep_small_ones_waiting_for_its_end() {
    const BATCHES: u64 = 100;
    const SLICES: i64 = 5;
    let settings = Settings { slice: "200ms", redeliver_after: "60s", ..Settings::default() };
    let latency = Duration::from_millis(10);
    let crowd = Crowd::new(settings, Options { latency, ..Options::default() }).await;
    let giant = crowd.giant("giant", BATCHES * 1000, 10).await;
    let small: Vec<Uuid> = crowd.small(count() / 10).await;
    let began = Instant::now();
    // the giant is due first, so it is the first that the only worker takes, one purge at a time
    crowd.trash_all(&[giant]).await;
    crowd.trash_all(&small).await;
    crowd.until_due().await;
    let env: Vec<_> = ENV.into_iter().chain([("REPRIEVE__PURGE__CONCURRENCY", "1")]).collect();
    let _service = crowd.world.serve_with(&["--roles", "relay,sweeper,worker"], &env);
    let limit = Duration::from_secs(300 + u64::from(count()) / 20);
    wait_until("all of them are purged", limit, async || crowd.purged().await == small.len() as i64 + 1).await;
    let order = "select count(*) from reprieve.tombstones s, reprieve.tombstones g
                 where g.objects_listed > 1000 and s.id <> g.id and s.closed_at < g.closed_at and g.purging_at < s.purging_at";
    assert_eq!(crowd.number(order).await, small.len() as i64, "begun after the giant and ended before it");
    let fence = crowd.world.stands(giant).await.fence;
    assert!(fence >= SLICES, "{fence} slices are not many");
    eprintln!("{} small ones passed a giant of {fence} slices: {:.1?}", small.len(), began.elapsed());
    let objects = (0..small.len() as u64).map(|number| number % 4).sum::<u64>() + BATCHES * 1000;
    let all: Vec<Uuid> = small.into_iter().chain([giant]).collect();
    crowd.all_are_gone(&all, objects).await;
}
