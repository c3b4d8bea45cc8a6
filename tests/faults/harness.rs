//! The harness itself: what `scripts/faults` takes and says, and that nothing outlives a run that is ended from outside.
//!
//! The script's tests put stand-ins for cargo and the tests in their place (`harness/`), so that they build and play nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{Ended, Service};
use crate::support::{PrivateDirectory, SOON, wait_until};

/// Where the process that is going to be ended writes what it started.
const VICTIM: &str = "REPRIEVE_TEST_VICTIM";

/// `scripts/faults` with stand-ins, which write into `dir`.
fn script(dir: &Path, ends: &str, arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = std::env::var("PATH").expect("there is one");
    let mut command = Command::new(root.join("scripts/faults"));
    command
        .args(arguments)
        .env("PATH", format!("{}:{path}", root.join("tests/faults/harness").display()))
        .env("STAND_IN", dir)
        .env("STAND_IN_ENDS", ends)
        .stdin(Stdio::null());
    command
}

/// A zombie is not: whoever has to reap it may be slow.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

fn signal(name: &str, to: &str) {
    let kill = Command::new("/bin/sh").args(["-c", "kill -s \"$0\" -- \"$1\"", name, to]).status();
    assert!(kill.expect("/bin/sh starts").success());
}

#[tokio::test]
async fn what_is_no_argument_is_refused_in_one_line_before_anything_starts() {
    let dir = PrivateDirectory::new("reprieve-harness-");
    let numbers = ["", "0x14", "x", "-1", "1.5", "1e3", " 20", "99999999999999999999", "18446744073709551616"];
    let times = ["m", "h", "s", "xm", "1.5m", "-1h", "10ms", "0", "29", "29s", "0m", "0h", "169h", "604801"];
    let long = ["99999999999999999999s", "999999999999999999m", "2562047788015215502h"];
    let mut wrong: Vec<Vec<String>> = Vec::new();
    for name in ["--seed", "--count", "--duration"] {
        wrong.push(vec![name.to_owned()]);
        wrong.push(vec![name.to_owned(), "--all".to_owned()]);
        wrong.extend(numbers.iter().map(|number| vec![name.to_owned(), (*number).to_owned()]));
        wrong.extend(numbers.iter().map(|number| vec![format!("{name}={number}")]));
    }
    wrong.extend(times.iter().chain(&long).map(|time| vec!["--duration".to_owned(), (*time).to_owned()]));
    wrong.extend(["0", "1", "19", "019", "10001"].map(|count| vec!["--count".to_owned(), count.to_owned()]));
    wrong.extend(["", "7", "--sed", "-s", "--all=2", "a\nb"].map(|unknown| vec![unknown.to_owned()]));
    for arguments in wrong {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = Ended::of(script(dir.path(), "good", &arguments)).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{arguments:?}: {}", ended.stderr);
        let name = arguments[0].split('=').next().expect("the first of several");
        let named = name.contains('\n') || ended.stderr.starts_with(&format!("faults: {name}")) || name == "--all";
        assert!(named || name.is_empty(), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("such as") || ended.stderr.contains("--help"), "{}", ended.stderr);
        assert!(!dir.path().join("started").exists(), "{arguments:?}");
    }
}

#[tokio::test]
async fn help_is_no_mistake_and_names_every_argument() {
    let dir = PrivateDirectory::new("reprieve-harness-");
    for name in ["--help", "-h"] {
        let ended = Ended::of(script(dir.path(), "good", &[name])).await.with(0);
        assert_eq!(ended.stderr, "");
        for part in ["--seed", "--duration", "--count", "--all", "default", "from 20", "minutes", "docs/reliability.md"]
        {
            assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
        }
    }
    assert!(!dir.path().join("started").exists());
}

#[tokio::test]
async fn arguments_reach_the_tests_and_the_verdict_is_the_last_line() {
    const ONE: &str = "--nocapture --exact campaign::in_a_campaign_of_faults_no_promise_breaks";
    let dir = PrivateDirectory::new("reprieve-harness-");
    for (arguments, told) in [
        (&["--seed=7", "--duration=090", "--count=020"][..], format!("7 90 20 {ONE}")),
        (&["--seed", "08", "--duration", "09m", "--count", "40"], format!("8 540 40 {ONE}")),
        (&["--seed", "999999999999999999", "--duration", "168h"], format!("999999999999999999 604800 400 {ONE}")),
        (&["--all", "--seed", "0", "--duration", "30s"], "0 30 usual --nocapture".to_owned()),
    ] {
        let ended = Ended::of(script(dir.path(), "good", arguments)).await.with(0);
        assert_eq!(std::fs::read_to_string(dir.path().join("told")).expect("it played").trim_end(), told);
        assert!(dir.path().join("started").exists(), "it was built");
        let last = ended.stdout.lines().last().expect("lines").to_owned();
        let all = format!("faults: every test passed; repeat with: scripts/faults {} --all", "--seed 0 --duration 30s");
        let one = "faults: no promise was broken; repeat with: it";
        assert_eq!(last, if arguments.contains(&"--all") { all.as_str() } else { one });
    }
    let broken = Ended::of(script(dir.path(), "broken", &["--seed", "7"])).await.with(101);
    assert!(broken.stdout.ends_with("faults: a promise was broken:\n  one\nrepeat with: it\n"), "{}", broken.stdout);
    let silent = Ended::of(script(dir.path(), "silent", &["--seed", "7"])).await.with(1);
    assert!(silent.stdout.contains("no verdict"), "a run that judged nothing is no success: {}", silent.stdout);
}

#[tokio::test]
async fn a_signal_to_the_script_ends_the_tests_that_it_started() {
    let dir = PrivateDirectory::new("reprieve-harness-");
    let log = dir.path().join("log");
    let mut service = Service::spawn(script(dir.path(), "never", &["--seed", "7"]), &log);
    let pid = || std::fs::read_to_string(dir.path().join("pid")).unwrap_or_default().trim().to_owned();
    wait_until("the tests run", SOON, async || !pid().is_empty()).await;
    assert!(is_alive(&pid()));
    let ended = service.terminate(SOON).await;
    assert_eq!(ended.code(), Some(143), "{}", service.log());
    wait_until("the tests have ended", SOON, async || !is_alive(&pid())).await;
    assert!(service.log().contains("repeat with: scripts/faults --seed 7 "), "{}", service.log());
}

/// This test starts itself once more, as the process that is ended with its whole group.
#[tokio::test]
async fn a_stopped_process_and_its_directory_go_with_a_run_that_is_ended_with_its_group() {
    if let Some(report) = std::env::var_os(VICTIM) {
        let dir = PrivateDirectory::new("reprieve-harness-");
        let mut sleep = Command::new("/bin/sh");
        sleep.args(["-c", "echo \"$$\" >\"$0\"; exec sleep 600"]).arg(dir.path().join("pid"));
        let service = Service::spawn(sleep, &dir.path().join("serve-0.log"));
        let pid = || std::fs::read_to_string(dir.path().join("pid")).unwrap_or_default();
        wait_until("it runs", SOON, async || pid().contains('\n')).await;
        service.freeze().await;
        std::fs::write(&report, format!("{}{}\n", pid(), dir.path().display())).expect("the directory is there");
        tokio::time::sleep(Duration::from_secs(600)).await;
        unreachable!("it was to be ended");
    }
    let dir = PrivateDirectory::new("reprieve-harness-");
    let report = dir.path().join("report");
    // in a session of its own: elsewhere the kernel wakes and ends what is stopped in a group that has lost its parents
    let mut victim = Command::new("setsid")
        .arg(std::env::current_exe().expect("we run"))
        .args(["--exact", "harness::a_stopped_process_and_its_directory_go_with_a_run_that_is_ended_with_its_group"])
        .env(VICTIM, &report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("our own binary");
    let read = || std::fs::read_to_string(&report).unwrap_or_default();
    wait_until("the other process has started one", SOON, async || read().lines().count() == 2).await;
    let text = read();
    let (pid, directory) = text.trim_end().split_once('\n').expect("two lines");
    assert!(is_alive(pid) && Path::new(directory).exists());

    signal("TERM", &format!("-{}", victim.id()));
    victim.wait().expect("our child");
    wait_until("the stopped process is gone", SOON, async || !is_alive(pid)).await;
    wait_until("its directory is gone", SOON, async || !Path::new(directory).exists()).await;
}
