//! How keys look below a prefix: a name for each number, and back.
//!
//! Invariant: for a given count, names are in the order of their numbers, bytewise, and [`Names::number`] undoes
//! [`Names::write`] and takes nothing else.

use std::fmt::Write;

/// What stands between the `before` and the `after` of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Names {
    /// `000000017`: nine digits.
    #[default]
    Padded,
    /// `17/RX_004`: a directory for each sample, as Heimdall names its recordings. Without leading zeros, so `10/`
    /// comes before `2/`.
    Recordings {
        /// Keys of each sample; below 1000.
        receivers: u64,
    },
    /// `00a3d70a3d70a3d7`: 16 hexadecimal digits, spread evenly, as hashes are.
    Hex,
}

/// Digits of a padded number.
const DIGITS: usize = 9;

impl Names {
    /// Whether `count` names can be told apart and put in order.
    pub(super) fn hold(self, count: u64) -> bool {
        let receivers = if let Names::Recordings { receivers } = self { (1..1000).contains(&receivers) } else { true };
        count < 10_u64.pow(DIGITS as u32) && receivers
    }

    pub(super) fn write(self, number: u64, count: u64, key: &mut String) {
        let _ = match self {
            Names::Padded => write!(key, "{number:0DIGITS$}"),
            Names::Recordings { receivers } => {
                let sample = nth_decimal(number / receivers, count.div_ceil(receivers));
                write!(key, "{sample}/RX_{:03}", number % receivers)
            }
            Names::Hex => write!(key, "{:016x}", spread(number, count)),
        };
    }

    /// The number of a name, if it is one of the first `count`.
    pub(super) fn number(self, name: &str, count: u64) -> Option<u64> {
        let number = match self {
            Names::Padded => padded(name, DIGITS)?,
            Names::Recordings { receivers } => {
                let (sample, receiver) = name.split_once("/RX_")?;
                let plain = sample == "0" || !sample.starts_with('0');
                let sample = padded(sample, sample.len()).filter(|_| plain)?;
                let samples = count.div_ceil(receivers);
                let receiver = padded(receiver, 3).filter(|receiver| *receiver < receivers)?;
                place_of_decimal(sample, samples).filter(|_| sample < samples)? * receivers + receiver
            }
            Names::Hex => {
                let plain = name.len() == 16 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                let value = u64::from_str_radix(name, 16).ok().filter(|_| plain)?;
                let number = (u128::from(value) * u128::from(count)).div_ceil(1 << 64) as u64;
                Some(number).filter(|number| spread(*number, count) == value)?
            }
        };
        (number < count).then_some(number)
    }
}

fn padded(digits: &str, length: usize) -> Option<u64> {
    let plain = digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| plain)
}

fn spread(number: u64, count: u64) -> u64 {
    ((u128::from(number) << 64) / u128::from(count.max(1))) as u64
}

/// Of the numbers from 1 to `last`, how many begin with the digits of `head`.
fn beginning_with(head: u64, last: u64) -> u64 {
    let (mut from, mut to, mut found) = (head, head + 1, 0);
    while from <= last {
        found += to.min(last + 1) - from;
        (from, to) = (from * 10, to * 10);
    }
    found
}

/// The number that stands at this place when those below `count` are sorted as text.
fn nth_decimal(place: u64, count: u64) -> u64 {
    if place == 0 {
        return 0;
    }
    let (mut number, mut left) = (1, place - 1);
    while left > 0 {
        let skipped = beginning_with(number, count - 1);
        if skipped <= left {
            (number, left) = (number + 1, left - skipped);
        } else {
            (number, left) = (number * 10, left - 1);
        }
    }
    number
}

/// The place of `number` when those below `count` are sorted as text.
fn place_of_decimal(number: u64, count: u64) -> Option<u64> {
    if number == 0 {
        return Some(0);
    }
    let last = count.checked_sub(1)?;
    let text = number.to_string();
    let (mut head, mut place) = (0, 1);
    for (at, digit) in text.bytes().map(|byte| u64::from(byte - b'0')).enumerate() {
        let first = u64::from(at == 0);
        place += (first..digit).map(|smaller| beginning_with(head * 10 + smaller, last)).sum::<u64>();
        head = head * 10 + digit;
        // the shorter number itself comes first
        place += u64::from(at + 1 < text.len());
    }
    Some(place)
}
