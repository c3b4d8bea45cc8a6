//! The hot parts, one by one, so that a slow-down shows: `cargo bench --bench micro`.
//!
//! A page and a batch are a thousand keys. What goes over the wire goes to the synthetic S3 on loopback, in a thread of
//! this process, so those figures hold the server's share, too, and are for comparing one commit with another.

#[path = "micro/answers.rs"]
#[allow(unused, reason = "its files are the library's, which uses all of them")]
mod answers;
#[path = "micro/purge.rs"]
#[allow(unused, reason = "its files are the library's, which uses all of them")]
mod purge;
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;
use std::num::NonZeroU32;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reprieve::domain::ids::TombstoneId;
use reprieve::domain::outcome::{BatchOutcome, EntryKind, KeyOutcome, ObjectRef};
use reprieve::objects::flow::{Ceiling, Flow};
use reprieve::objects::s3::{S3Credentials, S3Settings, S3Store};
use reprieve::objects::{MAX_BATCH, ObjectEntry, ObjectStore, Page};
use reprieve::queue::message::{PurgeTask, Request};
// as the library's own files name them
use reprieve::{domain, objects};

use support::synthetic_s3::{Names, Options, Rule, SyntheticS3};

const BUCKET: &str = "bench";
const PREFIX: &str = "synthetic/0198c5f1-7a53-7c41-9f5e-0a4b2c6d8e10/";

/// Pages that one range is worked through.
const PAGES: usize = 10;

fn rule(pages: usize) -> Rule {
    Rule { names: Names::Recordings { receivers: 5 }, ..Rule::new(PREFIX, (pages * MAX_BATCH) as u64) }
}

fn objects_of(pages: usize) -> Vec<ObjectRef> {
    rule(pages).keys().map(|key| ObjectRef { key, version: None }).collect()
}

fn answers(c: &mut Criterion) {
    answers::answers(c, &objects_of(1));
}

fn bookkeeping(c: &mut Criterion) {
    let entry = |object: &ObjectRef| ObjectEntry { object: object.clone(), size: 1024, kind: EntryKind::Current };
    let mut pages: Vec<Page> = objects_of(PAGES)
        .chunks(MAX_BATCH)
        .map(|page| Page { entries: page.iter().map(entry).collect(), next: None })
        .collect();
    for page in &mut pages[..PAGES - 1] {
        page.next = page.entries.last().map(ObjectEntry::cursor);
    }
    purge::empty::bookkeeping(c, &pages);
}

/// Through the gate and back with an answer, as every request goes.
fn gate(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a thread is enough");
    let ceiling = Ceiling { concurrency: NonZeroU32::MIN, objects_per_second: None };
    let gate = Flow::new(ceiling).gate(BUCKET);
    let answer = BatchOutcome::uniform(&objects_of(1), &KeyOutcome::Deleted);
    c.bench_function("gate/in and out", |b| {
        b.iter(|| {
            let pass = runtime.block_on(gate.enter(MAX_BATCH)).expect("nobody closes it");
            pass.heard(black_box(&answer));
        });
    });
}

/// A page and a batch as the engine asks for them: building, signing, sending, reading.
fn requests(c: &mut Criterion) {
    // never deleted: the delete names keys of another prefix, which succeed as any absent key does
    let server = SyntheticS3::start(Options::default());
    server.add(BUCKET, rule(PAGES));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a thread can be started");
    let credentials = S3Credentials {
        access_key_id: "bench".into(),
        secret_access_key: "bench".to_owned().into(),
        session_token: None,
    };
    let settings = S3Settings::custom(server.endpoint(), "us-east-1", credentials);
    let store = runtime.block_on(S3Store::new(&settings));
    let absent: Vec<_> =
        objects_of(1).into_iter().map(|object| ObjectRef { key: format!("x{}", object.key), ..object }).collect();
    let mut group = c.benchmark_group("requests");
    group.throughput(Throughput::Elements(MAX_BATCH as u64));
    group.bench_function("list a page", |b| {
        b.iter(|| {
            let page = runtime.block_on(store.list(BUCKET, PREFIX, None)).expect("listed");
            assert_eq!(page.entries.len(), MAX_BATCH);
        });
    });
    group.bench_function("delete a batch", |b| {
        b.iter(|| {
            let outcome = runtime.block_on(store.delete(BUCKET, &absent));
            assert!(outcome.iter().all(|(_, outcome)| outcome.is_gone()));
        });
    });
    group.finish();
}

/// What goes through the outbox and the broker.
fn messages(c: &mut Criterion) {
    let task = PurgeTask { tombstone: TombstoneId(uuid::Uuid::now_v7()) };
    let body = task.encode().to_string();
    assert_eq!(PurgeTask::decode(body.as_bytes()), Ok(task));
    c.bench_function("messages/encode a task", |b| b.iter(|| black_box(task).encode().to_string()));
    c.bench_function("messages/decode a task", |b| b.iter(|| PurgeTask::decode(black_box(body.as_bytes()))));
    let request = format!(r#"{{"v":1,"op":"trash","kind":"dataset","id":"{}","actor":"bench"}}"#, task.tombstone.0);
    assert!(Request::decode(request.as_bytes()).is_ok(), "or an error would be measured");
    c.bench_function("messages/decode a request", |b| b.iter(|| Request::decode(black_box(request.as_bytes()))));
}

criterion_group!(micro, answers, bookkeeping, gate, requests, messages);
criterion_main!(micro);
