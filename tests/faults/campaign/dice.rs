//! Draws from the seed: every actor has a stream of its own, so that one's haste does not change another's luck.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// One actor's stream.
#[derive(Debug)]
pub struct Dice(StdRng);

impl Dice {
    /// The stream of an actor by its name.
    pub fn of(seed: u64, actor: &str) -> Dice {
        // FNV-1a, so that the streams do not depend on a hasher of the standard library
        let hash = actor
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Dice(StdRng::seed_from_u64(seed ^ hash))
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    /// A number from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0.random_range(least..=most)
    }

    /// A time from `least` to `most` milliseconds.
    pub fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.between(least, most))
    }

    /// Whether something of `percent` probability happens.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// One of these, by weight.
    pub fn weighted<'a, T>(&mut self, items: &'a [(u32, T)]) -> &'a T {
        let all: u32 = items.iter().map(|(weight, _)| weight).sum();
        let mut at = self.0.random_range(0..all);
        for (weight, item) in items {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return item,
            }
        }
        unreachable!("the weights add up to more than what was drawn")
    }

    /// For what draws by itself.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.0
    }
}
