//! The broker and the outbox: connections, messages sent, messages set aside, tasks brought back.

use std::time::Duration;

use prometheus::{GaugeVec, Histogram, IntCounter, IntCounterVec, IntGaugeVec};

use super::Make;
use crate::{
    queue::Depths,
    telemetry::standing::{Part, Standing},
};

const TOPICS: [&str; 3] = ["purge", "event", "reply"];

/// From a message to a window through a broker that hardly answers.
const WINDOWS: [f64; 8] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Why the broker did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// No queue takes it.
    Returned,
    /// The broker refuses it.
    Refused,
    /// No answer.
    Unconfirmed,
}

impl NotTaken {
    const ALL: [Self; 3] = [Self::Returned, Self::Refused, Self::Unconfirmed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Returned => "returned",
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// Counted of messages.
pub struct Messages {
    standing: Standing,
    connected: IntGaugeVec,
    reconnects: IntCounterVec,
    published: IntCounterVec,
    not_taken: IntCounterVec,
    dropped: IntCounter,
    seconds: Histogram,
    waiting: GaugeVec,
    dead_letters: IntCounterVec,
    sweeps: IntCounterVec,
    swept: IntCounter,
}

/// A role's connection to the broker, until it is dropped.
#[must_use = "it is up for as long as this lives"]
pub struct Connected<'a> {
    messages: &'a Messages,
    role: &'static str,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.messages.disconnected(self.role);
    }
}

impl Messages {
    pub(super) fn new(make: &Make<'_>, standing: &Standing) -> Self {
        let this = Self {
            standing: standing.clone(),
            connected: make.wholes("reprieve_broker_connected", "1 while the role has its connection.", &["role"]),
            reconnects: make.counters("reprieve_reconnects_total", "Connections to the broker made anew.", &["role"]),
            published: make.counters("reprieve_published_total", "Messages that the broker confirmed.", &["topic"]),
            not_taken: make.counters(
                "reprieve_publish_failures_total",
                "Messages that the broker did not take.",
                &["topic", "result"],
            ),
            dropped: make.counter("reprieve_dropped_replies_total", "Replies that nobody takes, and were dropped."),
            seconds: make.histogram(
                "reprieve_publish_duration_seconds",
                "Time from the first message of a window to its last confirm.",
                &WINDOWS,
            ),
            waiting: make.gauges("reprieve_queue_messages", "Messages that wait; NaN: nobody has looked.", &["queue"]),
            dead_letters: make.counters("reprieve_dead_letters_total", "Messages set aside.", &["queue"]),
            sweeps: make.counters("reprieve_sweeps_total", "Sweeps.", &["result"]),
            swept: make.counter("reprieve_swept_total", "Tasks that were lost and written again."),
        };
        this.show();
        this
    }

    fn show(&self) {
        for topic in TOPICS {
            self.published.with_label_values(&[topic]);
            for result in NotTaken::ALL {
                self.not_taken.with_label_values(&[topic, result.as_str()]);
            }
        }
        self.waits(None);
        for queue in ["requests", "purge"] {
            self.dead_letters.with_label_values(&[queue]);
        }
        for result in ["ok", "failed"] {
            self.sweeps.with_label_values(&[result]);
        }
    }

    /// This process runs the role, which needs the broker and is not connected yet.
    pub fn expect(&self, role: &'static str) {
        self.reconnects.with_label_values(&[role]);
        self.disconnected(role);
    }

    fn disconnected(&self, role: &'static str) {
        self.connected.with_label_values(&[role]).set(0);
        self.standing.misses(Part::Broker(role), "not connected to the broker");
    }

    /// The role has its connection.
    pub fn connected(&self, role: &'static str) -> Connected<'_> {
        self.connected.with_label_values(&[role]).set(1);
        self.standing.has(Part::Broker(role));
        Connected { messages: self, role }
    }

    /// A role connects anew.
    pub fn reconnect(&self, role: &str) {
        self.reconnects.with_label_values(&[role]).inc();
    }

    /// The broker confirmed a message.
    pub fn published(&self, topic: &str) {
        self.published.with_label_values(&[topic]).inc();
    }

    /// The broker did not take a message.
    pub fn not_taken(&self, topic: &str, why: NotTaken) {
        self.not_taken.with_label_values(&[topic, why.as_str()]).inc();
    }

    /// A reply that nobody takes was dropped.
    pub fn dropped(&self) {
        self.dropped.inc();
    }

    /// A window was answered.
    pub fn window(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
    }

    /// How many messages wait. `None`: nobody knows.
    pub fn waits(&self, depths: Option<Depths>) {
        let known = |depth: fn(&Depths) -> u64| depths.as_ref().map_or(f64::NAN, |depths| decimal(depth(depths)));
        self.waiting.with_label_values(&["requests"]).set(known(|depths| depths.requests));
        self.waiting.with_label_values(&["purge"]).set(known(|depths| depths.purge));
        self.waiting.with_label_values(&["dead"]).set(known(|depths| depths.dead));
    }

    /// How many purge tasks wait.
    pub fn tasks_wait(&self, messages: u64) {
        self.waiting.with_label_values(&["purge"]).set(decimal(messages));
    }

    /// A message was set aside.
    pub fn dead_letter(&self, queue: &str) {
        self.dead_letters.with_label_values(&[queue]).inc();
    }

    /// A sweep came to its end, or failed.
    pub fn sweep(&self, is_ok: bool) {
        self.sweeps.with_label_values(&[if is_ok { "ok" } else { "failed" }]).inc();
    }

    /// So many tasks were written again.
    pub fn swept(&self, tasks: usize) {
        self.swept.inc_by(tasks as u64);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a count beyond 2^53 is none")]
fn decimal(count: u64) -> f64 {
    count as f64
}
