//! Holds expressions against the series that there are.
//!
//! Invariant: a metric, a label or a label's value that no series has is a mistake, whatever the expression evaluates
//! to: for Prometheus a misspelt name is an empty result, and an alert on it never fires.

use std::collections::BTreeMap;

use crate::promql::{self, Matcher, Selector};

/// A series' labels, its name (`__name__`) among them.
pub type Labels = BTreeMap<String, String>;

/// What an expression names and no series has.
pub fn mistakes(expression: &str, series: &[Labels]) -> Vec<String> {
    let named = match promql::read(expression) {
        Ok(named) => named,
        Err(error) => return vec![format!("cannot be read: {error}")],
    };
    let mut found: Vec<String> = named.selectors.iter().flat_map(|selector| mistakes_of(selector, series)).collect();
    // of series that are not there nothing can be said
    let groupings = if found.is_empty() { named.groupings.as_slice() } else { &[] };
    for grouping in groupings {
        let selectors = &named.selectors[grouping.of.clone()];
        for label in &grouping.labels {
            let mut having = selectors.iter().map(|selector| has_label(selector, label, series));
            let right = if grouping.each { having.all(|has| has) } else { having.any(|has| has) };
            if !right {
                found.push(format!("groups by {label:?}, which these series do not have"));
            }
        }
    }
    found
}

/// Whether some series of this metric has that label. `le` is a histogram's.
fn has_label(selector: &Selector, label: &str, series: &[Labels]) -> bool {
    of_metric(selector, series).any(|labels| labels.contains_key(label))
}

fn of_metric<'a>(selector: &'a Selector, series: &'a [Labels]) -> impl Iterator<Item = &'a Labels> {
    series.iter().filter(|labels| labels.get("__name__") == Some(&selector.metric))
}

fn mistakes_of(selector: &Selector, series: &[Labels]) -> Vec<String> {
    let metric = &selector.metric;
    if of_metric(selector, series).next().is_none() {
        return vec![format!("there is no metric {metric}")];
    }
    let mut found = Vec::new();
    for Matcher { label, regex, value } in &selector.matchers {
        let values: Vec<&String> = of_metric(selector, series).filter_map(|labels| labels.get(label)).collect();
        if values.is_empty() {
            found.push(format!("{metric} has no label {label:?}"));
            continue;
        }
        let asked = if *regex { value.split('|').collect() } else { vec![value.as_str()] };
        for one in asked {
            // `!=""` asks for the label alone
            if !one.is_empty() && !values.iter().any(|value| matches(one, value)) {
                found.push(format!("{label:?} of {metric} is never {one:?}"));
            }
        }
    }
    found
}

/// One alternative of a regular expression: letters, `.` for any, and `.*` or `.+` at its end.
fn matches(pattern: &str, value: &str) -> bool {
    let open = pattern.strip_suffix(".*").or_else(|| pattern.strip_suffix(".+"));
    let start = open.unwrap_or(pattern);
    (open.is_some() || start.len() == value.len())
        && start.len() <= value.len()
        && start.bytes().zip(value.bytes()).all(|(wanted, is)| wanted == b'.' || wanted == is)
}

#[cfg(test)]
fn some_series() -> Vec<Labels> {
    let series = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    vec![
        series(&[("__name__", "reprieve_objects_total"), ("outcome", "deleted"), ("store", "main")]),
        series(&[("__name__", "reprieve_objects_total"), ("outcome", "failed"), ("store", "main")]),
        series(&[("__name__", "reprieve_up"), ("job", "reprieve")]),
    ]
}

#[test]
fn an_expression_that_names_what_there_is_has_no_mistake() {
    for expression in [
        r#"sum by (store) (rate(reprieve_objects_total{outcome="failed"}[5m])) > 0"#,
        r#"reprieve_objects_total{outcome=~"failed|del.*", store!=""} * on (job) group_left reprieve_up"#,
    ] {
        assert_eq!(mistakes(expression, &some_series()), [""; 0], "{expression}");
    }
}

#[test]
fn a_name_that_nobody_exports_is_a_mistake_wherever_it_stands() {
    for (expression, mistake) in [
        ("sum(rate(reprieve_object_total[5m]))", "there is no metric reprieve_object_total"),
        ("reprieve_up unless reprieve_down", "there is no metric reprieve_down"),
        (r#"reprieve_objects_total{stores="main"}"#, r#"reprieve_objects_total has no label "stores""#),
        (r#"reprieve_objects_total{outcome!="fail"}"#, r#""outcome" of reprieve_objects_total is never "fail""#),
        (
            r#"reprieve_objects_total{outcome=~"failed|unkown"}"#,
            r#""outcome" of reprieve_objects_total is never "unkown""#,
        ),
        ("sum by (kind) (reprieve_objects_total)", r#"groups by "kind", which these series do not have"#),
        (
            "sum by (store) (reprieve_objects_total or reprieve_up)",
            r#"groups by "store", which these series do not have"#,
        ),
        ("reprieve_up * on (kind) reprieve_objects_total", r#"groups by "kind", which these series do not have"#),
    ] {
        assert_eq!(mistakes(expression, &some_series()), [mistake], "{expression}");
    }
    let unreadable = mistakes("sum(reprieve_up", &some_series());
    assert!(unreadable.len() == 1 && unreadable[0].starts_with("cannot be read"), "{unreadable:?}");
}
