//! Reads the dashboard, and holds it against its source.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::Ended;

/// A query of a panel or of a variable.
#[derive(Debug)]
pub struct Query {
    /// The panel's title.
    pub panel: String,
    /// As it stands, with Grafana's variables.
    pub expression: String,
    /// Labels that the legend, or a table's columns, show.
    pub labels: Vec<String>,
}

/// The dashboard's JSON.
pub fn read() -> Value {
    serde_json::from_str(&std::fs::read_to_string(path()).expect("it is there")).expect("JSON")
}

pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/grafana/dashboards/reprieve.json")
}

/// The panels that show something; rows are headings.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().expect("panels");
    panels.iter().filter(|panel| panel["type"] != "row").collect()
}

/// Every query of every panel.
pub fn queries(dashboard: &Value) -> Vec<Query> {
    let of = |panel: &Value| -> Vec<Query> {
        let columns: Vec<String> = match panel["transformations"][0]["options"]["include"]["names"].as_array() {
            Some(names) => names.iter().map(text).filter(|name| name != "Value").collect(),
            None => Vec::new(),
        };
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty(), "a panel without a query: {}", panel["title"]);
        let query = |target: &Value| {
            let mut labels = columns.clone();
            labels.extend(placeholders(&text(&target["legendFormat"])));
            Query { panel: text(&panel["title"]), expression: text(&target["expr"]), labels }
        };
        targets.iter().map(query).collect()
    };
    panels(dashboard).into_iter().flat_map(of).collect()
}

/// For each variable that is a query of labels its name, the selector and the label.
pub fn variables(dashboard: &Value) -> Vec<(String, String, String)> {
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let queried = variables.filter(|variable| variable["type"] == "query");
    queried
        .map(|variable| {
            let query = text(&variable["query"]["query"]);
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (selector, label) =
                inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(selector, label)");
            (text(&variable["name"]), selector.to_owned(), label.to_owned())
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// `kind` and `state` of `{{kind}} {{state}}`.
fn placeholders(legend: &str) -> Vec<String> {
    legend.split("{{").skip(1).map(|rest| rest.split("}}").next().expect("a first part").trim().to_owned()).collect()
}

#[tokio::test]
async fn the_dashboard_is_what_its_source_makes() {
    let mut command = Command::new("python3");
    command.arg("docker/grafana/dashboard.py").arg("--check").current_dir(env!("CARGO_MANIFEST_DIR"));
    Ended::of(command).await.with(0);
}

#[test]
fn each_panel_says_what_to_do_and_no_two_overlap() {
    let dashboard = read();
    let mut taken = std::collections::BTreeSet::new();
    let mut ids = std::collections::BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let at = |name: &str| panel["gridPos"][name].as_u64().expect("a number");
        for x in at("x")..at("x") + at("w") {
            assert!(x < 24, "{} sticks out", panel["title"]);
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} overlaps another", panel["title"]);
            }
        }
        assert!(ids.insert(panel["id"].as_u64()), "{} has another's id", panel["title"]);
    }
    for panel in panels(&dashboard) {
        let description = text(&panel["description"]);
        assert!(description.len() > 60 && description.contains("[Runbook]("), "{}: {description}", panel["title"]);
        for place in [&panel["datasource"], &panel["targets"][0]["datasource"]] {
            assert_eq!(place["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}
