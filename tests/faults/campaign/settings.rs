//! How long, how much and which: from the environment, which `scripts/faults` sets, or short and fixed.

use std::fmt;
use std::time::Duration;

use crate::environment;

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
    /// See [`environment`].
    pub fn from_env() -> Settings {
        Settings {
            seed: environment::seed(20),
            faults: Duration::from_secs(environment::seconds(60)),
            datasets: environment::datasets(60).try_into().expect("a machine with 64 bits"),
        }
    }
}

/// The command that plays the same.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { seed, faults, datasets } = self;
        write!(f, "scripts/faults --seed {seed} --duration {}s --count {datasets}", faults.as_secs())
    }
}
