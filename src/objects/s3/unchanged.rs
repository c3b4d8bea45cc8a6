//! Deletes that the store carries out only while an object has a given ETag.
//!
//! Invariant: no condition is sent to a store that has not shown that it heeds them, for one that does not deletes in
//! silence (moto does; so may whatever is older than the conditions). It is asked to delete an object that cannot exist, on a
//! condition that cannot hold: a success says that it does not look. What is not known is no permission.

use std::collections::HashMap;

use tokio::time::Instant;

use super::S3Store;
use super::delete::{BUDGET, Limits, Part};
use super::learned::Conditions;
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef};
use crate::objects::{PERMIT_OVER, Permit, no_conditions, not_attempted};

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
            // nor is the store asked: on a bucket with versions one that heeds nothing leaves a delete marker of the question
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

    /// What the store heeds. Asked once; an answer that says nothing is the failure of what was to be deleted.
    async fn conditions(&self, permit: &Permit, bucket: &str) -> Result<Conditions, KeyFailure> {
        if let Some(known) = self.learned.conditions() {
            return Ok(known);
        }
        let nothing = ObjectRef { key: format!("reprieve-asks-for-etags/{}", uuid::Uuid::new_v4()), version: None };
        let unchanged = HashMap::from([(nothing.clone(), NOBODYS.to_owned())]);
        let limits = Limits { deadline: Instant::now() + BUDGET, permit, unchanged: Some(&unchanged) };
        let single = self.delete_one(bucket, &nothing, &limits).await;
        let found = match heeds(single)? {
            false => Conditions::None,
            true if self.learned.is_single() => Conditions::Single,
            true => match self.delete_part(bucket, &[nothing], &limits).await {
                Part::Done(batch) => {
                    if heeds(batch)? {
                        Conditions::Batches
                    } else {
                        Conditions::Single
                    }
                }
                _ => Conditions::Single,
            },
        };
        tracing::info!(s3.bucket = bucket, conditions = ?found, "store was asked whether it heeds ETags in deletes");
        self.learned.heeds(found);
        Ok(found)
    }
}

/// Whether the answer to a condition that cannot hold says that it was looked at.
fn heeds(answer: BatchOutcome) -> Result<bool, KeyFailure> {
    let lost = answer.lost_answer().cloned();
    match answer.into_outcomes().pop().map(|(_, outcome)| outcome) {
        Some(KeyOutcome::Deleted) | None => Ok(false),
        Some(KeyOutcome::AlreadyAbsent) => Ok(true),
        Some(KeyOutcome::Failed(why)) => match why.code.as_str() {
            "PreconditionFailed" | "Http412" => Ok(true),
            "NotImplemented" | "MethodNotAllowed" | "InvalidArgument" | "InvalidRequest" | "BadRequest"
            | "MalformedXML" | "Http400" | "Http405" | "Http501" => Ok(false),
            _ => Err(why),
        },
        Some(KeyOutcome::Unknown) => Err(lost.unwrap_or(KeyFailure {
            code: "NoAnswer".into(),
            message: "whether the store heeds ETags is not known".into(),
            class: FailureClass::Transient,
        })),
    }
}
