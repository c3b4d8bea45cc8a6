//! What an error of the store means: how to meet it, and whether the store may have done the work all the same.
//!
//! Invariant: every error passes through [`judge`], and only the table in [`meaning`] grants a retry. A code that the
//! table does not know is permanent, so that a new kind of refusal is seen by a person and not retried for ever; it is
//! marked as unlisted, for the caller to log and to count. The outcome of a request counts as known only when it
//! surely never reached the store, or when the store said that it did nothing.

use std::error::Error;
use std::io;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::domain::outcome::{FailureClass, KeyFailure, KeyOutcome, RetryAfter};

/// The code of an answer that is not one: a key in it that XML cannot carry makes it so, too.
pub(crate) const UNREADABLE: &str = "UnreadableAnswer";

/// Messages are cut here: some stores send whole pages, and messages end up in the database.
const LONGEST_MESSAGE: usize = 300;

/// What is said of an answer that says nothing but its status.
const NOTHING_SAID: &str = "the answer has no error code and no message";

/// What a code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// There is nothing to delete: as good as a success.
    Absent,
    /// A failure, and how to meet it.
    Failure(FailureClass),
}

/// What is known about an error before it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence<'a> {
    /// One key's error within an answer: the store did not delete that key, and says so.
    Key { code: &'a str },
    /// The whole request was answered with an error; a proxy's answer has no code.
    Answer { status: u16, code: Option<&'a str> },
    /// No usable answer.
    Silence(Silence),
}

/// How an answer came to be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The request could not be built: nothing was sent.
    NotBuilt,
    /// No credentials could be had for signing: nothing was sent. They may be back soon, when they come from a service.
    NotSigned,
    /// No connection was made: refused, no such host, TLS failed. Nothing was sent.
    NotConnected,
    /// The time was up after sending.
    TimedOut,
    /// The connection was cut after sending.
    Cut,
    /// An answer came that is not one.
    Unreadable,
}

/// The judgement on one error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The store's code, or ours where it sent none.
    pub(crate) code: String,
    /// The store's message, cut to a bearable length.
    pub(crate) message: String,
    /// What the code means.
    pub(crate) meaning: Meaning,
    /// Whether the store surely did nothing (of this attempt; an earlier attempt within the SDK may have been lost,
    /// which makes a `Failed` pessimistic and never wrong in the dangerous direction).
    pub(crate) known: bool,
    /// Whether the code is in the table. Those that are not are worth a warning and a count.
    pub(crate) listed: bool,
    /// The time for which the store asks to be left alone, where it names one.
    pub(crate) retry_after: Option<RetryAfter>,
}

impl Verdict {
    /// As a failure; `Absent` is permanent here, for requests where it is not a success.
    pub(crate) fn into_failure(self) -> KeyFailure {
        let class = self.class();
        KeyFailure { code: self.code, message: self.message, class }
    }

    /// How to meet it; `Absent` is permanent here, for requests where it is not a success.
    pub(crate) fn class(&self) -> FailureClass {
        match self.meaning {
            Meaning::Absent => FailureClass::Permanent,
            Meaning::Failure(class) => class,
        }
    }

    /// As the outcome of the one key that the error is about.
    pub(crate) fn into_outcome(self) -> KeyOutcome {
        match self.meaning {
            Meaning::Absent => KeyOutcome::AlreadyAbsent,
            Meaning::Failure(_) if self.known => KeyOutcome::Failed(self.into_failure()),
            Meaning::Failure(_) => KeyOutcome::Unknown,
        }
    }
}

/// Judges an error of the SDK.
pub(crate) fn judge_sdk<E>(error: &SdkError<E, HttpResponse>) -> Verdict
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(answer) => {
            let evidence = match (answer.raw().status().as_u16(), answer.err().code()) {
                // The SDK calls a success that it cannot read an error of the service.
                (200..300, None) => Evidence::Silence(Silence::Unreadable),
                (status, code) => Evidence::Answer { status, code },
            };
            let verdict = judge(evidence, answer.err().message().unwrap_or_default());
            Verdict { retry_after: retry_after(answer.raw()), ..verdict }
        }
        SdkError::ConstructionFailure(_) => judge(Evidence::Silence(Silence::NotBuilt), &innermost(error)),
        SdkError::TimeoutError(_) => judge(Evidence::Silence(Silence::TimedOut), &innermost(error)),
        SdkError::DispatchFailure(failure) => {
            let silence = if never_sent(error) {
                Silence::NotConnected
            } else if failure.is_user() || (failure.is_other() && failure.as_other().is_none() && !in_transport(error))
            {
                // Not from the connection, but from what comes between building and sending.
                Silence::NotSigned
            } else if failure.is_timeout() {
                Silence::TimedOut
            } else {
                Silence::Cut
            };
            judge(Evidence::Silence(silence), &innermost(error))
        }
        // ResponseError, and whatever a later SDK adds: something may have been done.
        _ => judge(Evidence::Silence(Silence::Unreadable), &innermost(error)),
    }
}

/// What an answer's Retry-After says. Its other form, a date, would measure the difference of two clocks; no store is
/// known to send it.
pub(crate) fn retry_after(answer: &HttpResponse) -> Option<RetryAfter> {
    let seconds = answer.headers().get("retry-after")?.trim().parse().ok()?;
    Some(RetryAfter::seconds(seconds))
}

/// Judges evidence. The one place that decides about retries and about known outcomes.
pub(crate) fn judge(evidence: Evidence<'_>, message: &str) -> Verdict {
    let is_bare = matches!(evidence, Evidence::Answer { code: None, .. }) && message.trim().is_empty();
    let message = if is_bare { NOTHING_SAID } else { message };
    let transient = Meaning::Failure(FailureClass::Transient);
    let (code, found, known) = match evidence {
        Evidence::Key { code } => (code.to_owned(), meaning(code), true),
        Evidence::Answer { status, code: Some(code) } => {
            let found = meaning(code);
            // Throttling is decided before the work. Any other 5xx may have come after it, and so may an error in an
            // answer that began as a success.
            let refused = found == Some(Meaning::Failure(FailureClass::Throttled));
            (code.to_owned(), found, nothing_done(status) || refused)
        }
        Evidence::Answer { status, code: None } => {
            (format!("Http{status}"), Some(meaning_of(status)), nothing_done(status))
        }
        Evidence::Silence(Silence::NotBuilt) => {
            ("InvalidCall".to_owned(), Some(Meaning::Failure(FailureClass::Permanent)), true)
        }
        Evidence::Silence(Silence::NotSigned) => ("NoCredentials".to_owned(), Some(transient), true),
        Evidence::Silence(Silence::NotConnected) => ("Connection".to_owned(), Some(transient), true),
        Evidence::Silence(Silence::TimedOut) => ("Timeout".to_owned(), Some(transient), false),
        Evidence::Silence(Silence::Cut) => ("ConnectionCut".to_owned(), Some(transient), false),
        Evidence::Silence(Silence::Unreadable) => (UNREADABLE.to_owned(), Some(transient), false),
    };
    Verdict {
        code,
        message: message.chars().take(LONGEST_MESSAGE).collect(),
        meaning: found.unwrap_or(Meaning::Failure(FailureClass::Permanent)),
        known,
        listed: found.is_some(),
        retry_after: None,
    }
}

/// The table (S3 API reference, Error responses; MinIO's and Ceph's own codes).
pub(crate) fn meaning(code: &str) -> Option<Meaning> {
    let class = match code {
        "NoSuchKey" | "NoSuchVersion" | "NoSuchUpload" => return Some(Meaning::Absent),
        "InternalError"
        | "InternalFailure"
        | "RequestTimeout"
        | "RequestTimeoutException"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "OperationTimedOut"
        | "IncompleteBody"
        // our clock is wrong, or the store's: another worker's may be right, and either can be set
        | "RequestTimeTooSkewed"
        | "XMinioServerNotInitialized" => FailureClass::Transient,
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "Busy"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "RequestLimitExceeded"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "BandwidthLimitExceeded" => FailureClass::Throttled,
        "AccessDenied"
        | "Forbidden"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "NotSignedUp"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "AuthorizationHeaderMalformed"
        | "ExpiredToken"
        | "InvalidToken"
        | "RequestExpired"
        | "InvalidRequest"
        | "InvalidArgument"
        | "InvalidDigest"
        | "BadDigest"
        | "BadRequest"
        | "MissingContentMD5"
        | "InvalidBucketName"
        | "InvalidBucketState"
        | "InvalidObjectState"
        | "KeyTooLongError"
        | "MalformedXML"
        | "MethodNotAllowed"
        | "NotImplemented"
        | "NoSuchBucket"
        | "NotFound"
        | "ObjectLocked"
        | "PreconditionFailed"
        | "ObjectLockConfigurationNotFoundError"
        | "NoSuchObjectLockConfiguration"
        | "NoSuchObjectLegalHold"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "XMinioStorageFull" => FailureClass::Permanent,
        _ => return None,
    };
    Some(Meaning::Failure(class))
}

/// Whether a code is about the rate and nothing else. `ServiceUnavailable` and `Busy` also come when the store itself is in
/// trouble.
pub(crate) fn is_too_fast(code: &str) -> bool {
    let throttled = meaning(code) == Some(Meaning::Failure(FailureClass::Throttled));
    throttled && !matches!(code, "ServiceUnavailable" | "Busy")
}

/// Whether a status says by itself that nothing was done: it refuses, or has no such operation.
fn nothing_done(status: u16) -> bool {
    matches!(status, 300..=499 | 501)
}

/// Of a bare status, as proxies and HEAD requests send it.
fn meaning_of(status: u16) -> Meaning {
    Meaning::Failure(match status {
        429 | 503 => FailureClass::Throttled,
        501 => FailureClass::Permanent,
        408 | 500..=599 => FailureClass::Transient,
        _ => FailureClass::Permanent,
    })
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Whether the request surely never left: no connection was made for it.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|cause| {
        cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect())
            || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

/// Whether the error comes from the HTTP client at all.
fn in_transport(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|cause| cause.is::<hyper_util::client::legacy::Error>() || cause.is::<io::Error>())
}

/// The innermost message: the outer ones of the SDK say "dispatch failure" and no more.
fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: &str) -> Verdict {
        judge(Evidence::Key { code }, "")
    }

    fn answer(status: u16, code: Option<&str>) -> Verdict {
        judge(Evidence::Answer { status, code }, "")
    }

    #[test]
    fn codes_that_may_pass_are_transient() {
        for code in ["InternalError", "RequestTimeout", "OperationAborted", "IncompleteBody"] {
            assert_eq!(key(code).class(), FailureClass::Transient, "{code}");
            assert!(key(code).listed, "{code}");
        }
    }

    #[test]
    fn codes_that_ask_for_less_are_throttled() {
        for code in ["SlowDown", "ServiceUnavailable", "Throttling", "RequestLimitExceeded", "TooManyRequests"] {
            assert_eq!(key(code).class(), FailureClass::Throttled, "{code}");
            assert!(key(code).listed, "{code}");
        }
    }

    #[test]
    fn codes_that_need_a_person_are_permanent() {
        for code in [
            "AccessDenied",
            "InvalidRequest",
            "InvalidArgument",
            "KeyTooLongError",
            "MethodNotAllowed",
            "NotImplemented",
            "NoSuchBucket",
            "MalformedXML",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
        ] {
            assert_eq!(key(code).class(), FailureClass::Permanent, "{code}");
            assert!(key(code).listed, "{code}");
        }
    }

    #[test]
    fn a_missing_key_or_version_is_as_good_as_deleted() {
        for code in ["NoSuchKey", "NoSuchVersion"] {
            assert_eq!(key(code).into_outcome(), KeyOutcome::AlreadyAbsent, "{code}");
            assert_eq!(answer(404, Some(code)).into_outcome(), KeyOutcome::AlreadyAbsent, "{code}");
        }
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_key() {
        let outcome = answer(404, Some("NoSuchBucket")).into_outcome();
        assert!(
            matches!(outcome, KeyOutcome::Failed(KeyFailure { class: FailureClass::Permanent, .. })),
            "{outcome:?}"
        );
    }

    #[test]
    fn an_unlisted_code_is_permanent_and_marked() {
        let verdict = key("SomethingNew");
        assert_eq!((verdict.class(), verdict.listed), (FailureClass::Permanent, false));
        assert_eq!(answer(500, Some("SomethingNew")).class(), FailureClass::Permanent);
    }

    #[test]
    fn the_outcome_of_a_server_error_is_unknown_unless_it_is_throttling() {
        assert!(!answer(500, Some("InternalError")).known);
        assert!(!answer(502, None).known);
        assert!(!answer(200, Some("InternalError")).known, "an error after the status was sent");
        assert!(!answer(503, None).known, "a proxy's 503 may follow the work");
        assert!(answer(503, Some("SlowDown")).known);
        assert_eq!(answer(503, None).class(), FailureClass::Throttled);
        assert_eq!(answer(500, Some("InternalError")).into_outcome(), KeyOutcome::Unknown);
    }

    #[test]
    fn the_outcome_of_a_refusal_is_known() {
        for (status, code) in [(400, "MalformedXML"), (403, "AccessDenied"), (404, "NoSuchBucket")] {
            assert!(answer(status, Some(code)).known, "{code}");
        }
        assert!(answer(501, Some("NotImplemented")).known);
        assert_eq!((answer(501, None).known, answer(501, None).class()), (true, FailureClass::Permanent));
        assert!(answer(429, None).known);
        assert_eq!(answer(429, None).class(), FailureClass::Throttled);
        assert_eq!(answer(403, None).class(), FailureClass::Permanent);
    }

    #[test]
    fn silence_is_known_only_when_nothing_was_sent() {
        for (silence, class, known) in [
            (Silence::NotBuilt, FailureClass::Permanent, true),
            (Silence::NotSigned, FailureClass::Transient, true),
            (Silence::NotConnected, FailureClass::Transient, true),
            (Silence::TimedOut, FailureClass::Transient, false),
            (Silence::Cut, FailureClass::Transient, false),
            (Silence::Unreadable, FailureClass::Transient, false),
        ] {
            let verdict = judge(Evidence::Silence(silence), "");
            assert_eq!((verdict.class(), verdict.known), (class, known), "{silence:?}");
        }
    }

    #[test]
    fn an_answer_with_nothing_but_its_status_says_so_and_what_says_more_is_left_as_it_is() {
        for status in [403, 429, 500, 503] {
            let verdict = answer(status, None);
            assert_eq!((verdict.code, verdict.message.as_str()), (format!("Http{status}"), NOTHING_SAID));
        }
        assert_eq!(judge(Evidence::Answer { status: 500, code: None }, "of a proxy").message, "of a proxy");
        assert_eq!(answer(503, Some("SlowDown")).message, "");
        assert_eq!(key("AccessDenied").message, "");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let verdict = judge(Evidence::Key { code: "AccessDenied" }, &"ä".repeat(5000));
        assert_eq!(verdict.message.chars().count(), LONGEST_MESSAGE);
    }
}
