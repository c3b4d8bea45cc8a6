//! What `scripts/faults` tells the tests: `FAULTS_SEED`, `FAULTS_SECONDS` and `FAULTS_COUNT`. Each may be missing.

/// What chance begins with.
pub fn seed(unless_told: u64) -> u64 {
    number("FAULTS_SEED").unwrap_or(unless_told)
}

/// How long a campaign's faults go on.
pub fn seconds(unless_told: u64) -> u64 {
    number("FAULTS_SECONDS").unwrap_or(unless_told)
}

/// How many datasets a campaign has.
pub fn datasets(unless_told: u64) -> u64 {
    number("FAULTS_COUNT").unwrap_or(unless_told)
}

/// How many things a test of one fault takes. Never fewer than `least`: with less it would show nothing.
pub fn count(least: u64) -> u64 {
    number("FAULTS_COUNT").map_or(least, |asked| asked.max(least))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number below 2^64, not {text:?}")))
}
