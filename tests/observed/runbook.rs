//! The runbook: a paragraph for each alert, links that lead somewhere, and commands that the program takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::process::{Ended, reprieve};
use crate::{alerts, dashboard};

/// What stands for somebody's own names in commands.
const PLACEHOLDERS: [(&str, &str); 3] = [("KIND", "dataset"), ("ID", "7"), ("STORE", "main")];

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn text() -> String {
    std::fs::read_to_string(docs().join("runbook.md")).expect("it is there")
}

fn headings(markdown: &str) -> impl Iterator<Item = &str> {
    markdown.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim())
}

/// As GitHub, and most others, make them.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn anchors(markdown: &str) -> BTreeSet<String> {
    headings(markdown).map(anchor).collect()
}

#[test]
fn each_alert_has_its_paragraph_with_all_four_parts() {
    let text = text();
    let paragraphs: Vec<(&str, &str)> =
        text.split("\n### ").skip(1).map(|part| part.split_once('\n').expect("a heading and a text")).collect();
    let named: BTreeSet<String> = paragraphs.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(named, alerts::names(), "an alert without a paragraph, or the other way round");
    for (name, paragraph) in paragraphs {
        for part in ["**It means**", "**Look**", "**Do**", "**Do not**"] {
            assert_eq!(paragraph.matches(part).count(), 1, "{name}: {part}");
        }
    }
}

#[test]
fn every_link_of_the_dashboard_and_of_the_runbook_leads_somewhere() {
    let text = text();
    let ours = anchors(&text);
    let dashboard = std::fs::read_to_string(dashboard::path()).expect("it is there");
    let linked: Vec<&str> = dashboard.split("/runbook.md#").skip(1).map(up_to_the_end).collect();
    assert!(linked.len() > 80, "two in each panel, but only {}", linked.len());
    for anchor in linked {
        assert!(ours.contains(anchor), "the dashboard links #{anchor}");
    }
    for target in text.split("](").skip(1).map(|rest| rest.split(')').next().expect("a first part")) {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let found =
            if file.is_empty() { text.clone() } else { std::fs::read_to_string(docs().join(file)).expect(target) };
        assert!(anchor.is_empty() || anchors(&found).contains(anchor), "{target}");
    }
}

fn up_to_the_end(link: &str) -> &str {
    link.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))).next().expect("a first part")
}

/// What follows `reprieve ` in code, in lines of their own and within sentences.
fn commands(markdown: &str) -> BTreeSet<String> {
    let lines = markdown.lines().filter_map(|line| line.trim().strip_prefix("reprieve "));
    let spans = markdown.split('`').skip(1).step_by(2).filter_map(|span| span.strip_prefix("reprieve "));
    // what follows a `#` is a comment
    lines.chain(spans).map(|command| command.split(" #").next().expect("a first part").trim().to_owned()).collect()
}

/// As a shell splits them, with `"…"` for one word.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('"').enumerate();
    let words =
        parts.flat_map(|(number, part)| if number % 2 == 1 { vec![part] } else { part.split_whitespace().collect() });
    words.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_program_takes_every_command_of_the_runbook() {
    let commands = commands(&text());
    assert!(commands.len() > 8, "{commands:?}");
    for command in commands {
        let mut words = words(&command);
        for word in &mut words {
            if let Some((_, value)) = PLACEHOLDERS.iter().find(|(name, _)| name == word) {
                (*value).clone_into(word);
            }
            let unknown = word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase());
            assert!(!unknown, "{word} in `reprieve {command}`");
        }
        // without a configuration every command ends right after its arguments were read
        let mut asked = reprieve();
        asked.args(["--config", "/nowhere/reprieve.toml"]).args(&words);
        let ended = Ended::of(asked).await;
        assert_eq!(ended.code, 6, "`reprieve {command}`: {}", ended.stderr);
    }
    let mut wrong = reprieve();
    wrong.args(["--config", "/nowhere/reprieve.toml", "list", "--stuck"]);
    assert_eq!(Ended::of(wrong).await.code, 2, "and what it does not take ends otherwise");
}
