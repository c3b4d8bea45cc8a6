//! The command line: one file a verb.
//!
//! Invariant: looking is free, destroying is asked for. A verb that leads to objects being destroyed is a dry run until
//! `--execute` is given, and says so. With `--json` standard output holds one JSON document and nothing else.

mod check;
mod demo;
mod dev;
mod error;
mod health;
mod hold;
mod list;
mod migrate;
mod output;
mod pause;
mod restore;
mod retry;
mod serve;
mod show;
mod trash;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

pub use self::error::CliError;
use self::output::Output;
use crate::{
    app::App,
    config::{Config, LogFormat},
    domain::{
        cause::{Cause, CorrelationId, TraceContext},
        ids::{InvalidName, ResourceRef},
        tombstone::Provenance,
    },
    telemetry,
    trash::TrashError,
};

/// What `--help` says of exit codes.
const EXIT_CODES: &str = "\
Exit codes:
  0  done (or: nothing to do)
  1  failed: a server is away, or refused
  2  wrong usage: unknown flag, unknown kind, malformed id, window too short
  3  refused: in use, by whom is said
  4  not found, or not in the trash
  5  refused: protected, held, past the point of no return, nothing to retry, no safe place
  6  the configuration has mistakes or lacks what is needed, or its map does not fit the database
  7  check found problems";

/// A trash bin for data platforms: soft delete, a restore window, and a verified purge.
#[derive(Debug, Parser)]
#[command(name = "reprieve", version, about, after_help = EXIT_CODES)]
struct Cli {
    /// Configuration file; several are merged, later ones win [env: REPRIEVE_CONFIG, separated by colons; default:
    /// reprieve.toml, /etc/reprieve/reprieve.toml]
    #[arg(long, global = true)]
    config: Vec<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Bring the schema `reprieve` up to date
    Migrate(migrate::Migrate),
    /// Try configuration and resource map against the live system; changes nothing
    Check(check::Check),
    /// Run the service
    Serve(serve::Serve),
    /// Ask the service on this machine whether it is ready; exit code 0, or 1 where it is not
    Health(health::Health),
    /// Put a resource into the trash (a dry run until --execute)
    Trash(trash::Trash),
    /// Take a resource out of the trash
    Restore(restore::Restore),
    /// List what is, or was, in the trash
    List(list::List),
    /// Show a resource's tombstone, history and receipt
    Show(show::Show),
    /// Let a purge go on that is stuck, or waits for its next try (a dry run until --execute)
    Retry(retry::Retry),
    /// Keep a resource from being trashed or purged
    Hold(hold::Hold),
    /// End a hold
    Release(hold::Release),
    /// Pause purging: everywhere, of a kind, or in a store
    Pause(pause::Pause),
    /// Resume purging
    Resume(pause::Resume),
    /// Play the whole story on sample data, with servers of its own
    Demo(demo::Demo),
    /// Run everything on sample data with servers of its own, to try commands against
    Dev(dev::Dev),
}

impl Verb {
    /// Whether it changes nothing, whatever becomes of it.
    fn only_looks(&self) -> bool {
        match self {
            Self::Check(_) | Self::List(_) | Self::Show(_) | Self::Health(_) => true,
            Self::Trash(verb) => verb.is_dry_run(),
            Self::Retry(verb) => verb.is_dry_run(),
            Self::Migrate(_) | Self::Serve(_) | Self::Restore(_) | Self::Hold(_) | Self::Release(_) => false,
            Self::Pause(_) | Self::Resume(_) | Self::Demo(_) | Self::Dev(_) => false,
        }
    }
}

/// A resource on the command line.
#[derive(Debug, Args)]
struct Target {
    /// Its kind, from the resource map
    kind: String,
    /// Its id
    #[arg(allow_hyphen_values = true)]
    id: String,
}

impl Target {
    fn resolve(&self, app: &App) -> Result<ResourceRef, CliError> {
        Ok(app.trash.resource(&self.kind, &self.id)?)
    }
}

/// Who asks and why.
#[derive(Debug, Args)]
struct Who {
    /// Who asks, for the audit log [default: the login name]
    #[arg(long, env = "REPRIEVE_ACTOR", hide_env_values = true)]
    actor: Option<String>,
    /// Why, for the audit log
    #[arg(long)]
    reason: Option<String>,
    /// The id by which this and all that comes of it are found again [env: REPRIEVE_CORRELATION_ID; default: a new one]
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
}

impl Who {
    fn provenance(&self) -> Result<Provenance, CliError> {
        let login = || ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        let actor = self.actor.clone().or_else(login).or_else(account).unwrap_or_else(|| "unknown".into());
        let usage = |error: InvalidName| CliError::Usage(error.to_string());
        let by = Provenance::parse(&actor, "cli", self.reason.clone()).map_err(usage)?;
        let of_environment = || {
            let set = std::env::var_os("REPRIEVE_CORRELATION_ID")?.to_string_lossy().into_owned();
            // empty is as good as not set, as with other variables
            Some(set).filter(|id| !id.is_empty())
        };
        let given = self.correlation_id.clone().or_else(of_environment);
        let given = given.map(|id| CorrelationId::parse(&id)).transpose().map_err(usage)?;
        // where a pipeline that is traced runs a command, it says so in the environment
        let variable = |name: &str| std::env::var(name.to_uppercase()).ok();
        let state = variable(TraceContext::TRACESTATE);
        let parent = variable(TraceContext::TRACEPARENT);
        let trace = parent.and_then(|parent| TraceContext::parse(&parent, state.as_deref()));
        Ok(by.within(Cause { correlation_id: Some(given.unwrap_or_default()), trace }))
    }
}

/// The files that `REPRIEVE_CONFIG` names. Empty is as good as not set: containers often set it so.
fn files_of_environment() -> Vec<PathBuf> {
    let named = std::env::var_os("REPRIEVE_CONFIG").unwrap_or_default();
    std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect()
}

/// The name of the account that we run as, where the environment does not say it.
fn account() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata("/proc/self").ok()?.uid().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = accounts.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').next().map(str::to_owned)
}

/// Parses the command line, runs the verb, prints, and says how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // help and version are no mistakes, and a person reads them
        Err(mistake) if mistake.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            let said = mistake.render().to_string();
            let said = said.strip_prefix("error: ").unwrap_or(&said).trim_end();
            return Output::new(true).fail(&CliError::Usage(said.to_owned()));
        }
        Err(other) => other.exit(),
    };
    let output = Output::new(cli.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&CliError::Failed(format!("cannot start: {error}"))),
    };
    let ended = runtime.block_on(run(cli, output));
    // a look-up of a name may hang in a thread of its own; nobody waits for it
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    }
}

async fn run(cli: Cli, output: Output) -> Result<(), CliError> {
    if matches!(cli.verb, Verb::Demo(_) | Verb::Dev(_)) && !cli.config.is_empty() {
        let why =
            "`demo` and `dev` have a platform and a configuration of their own; --config is for the other commands";
        return Err(CliError::Usage(why.into()));
    }
    let files = if cli.config.is_empty() { files_of_environment() } else { cli.config };
    let quiet = || {
        telemetry::start_logging("reprieve=warn,lapin=off,s3s=off,error", Some(LogFormat::Pretty))
            .map_err(CliError::Usage)
    };
    let mut store = None;
    let mut app = async || {
        quiet()?;
        let app = App::new(Config::load(&files)?).await?;
        store = Some(app.store.clone());
        Ok::<App, CliError>(app)
    };
    let only_looks = cli.verb.only_looks();
    let ended = match cli.verb {
        Verb::Migrate(verb) => {
            quiet()?;
            verb.run(Config::load(&files)?, output).await
        }
        Verb::Serve(verb) => {
            let config = Config::load(&files)?;
            telemetry::start_logging(&config.service.log, config.service.log_format).map_err(CliError::Usage)?;
            let exporting = telemetry::trace::start_exporting(config.traces.as_ref());
            let exporting = exporting.map_err(|error| CliError::Traces(error.to_string()))?;
            let ended = verb.run(App::new(config).await?).await;
            exporting.end().await;
            ended
        }
        Verb::Health(verb) => {
            quiet()?;
            verb.run(Config::load(&files)?, output).await
        }
        Verb::Check(verb) => verb.run(app().await?, output).await,
        Verb::Trash(verb) => verb.run(app().await?, output).await,
        Verb::Restore(verb) => verb.run(app().await?, output).await,
        Verb::List(verb) => verb.run(app().await?, output).await,
        Verb::Show(verb) => verb.run(app().await?, output).await,
        Verb::Retry(verb) => verb.run(app().await?, output).await,
        Verb::Hold(verb) => verb.run(app().await?, output).await,
        Verb::Release(verb) => verb.run(app().await?, output).await,
        Verb::Pause(verb) => verb.run(app().await?, output).await,
        Verb::Resume(verb) => verb.run(app().await?, output).await,
        Verb::Demo(verb) => verb.run().await.map_err(|error| CliError::Failed(format!("{error:#}"))),
        Verb::Dev(verb) => verb.run().await.map_err(|error| CliError::Failed(format!("{error:#}"))),
    };
    match (ended, store) {
        (Err(CliError::Store(error) | CliError::Trash(TrashError::Store(error))), Some(store)) => {
            let nothing_done = only_looks || error.was_never_asked();
            let error = store.why_away(error).await;
            Err(if nothing_done { CliError::NothingDone(error) } else { CliError::Store(error) })
        }
        (ended, _) => ended,
    }
}
