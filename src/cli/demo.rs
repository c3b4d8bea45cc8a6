//! `reprieve demo`: the whole story on sample data, with servers of its own.
//!
//! Invariant: what the demo tells has happened, on a real PostgreSQL and over S3's protocol; each step checks what it
//! says and the command fails if it is not so.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::sync::CancellationToken;

use super::output::bytes;
use crate::{
    app::{App, Role},
    config::LogFormat,
    domain::{
        cause::{Cause, CorrelationId},
        ids::ResourceRef,
        state::State,
        tombstone::{Provenance, Tombstone},
    },
    embedded::{
        platform::{Options, Platform},
        s3::{Fault, Operation, Times},
        sample::{self, Dataset, Sample},
    },
    queue::TaskQueue,
    shutdown,
    store::{audit, tombstones},
    telemetry,
    trash::{IfChildrenLost, TrashError, TrashRequest},
};

/// What a delete request takes here, so that the bars can be seen: a store on a network is no faster.
const DELETE_LATENCY: Duration = Duration::from_millis(250);

/// By then the story is over, or something is wrong.
const DEADLINE: Duration = Duration::from_secs(50);

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// The restore window of the sample data
    #[arg(long, default_value = "6s", value_parser = window)]
    window: Duration,
}

fn window(raw: &str) -> Result<Duration, String> {
    humantime::parse_duration(raw)
        .ok()
        .filter(|window| (Duration::from_secs(1)..=Duration::from_secs(30)).contains(window))
        .ok_or_else(|| "expected a duration from 1s to 30s".into())
}

impl Demo {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        telemetry::start_logging("reprieve=error,off", Some(LogFormat::Pretty)).map_err(anyhow::Error::msg)?;
        let (interrupted, stop) = (shutdown::on_signal()?, CancellationToken::new());
        let story = async {
            let platform = start(self.window).await?;
            let (app, queue) = (platform.app.clone(), platform.queue.clone() as Arc<dyn TaskQueue>);
            let serving = stop.clone();
            let roles = [Role::Intake, Role::Relay, Role::Sweeper, Role::Worker];
            let service = tokio::spawn(async move { app.serve(Some(queue), &roles, serving).await });
            let told = play(&platform).await;
            stop.cancel();
            service.await??;
            told
        };
        tokio::select! {
            told = story => told,
            () = interrupted.cancelled() => bail!("interrupted; the private servers are ended and their files removed"),
            () = tokio::time::sleep(DEADLINE + self.window) => bail!("the story did not come to its end in time"),
        }
    }
}

async fn start(window: Duration) -> anyhow::Result<Platform> {
    let spinner = ProgressBar::new_spinner().with_message("starting a private PostgreSQL and an S3 server");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let platform = Platform::start(Options { retention: window, api_port: 0 }).await?;
    spinner.finish_and_clear();
    println!(
        "A private PostgreSQL, an in-process S3 server and an in-process queue are up. Nothing of yours is touched."
    );
    Ok(platform)
}

async fn play(platform: &Platform) -> anyhow::Result<()> {
    let bar = ProgressBar::new(11_500).with_style(style("sample data")?);
    let sample = sample::load(&platform.pool, &platform.s3, |objects| bar.inc(objects)).await?;
    bar.finish_and_clear();
    let Sample { unused, used, neighbour, model, .. } = &sample;
    println!("Sample data: 1 job, 3 datasets, 1 model.");
    for dataset in [unused, used, neighbour] {
        println!("  dataset {}  {}  {} objects", dataset.id, dataset.name, dataset.objects);
    }
    platform.s3.faults().rule(Operation::DeleteObjects, Times::Always, Fault::Delay(DELETE_LATENCY));

    refused(&platform.app, used, model).await?;
    trashed_and_restored(platform, unused).await?;
    purged(platform, unused).await?;
    survivors(platform, &[used, neighbour])
}

async fn refused(app: &App, used: &Dataset, model: &str) -> anyhow::Result<()> {
    heading("A delete that would break something is refused");
    match app.trash.trash(&request(app, used)?).await {
        Err(error @ TrashError::Refused { .. }) => {
            println!("  {error}");
            ensure!(error.to_string().contains(model), "the refusal does not name the model");
            Ok(())
        }
        Ok(_) => bail!("a dataset in use was trashed"),
        Err(error) => Err(error.into()),
    }
}

async fn trashed_and_restored(platform: &Platform, unused: &Dataset) -> anyhow::Result<()> {
    let app = &platform.app;
    heading("A careless delete is taken back");
    let trashed = app.trash.trash(&request(app, unused)?).await?;
    println!(
        "  trashed {} ({}), restorable until {}",
        trashed.tombstone.resource,
        unused.name,
        super::output::at(trashed.tombstone.purge_after)
    );
    let activated = sqlx::query(
        "insert into heimdall.models (model_name, is_active, synthetic_dataset_id) values ('oops', true, $1)",
    )
    .bind(unused.id)
    .execute(&platform.pool)
    .await;
    match activated {
        Err(error) => println!("  a model that is activated on it meanwhile is refused: {}", in_words(&error)),
        Ok(_) => bail!("the guard let a new use of a trashed dataset pass"),
    }
    let restored = app.trash.restore(&trashed.tombstone.resource, IfChildrenLost::Refuse, &by()?).await?;
    println!("  restored {}: {} objects are where they were", restored.tombstone.resource, count(platform, unused));
    ensure!(count(platform, unused) == unused.objects as usize, "a restored dataset has lost objects");
    Ok(())
}

async fn purged(platform: &Platform, unused: &Dataset) -> anyhow::Result<()> {
    let app = &platform.app;
    heading("A delete that was meant comes to its end");
    let tombstone = app.trash.trash(&request(app, unused)?).await?.tombstone;
    println!("  trashed {} again; its window is {}", tombstone.resource, app.config.retention.default);
    let window = (tombstone.purge_after - tombstone.trashed_at).as_seconds_f64();
    let bar = ProgressBar::new((window * 10.0) as u64).with_style(style("window")?);
    let begun = watch(app, &tombstone, |now| {
        let passed = (time::OffsetDateTime::now_utc() - now.trashed_at).as_seconds_f64();
        bar.set_position(((passed * 10.0) as u64).min(bar.length().unwrap_or(0)));
        now.state != State::Trashed
    })
    .await?;
    bar.finish_and_clear();
    ensure!(begun.purging_at.is_some_and(|at| at >= begun.purge_after), "the purge began before its time");
    println!("  the window has passed and nothing uses it: the purge has begun, a restore is now refused");
    let bar = ProgressBar::new(u64::from(unused.objects)).with_style(style("purging")?);
    let end = watch(app, &tombstone, |now| {
        bar.set_position(now.progress.objects_gone());
        !now.state.is_open() || now.state == State::Stuck
    })
    .await?;
    bar.finish_and_clear();
    ensure!(end.state == State::Purged, "the purge ended as {}: {:?}", end.state, end.last_error);
    ensure!(count(platform, unused) == 0, "objects are left");
    let rows: i64 = sqlx::query_scalar("select count(*) from heimdall.synthetic_datasets where id = $1")
        .bind(unused.id)
        .fetch_one(&platform.pool)
        .await?;
    ensure!(rows == 0, "the row is left");
    println!("  verified: a fresh listing of its prefixes is empty, and its rows are gone");

    heading("The receipt");
    let mut conn = app.store.conn().await?;
    let history = audit::of_tombstone(&mut conn, end.id).await?;
    let receipt = history.iter().find(|entry| entry.event == "purged").context("there is no receipt")?;
    let progress = &end.progress;
    ensure!(progress.objects_gone() == u64::from(unused.objects), "the receipt does not count what was put");
    println!(
        "  {} objects put, {} gone, {} freed, {} rows deleted",
        unused.objects,
        progress.objects_gone(),
        bytes(progress.bytes_freed),
        progress.rows_deleted
    );
    println!("{}", indent(&format!("{:#}", receipt.details)));
    Ok(())
}

fn survivors(platform: &Platform, survivors: &[&Dataset]) -> anyhow::Result<()> {
    heading("Everything else is where it was");
    for dataset in survivors {
        let left = count(platform, dataset);
        ensure!(left == dataset.objects as usize, "{} has lost objects", dataset.name);
        println!("  {}  {left} of {} objects", dataset.name, dataset.objects);
    }
    println!("\nThat was the whole story. `reprieve dev` keeps such a platform running, to try the commands yourself.");
    Ok(())
}

/// Looks at a tombstone until `done` says so.
async fn watch(app: &App, tombstone: &Tombstone, done: impl Fn(&Tombstone) -> bool) -> anyhow::Result<Tombstone> {
    loop {
        let mut conn = app.store.conn().await?;
        let now = tombstones::find(&mut conn, tombstone.id).await?.context("the tombstone is gone")?;
        drop(conn);
        if done(&now) {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn request(app: &App, dataset: &Dataset) -> anyhow::Result<TrashRequest> {
    let resource: ResourceRef = app.trash.resource("dataset", &dataset.id.to_string())?;
    Ok(TrashRequest { resource, with: Vec::new(), retention: None, by: by()? })
}

fn by() -> anyhow::Result<Provenance> {
    let cause = Cause { correlation_id: Some(CorrelationId::new()), trace: None };
    Ok(Provenance::parse("demo", "cli", Some("the demo's story".into()))?.within(cause))
}

fn count(platform: &Platform, dataset: &Dataset) -> usize {
    platform.s3.store().count(sample::BUCKET, &dataset.prefix())
}

fn in_words(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn style(what: &str) -> anyhow::Result<ProgressStyle> {
    Ok(ProgressStyle::with_template(&format!("  {what:12} [{{bar:40}}] {{percent:>3}} %"))?.progress_chars("=> "))
}
