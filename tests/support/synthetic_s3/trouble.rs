//! What goes wrong on purpose: random faults, drawn from a seed, and a limit of keys a second.
//!
//! Invariant: what is refused has done nothing, and what is cut has been done.

use std::sync::Mutex;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Shares of requests and keys that fail, from 0 to 1; every draw comes from the seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub seed: u64,
    /// Of requests: refused with 503, nothing done.
    pub unavailable: f64,
    /// Of the keys of a DeleteObjects: `InternalError` in its 200, and not deleted.
    pub key_errors: f64,
    /// Of requests: carried out, and the connection closed instead of an answer.
    pub cut: f64,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    Unavailable,
    Cut,
}

pub(super) struct Trouble {
    faults: Faults,
    draws: Mutex<StdRng>,
    allowance: Option<Mutex<Allowance>>,
}

/// A token bucket that holds a second's worth of keys.
struct Allowance {
    keys_a_second: f64,
    left: f64,
    counted: Instant,
}

impl Trouble {
    pub(super) fn new(faults: Faults, keys_a_second: Option<u32>) -> Self {
        let allowance = keys_a_second.map(|rate| {
            let rate = f64::from(rate);
            Mutex::new(Allowance { keys_a_second: rate, left: rate, counted: Instant::now() })
        });
        Trouble { faults, draws: Mutex::new(StdRng::seed_from_u64(faults.seed)), allowance }
    }

    pub(super) fn fate(&self) -> Fate {
        let Faults { unavailable, cut, .. } = self.faults;
        if unavailable + cut == 0.0 {
            return Fate::Answered;
        }
        match self.draws.lock().expect("no panic under it").random::<f64>() {
            draw if draw < unavailable => Fate::Unavailable,
            draw if draw < unavailable + cut => Fate::Cut,
            _ => Fate::Answered,
        }
    }

    /// Which of so many keys fail.
    pub(super) fn failing(&self, keys: usize) -> Vec<bool> {
        let share = self.faults.key_errors;
        if share == 0.0 {
            return vec![false; keys];
        }
        let mut draws = self.draws.lock().expect("no panic under it");
        (0..keys).map(|_| draws.random::<f64>() < share).collect()
    }

    /// Whether so many deletes are within the limit now; if so, they are taken from it, and else none is.
    pub(super) fn admits(&self, keys: usize) -> bool {
        let Some(allowance) = &self.allowance else { return true };
        let mut allowance = allowance.lock().expect("no panic under it");
        let (now, rate, keys) = (Instant::now(), allowance.keys_a_second, keys as f64);
        allowance.left = (allowance.left + rate * now.duration_since(allowance.counted).as_secs_f64()).min(rate);
        allowance.counted = now;
        let admitted = allowance.left >= keys;
        if admitted {
            allowance.left -= keys;
        }
        admitted
    }
}
