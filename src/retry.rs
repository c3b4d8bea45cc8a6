//! How long to wait before trying again: exponential steps with jitter.
//!
//! Invariant: a delay is never zero and never above the maximum, whatever the attempt. Nothing here sleeps, counts
//! attempts or gives up: waiting (against a deadline and the shutdown token) is the caller's.
//!
//! The only user of the crate `backoff`, which is unmaintained: see `docs/decisions/0001-backoff-behind-one-file.md`.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Each step is twice the one before.
const MULTIPLIER: f64 = 2.0;

/// A delay lies between half a step and one and a half, so that clients that failed together do not come back together.
const JITTER: f64 = 0.5;

/// The longest maximum that is accepted: beyond a month a delay is a mistake in the configuration. It also keeps
/// every computation far from the range of `f64` and `Duration`.
pub const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The shortest first step that is accepted; below it a retry is a busy loop.
pub const SHORTEST: Duration = Duration::from_millis(1);

/// Validated settings for delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
}

/// Why settings were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBackoff {
    /// The first step is below [`SHORTEST`].
    #[error("the initial delay {0:?} is shorter than {SHORTEST:?}")]
    InitialTooShort(Duration),
    /// The maximum is below the first step.
    #[error("the maximum delay {max:?} is below the initial delay {initial:?}")]
    MaxBelowInitial {
        /// The first step asked for.
        initial: Duration,
        /// The maximum asked for.
        max: Duration,
    },
    /// The maximum is above [`LONGEST`].
    #[error("the maximum delay {0:?} is longer than {LONGEST:?}")]
    MaxTooLong(Duration),
}

impl Backoff {
    /// Delays that start around `initial`, double with each attempt, and stay at or below `max`.
    ///
    /// # Errors
    /// When `initial` is below [`SHORTEST`], `max` below `initial`, or `max` above [`LONGEST`].
    pub fn new(initial: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if initial < SHORTEST {
            return Err(InvalidBackoff::InitialTooShort(initial));
        }
        if max < initial {
            return Err(InvalidBackoff::MaxBelowInitial { initial, max });
        }
        if max > LONGEST {
            return Err(InvalidBackoff::MaxTooLong(max));
        }
        Ok(Self { initial, max })
    }

    /// The delays of one run of failures, without an end. Ask for a new iterator after a success.
    pub fn delays(&self) -> impl Iterator<Item = Duration> + use<> {
        let this = *self;
        let mut steps = this.at(this.initial);
        std::iter::repeat_with(move || this.clamp(steps.next_backoff()))
    }

    /// The delay after the `attempt`-th failure in a row (1 is the first; 0 counts as 1), for counts that live in the
    /// database and outlive the process.
    pub fn delay_for(&self, attempt: u32) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let step = self.initial.as_secs_f64() * MULTIPLIER.powi(exponent);
        // `min` before `from_secs_f64`: the power may be infinite, the ceiling is not.
        let step = Duration::from_secs_f64(step.min(self.ceiling().as_secs_f64()));
        self.clamp(self.at(step).next_backoff())
    }

    /// The largest step. Jitter adds up to half of it, so the delays of the last step are spread below the maximum
    /// instead of piling up on it.
    fn ceiling(&self) -> Duration {
        self.max.div_f64(1.0 + JITTER)
    }

    fn at(&self, step: Duration) -> ExponentialBackoff {
        let ceiling = self.ceiling();
        let step = step.min(ceiling);
        ExponentialBackoff {
            current_interval: step,
            initial_interval: step,
            randomization_factor: JITTER,
            multiplier: MULTIPLIER,
            max_interval: ceiling,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        }
    }

    /// `None` means that `max_elapsed_time` has passed, and there is none; should that ever change, wait the longest.
    fn clamp(&self, delay: Option<Duration>) -> Duration {
        delay.unwrap_or(self.max).clamp(Duration::from_nanos(1), self.max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn bad_settings_are_refused_with_the_reason() {
        assert_eq!(Backoff::new(Duration::ZERO, millis(5)), Err(InvalidBackoff::InitialTooShort(Duration::ZERO)));
        let refused = Backoff::new(millis(6), millis(5));
        assert_eq!(refused, Err(InvalidBackoff::MaxBelowInitial { initial: millis(6), max: millis(5) }));
        let endless = LONGEST + millis(1);
        assert_eq!(Backoff::new(millis(6), endless), Err(InvalidBackoff::MaxTooLong(endless)));
    }

    #[test]
    fn the_first_delays_double_around_their_steps() {
        let backoff = Backoff::new(millis(100), Duration::from_secs(3600)).expect("valid");
        for (delay, step) in backoff.delays().zip([100, 200, 400, 800, 1600]) {
            let (low, high) = (millis(step / 2), millis(step + step / 2) + millis(1));
            assert!((low..=high).contains(&delay), "{delay:?} is not within half of {step} ms");
        }
    }

    #[test]
    fn delays_at_the_maximum_are_spread() {
        let backoff = Backoff::new(millis(10), Duration::from_secs(60)).expect("valid");
        let late: std::collections::BTreeSet<_> = (0..50).map(|_| backoff.delay_for(1000)).collect();
        assert!(late.len() > 25, "fifty delays took only {} values", late.len());
    }

    fn settings() -> impl Strategy<Value = Backoff> {
        (1..LONGEST.as_millis() as u64, 0..LONGEST.as_millis() as u64).prop_map(|(a, b)| {
            let (initial, max) = (a.min(b).max(1), a.max(b).max(1));
            Backoff::new(millis(initial), millis(max)).expect("ordered and within the limits")
        })
    }

    proptest! {
        #[test]
        fn no_delay_is_zero_or_above_the_maximum(backoff in settings(), attempt in any::<u32>()) {
            let delay = backoff.delay_for(attempt);
            prop_assert!(delay > Duration::ZERO && delay <= backoff.max);
            for delay in backoff.delays().take(60) {
                prop_assert!(delay > Duration::ZERO && delay <= backoff.max);
            }
        }

        #[test]
        fn a_stored_attempt_has_the_delay_of_that_step(backoff in settings(), attempt in 1u32..40) {
            // The step itself is hidden by jitter; its range is not.
            let step = (backoff.initial.as_secs_f64() * MULTIPLIER.powi(attempt as i32 - 1))
                .min(backoff.ceiling().as_secs_f64());
            let slack = 1e-6 + step * 1e-9;
            for delay in [backoff.delay_for(attempt), backoff.delays().nth(attempt as usize - 1).expect("endless")] {
                let delay = delay.as_secs_f64();
                prop_assert!(delay >= step * (1.0 - JITTER) - slack && delay <= step * (1.0 + JITTER) + slack);
            }
        }
    }
}
