//! Faults on request: what a store can do to its clients, made to happen at a chosen request.
//!
//! Invariant: nothing is random. Of each kind of fault a request meets the first rule, in the order of making, that is
//! for its operation and not used up; rules of different kinds add up, in the order in which [`Fault`] lists them. A
//! rule that is met is counted, so that a test can prove that its fault has happened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use s3s::{S3Error, S3ErrorCode};

use super::gate::Gate;
use super::requests::Operation;

/// Something that happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It waits before anything is done.
    Delay(Duration),
    /// It waits at a gate before anything is done.
    Hold(Gate),
    /// Nothing is done, and the client is told so, or sees the connection cut.
    Refuse(Refusal),
    /// A listing shows at most so many entries and claims to be complete, as some stores do.
    CutShort(usize),
    /// All is done, but the answer waits at a gate.
    HoldAnswer(Gate),
    /// All is done, but the answer is lost.
    LoseAnswer(Refusal),
}

/// What a client gets in place of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// An error with this code, such as `SlowDown`, and this HTTP status, such as 503.
    Error {
        /// The code in the XML body.
        code: String,
        /// The HTTP status.
        status: u16,
    },
    /// The connection is closed without a byte.
    CutConnection,
}

impl Refusal {
    /// An error by its code and status.
    pub fn error(code: &str, status: u16) -> Self {
        Self::Error { code: code.to_owned(), status }
    }

    /// 503 SlowDown.
    pub fn slow_down() -> Self {
        Self::error("SlowDown", 503)
    }

    /// 500 InternalError.
    pub fn internal_error() -> Self {
        Self::error("InternalError", 500)
    }

    /// 403 AccessDenied.
    pub fn access_denied() -> Self {
        Self::error("AccessDenied", 403)
    }

    /// The error to send; `None` when the connection is to be cut.
    pub(super) fn to_error(&self) -> Option<S3Error> {
        let Self::Error { code, status } = self else { return None };
        let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
        let mut error = S3Error::with_message(code, "asked for by a fault rule");
        error.set_status_code(hyper::StatusCode::from_u16(*status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR));
        Some(error)
    }
}

/// Which keys of a `DeleteObjects` request a [`KeyFault`] is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// Every key.
    All,
    /// Those that start so.
    Prefix(String),
    /// Those that end so.
    Suffix(String),
    /// This one.
    Exactly(String),
}

impl Keys {
    fn contain(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => key.ends_with(suffix.as_str()),
            Self::Exactly(exact) => key == exact,
        }
    }
}

/// What is done to a key, whatever is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is deleted, if no lock keeps it.
    Deleted,
    /// It stays.
    Kept,
}

/// What the answer says of a key, whatever was done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyAnswer {
    /// That it was deleted.
    Deleted,
    /// An error with this code.
    Error(String),
    /// Nothing: the answer leaves it out.
    Omitted,
}

/// Something that happens to one key in a `DeleteObjects` request that is otherwise carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFault {
    /// What is done.
    pub effect: Effect,
    /// What is said.
    pub answer: KeyAnswer,
}

impl KeyFault {
    /// The key stays, and the answer says so with this code.
    pub fn fail(code: &str) -> Self {
        Self { effect: Effect::Kept, answer: KeyAnswer::Error(code.to_owned()) }
    }

    /// The key is deleted, and the answer says that it failed.
    pub fn fail_after_deleting(code: &str) -> Self {
        Self { effect: Effect::Deleted, answer: KeyAnswer::Error(code.to_owned()) }
    }

    /// The key stays, and the answer leaves it out.
    pub fn omit() -> Self {
        Self { effect: Effect::Kept, answer: KeyAnswer::Omitted }
    }

    /// The key is deleted, and the answer leaves it out.
    pub fn omit_after_deleting() -> Self {
        Self { effect: Effect::Deleted, answer: KeyAnswer::Omitted }
    }

    /// The key stays, and the answer says that it was deleted.
    pub fn lie() -> Self {
        Self { effect: Effect::Kept, answer: KeyAnswer::Deleted }
    }
}

/// How often a rule is met before it is used up. For key faults each key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// The next so many.
    Next(u64),
    /// Until stopped.
    Always,
}

#[derive(Debug)]
enum Kind {
    Request(Option<Operation>, Fault),
    Key(Keys, KeyFault),
}

/// A rule that has been made: to count and to stop it. Dropping it changes nothing.
#[derive(Debug)]
pub struct Rule {
    kind: Kind,
    /// Passages left; `u64::MAX` for always, which no server lives to use up.
    left: AtomicU64,
    met: AtomicU64,
}

impl Rule {
    /// How often its fault has happened.
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::SeqCst)
    }

    /// Ends it.
    pub fn stop(&self) {
        self.left.store(0, Ordering::SeqCst);
    }

    /// Uses it once, unless it is used up.
    fn meet(&self) -> bool {
        let used = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if used {
            self.met.fetch_add(1, Ordering::SeqCst);
        }
        used
    }
}

/// The rules of a server.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Arc<Rule>>>,
}

impl Faults {
    /// Makes `fault` happen to the next request for `operation` (`None`: to the next request of any kind).
    pub fn next(&self, operation: impl Into<Option<Operation>>, fault: Fault) -> Arc<Rule> {
        self.rule(operation, Times::Next(1), fault)
    }

    /// Makes `fault` happen to requests for `operation` (`None`: to all).
    pub fn rule(&self, operation: impl Into<Option<Operation>>, times: Times, fault: Fault) -> Arc<Rule> {
        self.add(Kind::Request(operation.into(), fault), times)
    }

    /// Makes `fault` happen to `keys` in `DeleteObjects` requests.
    pub fn keys(&self, keys: Keys, times: Times, fault: KeyFault) -> Arc<Rule> {
        self.add(Kind::Key(keys, fault), times)
    }

    /// Ends every rule. Requests that wait at a gate go on waiting there.
    pub fn clear(&self) {
        self.lock().drain(..).for_each(|rule| rule.stop());
    }

    /// All that precedes the work.
    pub(super) async fn before(&self, operation: Operation) -> Result<(), Refusal> {
        if let Some(delay) =
            self.take(operation, |fault| if let Fault::Delay(delay) = fault { Some(*delay) } else { None })
        {
            tokio::time::sleep(delay).await;
        }
        if let Some(gate) =
            self.take(operation, |fault| if let Fault::Hold(gate) = fault { Some(gate.clone()) } else { None })
        {
            gate.pass().await;
        }
        match self
            .take(operation, |fault| if let Fault::Refuse(refusal) = fault { Some(refusal.clone()) } else { None })
        {
            Some(refusal) => Err(refusal),
            None => Ok(()),
        }
    }

    /// How many entries a listing may show, when it is to be cut short.
    pub(super) fn cut_short(&self, operation: Operation) -> Option<usize> {
        self.take(operation, |fault| if let Fault::CutShort(entries) = fault { Some(*entries) } else { None })
    }

    /// All that comes between the work and the answer.
    pub(super) async fn after(&self, operation: Operation) -> Result<(), Refusal> {
        if let Some(gate) =
            self.take(operation, |fault| if let Fault::HoldAnswer(gate) = fault { Some(gate.clone()) } else { None })
        {
            gate.pass().await;
        }
        match self.take(operation, |fault| if let Fault::LoseAnswer(loss) = fault { Some(loss.clone()) } else { None })
        {
            Some(loss) => Err(loss),
            None => Ok(()),
        }
    }

    /// What happens to this key, when it is not the usual.
    pub(super) fn key(&self, key: &str) -> Option<KeyFault> {
        self.lock().iter().find_map(|rule| match &rule.kind {
            Kind::Key(keys, fault) if keys.contain(key) && rule.meet() => Some(fault.clone()),
            _ => None,
        })
    }

    fn add(&self, kind: Kind, times: Times) -> Arc<Rule> {
        let left = match times {
            Times::Next(times) => times,
            Times::Always => u64::MAX,
        };
        let rule = Arc::new(Rule { kind, left: AtomicU64::new(left), met: AtomicU64::new(0) });
        self.lock().push(Arc::clone(&rule));
        rule
    }

    fn take<T>(&self, operation: Operation, wanted: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.lock().iter().find_map(|rule| match &rule.kind {
            Kind::Request(only, fault) if only.is_none_or(|only| only == operation) => {
                wanted(fault).filter(|_| rule.meet())
            }
            _ => None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Rule>>> {
        // The list is whole after every statement, so a panic elsewhere does not spoil it.
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
