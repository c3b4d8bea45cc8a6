//! How much is asked of one bucket at a time, by all tasks of this process together.
//!
//! Invariant: being asked for less is flow control. It changes when the next request leaves and never what became of a
//! key. Whoever waits is served in the order of asking, so that one giant purge and many small ones share fairly.
//!
//! Requests in flight grow while the store answers, and fall to half when it asks for less or does not answer. A store
//! that refuses has a rate in mind: between two refusals it took exactly as much as it grants, so from then on keys are
//! paced at a little less than that, and a little more is tried from time to time. A time that the store names is kept.

mod at_once;
#[cfg(test)]
mod grants;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as Turnstile, MutexGuard as Turn, Notify};
use tokio::time::Instant;

use self::{
    at_once::AtOnce,
    pace::{InFlight, Pace, Sent},
};
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, RetryAfter};

/// Refusals in a row after which nobody waits at the gate: the store is away.
const AWAY: u32 = 4;

/// Requests in flight at first: a store that is throttling already is not met with many. Doubles with each round, and no
/// sooner than after so long a shortage: one that answers at once would be met with all of them before its first refusal.
const FIRST: f64 = 2.0;
const DOUBLES_IN: Duration = Duration::from_millis(100);
/// To so many it doubles without an answer too. A refusal comes at once; a store that takes a second for a batch is
/// working on it, and rounds of that length would leave it half idle until it has all that it can work on.
const UNANSWERED: f64 = 16.0;

/// Requests that stay in flight to a store that does not answer.
const AT_LEAST: f64 = 4.0;

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
    sent: Sent,
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
    in_flight: InFlight,
    /// How many may be.
    allowed: f64,
    /// Whether the store has never asked for less: the number grows with every answer until then.
    unhurt: bool,
    /// To this it grows with the answers, one by one.
    goal: f64,
    shortage: Shortage,
    /// Refusals in a row of requests that cannot get smaller, or not yet.
    refusals: u32,
    /// What the last refusal said.
    refused_for: Option<KeyFailure>,
    /// Nothing leaves before.
    closed_until: Instant,
    /// When the last key that has left is paid for, at the rate in force.
    paid_until: Instant,
    pace: Pace,
    at_once: AtOnce,
}

/// For how long somebody has found no place, again and again. Whoever comes now and then and finds none is no reason to
/// ask a store for more.
#[derive(Debug, Default)]
struct Shortage {
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Shortage {
    fn seen(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now - last > DOUBLES_IN) {
            self.since = None;
        }
        self.since.get_or_insert(now);
        self.last = Some(now);
    }

    fn long_at(&self) -> Option<Instant> {
        self.since.map(|since| since + DOUBLES_IN)
    }

    fn is_long(&self, now: Instant) -> bool {
        self.long_at().is_some_and(|at| now >= at)
    }
}

/// How far a gate is open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Open {
    /// Requests that may be in flight.
    pub allowed: u32,
    /// Requests that are.
    pub in_flight: u32,
    /// Keys that a request may have, where the store was found to grant fewer at once than it may have at most.
    pub keys_at_once: Option<usize>,
    /// The rate that keys are paced at, where the store was found to grant one.
    pub keys_per_second: Option<f64>,
    /// For how long nothing leaves.
    pub closed_for: Duration,
}

/// The store wants to be left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// For so long.
    pub wait: Duration,
    /// Refusals in a row.
    pub refusals: u32,
    /// What the last of them said, if anything.
    pub why: Option<KeyFailure>,
}

/// What one has to wait for to get through.
enum Wait {
    Until(Instant),
    /// Until somebody leaves, or there are more places.
    Place(Option<Instant>),
    Closed(Closed),
}

/// The right to send one request, and a place in flight until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    gate: Arc<Gate>,
    sent: Sent,
}

impl Gate {
    fn new(ceiling: Ceiling) -> Self {
        let now = Instant::now();
        let state = State {
            in_flight: InFlight::default(),
            allowed: FIRST.min(f64::from(ceiling.concurrency.get())),
            unhurt: true,
            goal: FIRST,
            shortage: Shortage::default(),
            refusals: 0,
            refused_for: None,
            closed_until: now,
            paid_until: now,
            pace: Pace::new(now),
            at_once: AtOnce::default(),
        };
        Self { ceiling, turnstile: Turnstile::new(()), state: Mutex::new(state), left: Notify::new() }
    }

    /// Waits for a place, and for the time at which so many keys may leave. Cancelling it gives the place in the row back.
    ///
    /// # Errors
    /// The store wants to be left alone for longer than anybody should wait in a row.
    pub async fn enter(self: &Arc<Self>, keys: usize) -> Result<Pass, Closed> {
        let turn = self.turnstile.lock().await;
        loop {
            // made before the look, so that no place that becomes free in between is missed
            let left = self.left.notified();
            match self.admit(&turn, keys) {
                Ok(pass) => return Ok(pass),
                Err(Wait::Closed(closed)) => return Err(closed),
                Err(Wait::Until(at)) => tokio::time::sleep_until(at).await,
                Err(Wait::Place(None)) => left.await,
                Err(Wait::Place(Some(at))) => {
                    let _ = tokio::time::timeout_at(at, left).await;
                }
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

    /// Of so many keys that a request may have, how many it should.
    pub fn keys_at_once(&self, most: usize) -> usize {
        self.state().at_once.keys().map_or(most, |keys| keys.min(most))
    }

    /// How far it is open now. Only looks.
    pub fn open(&self) -> Open {
        let state = self.state();
        Open {
            allowed: whole(state.allowed),
            in_flight: state.in_flight.count(),
            keys_at_once: state.at_once.keys(),
            keys_per_second: state.pace.rate,
            closed_for: state.closed_until.saturating_duration_since(Instant::now()),
        }
    }

    /// Whether more than one request may ever be in flight.
    pub fn is_wide(&self) -> bool {
        self.ceiling.concurrency.get() > 1
    }

    fn admit(self: &Arc<Self>, _turn: &Turn<'_, ()>, keys: usize) -> Result<Pass, Wait> {
        let now = Instant::now();
        let mut state = self.state();
        let closed = state.closed_until.saturating_duration_since(now);
        if closed > LONGEST_PAUSE || (!closed.is_zero() && state.refusals >= AWAY) {
            let State { refusals, refused_for, .. } = &*state;
            return Err(Wait::Closed(Closed { wait: closed, refusals: *refusals, why: refused_for.clone() }));
        }
        let from = state.closed_until.max(state.paid_until);
        if from > now {
            return Err(Wait::Until(from));
        }
        if !state.has_place() {
            let more_at = state.grow_unanswered(now, self.ceiling);
            if !state.has_place() {
                return Err(Wait::Place(more_at));
            }
        }
        state.paid_until = now + state.price(keys, self.ceiling, now);
        Ok(Pass { gate: self.clone(), sent: state.in_flight.send(keys, now) })
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
    fn has_place(&self) -> bool {
        self.in_flight.count() < whole(self.allowed)
    }

    /// How long after so many keys the next may leave.
    fn price(&mut self, keys: usize, ceiling: Ceiling, now: Instant) -> Duration {
        let at = |rate: f64| Duration::try_from_secs_f64(keys as f64 / rate).unwrap_or(Duration::MAX);
        // whatever was measured, nobody stands first in the row for longer than this
        let measured = self.pace.in_force(keys, now).map_or(Duration::ZERO, |rate| at(rate).min(LONGEST_PAUSE));
        measured.max(ceiling.objects_per_second.map_or(Duration::ZERO, |most| at(f64::from(most.get()))))
    }

    /// Somebody finds no place. Says when there will be more without an answer, if there will.
    fn grow_unanswered(&mut self, now: Instant, ceiling: Ceiling) -> Option<Instant> {
        let most = UNANSWERED.min(f64::from(ceiling.concurrency.get()));
        self.shortage.seen(now);
        if self.unhurt && self.allowed < most && self.shortage.is_long(now) {
            self.allowed = (2.0 * self.allowed).min(most);
            self.goal = self.allowed;
            self.shortage = Shortage::default();
            self.shortage.seen(now);
        }
        self.shortage.long_at().filter(|_| self.unhurt && self.allowed < most)
    }

    fn hear(&mut self, heard: Heard, met: Met, ceiling: Ceiling) {
        let now = Instant::now();
        self.pace.take(met.sent, met.taken);
        if met.taken == met.asked {
            self.at_once.grant(met.asked, now);
        }
        // of several that were in flight at once, the first speaks for all
        let is_news = self.pace.refused_at.is_none_or(|at| met.sent.at > at);
        match heard {
            Heard::Answer => {
                self.refusals = 0;
                // nearly alone until the rate is known: several would be refused at once, but one alone may never ask for
                // all that a store grants which takes long to answer
                let is_new = self.unhurt || self.pace.is_measuring(now);
                if is_new && self.shortage.is_long(now) {
                    self.goal = if self.unhurt { 2.0 * self.allowed } else { self.allowed + 1.0 };
                    self.shortage = Shortage::default();
                }
                let most = match () {
                    () if is_new => self.goal,
                    // a known rate is kept by pacing, in however many requests it takes
                    () if self.pace.rate.is_some() => self.allowed + 1.0,
                    () => self.allowed + 1.0 / self.allowed,
                };
                let grown = most.min(self.allowed + 1.0).max(self.allowed);
                self.allowed = grown.min(f64::from(ceiling.concurrency.get()));
            }
            Heard::Less(wait) => {
                let pause = wait.map(RetryAfter::wait).unwrap_or_default();
                self.closed_until = self.closed_until.max(now + pause);
                if is_news {
                    let was_too_much = met.taken == 0 && self.at_once.refuse(met.asked, now);
                    if was_too_much {
                        // nobody has asked for so little so far: it is not away for having refused more
                        self.refusals = 0;
                    }
                    let doubled = FIRST_PAUSE.saturating_mul(1 << self.refusals.min(10)).min(LONGEST_PAUSE);
                    let own = if self.unhurt { PAUSE_TO_MEASURE } else { doubled };
                    self.closed_until = self.closed_until.max(now + own.max(self.pace.time_for(met.asked)));
                    self.shortage = Shortage::default();
                    self.refusals += 1;
                    self.allowed = if self.unhurt { 1.0 } else { (self.allowed / 2.0).max(1.0) };
                    self.goal = self.allowed;
                    self.unhurt = false;
                    if was_too_much {
                        self.pace.refuse_for_size(met.sent, now);
                    } else {
                        self.pace.refuse(met.asked, met.sent, &self.in_flight, now);
                    }
                } else {
                    self.pace.refuse_too(met.asked - met.taken, met.sent);
                }
                let (keys_per_second, keys_at_once) = (self.pace.rate, self.at_once.keys());
                let closed_ms = self.closed_until.saturating_duration_since(now).as_millis();
                let Met { asked, taken, .. } = met;
                tracing::debug!(asked, taken, closed_ms, ?keys_per_second, ?keys_at_once, "store asks for less");
            }
            Heard::Silence => {
                self.unhurt = false;
                // one request that hangs is not to hold up all the others
                self.allowed = (self.allowed / 2.0).max(AT_LEAST.min(self.allowed));
            }
        }
    }
}

impl Pass {
    /// Says what the store has answered.
    pub fn heard(self, answer: &BatchOutcome) {
        let taken = answer.iter().filter(|(_, outcome)| outcome.is_gone()).count();
        let met = Met { asked: answer.len(), taken, sent: self.sent };
        let mut state = self.gate.state();
        let heard = heard_in(answer, state.at_once.news());
        if let Heard::Less(_) = heard {
            state.refused_for = refusal_in(answer);
        }
        state.hear(heard, met, self.gate.ceiling);
    }
}

/// What the store says of why it did less.
fn refusal_in(answer: &BatchOutcome) -> Option<KeyFailure> {
    let of_keys = answer.iter().find_map(|(_, outcome)| match outcome {
        KeyOutcome::Failed(why) if why.class != FailureClass::Permanent => Some(why),
        _ => None,
    });
    answer.lost_answer().or(of_keys).cloned()
}

/// What an answer says about the bucket. Fewer keys that are refused than are `news` say something about themselves.
fn heard_in(answer: &BatchOutcome, news: usize) -> Heard {
    let refused = answer.iter().filter(|(_, outcome)| is_refused(outcome)).count();
    let lost = answer.lost_answer();
    let is_whole = refused >= news && refused > answer.len() / 2;
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
        self.gate.state().in_flight.leave(self.sent);
        self.gate.left.notify_one();
    }
}
