//! The process itself: its version, its roles, its connections to the database.

use std::time::Duration;

use prometheus::{Counter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Make, raise};

/// Counted for the process.
pub struct Process {
    roles: IntGaugeVec,
    started: IntGauge,
    connections: IntGaugeVec,
    most_connections: IntGauge,
    acquires: IntCounterVec,
    acquire_seconds: Counter,
}

/// What a pool of connections says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pool {
    /// Connections that nobody uses.
    pub idle: u32,
    /// Connections that somebody uses.
    pub in_use: u32,
    /// As many as there may be.
    pub most: u32,
    /// Times a connection was asked for and had.
    pub acquired: u64,
    /// Times it was not.
    pub failed: u64,
    /// What all of these took.
    pub waited: Duration,
}

impl Process {
    pub(super) fn new(make: &Make<'_>) -> Self {
        make.wholes("reprieve_build_info", "1. Says which version runs.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let connections = make.wholes("reprieve_database_connections", "Connections of the pool.", &["state"]);
        let acquires = make.counters(
            "reprieve_database_acquires_total",
            "Times a connection was asked of the pool, by whether one was had in time.",
            &["result"],
        );
        for state in ["idle", "in_use"] {
            connections.with_label_values(&[state]);
        }
        for result in ["ok", "failed"] {
            acquires.with_label_values(&[result]);
        }
        Self {
            roles: make.wholes("reprieve_role_info", "1 for each role that this process runs.", &["role"]),
            started: make.whole("reprieve_started", "Whether the start is over."),
            connections,
            most_connections: make.whole("reprieve_database_connections_max", "Connections that the pool may have."),
            acquires,
            acquire_seconds: make
                .decimal("reprieve_database_acquire_seconds_total", "Time spent waiting for a connection."),
        }
    }

    /// Says that this process runs the role.
    pub fn runs(&self, role: &str) {
        self.roles.with_label_values(&[role]).set(1);
    }

    pub(super) fn started(&self, started: bool) {
        self.started.set(started.into());
    }

    /// What the pool says now.
    pub fn pool(&self, pool: Pool) {
        self.connections.with_label_values(&["idle"]).set(pool.idle.into());
        self.connections.with_label_values(&["in_use"]).set(pool.in_use.into());
        self.most_connections.set(pool.most.into());
        raise(&self.acquires.with_label_values(&["ok"]), pool.acquired);
        raise(&self.acquires.with_label_values(&["failed"]), pool.failed);
        let waited = pool.waited.as_secs_f64();
        self.acquire_seconds.inc_by((waited - self.acquire_seconds.get()).max(0.0));
    }
}
