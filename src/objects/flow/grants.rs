//! Gates before stores that answer late, grant less than before, or grant less at once than a batch has; in virtual time.

use tokio::task::JoinSet;

use super::{
    tests::{Granting, answer, ceiling, slow_down},
    *,
};

/// How long a store takes over what it grants, and over what it refuses.
#[derive(Debug, Clone, Copy)]
struct Takes {
    granted: Duration,
    refused: Duration,
}

/// As many senders as find a place, for so long, and what came of it: the share of the store's rate that was used, and of
/// the requests that were refused.
async fn send(gate: &Arc<Gate>, store: &Arc<Mutex<Granting>>, takes: Takes, time: Duration) -> (f64, f64) {
    let (began, end) = (Instant::now(), Instant::now() + time);
    let seen = |store: &Granting| (store.granted, store.requests, store.refused, store.rate);
    let before = seen(&store.lock().expect("no panic"));
    let mut senders = JoinSet::new();
    for _ in 0..64 {
        let (gate, store) = (gate.clone(), store.clone());
        senders.spawn(async move {
            while Instant::now() < end {
                let keys = gate.keys_at_once(1000);
                let pass = match gate.enter(keys).await {
                    Ok(pass) => pass,
                    Err(Closed { wait: time, .. }) => {
                        tokio::time::sleep(time).await;
                        continue;
                    }
                };
                let outcome = store.lock().expect("no panic").ask(keys);
                let is_refused = outcome != KeyOutcome::Deleted;
                tokio::time::sleep(if is_refused { takes.refused } else { takes.granted }).await;
                pass.heard(&answer(keys, &outcome));
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended.expect("no panic");
    }
    // all that had come is served, and with it the last of them
    let seconds = began.elapsed().as_secs_f64();
    let after = seen(&store.lock().expect("no panic"));
    let used = (after.0 - before.0) as f64 / (after.3 * seconds);
    (used, (after.2 - before.2) as f64 / (after.1 - before.1) as f64)
}

fn takes(granted: u64, refused: u64) -> Takes {
    Takes { granted: Duration::from_millis(granted), refused: Duration::from_millis(refused) }
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_late_is_used_to_nearly_all_of_its_rate_and_hardly_ever_refuses() {
    for (rate, granted, refused) in
        [(3_500.0, 1000, 20), (3_500.0, 1000, 1000), (3_500.0, 2000, 20), (3_500.0, 4000, 20), (10_000.0, 1000, 20)]
    {
        let gate = Flow::new(ceiling(24, None)).gate("b");
        let store = Granting::new(rate);
        let (used, share) = send(&gate, &store, takes(granted, refused), 4 * MINUTE).await;
        assert!(
            used > 0.75 && share < 0.03,
            "{used} of {rate} used, {share} refused, answers in {granted} ms: {store:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_answers_late_and_refuses_at_first_is_used_from_the_first_minute_on() {
    for seconds in [1, 2, 4] {
        let gate = Flow::new(ceiling(21, None)).gate("b");
        let store = Granting::new(3_500.0);
        for minute in 0..5 {
            let (used, _) = send(&gate, &store, takes(1000 * seconds, 20), MINUTE).await;
            // with four seconds an answer it takes a minute more until as many are in flight as the rate needs
            let least = if minute == 0 {
                0.45
            } else if seconds == 4 && minute == 1 {
                0.75
            } else {
                0.85
            };
            assert!(used > least, "{used} in minute {minute}, answers in {seconds} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_grants_less_at_once_than_a_batch_is_asked_for_less_at_once_and_for_more_when_it_grants_more() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let store = Granting::new(300.0);
    let (used, _) = send(&gate, &store, takes(20, 20), 8 * MINUTE).await;
    assert!(used > 0.5, "{used}: {store:?}");
    assert!(gate.keys_at_once(1000) <= 300);
    store.lock().expect("no panic").rate = 20_000.0;
    send(&gate, &store, takes(20, 20), 30 * MINUTE).await;
    assert_eq!(gate.keys_at_once(1000), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_had_refused_everything_is_asked_for_whole_batches_soon_after() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    for _ in 0..20 {
        let keys = gate.keys_at_once(1000);
        match gate.enter(keys).await {
            Ok(pass) => pass.heard(&answer(keys, &slow_down())),
            Err(Closed { wait: time, .. }) => tokio::time::sleep(time).await,
        }
    }
    assert!(gate.keys_at_once(1000) < 1000);
    let store = Granting::new(1e9);
    send(&gate, &store, takes(20, 20), Duration::from_secs(10)).await;
    assert_eq!(gate.keys_at_once(1000), 1000);
}

#[tokio::test(start_paused = true)]
async fn requests_get_smaller_although_small_ones_are_granted_in_between() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    for _ in 0..8 {
        let keys = gate.keys_at_once(1000);
        gate.enter(keys).await.expect("never away").heard(&answer(keys, &slow_down()));
        gate.enter(50).await.expect("never away").heard(&answer(50, &KeyOutcome::Deleted));
    }
    assert!(gate.keys_at_once(1000) < 1000);
}

#[tokio::test(start_paused = true)]
async fn one_refusal_on_the_way_back_to_whole_batches_holds_for_seconds() {
    let mut at_once = AtOnce::default();
    for _ in 0..100 {
        let keys = at_once.keys().unwrap_or(1000);
        at_once.refuse(keys, Instant::now());
    }
    assert_eq!(at_once.keys(), Some(1));
    let mut requests = 0;
    while let Some(keys) = at_once.keys() {
        requests += 1;
        if requests == 3 {
            at_once.refuse(keys, Instant::now());
        } else {
            at_once.grant(keys, Instant::now());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(requests < 30, "{at_once:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_gate_stays_closed_to_a_store_that_refuses_however_small_requests_have_become() {
    // of so many versions of a key none is parted from the others
    for a_key in [1, 3, 7, 11, 19] {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        let (began, mut requests) = (Instant::now(), 0);
        while began.elapsed() < 10 * MINUTE {
            let keys = (gate.keys_at_once(1000) / a_key).max(1) * a_key;
            match gate.enter(keys).await {
                Ok(pass) => {
                    pass.heard(&answer(keys, &slow_down()));
                    requests += 1;
                }
                Err(Closed { wait: time, .. }) => tokio::time::sleep(time).await,
            }
        }
        // each size is tried a few times, and the smallest at the longest pause
        assert!(requests <= 30 + 600 / LONGEST_PAUSE.as_secs(), "{requests} in ten minutes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_small_request_among_large_ones_does_not_say_how_small_they_get() {
    let mut at_once = AtOnce::default();
    for asked in [1000, 12, 12] {
        assert!(!at_once.refuse(asked, Instant::now()));
        assert_eq!(at_once.keys(), None);
    }
    assert!(at_once.refuse(12, Instant::now()));
    assert_eq!(at_once.keys(), Some(500));
}

#[tokio::test(start_paused = true)]
async fn what_half_as_many_keys_are_granted_does_not_hide_that_whole_batches_are_refused() {
    let mut at_once = AtOnce::default();
    let mut refused = 0;
    for _ in 0..100 {
        let keys = at_once.keys().unwrap_or(1000);
        for asked in [keys, keys.min(600)] {
            if asked > 700 {
                at_once.refuse(asked, Instant::now());
                refused += 1;
            } else {
                at_once.grant(asked, Instant::now());
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(refused <= 12, "{refused} in 100 seconds: {at_once:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_never_quite_full_get_whole_again() {
    // of the versions of a key, of which there are so many, none is parted from the others; or of a batch, most are kept
    for (a_key, share) in [(2, 1), (3, 1), (7, 1), (1, 5)] {
        let mut at_once = AtOnce::default();
        while at_once.keys() != Some(1) {
            at_once.refuse(at_once.keys().unwrap_or(1000), Instant::now());
        }
        let mut seconds = 0;
        while let Some(keys) = at_once.keys() {
            at_once.grant(keys / a_key * a_key / share, Instant::now());
            tokio::time::sleep(Duration::from_secs(1)).await;
            seconds += 1;
            assert!(seconds < 700, "{a_key}, {share}: {at_once:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rate_grows_only_where_it_is_used() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let store = Granting::new(2_000.0);
    send(&gate, &store, takes(20, 20), MINUTE).await;
    let rate = gate.open().keys_per_second.expect("refused twice");
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_secs(6)).await;
        gate.enter(10).await.expect("open").heard(&answer(10, &KeyOutcome::Deleted));
    }
    let later = gate.open().keys_per_second.expect("known still");
    assert!(later < 1.1 * rate, "{rate}, and an hour later {later}");
    store.lock().expect("no panic").rate = 20_000.0;
    send(&gate, &store, takes(20, 20), MINUTE).await;
    let (used, _) = send(&gate, &store, takes(20, 20), MINUTE).await;
    assert!(used > 0.8, "{used}");
}

#[tokio::test(start_paused = true)]
async fn what_little_was_asked_for_between_two_refusals_is_not_taken_for_a_rate() {
    for is_known in [false, true] {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        let store = Granting::new(3_000.0);
        if is_known {
            send(&gate, &store, takes(20, 20), MINUTE).await;
        }
        // small purges, of which some are refused by accident
        for n in 0..20 {
            let pass = gate.enter(20).await.expect("never away");
            let outcome = if n % 5 == 0 { slow_down() } else { KeyOutcome::Deleted };
            pass.heard(&answer(20, &outcome));
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        let (used, _) = send(&gate, &store, takes(20, 20), MINUTE).await;
        assert!(used > 0.5, "{used}, a rate was known: {is_known}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_grants_a_quarter_of_what_it_did_is_soon_measured_anew() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let store = Granting::new(14_000.0);
    send(&gate, &store, takes(20, 20), 2 * MINUTE).await;
    store.lock().expect("no panic").rate = 3_500.0;
    for minute in 0..4 {
        let (used, refused) = send(&gate, &store, takes(20, 20), MINUTE).await;
        assert!(used > 0.9 && (minute == 0 || refused < 0.02), "{used}, {refused} refused in minute {minute}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_grants_a_few_keys_at_once_is_asked_for_as_few_within_seconds() {
    for most in [1, 3, 12, 100] {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        let began = Instant::now();
        while gate.keys_at_once(1000) > most {
            let keys = gate.keys_at_once(1000);
            gate.enter(keys).await.expect("it is not away").heard(&answer(keys, &slow_down()));
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{:?} for {most}", began.elapsed());
        drop(gate.enter(1).await.expect("it is not away"));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_turned_away_hears_what_the_store_has_said() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let mut turned_away = None;
    for _ in 0..100 {
        let keys = gate.keys_at_once(1000);
        match gate.enter(keys).await {
            Ok(pass) => pass.heard(&answer(keys, &slow_down())),
            Err(closed) => turned_away = Some(closed),
        }
        if turned_away.is_some() {
            break;
        }
    }
    let closed = turned_away.expect("it refuses everything");
    assert_eq!((gate.keys_at_once(1000), closed.refusals), (1, AWAY));
    assert_eq!(closed.why.map(|why| why.code).as_deref(), Some("SlowDown"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_grants_hardly_a_batch_a_second_is_used_to_most_of_it() {
    for rate in [200.0, 700.0, 1000.0] {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        let store = Granting::new(rate);
        for minute in 0..6 {
            let (used, refused) = send(&gate, &store, takes(20, 20), MINUTE).await;
            let is_found = minute < 2 || (used > 0.8 && refused < 0.1);
            assert!(used > 0.4 && is_found, "{used} of {rate}, {refused} refused in minute {minute}");
        }
    }
}
