//! What can be done to a request, and which requests to do it to.
//!
//! Invariant: no fault destroys anything that the client did not ask to be destroyed. Only [`KeyFault::Lie`] and
//! [`Fault::CutShort`] say of an object that is there that it is not; a storm draws them only when it is told to.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

/// A rule without an end.
pub const ALWAYS: u64 = u64::MAX;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    ListObjectsV2,
    ListObjectVersions,
    GetBucketVersioning,
    DeleteObjects,
    DeleteObject,
    /// Anything else: puts, gets, buckets.
    Other,
}

impl Op {
    pub fn name(self) -> &'static str {
        match self {
            Self::ListObjectsV2 => "ListObjectsV2",
            Self::ListObjectVersions => "ListObjectVersions",
            Self::GetBucketVersioning => "GetBucketVersioning",
            Self::DeleteObjects => "DeleteObjects",
            Self::DeleteObject => "DeleteObject",
            Self::Other => "Other",
        }
    }

    pub fn lists(self) -> bool {
        matches!(self, Self::ListObjectsV2 | Self::ListObjectVersions)
    }

    /// This operation, on keys or a prefix that start with `prefix`.
    pub fn below(self, prefix: impl Into<String>) -> On {
        On { prefix: prefix.into(), ..On::from(self) }
    }
}

/// Which requests a rule is about: by operation, bucket and prefix.
#[derive(Debug, Clone, Default)]
pub struct On {
    /// Empty: every operation.
    ops: Vec<Op>,
    /// Empty: every bucket.
    bucket: String,
    /// Empty: every prefix and key. A DeleteObjects matches when one of its keys does.
    prefix: String,
}

impl On {
    /// Every request.
    pub fn any() -> On {
        On::default()
    }

    /// Every listing.
    pub fn lists() -> On {
        On { ops: vec![Op::ListObjectsV2, Op::ListObjectVersions], ..On::default() }
    }

    /// Every delete, of one key or of many.
    pub fn deletes() -> On {
        On { ops: vec![Op::DeleteObjects, Op::DeleteObject], ..On::default() }
    }

    pub fn below(self, prefix: impl Into<String>) -> On {
        On { prefix: prefix.into(), ..self }
    }

    pub fn bucket(self, bucket: impl Into<String>) -> On {
        On { bucket: bucket.into(), ..self }
    }

    /// Whether a request is meant. `subjects`: its prefix, its key, or its keys.
    pub fn matches(&self, op: Op, bucket: &str, subjects: &[String]) -> bool {
        (self.ops.is_empty() || self.ops.contains(&op))
            && (self.bucket.is_empty() || self.bucket == bucket)
            && (self.prefix.is_empty() || subjects.iter().any(|subject| subject.starts_with(&self.prefix)))
    }
}

impl From<Op> for On {
    fn from(op: Op) -> On {
        On { ops: vec![op], ..On::default() }
    }
}

/// Whether the store does what it was asked to before the answer is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Done,
    Left,
}

/// What the answer to a DeleteObjects says of some of its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyFault {
    /// `InternalError`.
    InternalError(Work),
    /// `SlowDown`.
    SlowDown(Work),
    /// `AccessDenied`.
    AccessDenied(Work),
    /// Nothing: they are not in the answer.
    Missing(Work),
    /// That they were deleted, and they were not.
    Lie,
}

impl KeyFault {
    pub fn work(self) -> Work {
        match self {
            Self::InternalError(work) | Self::SlowDown(work) | Self::AccessDenied(work) | Self::Missing(work) => work,
            Self::Lie => Work::Left,
        }
    }
}

/// Which keys of a DeleteObjects.
#[derive(Debug, Clone)]
pub enum Which {
    All,
    /// The first so many.
    First(usize),
    /// Every so-manieth, from the first on.
    Every(usize),
    /// These.
    Named(Vec<String>),
}

impl Which {
    pub fn hits(&self, position: usize, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::First(n) => position < *n,
            Self::Every(n) => position.is_multiple_of(*n),
            Self::Named(keys) => keys.iter().any(|named| named == key),
        }
    }
}

/// What happens to a request or to its answer. Where it does not say otherwise, the store has done the work.
#[derive(Debug, Clone)]
pub enum Fault {
    /// 500 `InternalError`.
    InternalError(Work),
    /// 503 `SlowDown`; nothing is done.
    SlowDown,
    /// 429 `TooManyRequests` with a Retry-After of so many seconds; nothing is done.
    TooManyRequests(u32),
    /// 503 `SlowDown` with a Retry-After of so many seconds; nothing is done.
    Unavailable(u32),
    /// 403 `AccessDenied`; nothing is done.
    Forbidden,
    /// A 200 that says something about single keys. Only for DeleteObjects.
    Keys(Which, KeyFault),
    /// The connection is cut in the middle of the body.
    CutBody,
    /// As [`Fault::CutBody`], without a Content-Length.
    CutChunked,
    /// Headers, half of the body, and then nothing until the client gives up or it is calm.
    Stalled,
    /// The connection is closed instead of an answer.
    AnswerLost,
    /// The connection is closed at once, and nothing is done.
    Closed,
    /// The work is done at once, the answer comes later.
    SlowAnswer(Duration),
    /// The work is done later, even when the client has given up by then.
    SlowWork(Duration),
    /// The first answer that this same listing ever got, if it shows all of what there is now and something more.
    Stale,
    /// A listing page of at most so many entries (at least one) that claims to be the last.
    CutShort(usize),
    /// A 200 with something that is not XML.
    Garbage,
    /// A 200 with an error of the store in it: `InternalError`.
    ErrorInOk,
    /// A 200 with nothing in it.
    EmptyOk,
}

impl Fault {
    /// Its name in the counts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InternalError(Work::Left) => "500",
            Self::InternalError(Work::Done) => "500 after the work",
            Self::SlowDown => "503 SlowDown",
            Self::TooManyRequests(_) => "429 with Retry-After",
            Self::Unavailable(_) => "503 with Retry-After",
            Self::Forbidden => "403",
            Self::Keys(_, KeyFault::InternalError(Work::Left)) => "key InternalError",
            Self::Keys(_, KeyFault::InternalError(Work::Done)) => "key InternalError, deleted",
            Self::Keys(_, KeyFault::SlowDown(_)) => "key SlowDown",
            Self::Keys(_, KeyFault::AccessDenied(_)) => "key AccessDenied",
            Self::Keys(_, KeyFault::Missing(Work::Left)) => "key missing from the answer",
            Self::Keys(_, KeyFault::Missing(Work::Done)) => "key missing from the answer, deleted",
            Self::Keys(_, KeyFault::Lie) => "key said to be deleted, kept",
            Self::CutBody => "body cut",
            Self::CutChunked => "chunked body cut",
            Self::Stalled => "body stalled",
            Self::AnswerLost => "answer lost",
            Self::Closed => "connection closed",
            Self::SlowAnswer(_) => "slow answer",
            Self::SlowWork(_) => "slow work",
            Self::Stale => "stale listing",
            Self::CutShort(_) => "listing cut short",
            Self::Garbage => "garbage",
            Self::ErrorInOk => "error in a 200",
            Self::EmptyOk => "empty 200",
        }
    }

    /// Whether it can happen to such a request.
    pub fn fits(&self, op: Op) -> bool {
        match self {
            Self::Keys(..) => op == Op::DeleteObjects,
            Self::Stale | Self::CutShort(_) => op.lists(),
            // a success of these has no body, and its status alone says all
            Self::Garbage | Self::ErrorInOk | Self::EmptyOk | Self::CutBody | Self::CutChunked | Self::Stalled => {
                op != Op::DeleteObject
            }
            _ => true,
        }
    }
}

/// How often what happens in a storm: per mille of the requests to which it can happen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// 500, half of them after the work.
    pub errors: u16,
    /// 503 SlowDown, or 429 and 503 with a Retry-After of a second.
    pub throttling: u16,
    /// 403. A purge that meets one is stuck until somebody retries it.
    pub forbidden: u16,
    /// Some keys of a batch fail in passing or are missing from the answer, half of them deleted all the same.
    pub keys: u16,
    /// One key of a batch is denied. A purge that meets one is stuck until somebody retries it.
    pub denied_keys: u16,
    /// The connection is cut: in the middle of the answer, instead of it, or before the work.
    pub cuts: u16,
    /// The answer stalls in the middle of the body until the client gives up.
    pub stalls: u16,
    /// The answer is nonsense: garbage, an error in a 200, nothing at all.
    pub nonsense: u16,
    /// The answer comes so much later, or the work is done so much later.
    pub slow: u16,
    /// How much later; up to twice as much.
    pub slow_by: Duration,
    /// An older answer to the same listing. Objects that are gone are seen again: a receipt may count them twice.
    pub stale: u16,
    /// Pages cut short that claim to be the last. Unknown keys may be taken for absent and counted twice.
    pub cut_short: u16,
    /// Keys said to be deleted that were not, which no client can count right.
    pub lies: u16,
}

impl Weather {
    /// Every fault of which a purge recovers by itself and after which its receipt is exact, about one request in eight.
    pub fn passing() -> Weather {
        Weather {
            errors: 25,
            throttling: 25,
            keys: 60,
            cuts: 30,
            stalls: 3,
            nonsense: 15,
            slow: 15,
            slow_by: Duration::from_millis(100),
            ..Weather::default()
        }
    }

    /// The fault that happens to this request, if any.
    pub fn draw(&self, rng: &mut StdRng, op: Op) -> Option<Fault> {
        let rates = [
            self.errors,
            self.throttling,
            self.forbidden,
            self.cuts,
            self.stalls,
            self.nonsense,
            self.slow,
            if op == Op::DeleteObjects { self.keys } else { 0 },
            if op == Op::DeleteObjects { self.denied_keys } else { 0 },
            if op == Op::DeleteObjects { self.lies } else { 0 },
            if op.lists() { self.stale } else { 0 },
            if op.lists() { self.cut_short } else { 0 },
        ];
        let mut drawn = rng.random_range(0..1000);
        for (kind, rate) in rates.into_iter().enumerate() {
            if drawn < rate {
                return Some(self.fault(kind, rng)).filter(|fault| fault.fits(op));
            }
            drawn -= rate;
        }
        None
    }

    fn fault(&self, kind: usize, rng: &mut StdRng) -> Fault {
        let work = if rng.random_bool(0.5) { Work::Done } else { Work::Left };
        let later = self.slow_by.mul_f64(rng.random_range(1.0..2.0));
        let some = match rng.random_range(0..4) {
            0 => Which::All,
            1 => Which::First(rng.random_range(1..20)),
            _ => Which::Every(rng.random_range(2..50)),
        };
        let third = rng.random_range(0..3);
        match (kind, third) {
            (0, _) => Fault::InternalError(work),
            (1, 0) => Fault::SlowDown,
            (1, 1) => Fault::TooManyRequests(1),
            (1, _) => Fault::Unavailable(1),
            (2, _) => Fault::Forbidden,
            (3, 0) => Fault::Closed,
            (3, 1) => Fault::AnswerLost,
            (3, _) if work == Work::Done => Fault::CutBody,
            (3, _) => Fault::CutChunked,
            (4, _) => Fault::Stalled,
            (5, 0) => Fault::Garbage,
            (5, 1) => Fault::ErrorInOk,
            (5, _) => Fault::EmptyOk,
            (6, _) if work == Work::Done => Fault::SlowAnswer(later),
            (6, _) => Fault::SlowWork(later),
            (7, 0) => Fault::Keys(some, KeyFault::InternalError(work)),
            (7, 1) => Fault::Keys(some, KeyFault::SlowDown(work)),
            (7, _) => Fault::Keys(some, KeyFault::Missing(work)),
            (8, _) => Fault::Keys(Which::First(1), KeyFault::AccessDenied(work)),
            (9, _) => Fault::Keys(some, KeyFault::Lie),
            (10, _) => Fault::Stale,
            _ => Fault::CutShort(rng.random_range(1..500)),
        }
    }
}
