//! Imports point down, and the rules at the bottom touch nothing: read from the sources themselves.

#![expect(clippy::unwrap_used, reason = "in a test an unwrap is an assertion, in its helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The modules, each above everything that it may import.
const LAYERS: [&[&str]; 10] = [
    &["domain", "failpoint", "retry", "shutdown"],
    &["objects", "queue"],
    &["config"],
    &["store", "telemetry"],
    &["history", "places"],
    &["bystanders"],
    &["trash", "purge", "relay"],
    &["http", "intake"],
    &["app"],
    &["embedded", "cli"],
];

/// Within the top layer the command line stands above what it starts.
const MAY_ALSO: [(&str, &str); 1] = [("cli", "embedded")];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn module_of(path: &Path) -> String {
    let first = path.strip_prefix(root()).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules that a source names after `crate::`, also inside `use crate::{a::…, b::…}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(identifier(rest));
            continue;
        };
        let mut depth = 1;
        let mut at_item = true;
        for (place, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_item = true,
                c if at_item && depth == 1 && !c.is_whitespace() => {
                    found.push(identifier(&group[place..]));
                    at_item = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn every_module_has_its_place() {
    for path in sources(&root()) {
        let module = module_of(&path);
        assert!(matches!(module.as_str(), "lib" | "main") || layer_of(&module).is_some(), "{module} has no layer");
    }
}

#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in sources(&root()) {
        let module = module_of(&path);
        let Some(layer) = layer_of(&module) else { continue };
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            let Some(below) = layer_of(&import) else { continue };
            seen += 1;
            let allowed = import == module || below < layer || MAY_ALSO.contains(&(module.as_str(), import.as_str()));
            if !allowed {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(seen > 100, "only {seen} imports were found: does this test still read them?");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_rules_do_no_input_or_output() {
    for path in sources(&root().join("domain")) {
        let text = fs::read_to_string(&path).unwrap();
        for banned in
            ["tokio", "sqlx", "lapin", "aws_", "axum", "std::fs", "std::net", "std::env", "SystemTime", "now_utc"]
        {
            assert!(!text.contains(banned), "{} mentions {banned}", path.display());
        }
    }
}

#[test]
fn sql_lives_in_the_store() {
    for path in sources(&root()) {
        let module = module_of(&path);
        // the sample platform plays the part of somebody else's application
        if ["store", "embedded", "cli"].contains(&module.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for banned in ["sqlx::query", "query_as(", "query_scalar("] {
            assert!(!text.contains(banned), "{} holds SQL: {banned}", path.display());
        }
    }
}

#[test]
fn one_file_alone_uses_the_unmaintained_back_off_crate() {
    for path in sources(&root()) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(path.ends_with("src/retry.rs") || !text.contains("backoff::"), "{}", path.display());
    }
}

#[test]
fn the_reader_of_imports_reads_groups() {
    let text = "use crate::{\n    domain::{a, b},\n    store::x,\n};\nuse crate::queue::y;";
    assert_eq!(imports(text), ["domain", "store", "queue"]);
}
