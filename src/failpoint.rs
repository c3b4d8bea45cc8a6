//! Named instants at which a test can end the process, as `kill -9` or a power cut would.
//!
//! Invariant: outside of tests there is nothing here. The crate `fail` is compiled in by its feature, which only the
//! tests' dependencies turn on; then `FAILPOINTS` in the environment says where to die, such as
//! `claim.committed=2*off->return` (the third time that it comes there), or where to panic: `claim.looked=1*panic`.
//!
//! A name is `part.step`, and the step is what has just been done; `uncommitted` stands before a commit and
//! `committed` after it. Each stands in one place, and a test dies at every one of them.

/// Dies here when a test has asked for it. What a crash at this instant leaves behind belongs in a comment beside it.
pub fn at(name: &'static str) {
    // without the feature the macro is empty
    let _ = name;
    fail::fail_point!(name, |_| {
        eprintln!("fail point {name}: the process dies here");
        std::process::abort()
    });
}

/// Reads `FAILPOINTS`, before anything runs. Dropping what it gives back forgets them.
#[must_use]
pub fn prepare() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}
