//! Makes metrics and registers them.
//!
//! Invariant: every name is valid and registered once; both are constants of this program, so a start shows a mistake.

use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, core::Collector,
};

const VALID: &str = "the names are valid";

/// Makes metrics on a registry.
pub struct Make<'a>(&'a Registry);

impl<'a> Make<'a> {
    /// On this registry.
    pub fn on(registry: &'a Registry) -> Self {
        Self(registry)
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        register(self.0, IntCounter::new(name, help).expect(VALID))
    }

    /// A counter of what is not whole.
    pub fn decimal(&self, name: &str, help: &str) -> Counter {
        register(self.0, Counter::new(name, help).expect(VALID))
    }

    /// Counters with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        register(self.0, IntCounterVec::new(Opts::new(name, help), labels).expect(VALID))
    }

    /// A gauge of whole numbers.
    pub fn whole(&self, name: &str, help: &str) -> IntGauge {
        register(self.0, IntGauge::new(name, help).expect(VALID))
    }

    /// Gauges of whole numbers with labels.
    pub fn wholes(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        register(self.0, IntGaugeVec::new(Opts::new(name, help), labels).expect(VALID))
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        register(self.0, Gauge::new(name, help).expect(VALID))
    }

    /// Gauges with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        register(self.0, GaugeVec::new(Opts::new(name, help), labels).expect(VALID))
    }

    /// A histogram.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        register(self.0, Histogram::with_opts(opts).expect(VALID))
    }

    /// Histograms with labels.
    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        register(self.0, HistogramVec::new(opts, labels).expect(VALID))
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("every name is registered once");
    collector
}
