//! An object store whose next delete, or abort of an upload, can be stopped at a gate, so that a test decides what happens
//! meanwhile, and that can do what no scripted fault does: leave a key alone and say nothing of it, be written to between
//! two listings, or not answer at all.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use reprieve::domain::outcome::{BatchOutcome, EntryKind, KeyFailure, KeyOutcome, ObjectRef};
use reprieve::objects::faulty::FaultyStore;
use reprieve::objects::memory::MemoryStore;
use reprieve::objects::{
    BucketFacts, Cursor, ObjectEntry, ObjectLock, ObjectStore, ObjectsError, Page, Permit, UnfinishedUpload, UploadPage,
};
use tokio::sync::{Notify, Semaphore};

/// Where a delete waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Nothing is deleted yet.
    Before,
    /// Everything is deleted, and nobody knows.
    After,
}

/// A gate that one delete request waits at.
#[derive(Debug)]
pub struct Gate {
    at: At,
    /// Requests that still pass before one has to wait.
    passes: usize,
    reached: Arc<Notify>,
    open: Arc<Semaphore>,
}

/// The test's side of a gate.
#[derive(Debug, Clone)]
pub struct Keeper {
    reached: Arc<Notify>,
    open: Arc<Semaphore>,
}

impl Keeper {
    /// Waits until a request stands at the gate.
    pub async fn reached(&self) {
        tokio::time::timeout(crate::support::SOON, self.reached.notified()).await.expect("a delete reaches the gate");
    }

    /// Lets it panic.
    pub fn collapse(&self) {
        self.open.close();
    }

    /// Lets it pass.
    pub fn open(&self) {
        self.open.add_permits(1);
    }
}

/// What comes when so many listings have been answered.
#[derive(Debug)]
struct Late {
    lists: usize,
    bucket: String,
    key: String,
    kind: EntryKind,
}

/// The store of the tests.
#[derive(Debug)]
pub struct GateStore {
    /// Scripted faults, and the objects behind them.
    pub faults: FaultyStore<MemoryStore>,
    gate: Mutex<Option<Gate>>,
    ignored: Mutex<HashSet<String>>,
    late: Mutex<Vec<Late>>,
    failing_list: Mutex<Option<(usize, KeyFailure)>>,
    hollow_lists: Mutex<Vec<usize>>,
    finishing: Mutex<Option<String>>,
    is_silent: AtomicBool,
    lists_by_path: AtomicBool,
}

impl GateStore {
    pub fn new(memory: MemoryStore) -> Self {
        let faults = FaultyStore::new(memory);
        let (gate, ignored, late) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (failing_list, hollow_lists, finishing) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (is_silent, lists_by_path) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { faults, gate, ignored, late, failing_list, hollow_lists, finishing, is_silent, lists_by_path }
    }

    /// No listing is answered any more.
    pub fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Keys are paths from here on, as SeaweedFS lists them: a directory comes where its name does, without the slash.
    pub fn list_by_path(&self) {
        self.lists_by_path.store(true, Ordering::Relaxed);
    }

    /// One page with everything, of a bucket without versions and objects of one byte.
    fn page_by_path(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Page {
        let path = |key: &str| key.replace('/', "\0");
        let is_after = |key: &String| after.is_none_or(|after| path(key) > path(&after.key));
        let mut keys = self.memory().keys(bucket);
        keys.retain(|key| key.starts_with(prefix) && is_after(key));
        keys.sort_by_key(|key| path(key));
        let object = |key| ObjectRef { key, version: None };
        let entry = |key| ObjectEntry { object: object(key), size: 1, kind: EntryKind::Current };
        Page { entries: keys.into_iter().map(entry).collect(), next: None }
    }

    /// The delete, or abort, after the next `passes` has to wait; whoever holds the keeper says for how long.
    pub fn stop_a_delete(&self, passes: usize, at: At) -> Keeper {
        let (reached, open) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
        let keeper = Keeper { reached: Arc::clone(&reached), open: Arc::clone(&open) };
        *self.gate.lock().expect("no panic") = Some(Gate { at, passes, reached, open });
        keeper
    }

    /// Deletes of this key do nothing, and the answer does not mention it, until [`GateStore::heed`].
    pub fn ignore(&self, key: &str) {
        self.ignored.lock().expect("no panic").insert(key.to_owned());
    }

    /// Deletes work again.
    pub fn heed(&self) {
        self.ignored.lock().expect("no panic").clear();
    }

    /// A writer that does not know: puts `key` when `lists` more listings have been answered.
    pub fn write_late(&self, lists: usize, bucket: &str, key: &str) {
        self.come_late(lists, bucket, key, EntryKind::Current);
    }

    /// As [`GateStore::write_late`], a delete marker.
    pub fn mark_late(&self, lists: usize, bucket: &str, key: &str) {
        self.come_late(lists, bucket, key, EntryKind::Marker);
    }

    fn come_late(&self, lists: usize, bucket: &str, key: &str, kind: EntryKind) {
        let late = Late { lists, bucket: bucket.to_owned(), key: key.to_owned(), kind };
        self.late.lock().expect("no panic").push(late);
    }

    /// The uploads below `prefix` are completed by their writers, right after they were listed.
    pub fn finish_uploads_when_listed(&self, prefix: &str) {
        *self.finishing.lock().expect("no panic") = Some(prefix.to_owned());
    }

    /// The listing after the next `passes` fails.
    pub fn fail_list_after(&self, passes: usize, failure: KeyFailure) {
        *self.failing_list.lock().expect("no panic") = Some((passes, failure));
    }

    /// The listing after the next `passes` shows an empty page and says that more follows, as some stores do. Several
    /// can be asked for; each counts from when it was.
    pub fn hollow_list_after(&self, passes: usize) {
        self.hollow_lists.lock().expect("no panic").push(passes);
    }

    /// Hollow listings that were asked for and have not come yet.
    pub fn hollow_lists_to_come(&self) -> usize {
        self.hollow_lists.lock().expect("no panic").len()
    }

    fn is_hollow(&self) -> bool {
        let mut hollow = self.hollow_lists.lock().expect("no panic");
        let before = hollow.len();
        hollow.retain(|passes| *passes > 0);
        hollow.iter_mut().for_each(|passes| *passes -= 1);
        hollow.len() < before
    }

    /// The objects behind everything.
    pub fn memory(&self) -> &MemoryStore {
        self.faults.inner()
    }

    fn gate_for_this(&self) -> Option<Gate> {
        let mut gate = self.gate.lock().expect("no panic");
        match gate.as_mut() {
            Some(waiting) if waiting.passes > 0 => {
                waiting.passes -= 1;
                None
            }
            _ => gate.take(),
        }
    }

    async fn write_what_is_late(&self) {
        let mut due = Vec::new();
        self.late.lock().expect("no panic").retain_mut(|late| {
            late.lists -= 1;
            if late.lists == 0 {
                due.push((late.bucket.clone(), late.key.clone(), late.kind));
            }
            late.lists > 0
        });
        for (bucket, key, kind) in due {
            match kind {
                EntryKind::Marker => {
                    let hidden = ObjectRef { key, version: None };
                    assert!(self.memory().delete(&bucket, &[hidden]).await.lost_answer().is_none());
                }
                _ => self.memory().put(&bucket, &key, 1),
            }
        }
    }
}

impl Gate {
    async fn wait(&self) {
        self.reached.notify_one();
        let _permit = self.open.acquire().await.expect("the gate collapses");
    }
}

#[async_trait]
impl ObjectStore for GateStore {
    async fn list(&self, bucket: &str, prefix: &str, after: Option<&Cursor>) -> Result<Page, ObjectsError> {
        if self.is_silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let fails = self.failing_list.lock().expect("no panic").take();
        match fails {
            Some((0, failure)) => self.faults.fail_next_list(failure),
            Some((passes, failure)) => self.fail_list_after(passes - 1, failure),
            None => {}
        }
        if self.is_hollow() {
            // below the prefix nothing comes before the prefix itself
            let start = Cursor { key: prefix.to_owned(), version: None };
            return Ok(Page { entries: Vec::new(), next: Some(after.cloned().unwrap_or(start)) });
        }
        let page = match self.lists_by_path.load(Ordering::Relaxed) {
            true => Ok(self.page_by_path(bucket, prefix, after)),
            false => self.faults.list(bucket, prefix, after).await,
        };
        self.write_what_is_late().await;
        page
    }

    async fn delete(&self, bucket: &str, objects: &[ObjectRef]) -> BatchOutcome {
        let gate = self.gate_for_this();
        if let Some(gate) = gate.as_ref().filter(|gate| gate.at == At::Before) {
            gate.wait().await;
        }
        let ignored = self.ignored.lock().expect("no panic").clone();
        let passed: Vec<ObjectRef> = objects.iter().filter(|object| !ignored.contains(&object.key)).cloned().collect();
        let outcome = self.faults.delete(bucket, &passed).await;
        let (lost, wait) = (outcome.lost_answer().cloned(), outcome.retry_after());
        if let Some(gate) = gate.filter(|gate| gate.at == At::After) {
            gate.wait().await;
        }
        BatchOutcome::reconcile(objects, [], outcome.into_outcomes()).with_lost_answer(lost).with_retry_after(wait)
    }

    async fn delete_unchanged(&self, permit: &Permit, bucket: &str, objects: &[(ObjectRef, String)]) -> BatchOutcome {
        let gate = self.gate_for_this();
        if let Some(gate) = gate.as_ref().filter(|gate| gate.at == At::Before) {
            gate.wait().await;
        }
        let outcome = self.faults.delete_unchanged(permit, bucket, objects).await;
        if let Some(gate) = gate.filter(|gate| gate.at == At::After) {
            gate.wait().await;
        }
        outcome
    }

    async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&Cursor>,
    ) -> Result<UploadPage, ObjectsError> {
        let page = self.faults.list_uploads(bucket, prefix, after).await;
        let finishing = self.finishing.lock().expect("no panic").take_if(|finishing| *finishing == prefix);
        if let Some(prefix) = finishing {
            self.memory().complete_uploads(bucket, &prefix, 1);
        }
        page
    }

    async fn abort_upload(&self, permit: &Permit, bucket: &str, upload: &UnfinishedUpload) -> KeyOutcome {
        let gate = self.gate_for_this();
        if let Some(gate) = gate.as_ref().filter(|gate| gate.at == At::Before) {
            gate.wait().await;
        }
        let outcome = self.faults.abort_upload(permit, bucket, upload).await;
        if let Some(gate) = gate.filter(|gate| gate.at == At::After) {
            gate.wait().await;
        }
        outcome
    }

    async fn lock_of(&self, bucket: &str, object: &ObjectRef) -> Result<ObjectLock, ObjectsError> {
        self.faults.lock_of(bucket, object).await
    }

    async fn facts(&self, bucket: &str) -> Result<BucketFacts, ObjectsError> {
        self.faults.facts(bucket).await
    }
}
