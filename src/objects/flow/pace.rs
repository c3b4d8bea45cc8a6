//! The rate that a store grants, as its refusals tell it.
//!
//! Invariant: a rate comes from refusals alone; a store that has never asked for less is not paced. Keys count for the
//! time at which they left, not for that of the answer: a store decides when it is asked, and answers when it has worked.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::LONGEST_PAUSE;

/// Of what a store was measured to grant, the share that is asked for. The rest is what refusals would cost.
const SHARE: f64 = 0.97;

/// No store is known that means to grant fewer keys a second. One that refuses at less has other reasons.
const LEAST: f64 = 100.0;

/// Shorter spells between two refusals say nothing of a rate.
const SPELL: Duration = Duration::from_millis(400);
/// After a longer one, the rate was nearly right.
const LONG_SPELL: Duration = Duration::from_secs(5);
/// What a refusal takes off the rate where what was measured leaves it open, and at least.
const STEP_BACK: f64 = 0.95;
const SMALL_STEP_BACK: f64 = 0.985;
/// When so many in a row come soon, whatever the rate, they have nothing to do with it: some stores fail at random with the
/// same code. Then nothing is paced for a while.
const IN_VAIN: u32 = 5;
const UNPACED: Duration = Duration::from_secs(60);
/// What was measured once may be far too little, if hardly anything was asked for or the refusals had other reasons. So
/// often more is tried, in growing steps, until the store refuses at about the same rate.
const STEP_EVERY: Duration = Duration::from_secs(3);
const STEP_BY: f64 = 0.02;
const STEP_GROWS: f64 = 1.5;
/// A refusal below this times a rate confirms it.
const ABOUT: f64 = 1.5;
/// Since keys come a request at a time, fewer requests than these measure a rate less exactly than the steps do.
const EXACT: f64 = 30.0;
/// Of what was taken in so many, the share that is asked for: it is no more than the store grants, but for one request.
const EXACT_SHARE: f64 = 0.99;
/// Where less than this share of a rate was taken, something else than the rate was too little.
const ASKED: f64 = 0.8;
/// Where less than this share of a rate was asked for, nobody needs more.
const USED: f64 = 0.5;

/// How long a rate holds before a little more is tried, and by how much more. Twice as much after each [`CALM`] without
/// a refusal, so that a store that was busy for a while is soon asked for all that it gives.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_BY: f64 = 0.004;
const CALM: Duration = Duration::from_secs(30);

/// The most by which the rate grows at once.
const PROBE_MOST: f64 = 0.5;

/// When a request left, and as which.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    number: u64,
    pub(super) at: Instant,
}

/// The requests that wait for their answer, with the keys of each.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    keys: BTreeMap<u64, usize>,
    sent: u64,
}

impl InFlight {
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.keys.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn send(&mut self, keys: usize, at: Instant) -> Sent {
        self.sent += 1;
        self.keys.insert(self.sent, keys);
        Sent { number: self.sent, at }
    }

    pub(super) fn leave(&mut self, sent: Sent) {
        self.keys.remove(&sent.number);
    }

    /// Keys of those that left between these two.
    fn between(&self, from: Sent, to: Sent) -> usize {
        self.keys.range(from.number + 1..to.number.max(from.number + 1)).map(|(_, keys)| keys).sum()
    }
}

/// The first measurement: between these two requests so much was taken, and then so many keys were refused.
#[derive(Debug, Clone, Copy)]
struct First {
    between: (u64, u64),
    taken: f64,
    refused: f64,
    seconds: f64,
}

impl First {
    /// Both at the beginning and at the end less was left than a request takes. After the pause that comes first it was as
    /// much as the store ever leaves, so at the end of that half a request is left, more or less.
    fn rate(&self) -> f64 {
        (self.taken + self.refused / 2.0) / self.seconds
    }
}

/// More is tried of a rate that was measured once.
#[derive(Debug, Clone, Copy)]
struct Trial {
    measured: f64,
    /// What was in force before the last step, and by what share the next one adds to it.
    before: f64,
    step: f64,
}

impl Trial {
    fn of(measured: f64) -> Self {
        Self { measured, before: measured, step: STEP_BY }
    }
}

/// What the store was found to grant.
#[derive(Debug)]
pub(super) struct Pace {
    /// Keys a second that are asked for.
    pub(super) rate: Option<f64>,
    /// The best that was measured. Refusals that come at random do not bring the rate below half of it.
    best: f64,
    /// The last time when the store had nothing left to grant.
    pub(super) refused_at: Option<Instant>,
    /// Such a time before, from which on is measured.
    measured_from: Option<Sent>,
    /// Keys taken of requests that left since.
    taken: f64,
    /// How the rate came about, where it was measured once.
    first: Option<First>,
    /// Until a rate is confirmed: what the trial of more goes by.
    trial: Option<Trial>,
    /// When more was tried last, or might have been, and the keys that were asked for since.
    probed_at: Instant,
    asked: f64,
    /// Refusals that came soon although the rate had been lowered.
    in_vain: u32,
    /// Until then refusals say nothing of a rate.
    unpaced_until: Instant,
}

impl Pace {
    /// Nothing is known of the store.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            rate: None,
            best: 0.0,
            first: None,
            trial: None,
            refused_at: None,
            measured_from: None,
            taken: 0.0,
            probed_at: now,
            asked: 0.0,
            in_vain: 0,
            unpaced_until: now,
        }
    }

    /// The store has granted so many keys of this request.
    pub(super) fn take(&mut self, sent: Sent, keys: usize) {
        if self.measured_from.is_none_or(|from| sent.number > from.number) {
            self.taken += keys as f64;
        }
    }

    /// The store had nothing left to grant for a request of so many keys: since the last time it has granted what was
    /// taken, and what left before this request and is being worked on.
    pub(super) fn refuse(&mut self, keys: usize, sent: Sent, in_flight: &InFlight, now: Instant) {
        self.refused_at = Some(now);
        (self.probed_at, self.asked) = (now, 0.0);
        if now < self.unpaced_until {
            return;
        }
        let spell = self.measured_from.map(|from| sent.at - from.at);
        self.in_vain = if spell.is_some_and(|spell| spell >= LONG_SPELL) { 0 } else { self.in_vain + 1 };
        if self.in_vain > IN_VAIN {
            // nor is what was measured once to be held against it for ever: it may grant less by now
            (self.rate, self.measured_from, self.in_vain, self.best) = (None, None, 0, 0.0);
            self.unpaced_until = now + UNPACED;
            return;
        }
        // with no rate in force nobody knows how much of a long time was spent asking
        let longest = if self.rate.is_some() { Duration::MAX } else { LONG_SPELL };
        self.taken += self.measured_from.map_or(0, |from| in_flight.between(from, sent)) as f64;
        let spell_to_measure = spell.filter(|spell| (SPELL..=longest).contains(spell) && self.taken > 0.0);
        if let (Some(spell), Some(from)) = (spell_to_measure, self.measured_from) {
            self.measure(keys as f64, spell, (from.number, sent.number));
        }
        if spell.is_none_or(|spell| spell >= SPELL) {
            self.measured_from = Some(sent);
            self.taken = 0.0;
        }
    }

    /// The store grants fewer keys at once than this request had, which says nothing of how many it grants a second.
    pub(super) fn refuse_for_size(&mut self, sent: Sent, now: Instant) {
        (self.refused_at, self.measured_from) = (Some(now), Some(sent));
        (self.probed_at, self.asked, self.taken, self.in_vain) = (now, 0.0, 0.0, 0);
    }

    /// Of several that were in flight at once, another was refused too. Where it left before the one that was heard first,
    /// it was taken for granted.
    pub(super) fn refuse_too(&mut self, keys: usize, sent: Sent) {
        let Some(first) = &mut self.first else { return };
        if (first.between.0 + 1..first.between.1).contains(&sent.number) {
            first.taken = (first.taken - keys as f64).max(0.0);
            let first = *first;
            self.believe(first);
        }
    }

    fn believe(&mut self, first: First) {
        let rate = Some(first.rate()).filter(|rate| *rate >= LEAST);
        self.best = rate.unwrap_or_default();
        self.rate = rate.map(|rate| rate * SHARE);
        self.trial = self.rate.map(Trial::of);
        self.first = rate.map(|_| first);
    }

    fn measure(&mut self, keys: f64, spell: Duration, between: (u64, u64)) {
        let seconds = spell.as_secs_f64();
        let Some(rate) = self.rate else {
            self.believe(First { between, taken: self.taken, refused: keys, seconds });
            return;
        };
        self.first = None;
        self.best = self.best.max(self.taken / seconds);
        let confirmed = self.trial.is_some_and(|trial| rate < ABOUT * trial.measured);
        let least = (self.taken - keys) / seconds * SHARE;
        // in a longer spell the store may have had more to grant than was asked for
        let most = if spell < LONG_SPELL { (self.taken + keys) / seconds * SHARE } else { f64::INFINITY };
        let last = match self.trial {
            // the store was asked for a little less and then for a little more than it grants, and kept nothing back
            Some(trial) if confirmed && self.is_exact(keys, trial.measured * seconds) => {
                self.taken / seconds * EXACT_SHARE
            }
            Some(trial) => trial.before,
            None => rate * STEP_BACK,
        };
        // before it is given up, half of it: steps are too small for requests of all that a second grants
        let step = if self.in_vain == IN_VAIN { 0.5 } else { SMALL_STEP_BACK };
        let back = last.max(least).min(most).min(rate * step).max(self.best / 2.0);
        self.rate = Some(back);
        self.trial = self.trial.filter(|_| !confirmed).map(|_| Trial::of(back));
    }

    /// Whether enough was taken since the last refusal to go by: in requests of so many keys, and of what was to be had.
    fn is_exact(&self, keys: f64, expected: f64) -> bool {
        self.taken >= EXACT * keys && self.taken >= ASKED * expected
    }

    /// Whether the store was just found to have a rate, which is not known yet.
    pub(super) fn is_measuring(&self, now: Instant) -> bool {
        self.rate.is_none() && self.measured_from.is_some_and(|from| now - from.at < LONG_SPELL)
    }

    /// The rate, for a request of so many keys that leaves now; a little more of it from time to time, if nearly as much was
    /// asked for.
    pub(super) fn in_force(&mut self, keys: usize, now: Instant) -> Option<f64> {
        let rate = self.rate?;
        let since = now - self.probed_at;
        let every = if self.trial.is_some() { STEP_EVERY } else { PROBE_EVERY };
        if since >= every {
            let is_used = self.asked >= USED * rate * since.as_secs_f64();
            (self.probed_at, self.asked) = (now, 0.0);
            if is_used {
                self.rate = Some(rate * (1.0 + self.next_step(rate, now)));
            }
        }
        self.asked += keys as f64;
        self.rate
    }

    /// How long the store takes until it grants so many keys again, as far as is known.
    pub(super) fn time_for(&self, keys: usize) -> Duration {
        let seconds = self.rate.map_or(0.0, |rate| keys as f64 / rate);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(LONGEST_PAUSE)
    }

    /// By what share more is tried now than this rate.
    fn next_step(&mut self, rate: f64, now: Instant) -> f64 {
        self.first = None;
        if let Some(trial) = &mut self.trial {
            let next = (STEP_GROWS * trial.step).min(PROBE_MOST);
            trial.before = rate;
            return std::mem::replace(&mut trial.step, next);
        }
        let calm = self.refused_at.map_or(Duration::ZERO, |at| now - at);
        let doublings = (calm.as_secs() / CALM.as_secs()).min(16);
        (PROBE_BY * f64::from(1u32 << doublings)).min(PROBE_MOST)
    }
}
