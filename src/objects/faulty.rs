//! A test double: another store, with faults that a test asks for.
//!
//! Invariant: a fault changes what the caller is told or what is passed on, never the contract: every object asked
//! for still has exactly one outcome. Not for production.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{BucketFacts, Cursor, ObjectLock, ObjectStore, ObjectsError, Page, Permit, UnfinishedUpload, UploadPage};
use crate::domain::outcome::{BatchOutcome, FailureClass, KeyFailure, KeyOutcome, ObjectRef, RetryAfter};

/// How often a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// The next so many times.
    Next(u32),
    /// Every time.
    Always,
}

/// A store with scripted faults.
#[derive(Debug)]
pub struct FaultyStore<S> {
    inner: S,
    script: Mutex<Script>,
}

#[derive(Debug, Default)]
struct Script {
    lists: VecDeque<KeyFailure>,
    upload_lists: VecDeque<KeyFailure>,
    /// By key.
    aborts: HashMap<String, (Times, KeyFailure)>,
    deletes: VecDeque<Whole>,
    failing: HashMap<String, (Times, KeyFailure)>,
    left_out: HashMap<String, Times>,
    /// How many objects of a delete request are granted, and for how long to leave the store alone after more.
    quota: Option<(usize, Option<RetryAfter>)>,
    /// How many objects a delete request may name; larger ones are refused as a whole.
    at_once: Option<usize>,
    /// Objects named in each delete request so far.
    batches: Vec<usize>,
}

/// A fault of a whole delete request.
#[derive(Debug)]
enum Whole {
    /// The store does nothing, and says so.
    Refused(KeyFailure),
    /// The store does everything, and the answer gets lost.
    Lost(KeyFailure),
}

/// A failure with a code of the tester's choice.
pub fn failure(code: &str, class: FailureClass) -> KeyFailure {
    KeyFailure { code: code.to_owned(), message: "scripted".to_owned(), class }
}

impl<S> FaultyStore<S> {
    /// `inner` without faults so far.
    pub fn new(inner: S) -> Self {
        Self { inner, script: Mutex::default() }
    }

    /// The store behind.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The next listing (after those that were scripted before) fails.
    pub fn fail_next_list(&self, failure: KeyFailure) {
        self.script().lists.push_back(failure);
    }

    /// The next listing of uploads fails.
    pub fn fail_next_upload_list(&self, failure: KeyFailure) {
        self.script().upload_lists.push_back(failure);
    }

    /// Uploads of this key are not aborted.
    pub fn fail_abort(&self, key: &str, times: Times, failure: KeyFailure) {
        self.script().aborts.insert(key.to_owned(), (times, failure));
    }

    /// The next delete request fails as a whole and deletes nothing.
    pub fn refuse_next_delete(&self, failure: KeyFailure) {
        self.script().deletes.push_back(Whole::Refused(failure));
    }

    /// The next delete request is carried out, and all its outcomes are unknown.
    pub fn lose_next_answer(&self) {
        self.script().deletes.push_back(Whole::Lost(failure("Timeout", FailureClass::Transient)));
    }

    /// Deletes of this key fail, every version of it, and it stays.
    pub fn fail_key(&self, key: &str, times: Times, failure: KeyFailure) {
        self.script().failing.insert(key.to_owned(), (times, failure));
    }

    /// Deletes of this key are carried out and left out of the answer.
    pub fn leave_out(&self, key: &str, times: Times) {
        self.script().left_out.insert(key.to_owned(), times);
    }

    /// Of each delete request the first `most` objects are deleted; of the others the store asks for less, and perhaps to be
    /// left alone.
    pub fn grant(&self, most: usize, wait: impl Into<Option<RetryAfter>>) {
        self.script().quota = Some((most, wait.into()));
    }

    /// A delete request that names more than `most` objects is refused as a whole, and names no time to come back.
    pub fn grant_at_once(&self, most: usize) {
        self.script().at_once = Some(most);
    }

    /// How many objects each delete request named, in order, those that were refused included.
    pub fn batches(&self) -> Vec<usize> {
        self.script().batches.clone()
    }

    /// Each step on the script is a single change, so a poisoned lock is as good as any.
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Times {
    /// Uses it once; whether it was still good for that.
    fn strike(&mut self) -> bool {
        match self {
            Self::Always => true,
            Self::Next(0) => false,
            Self::Next(left) => {
                *left -= 1;
                true
            }
        }
    }
}

impl Script {
    /// The fault of a delete request that names so many objects.
    fn next_delete(&mut self, objects: usize) -> Option<Whole> {
        self.batches.push(objects);
        let is_too_large = self.at_once.is_some_and(|most| objects > most);
        let slow_down = || Whole::Refused(failure("SlowDown", FailureClass::Throttled));
        if is_too_large { Some(slow_down()) } else { self.deletes.pop_front() }
    }

    fn failure_of(&mut self, key: &str) -> Option<KeyFailure> {
        strike(&mut self.failing, key)
    }

    fn leaves_out(&mut self, key: &str) -> bool {
        self.left_out.get_mut(key).is_some_and(Times::strike)
    }
}

fn strike(failing: &mut HashMap<String, (Times, KeyFailure)>, key: &str) -> Option<KeyFailure> {
    let (times, failure) = failing.get_mut(key)?;
    times.strike().then(|| failure.clone())
}

fn failed(operation: &'static str, bucket: &str, prefix: &str, why: KeyFailure) -> ObjectsError {
    let KeyFailure { code, message, class } = why;
    let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
    ObjectsError { operation, bucket, prefix, code, message, class, retry_after: None }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for FaultyStore<S> {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        let fault = self.script().lists.pop_front();
        if let Some(fault) = fault {
            return Err(failed("List", bucket, prefix, fault));
        }
        self.inner.list(bucket, prefix, after).await
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let (whole, wait, failed, passed) = {
            let mut script = self.script();
            let whole = script.next_delete(objects.len());
            if let Some(Whole::Refused(failure)) = whole {
                return BatchOutcome::uniform(objects, &KeyOutcome::Failed(failure));
            }
            let (most, wait) = script.quota.unzip();
            let (granted, refused) = objects.split_at(most.map_or(objects.len(), |most| most.min(objects.len())));
            let slow_down =
                |object: &ObjectRef| (object.clone(), KeyOutcome::Failed(failure("SlowDown", FailureClass::Throttled)));
            let (mut failed, mut passed) = (refused.iter().map(slow_down).collect::<Vec<_>>(), Vec::new());
            for object in granted {
                match script.failure_of(&object.key) {
                    Some(failure) => failed.push((object.clone(), KeyOutcome::Failed(failure))),
                    None => passed.push(object.clone()),
                }
            }
            (whole, wait.flatten().filter(|_| !refused.is_empty()), failed, passed)
        };
        let done = self.inner.delete(bucket, &passed).await;
        if let Some(Whole::Lost(why)) = whole {
            return BatchOutcome::lost(objects, why);
        }
        let lost_answer = done.lost_answer().cloned();
        let mut script = self.script();
        let answered = done.into_outcomes().into_iter().filter(|(object, _)| !script.leaves_out(&object.key));
        let outcome = BatchOutcome::reconcile(objects, [], failed.into_iter().chain(answered));
        outcome.with_lost_answer(lost_answer).with_retry_after(wait)
    }

    async fn delete_unchanged(&self, permit: &Permit, bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        let asked: Vec<ObjectRef> = objects.iter().map(|(object, _)| object.clone()).collect();
        let whole = {
            let mut script = self.script();
            script.next_delete(objects.len())
        };
        if let Some(Whole::Refused(failure)) = whole {
            return BatchOutcome::uniform(&asked, &KeyOutcome::Failed(failure));
        }
        let done = self.inner.delete_unchanged(permit, bucket, objects).await;
        match whole {
            Some(Whole::Lost(why)) => BatchOutcome::lost(&asked, why),
            _ => done,
        }
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        let fault = self.script().upload_lists.pop_front();
        match fault {
            Some(fault) => Err(failed("ListUploads", bucket, prefix, fault)),
            None => self.inner.list_uploads(bucket, prefix, after).await,
        }
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        let fault = strike(&mut self.script().aborts, &upload.key);
        match fault {
            Some(fault) => KeyOutcome::Failed(fault),
            None => self.inner.abort_upload(permit, bucket, upload).await,
        }
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        self.inner.lock_of(bucket, object).await
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        self.inner.facts(bucket).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Versioning;
    use crate::objects::memory::MemoryStore;

    fn plain(key: &str) -> ObjectRef {
        ObjectRef { key: key.into(), version: None }
    }

    fn store() -> FaultyStore<MemoryStore> {
        let memory = MemoryStore::new().with_bucket("b", Versioning::Off);
        for key in ["1", "2", "3"] {
            memory.put("b", key, 1);
        }
        FaultyStore::new(memory)
    }

    #[tokio::test]
    async fn a_failing_key_stays_as_often_as_it_was_told_to() {
        let store = store();
        let busy = failure("SlowDown", FailureClass::Throttled);
        store.fail_key("2", Times::Next(1), busy.clone());
        let asked = [plain("1"), plain("2")];
        let first = store.delete("b", &asked).await.into_outcomes();
        assert_eq!(first, [(plain("1"), KeyOutcome::Deleted), (plain("2"), KeyOutcome::Failed(busy))]);
        assert_eq!(store.inner().count("b"), 2);
        let second = store.delete("b", &asked[1..]).await.into_outcomes();
        assert_eq!(second, [(plain("2"), KeyOutcome::Deleted)]);
    }

    #[tokio::test]
    async fn a_key_left_out_and_a_lost_answer_are_unknown_though_deleted() {
        let store = store();
        store.leave_out("1", Times::Always);
        let outcome = store.delete("b", &[plain("1")]).await;
        assert_eq!(outcome.lost_answer(), None);
        assert_eq!(outcome.into_outcomes(), [(plain("1"), KeyOutcome::Unknown)]);
        store.lose_next_answer();
        let outcome = store.delete("b", &[plain("2")]).await;
        assert!(outcome.lost_answer().is_some());
        assert_eq!(outcome.into_outcomes(), [(plain("2"), KeyOutcome::Unknown)]);
        assert_eq!(store.inner().count("b"), 1);
    }

    #[tokio::test]
    async fn a_refused_request_deletes_nothing_and_a_failing_list_fails_once() {
        let store = store();
        store.refuse_next_delete(failure("AccessDenied", FailureClass::Permanent));
        let outcome = store.delete("b", &[plain("1")]).await.into_outcomes();
        assert!(matches!(outcome[0].1, KeyOutcome::Failed(_)));
        assert_eq!((store.inner().count("b"), store.batches()), (3, vec![1]));
        store.fail_next_list(failure("InternalError", FailureClass::Transient));
        assert_eq!(store.list("b", "", None).await.expect_err("scripted").code, "InternalError");
        assert_eq!(store.list("b", "", None).await.expect("scripted once").entries.len(), 3);
    }
}
