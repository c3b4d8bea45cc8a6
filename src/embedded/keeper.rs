//! Keeps a child server from outliving us.
//!
//! Invariant: once [`Keeper::hire`] has returned, the server and its directory are gone soon after this process is,
//! however this process ends, `kill -9` included. A small shell holds the read end of a pipe whose write end is ours
//! alone; the kernel closes it when we die, and the shell then ends the server, by its process id, and removes the
//! directory. No unsafe code, no pid files, no parent-death signal (Linux only, and tied to a thread).
//!
//! The shell is in a process group of its own: Ctrl-C in a terminal reaches us and not the server, so that we can use
//! the server until our own orderly end. What it cannot survive is its own `kill -9`: then the server stays.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The shell's whole life. `$@` is the server's command. It answers each order with one line, and it must not die of
/// a broken pipe while it answers somebody who was just killed, hence the trap.
const SCRIPT: &str = r#"
trap '' PIPE
dir=$1 log=$2 stop=$3 tenths=$4
shift 4
server=

end() {
  [ -n "$server" ] || return 0
  kill -s "$1" "$server" 2>/dev/null
  ( n=0
    while [ "$n" -lt "$tenths" ]; do sleep 0.1; n=$((n + 1)); done
    kill -s KILL "$server" 2>/dev/null
  ) </dev/null >/dev/null 2>&1 &
  guard=$!
  wait "$server" 2>/dev/null
  kill "$guard" 2>/dev/null
  wait "$guard" 2>/dev/null
  server=
}

while read -r order signal; do
  case $order in
    start) "$@" </dev/null >>"$log" 2>&1 &
           server=$!
           echo "$server" ;;
    end)   end "$signal"
           echo ended ;;
  esac
done

end "$stop"
cd /
n=0
until rm -rf "$dir" || [ "$n" -ge 50 ]; do sleep 0.1; n=$((n + 1)); done
"#;

/// How long [`Keeper::drop`] waits for the shell beyond the server's grace: the directory has to go as well.
const TIDYING: Duration = Duration::from_secs(5);

/// How a server is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM.
    Term,
    /// SIGINT; PostgreSQL's "fast" shutdown.
    Int,
    /// SIGQUIT; PostgreSQL's "immediate" shutdown.
    Quit,
    /// SIGKILL: a crash.
    Kill,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Term => "TERM",
            Signal::Int => "INT",
            Signal::Quit => "QUIT",
            Signal::Kill => "KILL",
        }
    }
}

/// The account that a server runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A server and what belongs to it.
#[derive(Debug)]
pub struct Charge {
    /// The program, by its path. It has to stay the same process (`exec` in a script), or a signal misses the server.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to our environment.
    pub env: Vec<(OsString, OsString)>,
    /// Who runs it, and the shell, and so who must own `dir`; `None`: we do. Another account needs root.
    pub account: Option<Account>,
    /// The server's private directory: its working directory, **removed with all its content** when the keeper goes.
    pub dir: PathBuf,
    /// Where its output is appended; in `dir`.
    pub log: PathBuf,
    /// How it is ended when the keeper goes.
    pub ending: Signal,
    /// How long it may take over any ending before it is killed. Counted in tenths of a second.
    pub grace: Duration,
}

/// A server's keeper; see the module. Dropping it ends the server and removes its directory, and waits for both (a
/// blocking wait, bounded by the charge's grace and a few seconds).
#[derive(Debug)]
pub struct Keeper {
    shell: Child,
    /// Its end is the order to finish, given by us or by the kernel.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// The server that was started last and not yet ended.
    server: Option<u32>,
    grace: Duration,
}

impl Keeper {
    /// Starts the shell that will look after `charge`; the server itself is started by [`Keeper::start`]. From here on
    /// the directory is the shell's to remove.
    ///
    /// # Errors
    /// When `/bin/sh` cannot be started, or not as the charge's account.
    pub fn hire(charge: &Charge) -> io::Result<Keeper> {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(SCRIPT)
            .arg("reprieve-keeper")
            .args([charge.dir.as_os_str(), charge.log.as_os_str()])
            .arg(charge.ending.name())
            .arg((charge.grace.as_millis() / 100).to_string())
            .arg(&charge.program)
            .args(&charge.args)
            .envs(charge.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&charge.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        if let Some(account) = charge.account {
            command.uid(account.uid).gid(account.gid);
        }
        let mut shell = command.spawn()?;
        let orders = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().expect("stdout was piped above"));
        Ok(Keeper { shell, orders, answers, server: None, grace: charge.grace })
    }

    /// Starts the server, ending an earlier one first (orderly, with SIGTERM). Returns its process id. The server need
    /// not answer yet, and its program may turn out not to exist: the log says.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn start(&mut self) -> io::Result<u32> {
        self.end(Signal::Term)?;
        let answer = self.order("start")?;
        let pid = answer.parse().map_err(|_| io::Error::other(format!("the keeper answered {answer:?}")))?;
        self.server = Some(pid);
        Ok(pid)
    }

    /// Ends the server and keeps its directory, so that it can be started again. Returns when it has ended, at the
    /// latest after the charge's grace, which this blocks for. Nothing happens when it is not running.
    ///
    /// # Errors
    /// When the shell is gone.
    pub fn end(&mut self, signal: Signal) -> io::Result<()> {
        if self.server.is_some() {
            self.order(&format!("end {}", signal.name()))?;
            self.server = None;
        }
        Ok(())
    }

    /// The process id of the server that was started and not ended by us. It may have ended by itself.
    #[must_use]
    pub fn server(&self) -> Option<u32> {
        self.server
    }

    /// Whether the server was started and has not ended. Where there is no `/proc`, one that ended by itself counts
    /// as running: use it to fail sooner, with a deadline beside it.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let Some(pid) = self.server else { return false };
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            // "pid (comm) state …": the shell does not reap its children until it is asked to, so they stay as Z.
            Ok(stat) => !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            Err(_) => !Path::new("/proc/self/stat").exists(),
        }
    }

    fn order(&mut self, order: &str) -> io::Result<String> {
        let orders = self.orders.as_mut().expect("only drop takes the pipe");
        writeln!(orders, "{order}")?;
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the keeper of a private server is gone"));
        }
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Keeper {
    #[expect(clippy::disallowed_methods, reason = "a destructor cannot await; bounded by the deadline")]
    fn drop(&mut self) {
        drop(self.orders.take());
        let deadline = Instant::now() + self.grace + TIDYING;
        // The shell goes on by itself after the deadline; only its exit status is then nobody's.
        while matches!(self.shell.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on. Taken below the range from which systems give out ports for
/// outgoing connections (from 32768 on Linux, from 49152 elsewhere), so that a server can come back to it after a
/// restart, and low enough for port + 10000 to be one, which some servers derive. Another process can still be faster.
///
/// # Errors
/// When none of many tries was free.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 10_240;
    const LAST: u16 = 22_700;
    const TRIES: u8 = 100;
    let mut last_error = None;
    for _ in 0..TRIES {
        let random = uuid::Uuid::new_v4().as_fields().0;
        let port = FIRST + u16::try_from(random % u32::from(LAST - FIRST)).expect("below LAST, a u16");
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.expect("there was at least one try"))
}
