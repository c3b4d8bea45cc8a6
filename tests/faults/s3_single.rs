//! Each fault of the store by itself: it happens, the purge gets over it, and the receipt is exact. Every dataset meets
//! a fault of its own, below its own prefix, all of them at the same time.

use std::time::Duration;

use crate::behind_proxy::{Faulty, PUT, ROWS, TOO_SLOW, settings};
use crate::s3_proxy::{Fault, KeyFault, On, Op, Which, Work};
use crate::support::SOON;

/// More than the client tries by itself, so that the engine sees it too.
const BEYOND_THE_CLIENT: u64 = 4;

const SOME: Which = Which::Every(7);

fn faults_of_deletes() -> Vec<(u64, Fault)> {
    let keys = |how| (3, Fault::Keys(SOME, how));
    vec![
        (BEYOND_THE_CLIENT, Fault::InternalError(Work::Left)),
        (BEYOND_THE_CLIENT, Fault::InternalError(Work::Done)),
        (BEYOND_THE_CLIENT, Fault::SlowDown),
        (2, Fault::TooManyRequests(1)),
        (2, Fault::Unavailable(1)),
        (BEYOND_THE_CLIENT, Fault::CutBody),
        (BEYOND_THE_CLIENT, Fault::CutChunked),
        (1, Fault::Stalled),
        (BEYOND_THE_CLIENT, Fault::AnswerLost),
        (BEYOND_THE_CLIENT, Fault::Closed),
        (2, Fault::SlowAnswer(Duration::from_millis(300))),
        (2, Fault::SlowAnswer(TOO_SLOW)),
        (2, Fault::SlowWork(TOO_SLOW)),
        (BEYOND_THE_CLIENT, Fault::Garbage),
        (BEYOND_THE_CLIENT, Fault::ErrorInOk),
        (BEYOND_THE_CLIENT, Fault::EmptyOk),
        keys(KeyFault::InternalError(Work::Left)),
        keys(KeyFault::InternalError(Work::Done)),
        keys(KeyFault::SlowDown(Work::Left)),
        keys(KeyFault::SlowDown(Work::Done)),
        keys(KeyFault::Missing(Work::Left)),
        keys(KeyFault::Missing(Work::Done)),
        (1, Fault::Keys(Which::All, KeyFault::Missing(Work::Done))),
        (1, Fault::Keys(Which::All, KeyFault::Missing(Work::Left))),
    ]
}

fn faults_of_listings() -> Vec<(u64, Fault)> {
    vec![
        (BEYOND_THE_CLIENT, Fault::InternalError(Work::Left)),
        (BEYOND_THE_CLIENT, Fault::SlowDown),
        (2, Fault::TooManyRequests(1)),
        (2, Fault::Unavailable(1)),
        (BEYOND_THE_CLIENT, Fault::CutBody),
        (BEYOND_THE_CLIENT, Fault::CutChunked),
        (1, Fault::Stalled),
        (BEYOND_THE_CLIENT, Fault::Closed),
        (2, Fault::SlowAnswer(Duration::from_millis(300))),
        (1, Fault::SlowAnswer(TOO_SLOW)),
        (BEYOND_THE_CLIENT, Fault::Garbage),
        (BEYOND_THE_CLIENT, Fault::ErrorInOk),
        (BEYOND_THE_CLIENT, Fault::EmptyOk),
        // these two cost one attempt each
        (1, Fault::Stale),
        (1, Fault::CutShort(10)),
    ]
}

#[tokio::test]
async fn a_purge_gets_over_every_passing_fault_and_counts_every_object_once() {
    let faulty = Faulty::new(settings()).await;
    let deletes = faults_of_deletes().into_iter().map(|fault| (On::from(Op::DeleteObjects), fault));
    let listings = faults_of_listings().into_iter().map(|fault| (On::lists(), fault));
    let mut cases = Vec::new();
    for (n, (on, (times, fault))) in deletes.chain(listings).enumerate() {
        let name = format!("{n}: {} on {on:?}", fault.name());
        let (id, prefix) = faulty.dataset(&name).await;
        let rule = faulty.proxy.rule(on.below(prefix), times, fault);
        cases.push((name, id, times, rule));
    }
    let (sibling, prefix) = faulty.dataset("sibling").await;

    let mut service = faulty.serve();
    faulty.trash(&cases.iter().map(|(_, id, ..)| *id).collect::<Vec<_>>()).await;
    for (name, id, times, rule) in cases {
        let end = faulty.world.until(&name, id, |now| now.state == "purged" || now.state == "stuck").await;
        assert_eq!(end.state, "purged", "{name}: {end:?}");
        faulty.purged(id).await;
        assert_eq!(rule.met(), times, "{name}: it did happen");
    }
    assert_eq!(faulty.world.objects_below(&prefix).await, PUT, "a sibling");
    assert_eq!(faulty.world.rows(sibling).await, ROWS);
    assert!(service.terminate(SOON).await.success());
}
