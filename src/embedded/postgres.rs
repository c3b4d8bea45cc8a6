//! A private, throwaway, real PostgreSQL: the same SQL and the same locks as in production, with nothing to set up.
//!
//! Invariant: it is nobody's but ours. Its files and its unix socket are in a directory that only its account may
//! enter, it listens on TCP only when asked (on loopback, with a random password), and both it and its directory go
//! when its value is dropped or this process dies (see [`keeper`](super::keeper)). It survives a crash of
//! its own and not one of the machine (`fsync` is off): never put anything into it that must stay.
//!
//! PostgreSQL refuses to run as root, so root runs it as the user `postgres`, which its packages create.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::keeper::{Account, Charge, Keeper, Signal, free_port};

/// Creates the cluster on the first start, then becomes the server, keeping its process id.
const SCRIPT: &str = r#"
initdb=$1 postgres=$2 data=$3 password=$4; shift 4
if [ ! -e "$data/PG_VERSION" ]; then
  "$initdb" -D "$data" -U postgres -E UTF8 --locale=C --auth-local=trust --auth-host=password \
    --pwfile="$password" --no-sync || exit 1
fi
exec "$postgres" -D "$data" "$@"
"#;

/// The account for root to use.
const USER: &str = "postgres";
/// From a cold disk on a busy machine; 1.6 s is usual.
const STARTING: Duration = Duration::from_secs(60);
/// For an immediate or a fast shutdown; both take a fraction of a second.
const ENDING: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(15);
/// The port in the unix socket's name when there is no TCP.
const SOCKET_PORT: u16 = 5432;
/// The longest directory whose socket fits into `sockaddr_un` everywhere (104 bytes on the BSDs, 108 on Linux).
const LONGEST_DIR: usize = 80;
/// How much of the server's log an error quotes.
const LOG_LINES: usize = 15;

/// Throwaway, and many pools in the tests. `synchronous_commit` stays on: with `fsync` off it costs one write, and
/// without it a kill -9 of the server takes the last commits with it, which no real one would. Nothing here changes
/// what SQL means.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "64MB"),
    ("max_connections", "300"),
    ("max_wal_size", "1GB"),
    ("log_checkpoints", "off"),
];

/// How to start a private PostgreSQL. The default is enough for one process: a unix socket alone.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Listen on a free port of 127.0.0.1 too, and let [`PrivatePostgres::url`] name it.
    pub tcp: bool,
    /// Server settings (`postgres -c name=value`), which win over ours.
    pub settings: Vec<(String, String)>,
}

/// Why there is no private PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Not installed, or only its client.
    #[error(
        "PostgreSQL's server programs (initdb and postgres, in one directory) were not found; install them with \
         `apt-get install postgresql` (or `dnf install postgresql-server`, `brew install postgresql`); no server needs \
         to be running. Looked in: {}",
        join(looked_in)
    )]
    NotInstalled {
        /// The directories that were tried, in order.
        looked_in: Vec<PathBuf>,
    },
    /// We are root, which PostgreSQL refuses, and its usual user does not exist.
    #[error(
        "PostgreSQL does not run as root, and there is no user `{USER}` in /etc/passwd to run it as; run this as an \
         ordinary user, or create that user with `useradd --system {USER}`"
    )]
    NoUser,
    /// Its directory, port or process could not be made.
    #[error("cannot prepare a private PostgreSQL in {}", dir.display())]
    Prepare {
        /// The directory, or its parent.
        dir: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// It ended while it started. The usual reasons: no space, no memory, a setting that this version does not know.
    #[error("the private PostgreSQL from {} ended while starting; its log ends:\n{log}", bin.display())]
    Ended {
        /// Where its programs are.
        bin: PathBuf,
        /// The log's last lines.
        log: String,
    },
    /// It did not get ready in time.
    #[error("the private PostgreSQL from {} was not ready after {}s; its log ends:\n{log}", bin.display(), STARTING.as_secs())]
    TooSlow {
        /// Where its programs are.
        bin: PathBuf,
        /// The log's last lines.
        log: String,
    },
}

/// A running private PostgreSQL; see the module. Dropping it ends it at once and removes its files.
#[derive(Debug)]
pub struct PrivatePostgres {
    keeper: Keeper,
    bin: PathBuf,
    dir: PathBuf,
    /// `None`: the unix socket only.
    port: Option<u16>,
    password: String,
}

impl PrivatePostgres {
    /// Creates a cluster in a new temporary directory and starts it; returns when it accepts connections.
    ///
    /// # Errors
    /// See [`StartError`]; each says what to do. Nothing is left behind.
    pub async fn start(options: Options) -> Result<PrivatePostgres, StartError> {
        let bin = find()?;
        let parent = directory();
        let prepare = |source| StartError::Prepare { dir: parent.clone(), source };
        let temporary = tempfile::Builder::new().prefix("reprieve-pg-").tempdir_in(&parent).map_err(prepare)?;
        let dir = temporary.path().to_owned();
        let password = uuid::Uuid::new_v4().simple().to_string();
        std::fs::write(dir.join("password"), &password).map_err(prepare)?;

        // A new directory belongs to whoever we effectively are, which std does not tell otherwise.
        let account = if std::fs::metadata(&dir).map_err(prepare)?.uid() == 0 {
            let account = account_of(USER).ok_or(StartError::NoUser)?;
            for path in [&dir.join("password"), &dir] {
                chown(path, Some(account.uid), Some(account.gid)).map_err(prepare)?;
            }
            Some(account)
        } else {
            None
        };

        let port = if options.tcp { Some(free_port().map_err(prepare)?) } else { None };
        let charge = Charge {
            program: "/bin/sh".into(),
            args: arguments(&bin, &dir, port, &options.settings),
            // A locale that every system has, for a server and messages that are the same on all of them.
            env: vec![("LC_ALL".into(), "C".into()), ("TZ".into(), "UTC".into())],
            account,
            log: dir.join("log"),
            dir: dir.clone(),
            ending: Signal::Quit,
            grace: ENDING,
        };
        let keeper = Keeper::hire(&charge).map_err(prepare)?;
        // The keeper removes it now.
        let dir = temporary.keep();

        let mut server = PrivatePostgres { keeper, bin, dir, port, password };
        server.start_again().await?;
        Ok(server)
    }

    /// The address of its first database, `postgres`, for sqlx and libpq. By TCP if that was asked for.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The address of a database of this server, whether it exists or not.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        let database = utf8_percent_encode(database, NON_ALPHANUMERIC);
        match self.port {
            Some(port) => format!("postgresql://{USER}:{}@127.0.0.1:{port}/{database}?sslmode=disable", self.password),
            // Port and sslmode are named although they are the defaults, because PGPORT and PGSSLMODE may not be.
            None => {
                let dir = self.dir.to_string_lossy();
                let dir = utf8_percent_encode(&dir, NON_ALPHANUMERIC);
                format!("postgresql:///{database}?host={dir}&port={SOCKET_PORT}&user={USER}&sslmode=disable")
            }
        }
    }

    /// Creates an empty database and returns its address.
    ///
    /// # Errors
    /// When the server does not answer or has one of that name.
    pub async fn create_database(&self, name: &str) -> Result<String, sqlx::Error> {
        let mut connection = PgConnection::connect(&self.url()).await?;
        let quoted = name.replace('"', "\"\"");
        // template0 has no sessions, so creating many at once cannot fail on a template in use.
        let statement = format!("create database \"{quoted}\" template template0");
        sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        connection.close().await?;
        Ok(self.url_of(name))
    }

    /// The process id of the server; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.keeper.server()
    }

    /// Stops it in good order, rolling back what is open (a "fast" shutdown), and keeps its data. Blocks for a moment.
    ///
    /// # Errors
    /// When its keeper is gone.
    pub fn stop(&mut self) -> io::Result<()> {
        self.keeper.end(Signal::Int)
    }

    /// Kills it with SIGKILL, as a crash would, and keeps its data. Blocks for a moment.
    ///
    /// # Errors
    /// When its keeper is gone.
    pub fn kill9(&mut self) -> io::Result<()> {
        self.keeper.end(Signal::Kill)
    }

    /// Starts it again on the same data and address; returns when it accepts connections. After a crash that includes
    /// recovery. A server that runs is stopped first.
    ///
    /// # Errors
    /// [`StartError::Ended`], [`StartError::TooSlow`], or [`StartError::Prepare`] when its keeper is gone.
    pub async fn start_again(&mut self) -> Result<(), StartError> {
        let prepare = |dir: &Path, source| StartError::Prepare { dir: dir.to_owned(), source };
        let deadline = Instant::now() + STARTING;
        self.stop().map_err(|source| prepare(&self.dir, source))?;
        let mut pid = self.keeper.start().map_err(|source| prepare(&self.dir, source))?;
        while !self.is_ready(pid) {
            if Instant::now() > deadline {
                return Err(StartError::TooSlow { bin: self.bin.clone(), log: self.end_of_log() });
            }
            tokio::time::sleep(POLL).await;
            if !self.keeper.is_running() {
                let log = self.end_of_log();
                // The children of a server that was killed go by themselves, each when it next looks; until then a
                // new one refuses their shared memory. Any other end is final.
                if !log.lines().rev().take(2).any(|line| line.contains("pre-existing shared memory block")) {
                    return Err(StartError::Ended { bin: self.bin.clone(), log });
                }
                pid = self.keeper.start().map_err(|source| prepare(&self.dir, source))?;
            }
        }
        Ok(())
    }

    /// What `pg_ctl -w` looks at: the server writes its state to the last line of its pid file. The first line is the
    /// pid, which tells a crashed predecessor's file from ours.
    fn is_ready(&self, pid: u32) -> bool {
        let Ok(text) = std::fs::read_to_string(self.dir.join("data/postmaster.pid")) else { return false };
        let mut lines = text.lines();
        lines.next() == Some(pid.to_string().as_str()) && lines.next_back().is_some_and(|state| state.trim() == "ready")
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

fn arguments(bin: &Path, dir: &Path, port: Option<u16>, settings: &[(String, String)]) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["-c".into(), SCRIPT.into(), "reprieve-postgres".into()];
    args.extend([bin.join("initdb").into(), bin.join("postgres").into()]);
    args.extend([dir.join("data").into(), dir.join("password").into()]);
    args.extend(["-p".into(), port.unwrap_or(SOCKET_PORT).to_string().into()]);
    args.extend(["-k".into(), dir.into()]);
    args.extend(["-c".into(), format!("listen_addresses={}", if port.is_some() { "127.0.0.1" } else { "" }).into()]);
    for (name, value) in SETTINGS {
        args.extend(["-c".into(), format!("{name}={value}").into()]);
    }
    for (name, value) in settings {
        args.extend(["-c".into(), format!("{name}={value}").into()]);
    }
    args
}

/// The system's temporary directory, unless a socket's path in it would be too long.
fn directory() -> PathBuf {
    let dir = std::env::temp_dir();
    if dir.as_os_str().len() > LONGEST_DIR { "/tmp".into() } else { dir }
}

/// The directory of the server programs: on PATH, or where packages put them, the newest version first. `initdb` alone
/// does not count: it can be a stub or a wrapper with no server beside it.
fn find() -> Result<PathBuf, StartError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut looked_in: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (parent, prefix, suffix) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
    ] {
        looked_in.extend(versions(Path::new(parent), prefix, suffix));
    }
    looked_in.extend(["/usr/local/pgsql/bin".into(), "/usr/lib/postgresql/*/bin".into()]);
    let found = looked_in.iter().find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file());
    found.cloned().ok_or(StartError::NotInstalled { looked_in })
}

/// `{parent}/{prefix}{number}/{suffix}`, the greatest number first.
fn versions(parent: &Path, prefix: &str, suffix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join(suffix)))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, path)| path).collect()
}

fn account_of(user: &str) -> Option<Account> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.first() == Some(&user))
            .then(|| Some(Account { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? }))?
    })
}

fn join(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}
