//! Deleting by name, in as few requests as the store and the keys allow.
//!
//! Invariant: whatever happens, each object asked for gets one outcome. Objects that were not tried for want of time
//! or of a permit are `Failed` with [`NOT_ATTEMPTED`]; objects of a request whose answer was lost are `Unknown`.
//!
//! One request takes 1000 keys, but a single character that XML 1.0 cannot carry fails all of them, and some stores
//! refuse batches altogether. So keys with such characters go alone from the start, a batch that the store calls
//! malformed is halved to find the bad key, and a batch that it refuses as such is deleted one by one. What a store has
//! shown in this is remembered for the next batches (see [`super::learned`]).

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

use super::answer::{Entry, attribute};
use super::decode::Decode;
use super::learned::Checksum;
use super::permitted::Permitted;
use super::{S3Store, Scope, checksum};
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef, distinct};
use crate::objects::error::{Evidence, UNREADABLE, Verdict, judge};
use crate::objects::{MAX_BATCH, NOT_ATTEMPTED, PERMIT_OVER, Permit, not_attempted};

/// Single deletes in flight. Each counts as much as a batch to a store that limits requests.
const SINGLES: usize = 8;

/// A malformed batch of this size or below is deleted one by one: halving it further costs as many requests.
const SMALL: usize = 8;

/// No request is started later than this after the call began (requests that were started have their own limits): a
/// thousand single deletes on a slow store must not hold a worker for long.
pub(super) const BUDGET: Duration = Duration::from_secs(120);

/// How long a call may begin requests, and on which conditions.
pub(super) struct Limits<'a> {
    pub(super) deadline: Instant,
    pub(super) permit: &'a Permit,
    /// The ETags with which objects are to be deleted; none: whatever they have.
    pub(super) unchanged: Option<&'a HashMap<ObjectRef, String>>,
}

impl Limits<'_> {
    /// As requests carry it.
    fn etag(&self, object: &ObjectRef) -> Option<String> {
        self.unchanged?.get(object).map(|etag| format!("\"{etag}\""))
    }

    /// What objects come to that may no longer be tried; `None` while they may.
    fn reached(&self) -> Option<KeyOutcome> {
        if !self.permit.holds() {
            return Some(not_attempted(PERMIT_OVER));
        }
        let used_up = Instant::now() >= self.deadline;
        used_up.then(|| not_attempted(&format!("the {} s for one call were used up", BUDGET.as_secs())))
    }
}

/// What became of a part, or why one has to go about it differently.
pub(super) enum Part {
    Done(BatchOutcome),
    Halve,
    /// Not with this checksum, or not at all.
    Refused(Verdict),
    OneByOne,
    /// One by one, if the first of them is answered: the store has failed batches for long, or it is away.
    Probe(KeyFailure),
}

impl S3Store {
    pub(super) async fn delete_all(&self, permit: &Permit, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let limits = Limits { deadline: Instant::now() + BUDGET, permit, unchanged: None };
        self.delete_within(&limits, bucket, objects, false).await
    }

    pub(super) async fn delete_within(
        &self,
        limits: &Limits<'_>,
        bucket: &str,
        objects: &[ObjectRef],
        singly: bool,
    ) -> BatchOutcome {
        let asked = distinct(objects);
        let (batches, alone): (Vec<_>, Vec<_>) = asked.iter().cloned().partition(|object| xml_can_carry(&object.key));
        let mut done = BatchOutcome::uniform(&[], &KeyOutcome::Unknown);
        let mut rest = &batches[..];
        while !rest.is_empty() {
            if singly || self.learned.is_single() {
                done = done.merge(self.delete_singly(bucket, rest, limits).await);
                break;
            }
            // asked each time: what times out shortens the next
            let (batch, later) = rest.split_at(self.learned.most().min(MAX_BATCH).min(rest.len()));
            done = done.merge(self.delete_batch(bucket, batch, limits).await);
            rest = later;
        }
        done = done.merge(self.delete_singly(bucket, &alone, limits).await);
        done.in_order_of(&asked)
    }

    async fn delete_batch(&self, bucket: &str, batch: &[ObjectRef], limits: &Limits<'_>) -> BatchOutcome {
        let mut done = BatchOutcome::uniform(&[], &KeyOutcome::Unknown);
        let mut parts = vec![batch];
        // Ends: a part is either done with or replaced by two halves of it, down to `SMALL`.
        while let Some(part) = parts.pop() {
            if let Some(untried) = limits.reached() {
                done = done.merge(BatchOutcome::uniform(part, &untried));
                continue;
            }
            match self.delete_part(bucket, part, limits).await {
                Part::Done(outcome) => done = done.merge(outcome),
                Part::Halve if part.len() > SMALL => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
                Part::Refused(verdict) if !self.learned.may_go_singly() => {
                    let wait = verdict.retry_after;
                    let failed = KeyOutcome::Failed(verdict.into_failure());
                    done = done.merge(BatchOutcome::uniform(part, &failed).with_retry_after(wait));
                }
                Part::Halve | Part::OneByOne | Part::Refused(_) => {
                    done = done.merge(self.delete_singly(bucket, part, limits).await);
                }
                Part::Probe(why) => done = done.merge(self.probe(bucket, part, limits, why).await),
            }
        }
        done
    }

    /// Deletes the first alone, and the others one by one if that was answered. Otherwise the store is away.
    async fn probe(&self, bucket: &str, part: &[ObjectRef], limits: &Limits<'_>, why: KeyFailure) -> BatchOutcome {
        let (first, rest) = part.split_at(1);
        let probe = self.delete_singly(bucket, first, limits).await;
        let is_answer = |outcome: &KeyOutcome| match outcome {
            KeyOutcome::Deleted | KeyOutcome::AlreadyAbsent => true,
            KeyOutcome::Failed(why) => why.class == FailureClass::Permanent,
            KeyOutcome::Unknown => false,
        };
        let rest = match probe.iter().all(|(_, outcome)| is_answer(outcome)) {
            true => self.delete_singly(bucket, rest, limits).await,
            false => BatchOutcome::lost(rest, why),
        };
        probe.merge(rest)
    }

    /// One DeleteObjects request, or a second one with another checksum where the first was refused.
    pub(super) async fn delete_part(&self, bucket: &str, part: &[ObjectRef], limits: &Limits<'_>) -> Part {
        let checksum = self.learned.checksum();
        match (self.send_part(bucket, part, limits, checksum).await, self.learned.instead_of(checksum)) {
            (Part::Refused(verdict), Some(other)) if may_mean_checksum(&verdict) => {
                self.send_part(bucket, part, limits, other).await
            }
            (part, _) => part,
        }
    }

    async fn send_part(&self, bucket: &str, part: &[ObjectRef], limits: &Limits<'_>, checksum: Checksum) -> Part {
        let scope = Scope { operation: "DeleteObjects", bucket, subject: "" };
        let identifiers = part.iter().map(|object| {
            let identifier = ObjectIdentifier::builder().key(&object.key).set_version_id(object.version.clone());
            identifier.set_e_tag(limits.etag(object)).build().expect("the key is set on the line above")
        });
        let delete = Delete::builder().set_objects(Some(identifiers.collect())).quiet(false).build();
        let delete = delete.expect("the objects are set on the line above");
        let permitted = Permitted::by(limits.permit);
        let request = self.client.delete_objects().bucket(bucket).delete(delete);
        let request = request.set_bypass_governance_retention(self.bypass).customize();
        let request = request.mutate_request(move |request| checksum::replace(request, checksum));
        let answer = request.interceptor(permitted.clone()).interceptor(Decode::Delete).send().await;
        let verdict = match answer {
            Ok(answer) => {
                self.learned.answered(checksum, part.len());
                return Part::Done(attribute(part, self.entries(scope, answer)));
            }
            Err(_) if permitted.has_refused() => return Part::Done(BatchOutcome::lost(part, refused())),
            Err(error) => self.verdict(scope, &error),
        };
        let wait = verdict.retry_after;
        if !verdict.known {
            match verdict.code.as_str() {
                "Timeout" => self.learned.timed_out(part.len()),
                "ConnectionCut" | UNREADABLE => {}
                // a server error; the outcome is unknown, and naming the keys again does no harm
                _ if self.learned.failed() && part.len() > 1 && self.learned.may_go_singly() => {
                    return Part::Probe(verdict.into_failure());
                }
                _ => {}
            }
            return Part::Done(BatchOutcome::lost(part, verdict.into_failure()).with_retry_after(wait));
        }
        match verdict.code.as_str() {
            "MalformedXML" => Part::Halve,
            // Of a whole batch these say "not like this": no such operation, or a checksum that we do not send.
            "InvalidRequest" | "InvalidDigest" | "BadDigest" | "MissingContentMD5" => Part::Refused(verdict),
            // it can be said of the checksum's header alone, so the other one is tried first
            "NotImplemented" if self.learned.instead_of(checksum) == Some(Checksum::ContentMd5) => {
                Part::Refused(verdict)
            }
            "NotImplemented" | "MethodNotAllowed" | "Http405" | "Http501" if self.learned.may_go_singly() => {
                self.learned.has_no_batches();
                Part::OneByOne
            }
            _ => {
                let failed = KeyOutcome::Failed(verdict.into_failure());
                Part::Done(BatchOutcome::uniform(part, &failed).with_retry_after(wait))
            }
        }
    }

    async fn delete_singly(&self, bucket: &str, objects: &[ObjectRef], limits: &Limits<'_>) -> BatchOutcome {
        // Boxed: the compiler cannot yet show that a stream of borrowing futures is `Send` (rust-lang/rust#102211).
        let singles: Vec<BoxFuture<'_, BatchOutcome>> =
            objects.iter().map(|object| self.delete_one(bucket, object, limits).boxed()).collect();
        let mut singles = stream::iter(singles).buffer_unordered(SINGLES);
        let mut done = BatchOutcome::uniform(&[], &KeyOutcome::Unknown);
        while let Some(outcome) = singles.next().await {
            done = done.merge(outcome);
        }
        done
    }

    /// One DeleteObject request.
    pub(super) async fn delete_one(&self, bucket: &str, object: &ObjectRef, limits: &Limits<'_>) -> BatchOutcome {
        let asked = std::slice::from_ref(object);
        if let Some(untried) = limits.reached() {
            return BatchOutcome::uniform(asked, &untried);
        }
        let scope = Scope { operation: "DeleteObject", bucket, subject: &object.key };
        let permitted = Permitted::by(limits.permit);
        let request = self.client.delete_object().bucket(bucket).key(&object.key);
        let request = request.set_bypass_governance_retention(self.bypass).set_if_match(limits.etag(object));
        let request = request.set_version_id(object.version.clone()).customize().interceptor(permitted.clone());
        let verdict = match request.send().await {
            Ok(_) => return BatchOutcome::uniform(asked, &KeyOutcome::Deleted),
            Err(_) if permitted.has_refused() => return BatchOutcome::lost(asked, refused()),
            Err(error) => self.verdict(scope, &error),
        };
        let wait = verdict.retry_after;
        let outcome = match verdict.known {
            true => BatchOutcome::uniform(asked, &verdict.into_outcome()),
            false => BatchOutcome::lost(asked, verdict.into_failure()),
        };
        outcome.with_retry_after(wait)
    }

    fn entries(&self, scope: Scope<'_>, answer: DeleteObjectsOutput) -> Vec<Entry> {
        let deleted = answer.deleted.unwrap_or_default().into_iter().filter_map(|entry| {
            // SeaweedFS names a delete marker that it has deleted in the second field alone.
            let version = entry.version_id.filter(|id| !id.is_empty()).or(entry.delete_marker_version_id);
            Some(Entry { key: entry.key?, version, outcome: KeyOutcome::Deleted })
        });
        let failed = answer.errors.unwrap_or_default().into_iter().filter_map(|entry| {
            let code = entry.code.as_deref().unwrap_or("NoCode");
            let verdict: Verdict = judge(Evidence::Key { code }, entry.message.as_deref().unwrap_or_default());
            self.note(scope, &verdict);
            Some(Entry { key: entry.key?, version: entry.version_id, outcome: verdict.into_outcome() })
        });
        deleted.chain(failed).collect()
    }
}

/// Whether another checksum may change it.
fn may_mean_checksum(verdict: &Verdict) -> bool {
    !matches!(verdict.code.as_str(), "MethodNotAllowed" | "Http405" | "Http501")
}

/// Why the answer is missing of a request whose next attempt was not permitted: those before it may have been lost.
fn refused() -> KeyFailure {
    let (code, message) = (NOT_ATTEMPTED.to_owned(), PERMIT_OVER.to_owned());
    KeyFailure { code, message, class: FailureClass::Transient }
}

/// Whether the key comes back from an XML document as it went in. Control characters are not in XML 1.0 at all, or
/// (tab, line feed, carriage return) are normalised away by one parser or another; U+FFFE and U+FFFF are not in it.
fn xml_can_carry(key: &str) -> bool {
    !key.chars().any(|c| c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_xml_cannot_carry_are_told_from_those_that_it_can() {
        for key in ["a/b c+d%20&<>\"'", "ünï/码", "emoji/🗑", "\u{FFFD}"] {
            assert!(xml_can_carry(key), "{key:?}");
        }
        for key in ["\u{1}", "a\nb", "a\rb", "a\tb", "\u{7f}", "\u{85}", "\u{FFFE}", "\u{FFFF}"] {
            assert!(!xml_can_carry(key), "{key:?}");
        }
    }
}
