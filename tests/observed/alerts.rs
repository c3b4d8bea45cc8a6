//! The alert rules: that they can be read, that each fires when it should and not when it should not (promtool's unit
//! tests), and that each leads to a paragraph of the runbook.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::prometheus::promtool;

const RULES: &str = "docker/prometheus/alerts.yml";
const TESTS: &str = "docker/prometheus/alerts_test.yml";

pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(RULES)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("it is there")
}

/// The values of a key, as often as it stands there.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key)).map(str::trim).collect()
}

/// The names of all alerts.
pub fn names() -> BTreeSet<String> {
    values(&read(RULES), "alert:").into_iter().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_rules_are_valid_and_each_fires_when_it_should_and_not_when_it_should_not() {
    promtool(&["check", "rules", RULES]).await.with(0);
    let ended = promtool(&["test", "rules", TESTS]).await.with(0);
    assert!(ended.all().contains("SUCCESS"), "{}", ended.all());
    let tests = read(TESTS);
    for name in names() {
        assert!(tests.contains(&format!("alertname: {name}, exp_alerts: []}}")), "{name} is never seen silent");
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:\n          -")), "{name} never fires");
    }
}

#[test]
fn each_alert_leads_to_its_paragraph_of_the_runbook() {
    let rules = read(RULES);
    let (alerts, urls) = (values(&rules, "alert:").len(), values(&rules, "runbook_url:"));
    assert_eq!(alerts, urls.len());
    let named: BTreeSet<String> =
        names().iter().map(|name| format!("docs/runbook.md#{}", name.to_lowercase())).collect();
    assert_eq!(urls.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), named);
    assert_eq!(values(&rules, "summary:").len(), values(&rules, "description:").len());
}
