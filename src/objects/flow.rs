//! How much is asked of one bucket at a time, by all tasks of this process together.
//!
//! Invariant: being asked for less is flow control. It changes when the next request leaves and never what became of a
//! key. Whoever waits is served in the order of asking, so that one giant purge and many small ones share fairly.
//!
//! Requests in flight grow while the store answers, and fall to half when it asks for less or does not answer. A store
//! that refuses has a rate in mind: between two refusals it took exactly as much as it grants, so from then on keys are
//! paced at a little less than that, and a little more is tried from time to time. A time that the store names is kept.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as Turnstile, MutexGuard as Turn, Notify};
use tokio::time::Instant;

use crate::domain::outcome::{BatchOutcome, FailureClass, KeyOutcome, RetryAfter};

/// Requests in flight at first: a store that is throttling already is not met with many. Doubles with each round.
const FIRST: f64 = 1.0;

/// Of what a store was measured to grant, the share that is asked for. The rest is what refusals would cost.
const SHARE: f64 = 0.97;

/// Shorter spells between two refusals say nothing of a rate.
const SPELL: Duration = Duration::from_millis(400);
/// After a longer one, the rate was nearly right.
const LONG_SPELL: Duration = Duration::from_secs(5);
const STEP_BACK: f64 = 0.96;
/// When so many in a row come soon, whatever the rate, they have nothing to do with it: some stores fail at random with the
/// same code. Then nothing is paced for a while.
const IN_VAIN: u32 = 5;
const UNPACED: Duration = Duration::from_secs(60);
/// Within so many requests, one more or less is a large share.
const A_FEW_REQUESTS: f64 = 4.0;

/// How long a rate holds before a little more is tried, and by how much more. Twice as much after each [`CALM`] without
/// a refusal, so that a store that was busy for a while is soon asked for all that it gives.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_BY: f64 = 0.002;
const CALM: Duration = Duration::from_secs(30);

/// The most by which the rate grows at once.
const PROBE_MOST: f64 = 0.5;

/// Fewer keys that are refused are no news of a bucket.
const FEW: usize = 10;

/// The pause after the first refusal of all that names no time: most stores that grant a rate have granted a second's
/// share by then, and what they take until the next refusal tells it.
const PAUSE_TO_MEASURE: Duration = Duration::from_secs(1);
/// The first pause after any other; doubles with each in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What may be asked of a bucket at most, whatever it grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Delete requests in flight.
    pub concurrency: NonZeroU32,
    /// Objects a second, deleted by this process; `None`: as many as the store takes.
    pub objects_per_second: Option<NonZeroU32>,
}

/// The gates of a store, one for each bucket. Clones share them.
#[derive(Debug, Clone)]
pub struct Flow {
    ceiling: Ceiling,
    gates: Arc<Mutex<HashMap<String, Arc<Gate>>>>,
}

impl Flow {
    /// Gates with this ceiling.
    pub fn new(ceiling: Ceiling) -> Self {
        Self { ceiling, gates: Arc::default() }
    }

    /// The gate of a bucket.
    pub fn gate(&self, bucket: &str) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.entry(bucket.to_owned()).or_insert_with(|| Arc::new(Gate::new(self.ceiling))).clone()
    }
}

/// What a request that passed the gate has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// An answer.
    Answer,
    /// The store asks for less, and perhaps for a time.
    Less(Option<RetryAfter>),
    /// No answer.
    Silence,
}

/// A request that was answered, or not.
#[derive(Debug, Clone, Copy)]
struct Met {
    /// Keys asked for, and keys that are gone.
    asked: usize,
    taken: usize,
    sent_at: Instant,
}

/// Lets delete requests through.
#[derive(Debug)]
pub struct Gate {
    ceiling: Ceiling,
    /// Whoever has it is the next to go through; the others wait in the order in which they came.
    turnstile: Turnstile<()>,
    state: Mutex<State>,
    /// A place has become free.
    left: Notify,
}

#[derive(Debug)]
struct State {
    in_flight: u32,
    /// How many may be.
    allowed: f64,
    /// Whether the store has never asked for less: the number grows with every answer until then.
    unhurt: bool,
    /// Refusals in a row.
    refusals: u32,
    /// Nothing leaves before.
    closed_until: Instant,
    /// When the last key that has left is paid for, at the rate in force.
    paid_until: Instant,
    pace: Pace,
}

/// What the store was found to grant.
#[derive(Debug)]
struct Pace {
    /// Keys a second that are asked for.
    rate: Option<f64>,
    /// The best that was measured. Refusals that come at random do not bring the rate below half of it.
    best: f64,
    /// The last time when the store had nothing left to grant.
    refused_at: Option<Instant>,
    /// Such a time before, from which on is measured.
    measured_from: Option<Instant>,
    /// Keys taken since.
    taken: f64,
    /// When more was tried last.
    probed_at: Instant,
    /// Refusals that came soon although the rate had been lowered.
    in_vain: u32,
    /// Until then refusals say nothing of a rate.
    unpaced_until: Instant,
}

/// The right to send one request, and a place in flight until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    gate: Arc<Gate>,
    sent_at: Instant,
}

impl Gate {
    fn new(ceiling: Ceiling) -> Self {
        let now = Instant::now();
        let state = State {
            in_flight: 0,
            allowed: FIRST.min(f64::from(ceiling.concurrency.get())),
            unhurt: true,
            refusals: 0,
            closed_until: now,
            paid_until: now,
            pace: Pace {
                rate: None,
                best: 0.0,
                refused_at: None,
                measured_from: None,
                taken: 0.0,
                probed_at: now,
                in_vain: 0,
                unpaced_until: now,
            },
        };
        Self { ceiling, turnstile: Turnstile::new(()), state: Mutex::new(state), left: Notify::new() }
    }

    /// Waits for a place, and for the time at which so many keys may leave. Cancelling it gives the place in the row back.
    pub async fn enter(self: &Arc<Self>, keys: usize) -> Pass {
        let turn = self.turnstile.lock().await;
        loop {
            // made before the look, so that no place that becomes free in between is missed
            let left = self.left.notified();
            match self.admit(&turn, keys) {
                Ok(pass) => return pass,
                Err(Some(at)) => tokio::time::sleep_until(at).await,
                Err(None) => left.await,
            }
        }
    }

    /// As [`Gate::enter`] for whoever would rather not wait.
    pub fn try_enter(self: &Arc<Self>, keys: usize) -> Option<Pass> {
        let turn = self.turnstile.try_lock().ok()?;
        self.admit(&turn, keys).ok()
    }

    /// Requests that may be in flight now.
    pub fn allowed(&self) -> u32 {
        whole(self.state().allowed)
    }

    /// Whether more than one request may ever be in flight.
    pub fn is_wide(&self) -> bool {
        self.ceiling.concurrency.get() > 1
    }

    /// The time before which nothing is to be sent, if it is still to come.
    pub fn closed_for(&self) -> Option<Duration> {
        self.state().closed_until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }

    /// A pass, or when to ask again; `None`: when somebody leaves.
    fn admit(self: &Arc<Self>, _turn: &Turn<'_, ()>, keys: usize) -> Result<Pass, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        if state.in_flight >= whole(state.allowed) {
            return Err(None);
        }
        let from = state.closed_until.max(state.paid_until);
        if from > now {
            return Err(Some(from));
        }
        state.in_flight += 1;
        if let Some(rate) = state.rate(self.ceiling, now) {
            state.paid_until = now + Duration::from_secs_f64(keys as f64 / rate);
        }
        Ok(Pass { gate: self.clone(), sent_at: now })
    }

    /// Every step on the state is a single change, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn whole(allowed: f64) -> u32 {
    // between 1 and the ceiling, which is a u32
    allowed.max(1.0) as u32
}

impl State {
    fn rate(&mut self, ceiling: Ceiling, now: Instant) -> Option<f64> {
        let most = ceiling.objects_per_second.map(|most| f64::from(most.get()));
        match (self.pace.in_force(now), most) {
            (Some(rate), Some(most)) => Some(rate.min(most)),
            (rate, most) => rate.or(most),
        }
    }

    fn hear(&mut self, heard: Heard, met: Met, ceiling: Ceiling) {
        let now = Instant::now();
        self.pace.taken += met.taken as f64;
        // of several that were in flight at once, the first speaks for all
        let is_news = self.pace.refused_at.is_none_or(|at| met.sent_at > at);
        match heard {
            Heard::Answer => {
                self.refusals = 0;
                let is_measuring = self.pace.measured_from.is_some() && self.pace.rate.is_none();
                let step = match () {
                    () if self.unhurt => 1.0,
                    // alone until the rate is known: several would be refused at once
                    () if is_measuring => 0.0,
                    () => 1.0 / self.allowed,
                };
                self.allowed = (self.allowed + step).min(f64::from(ceiling.concurrency.get()));
            }
            Heard::Less(wait) => {
                let pause = wait.map(RetryAfter::wait).unwrap_or_default();
                self.closed_until = self.closed_until.max(now + pause);
                if is_news {
                    let doubled = FIRST_PAUSE.saturating_mul(1 << self.refusals.min(10)).min(LONGEST_PAUSE);
                    let own = if self.unhurt { PAUSE_TO_MEASURE } else { doubled };
                    self.closed_until = self.closed_until.max(now + own);
                    self.refusals += 1;
                    self.allowed = if self.unhurt { 1.0 } else { (self.allowed / 2.0).max(1.0) };
                    self.unhurt = false;
                    self.pace.refuse(met.asked, now);
                }
            }
            Heard::Silence => {
                self.unhurt = false;
                self.allowed = (self.allowed / 2.0).max(1.0);
            }
        }
    }
}

impl Pace {
    /// The store had nothing left to grant for a request of so many keys: since the last time it has granted what was
    /// taken. Where that were only a few requests, this one may just have been too early, and counts.
    fn refuse(&mut self, keys: usize, now: Instant) {
        self.refused_at = Some(now);
        self.probed_at = now;
        if now < self.unpaced_until {
            return;
        }
        let keys = keys as f64;
        let spell = self.measured_from.map(|from| now - from);
        self.in_vain = if spell.is_some_and(|spell| spell >= LONG_SPELL) { 0 } else { self.in_vain + 1 };
        if self.in_vain > IN_VAIN {
            (self.rate, self.measured_from, self.in_vain) = (None, None, 0);
            self.unpaced_until = now + UNPACED;
            return;
        }
        if let (Some(rate), Some(true)) = (self.rate, spell.map(|spell| spell >= LONG_SPELL)) {
            // it was a little too much, and perhaps for the last little while alone
            self.rate = Some(rate * STEP_BACK);
        } else if let Some(spell) = spell.filter(|spell| *spell >= SPELL && self.taken > 0.0) {
            let granted = if self.taken < A_FEW_REQUESTS * keys { self.taken + keys } else { self.taken };
            let measured = granted / spell.as_secs_f64();
            self.best = self.best.max(measured);
            self.rate = Some((measured * SHARE).max(self.best / 2.0));
        }
        if spell.is_none_or(|spell| spell >= SPELL) {
            self.measured_from = Some(now);
            self.taken = 0.0;
        }
    }

    /// The rate, a little more of it from time to time.
    fn in_force(&mut self, now: Instant) -> Option<f64> {
        let rate = self.rate?;
        if now - self.probed_at >= PROBE_EVERY {
            let calm = self.refused_at.map_or(Duration::ZERO, |at| now - at);
            let doublings = (calm.as_secs() / CALM.as_secs()).min(16);
            let by = (PROBE_BY * f64::from(1u32 << doublings)).min(PROBE_MOST);
            self.rate = Some(rate * (1.0 + by));
            self.probed_at = now;
        }
        self.rate
    }
}

impl Pass {
    /// Says what the store has answered.
    pub fn heard(self, answer: &BatchOutcome) {
        let taken = answer.iter().filter(|(_, outcome)| outcome.is_gone()).count();
        let met = Met { asked: answer.len(), taken, sent_at: self.sent_at };
        self.gate.state().hear(heard_in(answer), met, self.gate.ceiling);
    }
}

/// What an answer says about the bucket. A few keys that are refused say something about themselves.
fn heard_in(answer: &BatchOutcome) -> Heard {
    let refused = answer.iter().filter(|(_, outcome)| is_refused(outcome)).count();
    let lost = answer.lost_answer();
    let is_whole = refused >= FEW && refused > answer.len() / 2;
    match answer.retry_after() {
        Some(wait) => Heard::Less(Some(wait)),
        None if is_whole || lost.is_some_and(|why| why.class == FailureClass::Throttled) => Heard::Less(None),
        None if lost.is_some() => Heard::Silence,
        None => Heard::Answer,
    }
}

fn is_refused(outcome: &KeyOutcome) -> bool {
    matches!(outcome, KeyOutcome::Failed(why) if why.class == FailureClass::Throttled)
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.state().in_flight -= 1;
        self.gate.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;
    use crate::domain::outcome::{KeyFailure, ObjectRef};

    fn ceiling(concurrency: u32, objects_per_second: Option<u32>) -> Ceiling {
        let of = |n| NonZeroU32::new(n).expect("not zero");
        Ceiling { concurrency: of(concurrency), objects_per_second: objects_per_second.map(of) }
    }

    fn answer(keys: usize, outcome: &KeyOutcome) -> BatchOutcome {
        let objects: Vec<_> = (0..keys).map(|n| ObjectRef { key: n.to_string(), version: None }).collect();
        BatchOutcome::uniform(&objects, outcome)
    }

    fn slow_down() -> KeyOutcome {
        let (code, message) = ("SlowDown".into(), String::new());
        KeyOutcome::Failed(KeyFailure { code, message, class: FailureClass::Throttled })
    }

    /// A store that grants so many keys a second, and as many at once after a pause.
    #[derive(Debug)]
    struct Granting {
        rate: f64,
        tokens: f64,
        at: Instant,
        granted: usize,
        requests: usize,
        refused: usize,
        most_at_once: u32,
    }

    impl Granting {
        fn new(rate: f64) -> Arc<Mutex<Self>> {
            let (tokens, at) = (rate, Instant::now());
            Arc::new(Mutex::new(Self { rate, tokens, at, granted: 0, requests: 0, refused: 0, most_at_once: 0 }))
        }

        fn ask(&mut self, keys: usize) -> KeyOutcome {
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
                    let pass = gate.enter(keys).await;
                    let outcome = store.lock().expect("no panic").ask(keys);
                    let in_flight = gate.state().in_flight;
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
        let pass = gate.enter(10).await;
        pass.heard(&answer(10, &slow_down()).with_retry_after(Some(RetryAfter::seconds(30))));
        assert!(gate.closed_for().is_some_and(|wait| wait > Duration::from_secs(29)));
        assert!(gate.try_enter(10).is_none());
        let before = Instant::now();
        drop(gate.enter(10).await);
        assert!(before.elapsed() >= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn one_key_that_is_refused_is_no_news_of_the_bucket() {
        let gate = Flow::new(ceiling(4, None)).gate("b");
        for _ in 0..5 {
            let pass = gate.enter(1).await;
            pass.heard(&answer(1, &slow_down()));
        }
        assert_eq!((gate.closed_for(), gate.allowed()), (None, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_at_random_do_not_bring_the_rate_to_nothing() {
        let gate = Flow::new(ceiling(16, None)).gate("b");
        let mut granted = 0;
        let began = Instant::now();
        for n in 0..2_000 {
            let pass = gate.enter(1000).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let refused = n % 5 == 0;
            granted += usize::from(!refused);
            pass.heard(&answer(1000, &if refused { slow_down() } else { KeyOutcome::Deleted }));
        }
        let rate = granted as f64 / began.elapsed().as_secs_f64();
        assert!(rate > 3.0, "{rate} batches a second, of 8 that the latency lets through one at a time");
    }
}
