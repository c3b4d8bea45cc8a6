//! A private Prometheus (Debian's), which scrapes processes of ours and evaluates our rules, and `promtool`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reprieve::embedded::keeper::{Charge, Keeper, Signal, free_port};
use serde_json::Value;

use crate::check::Labels;
use crate::process::Ended;
use crate::support::{PrivateDirectory, SOON, wait_until};
use crate::web::Web;

/// Two seconds on an idle machine.
const STARTING: Duration = Duration::from_secs(60);

/// The job that rules and dashboard name.
pub const JOB: &str = "reprieve";

/// Dropping it ends it and removes its data.
pub struct Prometheus {
    // before its directory, which it writes to
    keeper: Keeper,
    _dir: PrivateDirectory,
    port: u16,
    web: Web,
}

/// A rule as Prometheus has read it.
#[derive(Debug)]
pub struct Rule {
    pub name: String,
    pub expression: String,
    /// `ok`, or `err` when its last evaluation failed.
    pub health: String,
}

impl Prometheus {
    /// Scrapes `/metrics` on these ports each second, and evaluates the rules of a file.
    pub async fn start(ports: &[u16], rules: &Path) -> Prometheus {
        let dir = PrivateDirectory::new("reprieve-test-prometheus-");
        let targets: Vec<String> = ports.iter().map(|port| format!("'127.0.0.1:{port}'")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: {JOB}, static_configs: [{{targets: [{}]}}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).expect("our own directory");
        let port = free_port().expect("a port is free");
        let server = dir.path().join("server");
        std::fs::create_dir(&server).expect("our own directory");
        let flags = [
            format!("--config.file={}", dir.path().join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", server.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--log.level=warn".to_owned(),
        ];
        let mut keeper = Keeper::hire(&Charge {
            program: find("prometheus"),
            args: flags.map(Into::into).to_vec(),
            env: Vec::new(),
            account: None,
            log: server.join("log"),
            dir: server.clone(),
            ending: Signal::Term,
            grace: Duration::from_secs(5),
        })
        .expect("/bin/sh starts");
        keeper.start().expect("the keeper answers");
        let started = Prometheus { keeper, _dir: dir, port, web: Web::new() };
        wait_until("Prometheus answers", STARTING, async || {
            let log = || std::fs::read_to_string(server.join("log")).unwrap_or_default();
            assert!(started.keeper.is_running(), "Prometheus ended while starting:\n{}", log());
            started.get("/-/ready").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
        started
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What an expression comes to now.
    ///
    /// # Errors
    /// What Prometheus says is wrong with it.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let answer = self.api(&format!("query?query={}", encoded(expression))).await?;
        let result = &answer["result"];
        // a scalar is one value without labels
        Ok(if answer["resultType"] == "scalar" { vec![result.clone()] } else { array(result) })
    }

    /// Every series of our job.
    pub async fn series(&self) -> Vec<Labels> {
        let matching = encoded(&format!("{{job=\"{JOB}\"}}"));
        let found = self.api(&format!("series?match[]={matching}")).await.expect("it answers");
        array(&found).into_iter().map(|one| serde_json::from_value(one).expect("labels")).collect()
    }

    /// The rules, once each of them has been evaluated.
    pub async fn rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        wait_until("every rule is evaluated", SOON, async || {
            let answer = self.api("rules").await.expect("it answers");
            let groups = array(&answer["groups"]);
            rules = groups.iter().flat_map(|group| array(&group["rules"])).map(|rule| Rule::of(&rule)).collect();
            !rules.is_empty() && rules.iter().all(|rule| rule.health != "unknown")
        })
        .await;
        rules
    }

    async fn api(&self, what: &str) -> Result<Value, String> {
        let (_, body) = self.get(&format!("/api/v1/{what}")).await.ok_or("no answer")?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(answer["error"].to_string()) }
    }

    async fn get(&self, path: &str) -> Option<(u16, Bytes)> {
        self.web.get(&format!("{}{path}", self.address())).await
    }
}

impl Rule {
    fn of(rule: &Value) -> Rule {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        Rule { name: text("name"), expression: text("query"), health: text("health") }
    }
}

/// Runs `promtool` to its end.
pub async fn promtool(args: &[&str]) -> Ended {
    let mut command = std::process::Command::new(find("promtool"));
    command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    Ended::of(command).await
}

fn find(program: &str) -> PathBuf {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&on_path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is not on PATH; `scripts/setup test` installs it"))
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn array(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}
