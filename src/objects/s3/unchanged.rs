//! Deletes that the store carries out only while an object has a given ETag.
//!
//! Invariant: no condition is sent in a bucket that keeps versions, nor in one whose store has not shown there that it heeds
//! them, for one that does not deletes in silence (moto does; so may whatever is older than the conditions). It is asked to
//! delete an object that cannot exist, on a condition that cannot hold: a success says that it does not look, and a refusal
//! that it does. "There is no such object" (Amazon says so to the condition; Google Cloud Storage always, and looks at none)
//! says it only where the same delete without the condition is a success. What is not known is no permission.

use std::collections::HashMap;

use tokio::time::Instant;

use super::S3Store;
use super::delete::{BUDGET, Limits, Part};
use super::learned::Conditions;
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef};
use crate::objects::{ObjectsError, PERMIT_OVER, Permit, Versioning, no_conditions, not_attempted};

/// An ETag that no object has: that of an MD5 which nobody has found a text for.
const NOBODYS: &str = "00000000000000000000000000000000";

impl S3Store {
    pub(super) async fn delete_if_unchanged(
        &self,
        permit: &Permit,
        bucket: &str,
        objects: &[(ObjectRef, String)],
    ) -> BatchOutcome {
        let asked: Vec<ObjectRef> = objects.iter().map(|(object, _)| object.clone()).collect();
        if !permit.holds() {
            return BatchOutcome::uniform(&asked, &not_attempted(PERMIT_OVER));
        }
        // S3 compares the current version alone (S3 User Guide, conditional deletes), whichever is named
        let (plain, versions): (Vec<_>, Vec<_>) = asked.iter().cloned().partition(|object| object.version.is_none());
        if plain.is_empty() {
            return BatchOutcome::uniform(&versions, &no_conditions());
        }
        let found = match self.conditions(permit, bucket).await {
            Ok(Conditions::None) => return BatchOutcome::uniform(&asked, &no_conditions()),
            Ok(found) => found,
            Err(why) => return BatchOutcome::uniform(&asked, &KeyOutcome::Failed(why)),
        };
        let unchanged = objects.iter().cloned().collect();
        let limits = Limits { deadline: Instant::now() + BUDGET, permit, unchanged: Some(&unchanged) };
        let singly = found == Conditions::Single;
        let done = self.delete_within(&limits, bucket, &plain, singly).await;
        done.merge(BatchOutcome::uniform(&versions, &no_conditions())).in_order_of(&asked)
    }

    /// What the store heeds in the bucket. Asked once, where it keeps no versions, which may change; an answer that says
    /// nothing is the failure of what was to be deleted.
    async fn conditions(&self, permit: &Permit, bucket: &str) -> Result<Conditions, KeyFailure> {
        if self.versioning(bucket).await.map_err(not_told)? == Versioning::Kept {
            // nor is the store asked: a delete that it carries out would leave a delete marker
            return Ok(Conditions::None);
        }
        if let Some(known) = self.learned.conditions(bucket) {
            return Ok(known);
        }
        let nothing = ObjectRef { key: format!("reprieve-asks-for-etags/{}", uuid::Uuid::new_v4()), version: None };
        let found = if !self.heeds(permit, bucket, &nothing, Way::Single).await? {
            Conditions::None
        } else if !self.learned.is_single() && self.heeds(permit, bucket, &nothing, Way::Batch).await? {
            Conditions::Batches
        } else {
            Conditions::Single
        };
        tracing::info!(s3.bucket = bucket, conditions = ?found, "store was asked whether it heeds ETags in deletes");
        self.learned.heeds(bucket, found);
        Ok(found)
    }

    /// Whether it looks at conditions in such requests, by what it says of an object that is not there.
    async fn heeds(&self, permit: &Permit, bucket: &str, nothing: &ObjectRef, way: Way) -> Result<bool, KeyFailure> {
        let unchanged = HashMap::from([(nothing.clone(), NOBODYS.to_owned())]);
        match self.ask(permit, bucket, nothing, way, Some(&unchanged)).await? {
            Said::Refused => Ok(true),
            Said::Deleted | Said::NotLikeThis => Ok(false),
            Said::Absent => Ok(self.ask(permit, bucket, nothing, way, None).await? == Said::Deleted),
        }
    }

    async fn ask(
        &self,
        permit: &Permit,
        bucket: &str,
        nothing: &ObjectRef,
        way: Way,
        unchanged: Option<&HashMap<ObjectRef, String>>,
    ) -> Result<Said, KeyFailure> {
        let limits = Limits { deadline: Instant::now() + BUDGET, permit, unchanged };
        match way {
            Way::Single => said(self.delete_one(bucket, nothing, &limits).await),
            Way::Batch => match self.delete_part(bucket, std::slice::from_ref(nothing), &limits).await {
                Part::Done(answer) => said(answer),
                _ => Ok(Said::NotLikeThis),
            },
        }
    }
}

/// How an object is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Single,
    Batch,
}

/// What a store says of an object that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Deleted,
    Absent,
    /// The condition does not hold.
    Refused,
    /// It has no such request.
    NotLikeThis,
}

/// # Errors
/// It says nothing.
fn said(answer: BatchOutcome) -> Result<Said, KeyFailure> {
    let lost = answer.lost_answer().cloned();
    match answer.into_outcomes().pop().map(|(_, outcome)| outcome) {
        Some(KeyOutcome::Deleted) | None => Ok(Said::Deleted),
        Some(KeyOutcome::AlreadyAbsent) => Ok(Said::Absent),
        Some(KeyOutcome::Failed(why)) => match why.code.as_str() {
            "PreconditionFailed" | "Http412" => Ok(Said::Refused),
            "NotImplemented" | "MethodNotAllowed" | "InvalidArgument" | "InvalidRequest" | "BadRequest"
            | "MalformedXML" | "Http400" | "Http405" | "Http501" => Ok(Said::NotLikeThis),
            _ => Err(why),
        },
        Some(KeyOutcome::Unknown) => Err(lost.unwrap_or(KeyFailure {
            code: "NoAnswer".into(),
            message: "whether the store heeds ETags is not known".into(),
            class: FailureClass::Transient,
        })),
    }
}

fn not_told(error: ObjectsError) -> KeyFailure {
    KeyFailure { code: error.code, message: error.message, class: error.class }
}
