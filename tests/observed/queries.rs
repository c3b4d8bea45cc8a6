//! Every query of the dashboard and every rule, asked of a real Prometheus in the middle of purges.
//!
//! `OBSERVED_PICTURE=FILE` and `OBSERVED_SECONDS=N`, which `scripts/picture` sets, let the story go on for that long,
//! and draw the dashboard as it is then.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::alerts;
use crate::check::{self, Labels};
use crate::dashboard;
use crate::process::Ended;
use crate::prometheus::{JOB, Prometheus};
use crate::story::Story;
use crate::support::wait_until;

/// A relay looks at its queues every 15 seconds.
const SEEN: Duration = Duration::from_secs(60);

/// For matplotlib, on a busy machine.
const DRAWING: Duration = Duration::from_secs(120);

/// Alerts whose condition the story fulfils, and ones that it must not: nothing is missing, away or silent.
const TRUE: [&str; 3] = ["ReprievePurgesStuck", "ReprieveDeadLetters", "ReprieveRestoreTooLate"];
const UNTRUE: [&str; 10] = [
    "ReprieveAbsent",
    "ReprieveDown",
    "ReprieveNotStarted",
    "ReprieveRoleMissing",
    "ReprieveDatabaseUnreadable",
    "ReprieveWorkersSilent",
    "ReprieveSweeperSilent",
    "ReprieveOutboxNotDraining",
    "ReprieveBrokerDisconnected",
    "ReprieveTrashBurst",
];

/// With Grafana's variables as they are when one looks at the last hour of everything.
fn filled(expression: &str) -> String {
    let values = [("$__rate_interval", "10s"), ("$__range", "1h"), ("$job", JOB), ("$kind", ".*"), ("$store", ".*")];
    let filled = values.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!filled.contains('$'), "a variable that is not known: {expression}");
    filled
}

/// What is wrong with a panel's query.
async fn mistakes_of(query: &dashboard::Query, prometheus: &Prometheus, series: &[Labels]) -> Vec<String> {
    let expression = filled(&query.expression);
    let mut found = check::mistakes(&expression, series);
    match prometheus.query(&expression).await {
        Err(error) => found.push(error),
        Ok(results) if results.is_empty() => found.push("shows nothing".into()),
        Ok(results) => {
            for label in &query.labels {
                if results.iter().any(|result| result["metric"][label].as_str().is_none()) {
                    found.push(format!("has no label {label:?} to show"));
                }
            }
        }
    }
    found.into_iter().map(|mistake| format!("panel {:?}: {mistake}, in {expression}", query.panel)).collect()
}

fn mistakes_of_variables(dashboard: &Value, series: &[Labels]) -> Vec<String> {
    let of = |(name, selector, label): (String, String, String)| {
        let expression = filled(&format!("sum by ({label}) ({selector})"));
        check::mistakes(&expression, series).into_iter().map(move |mistake| format!("variable {name}: {mistake}"))
    };
    dashboard::variables(dashboard).into_iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_purges_every_query_and_every_rule_is_answered_and_names_what_there_is() {
    let mut story = Story::begin().await;
    let prometheus = Prometheus::start(&story.ports(), &alerts::path()).await;
    // from the zeros on: a counter that is higher when it is first seen has not increased
    until(&prometheus, "count(count_over_time(up[1m]) >= 3) == 3").await;
    story.opening().await;
    let giant = story.giant().await;
    // what is counted, what a relay has looked at, and what is recorded
    let moving = r#"sum(rate(reprieve_objects_total{outcome="deleted"}[$__rate_interval])) > 0"#;
    let dead = r#"reprieve_queue_messages{queue="dead"} > 0"#;
    for seen in [moving, dead, "kind:reprieve_recently_trashed_tombstones:sum > 0"] {
        until(&prometheus, &filled(seen)).await;
    }
    let rules = prometheus.rules().await;
    let series = prometheus.series().await;

    let dashboard = dashboard::read();
    let queries = dashboard::queries(&dashboard);
    let mut mistakes = mistakes_of_variables(&dashboard, &series);
    for query in &queries {
        mistakes.extend(mistakes_of(query, &prometheus, &series).await);
    }
    let mut holds = BTreeMap::new();
    for rule in &rules {
        let wrong = check::mistakes(&rule.expression, &series);
        mistakes.extend(wrong.into_iter().map(|mistake| format!("rule {}: {mistake}", rule.name)));
        match prometheus.query(&rule.expression).await {
            Err(error) => mistakes.push(format!("rule {}: {error}", rule.name)),
            Ok(results) if !results.is_empty() => drop(holds.insert(rule.name.as_str(), results)),
            Ok(_) => {}
        }
        assert_eq!(rule.health, "ok", "{}", rule.name);
    }
    assert_eq!(story.world.stands(giant).await.state, "purging", "all of this was in the middle of a purge");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    assert!(queries.len() > 40 && rules.len() > 20, "{} queries, {} rules", queries.len(), rules.len());
    for name in TRUE {
        assert!(holds.contains_key(name), "{name} has no reason to fire, among {holds:#?}");
    }
    for name in UNTRUE {
        assert!(!holds.contains_key(name), "{name} has a reason to fire: {:#?}", holds[name]);
    }

    // the net has no holes: what would be shown as empty, or never fire, is noticed
    for planted in ["reprieve_opened_tombstones", r#"reprieve_objects_total{outcome="gone"}"#, "sum by (kind) (up)"] {
        let query = dashboard::Query { panel: "planted".into(), expression: planted.into(), labels: vec![] };
        assert!(!mistakes_of(&query, &prometheus, &series).await.is_empty(), "{planted} went unnoticed");
    }
    let unlabelled = dashboard::Query { panel: "planted".into(), expression: "up".into(), labels: vec!["kind".into()] };
    assert_eq!(mistakes_of(&unlabelled, &prometheus, &series).await.len(), 1, "a legend of a label that is not there");

    if let Some(picture) = std::env::var_os("OBSERVED_PICTURE") {
        let seconds = std::env::var("OBSERVED_SECONDS").ok().and_then(|text| text.parse().ok());
        story.goes_on(Duration::from_secs(seconds.unwrap_or(240))).await;
        draw(&prometheus, Path::new(&picture)).await;
    }
    assert!(story.lives(), "a process has ended");
}

/// Waits until an expression holds.
async fn until(prometheus: &Prometheus, expression: &str) {
    wait_until(expression, SEEN, async || !prometheus.query(expression).await.expect("PromQL").is_empty()).await;
}

async fn draw(prometheus: &Prometheus, picture: &Path) {
    let python = std::env::var_os("OBSERVED_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command.arg("docker/grafana/render.py").arg(prometheus.address()).arg(picture);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    Ended::within(DRAWING, command).await.with(0);
}
