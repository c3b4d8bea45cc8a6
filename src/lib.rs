//! Reprieve: a trash bin for platforms that keep rows in PostgreSQL and bulk data in S3.
//!
//! # The law
//!
//! 1. **Nothing is destroyed before its time.** Not before `purge_after`, not while anything uses it or holds it. A check
//!    that fails means "not now", never "unused".
//! 2. **The point of no return is one commit**, to `purging`. Under the locks of tombstone and resource row it asks the
//!    references once more and raises the fence. Before it everything can be restored, after it nothing can.
//! 3. **Objects first, verified gone, rows last.** The rows are the only list of the objects, so they outlive every one of
//!    them. A key that failed, or of which nobody knows, keeps the rows.
//! 4. **The database is the truth, a message is a hint.** A task that is lost, repeated, early, late or forged does no
//!    harm; with the broker's data gone, nothing is.
//! 5. **Every key asked for has exactly one outcome**: deleted, absent, failed with a code, or unknown. What the answer
//!    does not mention is unknown, and only a fresh listing turns unknown into absent.
//! 6. **Everything resumes.** A worker can be killed at any instruction. Crash recovery is the normal path and not a
//!    second one.
//! 7. **One bad key or task holds up only itself.** What cannot be finished is set aside as `stuck`, with its reason and a
//!    way to retry.
//! 8. **Looking is free, destroying is asked for.** What destroys is a dry run until told otherwise, and the dry run comes
//!    from the planner of the real run.
//!
//! # The way of a deletion
//!
//! ```text
//! other services ─▶ requests queue ─▶ intake ─┐
//! http ───────────────────────────────────────┼─▶ trash ─▶ tombstone + outbox + audit (one commit)
//! cli ────────────────────────────────────────┘                          │ when purge_after has come
//!                         purge queue ◀─ relay, with confirms ◀──────────┤
//!                              │               sweeper: due, no task ─▶──┘
//!                              ▼
//! purge: claim ─▶ empty the stores ─▶ verify ─▶ delete rows ─▶ finish (one commit) ─▶ ack
//! ```
//!
//! # The modules, in the order of the story
//!
//! - [`cli`], [`http`] and [`intake`] take requests in and decide nothing about a resource.
//! - [`config`] reads the files, and [`app`] makes a process out of them.
//! - [`trash`] plans, trashes and restores: everything before the point of no return.
//! - [`places`] says where a resource's objects lie, and [`bystanders`] who else a purge would hurt.
//! - [`relay`] brings the outbox to the broker, and its sweeper what was lost back into the outbox.
//! - [`queue`] is the broker, and [`queue::message`] what the messages say.
//! - [`purge`] is everything from the claim to the receipt.
//! - [`objects`] is S3, [`store`] is PostgreSQL and holds all SQL, [`history`] tells both log and listeners.
//! - [`domain`] is pure: ids, tombstones, their states, outcomes of keys, the resource map.
//! - [`retry`], [`shutdown`], [`telemetry`] and [`failpoint`] serve them all.
//! - [`embedded`] is a platform in a box, for the demo and for tests.
pub mod app;
pub mod bystanders;
pub mod cli;
pub mod config;
pub mod domain;
pub mod embedded;
pub mod failpoint;
pub mod history;
pub mod http;
pub mod intake;
pub mod objects;
pub mod places;
pub mod purge;
pub mod queue;
pub mod relay;
pub mod retry;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod trash;
