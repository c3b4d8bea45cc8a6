use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reprieve::embedded::keeper::{Charge, Keeper, Signal};
use reprieve::embedded::postgres::{Options, PrivatePostgres};

use crate::support::{SOON, wait_until};

/// Where the process that is going to be killed writes what it started.
const VICTIM: &str = "REPRIEVE_TEST_VICTIM";

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A keeper of a shell script in a new directory.
fn hire(script: &str, grace: Duration) -> (Keeper, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory").keep();
    let keeper = Keeper::hire(&Charge {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        account: None,
        log: dir.join("log"),
        dir: dir.clone(),
        ending: Signal::Term,
        grace,
    });
    (keeper.expect("/bin/sh starts"), dir)
}

/// This test starts itself once more, as the process that has a server and is killed.
#[tokio::test]
async fn the_server_and_its_directory_go_when_their_owner_is_killed() {
    if let Some(report) = std::env::var_os(VICTIM) {
        let server = PrivatePostgres::start(Options::default()).await.expect("starts");
        let text = format!("{}\n{}", server.pid().expect("runs"), server.url());
        std::fs::write(&report, text).expect("the directory is there");
        return std::future::pending().await;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let report = dir.path().join("report");
    let mut victim = Command::new(std::env::current_exe().expect("we run"))
        .args(["--exact", "keeper::the_server_and_its_directory_go_when_their_owner_is_killed"])
        .env(VICTIM, &report)
        // A server inherits neither of these, or whoever reads our output would wait for it.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("our own binary");
    let read = || std::fs::read_to_string(&report).unwrap_or_default();
    wait_until("the other process has a server", SOON, async || read().contains('\n')).await;
    let text = read();
    let (pid, url) = text.split_once('\n').expect("two lines");
    let pid: u32 = pid.parse().expect("a process id");
    let directory = url.split(['=', '&']).nth(1).expect("the url names the directory");
    let directory = percent_encoding::percent_decode_str(directory).decode_utf8().expect("utf-8").into_owned();
    assert!(is_alive(pid) && Path::new(&directory).exists());

    victim.kill().expect("SIGKILL");
    victim.wait().expect("our child");
    wait_until("the server has ended", SOON, async || !is_alive(pid)).await;
    wait_until("its directory is gone", SOON, async || !Path::new(&directory).exists()).await;
}

#[test]
fn a_server_that_ignores_its_signal_is_killed_after_the_grace() {
    let (mut keeper, dir) = hire("trap '' TERM; : >ready; while :; do sleep 0.1; done", Duration::from_millis(300));
    let pid = keeper.start().expect("starts");
    let deadline = Instant::now() + SOON;
    while !dir.join("ready").exists() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let asked = Instant::now();
    keeper.end(Signal::Term).expect("ends");
    assert!(asked.elapsed() >= Duration::from_millis(300), "it was given its time");
    assert!(!is_alive(pid) && dir.exists(), "the server is gone, the directory is kept for the next start");
    assert_eq!(keeper.server(), None);

    let pid = keeper.start().expect("starts again");
    drop(keeper);
    assert!(!is_alive(pid) && !dir.exists(), "nothing stays");
}

#[tokio::test]
async fn a_server_that_ends_by_itself_is_noticed() {
    let (mut keeper, _) = hire("read -r _ </dev/null; exit 3", SOON);
    assert!(!keeper.is_running(), "not started yet");
    keeper.start().expect("starts");
    wait_until("it is seen to have ended", SOON, async || !keeper.is_running()).await;
}
