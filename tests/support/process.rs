//! Processes of the real binary: commands that end, and services that run until they are told or killed.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::wait_until;

/// For one command; the demo alone takes longer.
const COMMAND: Duration = Duration::from_secs(60);

/// Lines of a service's log that a failed test shows.
const LOG_LINES: usize = 80;

/// Kills what it watches, stopped or not, as soon as its standard input ends, which it does however this process dies.
/// In a process group of its own: what ends a whole group, such as Ctrl-C, must not end it first.
const WATCHER: &str = r#"read -r _; kill -KILL "$0" 2>/dev/null"#;

/// The binary, with nothing of the surroundings that would configure it.
pub fn reprieve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reprieve"));
    let configures = |name: &str| ["REPRIEVE", "OTEL_", "TRACE"].iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| configures(&name.to_string_lossy())) {
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
            .process_group(0)
            .spawn()
            .expect("/bin/sh starts");
        Service { child, watcher, log: log.to_owned(), ended: None }
    }

    /// The most memory that it has ever held, in bytes (`VmHWM`); it must still run.
    pub fn peak_rss(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs, on Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// How long it has kept processors busy; it must still run.
    pub fn cpu_time(&self) -> Duration {
        /// `sysconf(_SC_CLK_TCK)`, which is 100 on every Linux that Rust runs on.
        const TICKS_A_SECOND: u64 = 100;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs, on Linux");
        let (_, after_name) = stat.rsplit_once(')').expect("the name is in parentheses");
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
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
        self.signal("TERM");
        self.end(deadline).await
    }

    /// A signal by its name, such as `STOP`. One that has just ended by itself gets none.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        // until it is waited for, the process id is nobody else's
        let kill = Command::new("/bin/sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid]).status();
        assert!(kill.expect("/bin/sh starts").success(), "it was not waited for");
    }

    /// SIGSTOP, and all of its threads stand still when this returns. Until `signal("CONT")`.
    pub async fn freeze(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until("every thread stands still", crate::support::SOON, async || {
            let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let threads = std::fs::read_dir(&tasks).expect("it runs, on Linux").filter_map(Result::ok);
            // its name, in parentheses, may hold anything; the state is behind it
            threads.map(stat).all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('T')))
        })
        .await;
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
