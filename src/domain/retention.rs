//! How long a deletion can be taken back.
//!
//! Invariant: a [`Retention`] is at least one second and at most ten years, so neither a typing error (`0d`, `-7d`)
//! nor an overflow can turn a window into "at once".

use std::{fmt, time::Duration};

/// The restore window of a kind, from trash to `purge_after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Retention(Duration);

/// A window that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{raw:?} is not a retention: write a duration from 1s to 10y, such as 14d, 36h or 90m")]
pub struct InvalidRetention {
    raw: String,
}

impl Retention {
    /// Ten years of 365 days; a longer window is a typing error, not a wish.
    pub const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    /// The shortest window.
    pub const MIN: Duration = Duration::from_secs(1);

    /// # Errors
    /// Outside of [`Retention::MIN`] to [`Retention::MAX`].
    pub fn new(duration: Duration) -> Result<Self, InvalidRetention> {
        if (Self::MIN..=Self::MAX).contains(&duration) {
            Ok(Self(duration))
        } else {
            Err(InvalidRetention { raw: humantime::format_duration(duration).to_string() })
        }
    }

    /// Reads `14d`, `36h`, `1h 30m`.
    ///
    /// # Errors
    /// No duration, or one out of range.
    pub fn parse(raw: &str) -> Result<Self, InvalidRetention> {
        let invalid = || InvalidRetention { raw: raw.to_owned() };
        humantime::parse_duration(raw).map_err(|_| invalid()).and_then(|d| Self::new(d).map_err(|_| invalid()))
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
        match units.into_iter().find(|(unit, _)| self.0.subsec_nanos() == 0 && seconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", seconds / unit),
            None => humantime::format_duration(self.0).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_shown_as_it_is_written() {
        for raw in ["14d", "45d", "36h", "90m", "30s"] {
            assert_eq!(Retention::parse(raw).unwrap().to_string(), raw);
        }
        assert_eq!(Retention::parse("1h 30s").unwrap().to_string(), "1h 30s");
    }

    #[test]
    fn windows_that_would_purge_at_once_are_refused() {
        for raw in ["0d", "0s", "-7d", "", "7", "999ms", "11y", "14 d d", "9999999999999999d"] {
            assert!(Retention::parse(raw).is_err(), "{raw:?}");
        }
        assert_eq!(Retention::parse("14d").unwrap().duration(), Duration::from_secs(14 * 86_400));
    }
}
