//! How long, how much and which: from the environment, which `scripts/faults` sets, or short and fixed.

use std::time::Duration;

/// What a campaign is given.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Every draw comes from it. Not the moments at which things meet, so a seed repeats a mix and not a run.
    pub seed: u64,
    /// How long the faults go on.
    pub faults: Duration,
    /// How many datasets there are in the beginning.
    pub datasets: usize,
}

impl Settings {
    /// `FAULTS_SEED`, `FAULTS_SECONDS` and `FAULTS_COUNT`.
    ///
    /// # Panics
    /// One of them is no number.
    pub fn from_env() -> Settings {
        Settings {
            seed: read("FAULTS_SEED").unwrap_or(20),
            faults: Duration::from_secs(read("FAULTS_SECONDS").unwrap_or(60)),
            datasets: read("FAULTS_COUNT").unwrap_or(60).try_into().expect("a machine with 64 bits"),
        }
    }
}

fn read(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number, not {text:?}")))
}
