//! What `check` asks the stores and the broker.
//!
//! Invariant: of a store that has not answered once nothing more is asked, and each of its buckets is named all the same.

use tokio::time::timeout;

use super::{ANSWER, Findings, Level, believed, silent};
use crate::{
    app::App,
    cli::output::counted,
    domain::location::StoreName,
    objects::{BucketFacts, DefaultRetention, LockMode, UploadsListed, Versioning, stores::NamedStore},
    queue::{TaskQueue, rabbitmq::RabbitQueue},
};

/// What findings of a bucket are about.
pub(super) fn about(name: &StoreName, bucket: &str) -> String {
    format!("store {name}, bucket {bucket}")
}

/// A store with each of its buckets.
pub(super) async fn store(app: &App, name: &StoreName, store: &NamedStore) -> Findings {
    let (mut findings, mut is_silent) = (Findings::default(), false);
    for bucket in &store.buckets {
        let about = about(name, bucket);
        if is_silent {
            findings.add(Level::Problem, about, "not looked at, since its store does not answer");
            continue;
        }
        match timeout(ANSWER, store.objects.facts(bucket)).await {
            Ok(Ok(facts)) => check_bucket(app, name, bucket, &facts, &mut findings),
            Ok(Err(error)) => findings.add(Level::Problem, about, error.to_string()),
            Err(_) => {
                is_silent = true;
                findings.add(Level::Problem, about, silent(&store.address, ANSWER));
            }
        }
    }
    findings
}

fn check_bucket(app: &App, name: &StoreName, bucket: &str, facts: &BucketFacts, findings: &mut Findings) {
    let about = about(name, bucket);
    let versions = match facts.versioning {
        Versioning::Off => "no versions",
        Versioning::Kept => "keeps versions",
    };
    let lock = match facts.object_lock {
        Some(true) => "object lock is on",
        Some(false) => "no object lock",
        None => "object lock unknown",
    };
    findings.add(Level::Ok, &about, format!("answers; {versions}, {lock}; deletes go {}", facts.deletes));
    if facts.object_lock == Some(true) {
        findings.add(Level::Warning, &about, "locked objects cannot be purged before their date");
    }
    check_abilities(facts, &about, findings);
    match facts.versioning {
        Versioning::Kept => check_conditions(app, name, bucket, &about, findings),
        Versioning::Off => believed::conditions(app.trash.map(), name, bucket, &about, findings),
    }
}

/// Kinds whose objects are compared before they are deleted, in a bucket that keeps versions.
fn check_conditions(app: &App, store: &StoreName, bucket: &str, about: &str, findings: &mut Findings) {
    for kind in app.trash.map().kinds() {
        if kind.named_objects().any(|named| named.only_if_unchanged && named.reaches(store, bucket)) {
            let found = format!(
                "keeps versions, where only_if_unchanged cannot be told: no object of the kind {} would be deleted",
                kind.kind
            );
            findings.add(Level::Problem, about, found);
        }
    }
}

/// What of a bucket can surprise, or keep a purge from its end.
fn check_abilities(facts: &BucketFacts, about: &str, findings: &mut Findings) {
    if let Some(DefaultRetention { mode, days }) = facts.default_retention {
        let mode = match mode {
            LockMode::Governance => "governance",
            LockMode::Compliance => "compliance",
        };
        let found = format!("every new object is locked in {mode} mode for {}", counted(days.into(), "day"));
        findings.add(Level::Warning, about, found);
    }
    match &facts.uploads {
        UploadsListed::Yes => {}
        UploadsListed::NotOffered => {
            findings.add(Level::Ok, about, "has no listing of unfinished uploads, and is taken to have none");
        }
        UploadsListed::Denied(code) => findings.add(
            Level::Problem,
            about,
            format!("its unfinished uploads cannot be listed ({code}), so no purge would come to its end there"),
        ),
    }
    if !facts.url_encoded {
        let found = "does not encode names in listings: an object whose name XML cannot carry keeps its prefix from being listed";
        findings.add(Level::Warning, about, found);
    }
}

/// The broker with its queues.
pub(super) async fn broker(app: &App) -> Findings {
    let mut findings = Findings::default();
    let Some(queue) = app.rabbitmq() else {
        findings.add(
            Level::Warning,
            "broker",
            "there is no section [broker]: `serve` refuses the roles intake, relay and worker without",
        );
        return findings;
    };
    if timeout(ANSWER, check_broker(app, &queue, &mut findings)).await.is_err() {
        findings.add(Level::Problem, "broker", silent(&queue.address(), ANSWER));
    }
    findings
}

async fn check_broker(app: &App, queue: &RabbitQueue, findings: &mut Findings) {
    if let Err(error) = queue.publisher().await {
        findings.add(Level::Problem, "broker", error.to_string());
        return;
    }
    match queue.depths().await {
        Ok(depths) => {
            let waiting =
                format!("waiting: {}, {}", counted(depths.requests, "request"), counted(depths.purge, "purge task"));
            findings.add(Level::Ok, "broker", format!("answers, its queues are there; {waiting}"));
            if depths.dead > 0 {
                findings.add(
                    Level::Warning,
                    "broker",
                    format!("{} in the dead-letter queue", counted(depths.dead, "message")),
                );
            }
        }
        Err(error) if app.config.broker.as_ref().is_some_and(|broker| broker.declare) => {
            let error = error.to_string();
            // what to do is said for those who declare nothing
            let missing = error.split("; start once with").next().unwrap_or(&error);
            findings.add(Level::Warning, "broker", format!("answers; `serve` declares what is missing ({missing})"));
        }
        Err(error) => findings.add(Level::Problem, "broker", error.to_string()),
    }
}
