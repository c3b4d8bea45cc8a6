//! The configuration: TOML files, overridden by the environment, checked as a whole before anything starts.
//!
//! Invariant: a [`Config`] is valid. Every mistake of every file is reported at once with its key and what would be
//! right, and no secret is ever part of a message, a log line or a `Debug` output.
//!
//! `REPRIEVE__SECTION__KEY` overrides `section.key`; a later file overrides an earlier one. `maps = ["dataset.toml"]`
//! names files that hold `[[resource]]` sections, by paths as seen from the file that names them.

mod api;
mod broker;
mod database;
mod purge;
mod reader;
mod relay;
mod resources;
mod service;
mod stores;
mod traces;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use config::{Environment, File, FileFormat};
use serde_json::{Map, Value};

use self::reader::{Problems, Reader};
pub use self::{
    api::ApiConfig,
    broker::BrokerConfig,
    database::DatabaseConfig,
    purge::PurgeConfig,
    reader::Problem,
    relay::{RelayConfig, SweeperConfig},
    service::{LogFormat, ServiceConfig},
    stores::{Credentials, StoreConfig},
    traces::TracesConfig,
};
use crate::domain::{location::StoreName, map::ResourceMap, retention::Retention};

/// Where `--config` is not given, the first of these that exists.
pub const DEFAULT_FILES: [&str; 2] = ["reprieve.toml", "/etc/reprieve/reprieve.toml"];

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[database]`.
    pub database: DatabaseConfig,
    /// `[broker]`; commands that need no broker run without.
    pub broker: Option<BrokerConfig>,
    /// `[stores.NAME]`.
    pub stores: BTreeMap<StoreName, StoreConfig>,
    /// `[retention]`.
    pub retention: RetentionConfig,
    /// `[purge]`.
    pub purge: PurgeConfig,
    /// `[relay]`.
    pub relay: RelayConfig,
    /// `[sweeper]`.
    pub sweeper: SweeperConfig,
    /// `[api]`.
    pub api: ApiConfig,
    /// `[service]`.
    pub service: ServiceConfig,
    /// `[traces]`.
    pub traces: Option<TracesConfig>,
    /// `[[resource]]`.
    pub map: ResourceMap,
}

/// `[retention]`: restore windows.
#[derive(Debug, Clone, Copy)]
pub struct RetentionConfig {
    /// For kinds that have none of their own.
    pub default: Retention,
    /// The shortest that a request may ask for; without it, no request can go below the kind's own.
    pub minimum: Option<Retention>,
}

/// A configuration with mistakes, all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig {
    /// The mistakes, in the order of reading. Never empty.
    pub problems: Vec<Problem>,
}

impl std::error::Error for InvalidConfig {}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "" } else { "s" };
        write!(f, "the configuration has {} mistake{plural}:", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads `files` in order, or the first of [`DEFAULT_FILES`] if there are none, then the environment.
    ///
    /// # Errors
    /// [`InvalidConfig`] with every mistake found.
    pub fn load(files: &[PathBuf]) -> Result<Self, InvalidConfig> {
        Self::load_from(files, Surroundings::Override)
    }

    /// Reads `files` alone. For what must never reach the platform that the environment speaks of, such as the demo.
    ///
    /// # Errors
    /// [`InvalidConfig`] with every mistake found.
    pub fn load_isolated(files: &[PathBuf]) -> Result<Self, InvalidConfig> {
        Self::load_from(files, Surroundings::Ignore)
    }

    fn load_from(files: &[PathBuf], environment: Surroundings) -> Result<Self, InvalidConfig> {
        let problems = Problems::default();
        let defaults = DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists());
        let files: Vec<PathBuf> = if files.is_empty() { defaults.into_iter().collect() } else { files.to_vec() };
        if files.is_empty() {
            let looked = DEFAULT_FILES.join(" and ");
            problems.add(
                "--config",
                format_args!("there is no configuration: looked for {looked}; name a file with --config"),
            );
        }
        let mut resources = Vec::new();
        let mut builder = config::Config::builder();
        let mut all_read = !files.is_empty();
        for file in &files {
            let Some(table) = read_file(file, &problems) else {
                all_read = false;
                continue;
            };
            read_resources(file, &table, &mut resources, &problems);
            builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
        }
        let is_map_whole = problems.is_empty();
        if environment == Surroundings::Override {
            refuse_map_of_environment(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()), &problems);
            builder = builder.add_source(Environment::with_prefix("REPRIEVE").prefix_separator("__").separator("__"));
        }
        if !all_read {
            // what the other files lack may stand in the one that cannot be read; a map that cannot be lacks nothing but
            // its own kinds
            return Err(InvalidConfig { problems: problems.into_inner() });
        }
        let merged = builder.build().and_then(config::Config::try_deserialize::<Map<String, Value>>);
        match merged {
            Ok(mut root) => {
                if environment == Surroundings::Override {
                    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
                    prefer_environment(&mut root, names);
                }
                let maps = Maps { files: &resources, is_whole: is_map_whole };
                Self::read(&root, maps, problems)
            }
            Err(error) => {
                problems.add("environment", error);
                Err(InvalidConfig { problems: problems.into_inner() })
            }
        }
    }

    fn read(root: &Map<String, Value>, maps: Maps<'_>, problems: Problems) -> Result<Self, InvalidConfig> {
        let root = Reader::new("", root, &problems);
        let broker = root.has("broker").then(|| broker::read(root.section("broker"))).flatten();
        let stores = stores::read(&root);
        let retention = read_retention(root.section("retention"));
        let purge = purge::read(root.section("purge"));
        let database = database::read(root.section("database"), purge.concurrency);
        let relay = relay::read_relay(root.section("relay"));
        let sweeper = relay::read_sweeper(root.section("sweeper"));
        let api = api::read(root.section("api"));
        let service = service::read(root.section("service"));
        let traces = root.has("traces").then(|| traces::read(root.section("traces"), traces::Export::HERE)).flatten();
        // both were read file by file, so that no file's list replaces another's
        let (_, _) = (root.value("resource"), root.value("maps"));
        root.finish();
        let mut tables = Vec::new();
        let mut is_described = false;
        for map in maps.files {
            is_described |= map.table.contains_key("resource");
            let reader = Reader::new(map.path.clone(), &map.table, &problems);
            tables.extend(reader.list("resource"));
            let _ = reader.value("maps");
            if map.is_map {
                reader.finish();
            }
        }
        let map = resources::read(tables, &stores, retention.default, &problems);
        if !is_described && maps.is_whole {
            problems.add(
                "resource",
                "there is no [[resource]] in any file: describe at least one kind, or name files with `maps`",
            );
        }
        match (database, problems.into_inner()) {
            (Some(database), problems) if problems.is_empty() => {
                Ok(Self { database, broker, stores, retention, purge, relay, sweeper, api, service, traces, map })
            }
            (_, problems) => Err(InvalidConfig { problems }),
        }
    }
}

/// What becomes of `REPRIEVE__SECTION__KEY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Surroundings {
    Override,
    Ignore,
}

/// Every file that may hold `[[resource]]` sections and could be read.
#[derive(Clone, Copy)]
struct Maps<'a> {
    files: &'a [ResourceFile],
    /// All of those that are named could.
    is_whole: bool,
}

/// A file that may hold `[[resource]]` sections.
struct ResourceFile {
    path: String,
    table: Map<String, Value>,
    is_map: bool,
}

fn read_file(path: &Path, problems: &Problems) -> Option<Map<String, Value>> {
    let name = path.display().to_string();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            problems.add(name, "there is no such file");
            return None;
        }
        Err(error) => {
            problems.add(name, format_args!("cannot be read: {error}"));
            return None;
        }
    };
    config::Config::builder()
        .add_source(File::from_str(&text, FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| problems.add(name, format_args!("is not valid TOML: {}", without_values(&error.to_string()))))
        .ok()
}

/// The map is read file by file, and nothing of it from the environment: a variable that speaks of it is a mistake.
fn refuse_map_of_environment(names: impl Iterator<Item = String>, problems: &Problems) {
    for name in names {
        let lower = name.to_lowercase();
        let Some(path) = lower.strip_prefix("reprieve__") else { continue };
        let section = path.split("__").next().unwrap_or(path);
        if section == "resource" || section == "maps" {
            problems.add(name, "the resource map is read from files alone: write it there");
        }
    }
}

/// A secret from the environment replaces the file's in either form: `url` the `url_file`, `url_file` the `url`.
fn prefer_environment(root: &mut Map<String, Value>, names: impl Iterator<Item = String>) {
    for name in names {
        let Some(path) = name.strip_prefix("REPRIEVE__") else { continue };
        let path = path.to_lowercase();
        let Some((sections, key)) = path.rsplit_once("__") else { continue };
        let mut table = Some(&mut *root);
        for section in sections.split("__") {
            table = table.and_then(|table| table.get_mut(section)).and_then(Value::as_object_mut);
        }
        if let Some(table) = table {
            match key.strip_suffix("_file") {
                Some(plain) => table.remove(plain),
                None => table.remove(&format!("{key}_file")),
            };
        }
    }
}

/// A syntax error quotes the line that it is in, which may hold a secret: keep the position and the reason.
fn without_values(error: &str) -> String {
    let quoted = |line: &&str| {
        // `12 | secret = "…"` and the marks below it
        line.split_once('|')
            .is_none_or(|(number, _)| number.trim().parse::<u32>().is_err() && !number.trim().is_empty())
    };
    error.lines().filter(quoted).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Keeps a file's own resources and reads the files that its `maps` names.
fn read_resources(file: &Path, table: &Map<String, Value>, found: &mut Vec<ResourceFile>, problems: &Problems) {
    let reader = Reader::new(file.display().to_string(), table, problems);
    for named in reader.texts("maps") {
        let path = reader::beside(file, &named);
        if let Some(table) = read_file(&path, problems) {
            found.push(ResourceFile { path: path.display().to_string(), table, is_map: true });
        }
    }
    found.push(ResourceFile { path: String::new(), table: table.clone(), is_map: false });
}

fn read_retention(section: Reader<'_>) -> RetentionConfig {
    const DEFAULT_DAYS: u64 = 14;
    let default = section.parsed("default", Retention::parse).unwrap_or_else(|| {
        Retention::new(std::time::Duration::from_secs(DEFAULT_DAYS * 24 * 3600)).expect("14 days are in range")
    });
    let minimum = section.parsed("minimum", Retention::parse);
    if minimum.is_some_and(|minimum| minimum > default) {
        section.problem("minimum", "must not be longer than `default`");
    }
    section.finish();
    RetentionConfig { default, minimum }
}

#[cfg(test)]
mod tests;
