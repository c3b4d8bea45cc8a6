//! `[traces]`: where the spans of requests and purges go.
//!
//! Invariant: a build that cannot export them does not take the section and stay silent.

use hyper::Uri;

use super::reader::Reader;

/// The export of traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TracesConfig {
    /// The collector's base address for OTLP over HTTP, without a slash at its end.
    pub endpoint: String,
    /// What the spans say they are from.
    pub service_name: String,
    /// How much is exported of the traces that begin here: 0 to 1. Of one that came from elsewhere its beginning decides.
    pub sample_ratio: f64,
}

/// Whether this build can export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// It has the feature `otlp`.
    Built,
    /// It has not.
    LeftOut,
}

impl Export {
    /// Of this build.
    pub const HERE: Self = if cfg!(feature = "otlp") { Self::Built } else { Self::LeftOut };
}

/// Reads the section. `None`: nothing is exported.
pub fn read(section: Reader<'_>, export: Export) -> Option<TracesConfig> {
    let endpoint = section.required("endpoint", "the collector's address, such as http://localhost:4318", |raw| {
        let address: Uri = raw.parse().map_err(|_| UNREADABLE)?;
        let is_web = address.scheme_str().is_some_and(|scheme| ["http", "https"].contains(&scheme));
        let authority = address.authority().filter(|authority| !authority.as_str().contains('@'));
        if !is_web || authority.is_none() || address.query().is_some() {
            return Err(UNREADABLE);
        }
        Ok(raw.trim_end_matches('/').to_owned())
    });
    let service_name = section.text("service_name").unwrap_or_else(|| "reprieve".to_owned());
    let ratio = |raw: &str| raw.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or("expected 0 to 1");
    let sample_ratio = section.parsed("sample_ratio", ratio).unwrap_or(1.0);
    if export == Export::LeftOut {
        section.problem(
            "endpoint",
            "this build exports no traces: build it with `--features otlp`, or leave [traces] out",
        );
    }
    section.finish();
    Some(TracesConfig { endpoint: endpoint?, service_name, sample_ratio })
}

/// Its value is not shown: somebody may have written a password into it.
const UNREADABLE: &str = "expected the collector's address, such as http://localhost:4318, without user, password or query \
                          (headers come from OTEL_EXPORTER_OTLP_HEADERS)";
