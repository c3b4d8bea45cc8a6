//! Named instants at which a test can end the process, as `kill -9` or a power cut would.
//!
//! Invariant: outside of tests there is nothing here. The crate `fail` is compiled in by its feature, which only the
//! tests' dependencies turn on; then `FAILPOINTS` in the environment says where to die, such as
//! `claim.committed=2*off->return` (the third time that it comes there).

/// Dies here when a test has asked for it. What a crash at this instant leaves behind belongs in a comment beside it.
pub fn at(name: &'static str) {
    // without the feature the macro is empty
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}

/// Reads `FAILPOINTS`, before anything runs. Dropping what it gives back forgets them.
#[must_use]
pub fn prepare() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}
