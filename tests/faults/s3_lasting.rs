//! Faults of the store that last: an outage is waited for however long, what needs a person is set aside with the true
//! reason and finished by `retry`, and a store that lies is found out before a row is gone.

use std::time::Duration;

use crate::behind_proxy::{Faulty, PUT, ROWS, settings};
use crate::s3_proxy::{ALWAYS, Fault, KeyFault, On, Op, Which, Work};
use crate::support::{heimdall, wait_until};
use crate::world::PURGED;

#[tokio::test]
async fn throttling_and_outages_are_waited_for_and_use_up_no_attempts() {
    let faulty = Faulty::new(settings()).await;
    let deletes = || On::from(Op::DeleteObjects);
    let mut cases = Vec::new();
    for (on, fault) in [
        (deletes(), Fault::SlowDown),
        (deletes(), Fault::TooManyRequests(1)),
        (deletes(), Fault::InternalError(Work::Left)),
        (deletes(), Fault::Closed),
        (deletes(), Fault::Keys(Which::All, KeyFault::SlowDown(Work::Left))),
        (deletes(), Fault::Keys(Which::Every(7), KeyFault::SlowDown(Work::Left))),
        (On::lists(), Fault::SlowDown),
        (On::lists(), Fault::TooManyRequests(1)),
        (On::lists(), Fault::InternalError(Work::Left)),
        (On::lists(), Fault::Closed),
        (On::lists(), Fault::CutBody),
        (On::lists(), Fault::EmptyOk),
    ] {
        let name = format!("{} on {on:?}", fault.name());
        let (id, prefix) = faulty.dataset(&name).await;
        cases.push((name, id, faulty.proxy.rule(on.below(prefix), ALWAYS, fault)));
    }
    let _service = faulty.serve();
    faulty.trash(&cases.iter().map(|(_, id, _)| *id).collect::<Vec<_>>()).await;
    for (name, id, rule) in &cases {
        // as many deliveries as there are attempts; some of them fail at the gate that the others' refusals have shut,
        // and ask the store nothing
        wait_until(format!("{name}: two deliveries have failed, and four requests"), PURGED, async || {
            let now = faulty.world.stands(*id).await;
            assert!(now.state != "stuck" && now.state != "purged", "{name}: {now:?}");
            faulty.failures(*id).await.0 >= 2 && rule.met() > 3
        })
        .await;
        let (now, (_, attempts)) = (faulty.world.stands(*id).await, faulty.failures(*id).await);
        assert_eq!((now.state.as_str(), attempts), ("purging", 0), "{name}: {now:?}");
        assert_eq!(faulty.world.rows(*id).await, ROWS, "{name}");
    }
    faulty.proxy.calm();
    for (_, id, _) in &cases {
        faulty.purged(*id).await;
    }
}

#[tokio::test]
async fn what_needs_a_person_is_set_aside_with_its_reason_and_finished_by_a_retry() {
    let faulty = Faulty::new(settings()).await;
    let deletes = || On::from(Op::DeleteObjects);
    let mut cases = Vec::new();
    for (n, (on, left, reasons)) in [
        (deletes(), PUT, ["28 objects: AccessDenied", "by the fault proxy"]),
        (On::lists(), PUT, ["ListObjectsV2", "AccessDenied"]),
    ]
    .into_iter()
    .enumerate()
    {
        let (id, prefix) = faulty.dataset(&format!("all {n}")).await;
        cases.push((
            id,
            faulty.proxy.rule(on.below(prefix), ALWAYS, Fault::Forbidden),
            left,
            reasons.map(String::from),
        ));
    }
    for (how, code) in [
        (KeyFault::AccessDenied(Work::Left), "AccessDenied"),
        (KeyFault::InternalError(Work::Left), "InternalError"),
        (KeyFault::Missing(Work::Left), "NoAnswer"),
    ] {
        let (id, prefix) = faulty.dataset(code).await;
        let bad = heimdall::key(id, 3, 2);
        let fault = Fault::Keys(Which::Named(vec![bad.clone()]), how);
        cases.push((
            id,
            faulty.proxy.rule(deletes().below(prefix), ALWAYS, fault),
            1,
            [format!("1 object: {code}"), bad],
        ));
    }
    let _service = faulty.serve();
    faulty.trash(&cases.iter().map(|(id, ..)| *id).collect::<Vec<_>>()).await;
    for (id, rule, left, reasons) in &cases {
        let reason = faulty.stuck(*id).await;
        assert!(reasons.iter().all(|part| reason.contains(part)), "{reasons:?} in {reason:?}");
        assert_eq!(faulty.world.objects(*id).await, *left, "one bad key holds up no other: {reason}");
        assert!(rule.met() > 0);
        rule.end();
    }
    for (id, ..) in &cases {
        faulty.world.json(&["retry", "dataset", &id.to_string(), "--execute"]).await;
    }
    for (id, ..) in &cases {
        faulty.purged(*id).await;
    }
}

#[tokio::test]
async fn a_key_that_fails_its_whole_request_is_told_from_the_others() {
    let faulty = Faulty::new(settings()).await;
    let (id, _) = faulty.dataset("one key is poison").await;
    let bad = heimdall::key(id, 3, 2);
    let rule = faulty.proxy.rule(On::deletes().below(&bad), ALWAYS, Fault::InternalError(Work::Left));
    let _service = faulty.serve();
    faulty.trash(&[id]).await;
    wait_until("only that one is left", PURGED, async || faulty.world.objects(id).await == 1).await;
    let now = faulty.world.until("it says why", id, |now| now.last_error.is_some()).await;
    assert_eq!((now.state.as_str(), faulty.world.rows(id).await), ("purging", ROWS), "{now:?}");
    let reason = now.last_error.expect("just seen");
    assert!(reason.contains("InternalError") && reason.contains(&bad), "{reason}");
    rule.end();
    faulty.purged(id).await;
}

#[tokio::test]
async fn a_store_whose_answers_are_always_lost_is_emptied_by_what_its_listings_show() {
    let faulty = Faulty::new(settings()).await;
    let mut cases = Vec::new();
    for fault in [Fault::AnswerLost, Fault::Garbage, Fault::InternalError(Work::Done)] {
        let (id, prefix) = faulty.dataset(fault.name()).await;
        cases.push((id, faulty.proxy.rule(Op::DeleteObjects.below(prefix), ALWAYS, fault)));
    }
    let _service = faulty.serve();
    faulty.trash(&cases.iter().map(|(id, _)| *id).collect::<Vec<_>>()).await;
    for (id, rule) in cases {
        let receipt = faulty.purged(id).await;
        // a store that fails every batch is asked for one key at a time after a while, and answers that
        let n = |name: &str| receipt["objects"][name].as_i64().expect("a number");
        assert_eq!(n("absent") + n("deleted"), PUT, "{receipt:#}");
        assert!(rule.met() > 0);
    }
}

#[tokio::test]
async fn a_store_that_lies_about_a_deletion_is_found_out_before_a_row_is_gone() {
    let faulty = Faulty::new(settings()).await;
    let (lied, prefix) = faulty.dataset("lied to").await;
    let bad = heimdall::key(lied, 3, 2);
    let lie = Fault::Keys(Which::Named(vec![bad.clone()]), KeyFault::Lie);
    let lie = faulty.proxy.rule(Op::DeleteObjects.below(prefix), ALWAYS, lie);
    // a store whose pages are always short, and always claim to be the last
    let (short, prefix) = faulty.dataset("cut short").await;
    let cut = faulty.proxy.rule(On::lists().below(prefix), ALWAYS, Fault::CutShort(10));
    let _service = faulty.serve();
    faulty.trash(&[lied, short]).await;

    let reason = faulty.stuck(lied).await;
    assert!(reason.contains(&bad), "{reason}");
    assert_eq!((faulty.world.objects(lied).await, lie.met()), (1, 2), "once an attempt");
    lie.end();
    faulty.world.json(&["retry", "dataset", &lied.to_string(), "--execute"]).await;
    faulty.world.until_state(lied, "purged").await;
    assert_eq!((faulty.world.objects(lied).await, faulty.world.rows(lied).await), (0, 0));
    faulty.went_in_order(lied, PUT).await;

    faulty.stuck(short).await;
    assert_eq!(faulty.world.objects(short).await, PUT - 20, "what was shown is gone");
    assert!(cut.met() > 0);
    cut.end();
    faulty.world.json(&["retry", "dataset", &short.to_string(), "--execute"]).await;
    faulty.purged(short).await;
}

#[tokio::test]
async fn a_store_that_names_a_time_is_left_alone_until_then() {
    const LONG: Duration = Duration::from_secs(7);
    const SHORT: Duration = Duration::from_secs(2);
    let faulty = Faulty::new(settings()).await;
    let mut cases = Vec::new();
    for (on, fault, wait) in [
        (On::lists(), Fault::TooManyRequests(7), LONG),
        (On::lists(), Fault::Unavailable(2), SHORT),
        (On::from(Op::DeleteObjects), Fault::TooManyRequests(7), LONG),
        (On::from(Op::DeleteObjects), Fault::Unavailable(2), SHORT),
    ] {
        let name = format!("{} for {wait:?} on {on:?}", fault.name());
        let (id, prefix) = faulty.dataset(&name).await;
        let on = on.below(prefix);
        let refused = faulty.proxy.next(on.clone(), fault);
        let next = faulty.proxy.next(on, Fault::SlowAnswer(Duration::ZERO));
        cases.push((name, id, refused, next, wait));
    }
    // one request at a time: of two that are on their way at once, the second cannot know what the first is told
    let _service = faulty.world.serve_with(&[], &[("REPRIEVE__STORES__MAIN__CONCURRENCY", "1")]);
    faulty.trash(&cases.iter().map(|case| case.1).collect::<Vec<_>>()).await;
    for (name, id, refused, next, wait) in cases {
        faulty.purged(id).await;
        let waited = next.met_at()[0] - refused.met_at()[0];
        assert!(waited >= wait, "{name}: {waited:?}");
    }
}
