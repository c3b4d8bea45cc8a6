//! Gates before stores that grant, refuse and fall silent, in virtual time.

use tokio::task::JoinSet;

use super::*;
use crate::domain::outcome::{KeyFailure, ObjectRef};

pub(super) fn ceiling(concurrency: u32, objects_per_second: Option<u32>) -> Ceiling {
    let of = |n| NonZeroU32::new(n).expect("not zero");
    Ceiling { concurrency: of(concurrency), objects_per_second: objects_per_second.map(of) }
}

pub(super) fn answer(keys: usize, outcome: &KeyOutcome) -> BatchOutcome {
    let objects: Vec<_> = (0..keys).map(|n| ObjectRef { key: n.to_string(), version: None }).collect();
    BatchOutcome::uniform(&objects, outcome)
}

pub(super) fn slow_down() -> KeyOutcome {
    let (code, message) = ("SlowDown".into(), String::new());
    KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Throttled })
}

/// A store that grants so many keys a second, and as many at once after a pause.
#[derive(Debug)]
pub(super) struct Granting {
    pub(super) rate: f64,
    tokens: f64,
    at: Instant,
    pub(super) granted: usize,
    pub(super) requests: usize,
    pub(super) refused: usize,
    most_at_once: u32,
}

impl Granting {
    pub(super) fn new(rate: f64) -> Arc<Mutex<Self>> {
        let (tokens, at) = (rate, Instant::now());
        Arc::new(Mutex::new(Self { rate, tokens, at, granted: 0, requests: 0, refused: 0, most_at_once: 0 }))
    }

    pub(super) fn ask(&mut self, keys: usize) -> KeyOutcome {
        let now = Instant::now();
        self.tokens = (self.tokens + (now - self.at).as_secs_f64() * self.rate).min(self.rate);
        self.at = now;
        self.requests += 1;
        if self.tokens < keys as f64 {
            self.refused += 1;
            return slow_down();
        }
        self.tokens -= keys as f64;
        self.granted += keys;
        KeyOutcome::Deleted
    }
}

/// Several tasks that send batches for so long, each answered after `latency`.
async fn send_for(gate: &Arc<Gate>, store: &Arc<Mutex<Granting>>, tasks: usize, keys: usize, time: Duration) {
    let (end, latency) = (Instant::now() + time, Duration::from_millis(20));
    let mut senders = JoinSet::new();
    for _ in 0..tasks {
        let (gate, store) = (gate.clone(), store.clone());
        senders.spawn(async move {
            while Instant::now() < end {
                let pass = gate.enter(keys).await.expect("never away");
                let outcome = store.lock().expect("no panic").ask(keys);
                let in_flight = gate.state().in_flight.count();
                let most = store.lock().expect("no panic").most_at_once.max(in_flight);
                store.lock().expect("no panic").most_at_once = most;
                tokio::time::sleep(latency).await;
                pass.heard(&answer(keys, &outcome));
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_grants_a_rate_is_used_to_nearly_all_of_it_and_hardly_ever_refuses() {
    for rate in [3_500.0, 20_000.0] {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        let store = Granting::new(rate);
        let time = Duration::from_secs(300);
        send_for(&gate, &store, 16, 1000, time).await;
        let store = store.lock().expect("no panic");
        let used = store.granted as f64 / (rate * time.as_secs_f64());
        assert!(used > 0.95, "{used} of {rate}: {store:?}");
        assert!(store.refused * 100 < store.requests, "{store:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_grants_more_again_is_soon_asked_for_more() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let store = Granting::new(2_000.0);
    send_for(&gate, &store, 16, 1000, Duration::from_secs(60)).await;
    store.lock().expect("no panic").rate = 20_000.0;
    send_for(&gate, &store, 16, 1000, Duration::from_secs(600)).await;
    let before = store.lock().expect("no panic").granted;
    send_for(&gate, &store, 16, 1000, Duration::from_secs(20)).await;
    let granted = store.lock().expect("no panic").granted - before;
    assert!(granted > 20 * 18_000, "{granted} in 20 s");
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_grow_to_the_ceiling_while_the_store_answers() {
    let gate = Flow::new(ceiling(12, None)).gate("b");
    let store = Granting::new(1e9);
    send_for(&gate, &store, 32, 1, Duration::from_secs(5)).await;
    let store = store.lock().expect("no panic");
    assert_eq!((store.most_at_once, store.refused), (12, 0));
}

#[tokio::test(start_paused = true)]
async fn no_more_objects_a_second_leave_than_the_ceiling_says_and_tasks_share_them() {
    let gate = Flow::new(ceiling(16, Some(500))).gate("b");
    let (one, two) = (Granting::new(1e9), Granting::new(1e9));
    let time = Duration::from_secs(60);
    tokio::join!(send_for(&gate, &one, 15, 50, time), send_for(&gate, &two, 5, 50, time));
    let (one, two) = (one.lock().expect("no panic").granted, two.lock().expect("no panic").granted);
    let all = one + two;
    assert!((29_000..=31_500).contains(&all), "{all}");
    assert!((0.20..0.30).contains(&(two as f64 / all as f64)), "{two} of {all} for 5 of 20 that ask");
}

#[tokio::test(start_paused = true)]
async fn nothing_leaves_before_the_time_that_the_store_names() {
    let gate = Flow::new(ceiling(4, None)).gate("b");
    let pass = gate.enter(10).await.expect("open");
    pass.heard(&answer(10, &slow_down()).with_retry_after(Some(RetryAfter::seconds(30))));
    assert!(gate.try_enter(10).is_none());
    assert_eq!(gate.enter(10).await.expect_err("too long to wait").wait, Duration::from_secs(30));
    tokio::time::sleep(Duration::from_secs(27)).await;
    let before = Instant::now();
    drop(gate.enter(10).await.expect("soon open"));
    assert!(before.elapsed() >= Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_in_a_row_for_a_store_that_refuses_everything() {
    let gate = Flow::new(ceiling(64, None)).gate("b");
    let mut refused = 0;
    let closed = loop {
        match gate.enter(100).await {
            Ok(pass) => pass.heard(&answer(100, &slow_down())),
            Err(closed) => break closed,
        }
        refused += 1;
        assert!(refused < 10, "each of them waited for");
    };
    tokio::time::sleep(closed.wait).await;
    assert!(gate.enter(100).await.is_ok(), "somebody asks again");
}

#[tokio::test(start_paused = true)]
async fn one_key_that_is_refused_is_no_news_of_the_bucket() {
    let gate = Flow::new(ceiling(4, None)).gate("b");
    for _ in 0..5 {
        let pass = gate.enter(1).await.expect("open");
        tokio::time::sleep(DOUBLES_IN).await;
        pass.heard(&answer(1, &slow_down()));
    }
    let untouched =
        Open { allowed: 2, in_flight: 0, keys_at_once: None, keys_per_second: None, closed_for: Duration::ZERO };
    assert_eq!(gate.open(), untouched);
}

#[tokio::test(start_paused = true)]
async fn refusals_at_random_do_not_bring_the_rate_to_nothing() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let mut granted = 0;
    let began = Instant::now();
    for n in 0..2_000 {
        let pass = gate.enter(1000).await.expect("never away");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = n % 5 == 0;
        granted += usize::from(!refused);
        pass.heard(&answer(1000, &if refused { slow_down() } else { KeyOutcome::Deleted }));
    }
    let rate = granted as f64 / began.elapsed().as_secs_f64();
    assert!(rate > 3.0, "{rate} batches a second, of 8 that the latency lets through one at a time");
}

/// Deletes so many batches of a thousand as fast as the gate lets it; says in how many seconds.
async fn delete_batches(gate: &Arc<Gate>, store: &Arc<Mutex<Granting>>, batches: usize, latency: Duration) -> f64 {
    let (began, mut senders) = (Instant::now(), JoinSet::new());
    for _ in 0..16 {
        let (gate, store) = (gate.clone(), store.clone());
        senders.spawn(async move {
            while store.lock().expect("no panic").granted < batches * 1000 {
                let pass = gate.enter(1000).await.expect("never away");
                let outcome = store.lock().expect("no panic").ask(1000);
                // a refusal costs a store no work
                let is_granted = outcome == KeyOutcome::Deleted;
                tokio::time::sleep(if is_granted { latency } else { latency.min(Duration::from_millis(20)) }).await;
                pass.heard(&answer(1000, &outcome));
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended.expect("no panic");
    }
    began.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_nobody_knows_yet_is_found_at_the_cost_of_a_few_refusals() {
    // where answers take long, it takes some seconds until as many are in flight as the rate needs
    for (latency, least, most) in [(2, 0.94, 5), (20, 0.94, 6), (150, 0.88, 8), (300, 0.85, 8)] {
        let latency = Duration::from_millis(latency);
        for rate in [1_500.0, 2_500.0, 3_000.0, 3_500.0, 4_200.0, 5_000.0, 7_700.0, 10_000.0, 20_000.0] {
            let gate = Flow::new(ceiling(16, None)).gate("b");
            let store = Granting::new(rate);
            // what it takes half a minute to grant
            let seconds = delete_batches(&gate, &store, (rate * 30.0) as usize / 1000, latency).await;
            let store = store.lock().expect("no panic");
            let share = store.granted as f64 / (rate + rate * seconds);
            assert!(share > least && store.refused <= most, "{share} of {rate}, answers in {latency:?}: {store:?}");
        }
    }
}

/// A request of so many keys, answered after a while.
async fn ask(gate: &Arc<Gate>, keys: usize, outcome: &KeyOutcome) {
    let pass = gate.enter(keys).await.expect("never away");
    tokio::time::sleep(Duration::from_millis(150)).await;
    pass.heard(&answer(keys, outcome));
}

#[tokio::test(start_paused = true)]
async fn refusals_far_apart_tell_no_rate() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    ask(&gate, 1000, &slow_down()).await;
    for _ in 0..72 {
        tokio::time::sleep(Duration::from_secs(600)).await;
        ask(&gate, 50, &KeyOutcome::Deleted).await;
    }
    ask(&gate, 1000, &slow_down()).await;
    for _ in 0..10 {
        let before = Instant::now();
        ask(&gate, 1000, &KeyOutcome::Deleted).await;
        assert!(before.elapsed() <= LONGEST_PAUSE, "{:?}", before.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn after_one_refusal_requests_in_flight_grow_again_and_silence_lets_no_more_of_them_through() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    ask(&gate, 1000, &slow_down()).await;
    assert_eq!(gate.allowed(), 1);
    let why = KeyFailure { code: "Timeout".into(), message: String::new(), class: FailureClass::Transient };
    let object = ObjectRef { key: "k".into(), version: None };
    gate.enter(1).await.expect("never away").heard(&BatchOutcome::lost(&[object], why));
    assert_eq!(gate.allowed(), 1, "a store that does not answer is not asked for more");
    for _ in 0..500 {
        ask(&gate, 1000, &KeyOutcome::Deleted).await;
    }
    assert_eq!(gate.allowed(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_long_to_answer_is_given_more_before_its_first_answer() {
    let gate = Flow::new(ceiling(64, None)).gate("b");
    let began = Instant::now();
    let mut passes = Vec::new();
    for _ in 0..16 {
        passes.push(gate.enter(1000).await.expect("open"));
    }
    assert!(began.elapsed() >= 3 * DOUBLES_IN, "{:?}", began.elapsed());
    let more = tokio::time::timeout(Duration::from_secs(60), gate.enter(1000)).await;
    assert!(more.is_err(), "more only with its answers");
    for pass in passes {
        pass.heard(&answer(1000, &KeyOutcome::Deleted));
    }
    assert_eq!(gate.allowed(), 32);
}

#[tokio::test(start_paused = true)]
async fn whoever_came_one_at_a_time_is_not_let_through_in_a_crowd_before_the_rate_is_known() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    let store = Granting::new(3_500.0);
    // a listing goes first, and takes its time
    tokio::time::sleep(Duration::from_secs(1)).await;
    send_for(&gate, &store, 2, 1000, Duration::from_millis(25)).await;
    for _ in 0..3 {
        send_for(&gate, &store, 1, 1000, Duration::from_millis(1)).await;
        // what was refused is tried again, one after the other
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    send_for(&gate, &store, 16, 1000, Duration::from_secs(3)).await;
    let refused = store.lock().expect("no panic").refused;
    assert_eq!(refused, 2, "one to learn that there is a rate, and one to learn which");
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_the_same_whichever_of_several_refusals_is_heard_first() {
    let mut rates = Vec::new();
    for is_last_heard_first in [false, true] {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        ask(&gate, 1000, &slow_down()).await;
        for _ in 0..8 {
            // both of two in flight, so that there is a place for more
            let (one, two) = (ask(&gate, 1000, &KeyOutcome::Deleted), ask(&gate, 1000, &KeyOutcome::Deleted));
            tokio::join!(one, two);
        }
        let mut refused = Vec::new();
        while let Some(pass) = gate.try_enter(1000) {
            refused.push(pass);
        }
        assert!(refused.len() > 1);
        if is_last_heard_first {
            refused.reverse();
        }
        for pass in refused {
            pass.heard(&answer(1000, &slow_down()));
        }
        rates.push(gate.open().keys_per_second.expect("refused twice"));
    }
    assert_eq!(rates[0], rates[1]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_was_measured_while_hardly_anything_was_asked_for_is_soon_given_up() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    ask(&gate, 10, &slow_down()).await;
    for _ in 0..20 {
        ask(&gate, 10, &KeyOutcome::Deleted).await;
    }
    ask(&gate, 1000, &slow_down()).await;
    let rate = gate.open().keys_per_second.expect("refused twice");
    assert!(rate < 200.0, "{rate}");
    let (store, time) = (Granting::new(3_500.0), Duration::from_secs(120));
    send_for(&gate, &store, 16, 1000, time).await;
    let store = store.lock().expect("no panic");
    let used = store.granted as f64 / (3_500.0 * time.as_secs_f64());
    assert!(used > 0.5 && store.refused <= 3, "{used}: {store:?}");
}

#[tokio::test(start_paused = true)]
async fn a_few_keys_that_were_granted_between_two_refusals_tell_no_rate() {
    let gate = Flow::new(ceiling(16, None)).gate("b");
    for _ in 0..5 {
        ask(&gate, 10, &slow_down()).await;
        ask(&gate, 10, &KeyOutcome::Deleted).await;
    }
    assert_eq!(gate.open().keys_per_second, None);
}
