//! Processes of the real binary: commands that end, and services that run until they are told or killed.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::wait_until;

/// For one command; the demo alone takes longer.
const COMMAND: Duration = Duration::from_secs(60);

/// Lines of a service's log that a failed test shows.
const LOG_LINES: usize = 80;

/// Kills what it watches as soon as its standard input ends, which it does however this process dies.
const WATCHER: &str = r#"read -r _; kill -KILL "$0" 2>/dev/null"#;

/// The binary, with nothing of the surroundings that would configure it.
pub fn reprieve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REPRIEVE")) {
        command.env_remove(name);
    }
    command.env("USER", "tester").stdin(Stdio::null());
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Runs it to its end.
    pub async fn of(command: Command) -> Ended {
        Ended::within(COMMAND, command).await
    }

    pub async fn within(limit: Duration, command: Command) -> Ended {
        let shown = format!("{command:?}");
        let mut command = tokio::process::Command::from(command);
        let output = tokio::time::timeout(limit, command.kill_on_drop(true).output()).await;
        let output = output.unwrap_or_else(|_| panic!("not within {limit:?}: {shown}")).expect("it starts");
        Ended {
            code: output.status.code().unwrap_or_else(|| panic!("killed: {shown}")),
            stdout: String::from_utf8(output.stdout).expect("utf-8"),
            stderr: String::from_utf8(output.stderr).expect("utf-8"),
        }
    }

    /// Insists on an exit code, and that nothing has panicked.
    #[track_caller]
    pub fn with(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Standard output as the one JSON document that it must be.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// Everything that was printed.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A process that runs until it is told to end. Dropping it kills it; in a failing test its log is shown.
pub struct Service {
    child: Child,
    watcher: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Service {
    /// Starts it; what it prints goes to `log`.
    pub fn spawn(mut command: Command, log: &Path) -> Service {
        let file = File::create(log).expect("our own directory");
        let out = file.try_clone().expect("a handle");
        let child = command.stdout(out).stderr(file).spawn().expect("it starts");
        let watcher = Command::new("/bin/sh")
            .args(["-c", WATCHER, &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh starts");
        Service { child, watcher, log: log.to_owned(), ended: None }
    }

    /// The most memory that it has had so far, in bytes (`VmHWM`); Linux alone tells.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs, on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has one");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until it has logged this.
    pub async fn says(&self, text: &str) {
        wait_until(format!("{text:?} in the log"), crate::support::SOON, async || self.log().contains(text)).await;
    }

    /// kill -9, and it is gone when this returns.
    pub fn kill9(&mut self) {
        self.dismiss_watcher();
        // it may have ended by itself
        let _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }

    /// SIGTERM, and how it ended.
    pub async fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        let pid = self.child.id().to_string();
        let kill = Command::new("/bin/sh").args(["-c", "kill -TERM \"$0\"", &pid]).status();
        assert!(kill.expect("/bin/sh starts").success(), "it still runs");
        self.end(deadline).await
    }

    /// Waits until it ends by itself.
    pub async fn end(&mut self, deadline: Duration) -> ExitStatus {
        wait_until("the process ends", deadline, async || self.has_ended()).await;
        self.ended.expect("just seen")
    }

    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
            if self.ended.is_some() {
                self.dismiss_watcher();
            }
        }
        self.ended.is_some()
    }

    /// Before the process id is free for others.
    fn dismiss_watcher(&mut self) {
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill9();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
            eprintln!("--- {} (pid {})\n{tail}\n---", self.log.display(), self.child.id());
        }
    }
}
