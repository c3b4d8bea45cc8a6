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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::reader::Problems;
    use super::*;

    fn read_from(table: &Value, export: Export) -> (Option<TracesConfig>, Vec<String>) {
        let problems = Problems::default();
        let section = Reader::new("traces", table.as_object().unwrap(), &problems);
        let read = read(section, export);
        (read, problems.into_inner().into_iter().map(|problem| problem.to_string()).collect())
    }

    #[test]
    fn an_address_alone_exports_everything_under_our_name() {
        let (read, problems) = read_from(&json!({ "endpoint": "http://[::1]:4318/" }), Export::Built);
        let expected =
            TracesConfig { endpoint: "http://[::1]:4318".into(), service_name: "reprieve".into(), sample_ratio: 1.0 };
        assert_eq!((read, problems), (Some(expected), vec![]));
        let table = json!({ "endpoint": "https://a/otlp", "service_name": "trash", "sample_ratio": 0.25 });
        let (read, _) = read_from(&table, Export::Built);
        let expected =
            TracesConfig { endpoint: "https://a/otlp".into(), service_name: "trash".into(), sample_ratio: 0.25 };
        assert_eq!(read, Some(expected));
    }

    #[test]
    fn mistakes_are_named_and_no_address_is_shown() {
        for (table, key) in [
            (json!({}), "traces.endpoint"),
            (json!({ "endpoint": "localhost:4318" }), "traces.endpoint"),
            (json!({ "endpoint": "http://" }), "traces.endpoint"),
            (json!({ "endpoint": "ftp://a" }), "traces.endpoint"),
            (json!({ "endpoint": "http://user:hunter2@a" }), "traces.endpoint"),
            (json!({ "endpoint": "http://a?key=hunter2" }), "traces.endpoint"),
            (json!({ "endpoint": "http://a", "sample_ratio": 1.5 }), "traces.sample_ratio"),
            (json!({ "endpoint": "http://a", "sample_ratio": "NaN" }), "traces.sample_ratio"),
            (json!({ "endpoint": "http://a", "protocol": "grpc" }), "traces.protocol"),
        ] {
            let (_, problems) = read_from(&table, Export::Built);
            assert!(problems.len() == 1 && problems[0].starts_with(key), "{table}: {problems:?}");
            assert!(!problems[0].contains("hunter2"), "{problems:?}");
        }
    }

    #[test]
    fn a_build_that_cannot_export_says_so_and_how_one_is_built_that_can() {
        let (_, problems) = read_from(&json!({ "endpoint": "http://localhost:4318" }), Export::LeftOut);
        assert!(problems.len() == 1 && problems[0].contains("--features otlp"), "{problems:?}");
    }
}
