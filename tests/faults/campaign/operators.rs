//! Those who trash and restore by the library, by HTTP and by message, hold, release and retry by the library and by
//! HTTP, ask for purges by message, and pause and resume by the library, as it comes.
//!
//! Invariant: what was acknowledged counts. A request whose answer was lost may have been carried out or not; what was
//! confirmed by the broker or answered by the program is written down here and has to be found again in the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reprieve::domain::ids::Kind;
use reprieve::domain::location::StoreName;
use reprieve::domain::retention::Retention;
use reprieve::domain::tombstone::Provenance;
use reprieve::store::pauses::Scope;
use reprieve::trash::{IfChildrenLost, TrashError, TrashRequest};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::dice::Dice;
use super::land::Land;
use super::post::{Acknowledged, Post};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Trash,
    Restore,
    Purge,
    Hold,
    Release,
    Retry,
}

impl Wish {
    fn verb(self) -> &'static str {
        match self {
            Wish::Trash => "trash",
            Wish::Restore => "restore",
            Wish::Purge => "purge",
            Wish::Hold => "hold",
            Wish::Release => "release",
            Wish::Retry => "retry",
        }
    }

    /// What is asked in its place by a way that does not have it.
    fn by(self, way: Way) -> Wish {
        match (way, self) {
            (Way::Message, Wish::Hold) => Wish::Trash,
            (Way::Message, Wish::Release) => Wish::Restore,
            (Way::Message, Wish::Retry) => Wish::Purge,
            (Way::Library | Way::Http, Wish::Purge) => Wish::Restore,
            (_, wish) => wish,
        }
    }
}

/// By which way.
#[derive(Debug, Clone, Copy)]
enum Way {
    Library,
    Http,
    Message,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Library => "library",
            Way::Http => "HTTP",
            Way::Message => "message",
        }
    }
}

/// One wish for one resource.
struct Asked {
    wish: Wish,
    kind: &'static str,
    id: String,
    with: Vec<&'static str>,
    retention: Option<String>,
}

/// The longest that anybody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks until `end`. `apis` are the addresses of every process that has one.
pub async fn operate(land: Arc<Land>, name: String, apis: Vec<std::net::SocketAddr>, end: Instant) {
    let mut dice = Dice::of(land.settings.seed, &name);
    let mut post = Post::new(&land, &name);
    while Instant::now() < end {
        let mut asked = draw(&land, &mut dice);
        let way = *dice.weighted(&[(4, Way::Library), (3, Way::Http), (5, Way::Message)]);
        asked.wish = asked.wish.by(way);
        let outcome = match way {
            Way::Library => timeout(PATIENCE, by_library(&land, &asked)).await.unwrap_or("no answer"),
            Way::Http => timeout(PATIENCE, by_http(&land, *dice.pick(&apis), &asked)).await.unwrap_or("no answer"),
            Way::Message => post.send(&asked.message(), &mut dice).await,
        };
        land.tally.add(format!("asked: {} by {}: {outcome}", asked.wish.verb(), way.name()));
        sleep(dice.millis(5, 60)).await;
    }
}

/// Pauses and resumes until `end`, and leaves nothing paused.
pub async fn pause_and_resume(land: Arc<Land>, end: Instant) {
    let mut dice = Dice::of(land.settings.seed, "pauses");
    let scopes = [Scope::All, scope("kind", "dataset"), scope("store", "main")];
    while Instant::now() < end {
        sleep(dice.millis(1000, 6000)).await;
        let scope = dice.pick(&scopes).clone();
        if timeout(PATIENCE, land.app.trash.pause(&scope, &by())).await.is_ok_and(|done| done.is_ok()) {
            land.tally.add("asked: pause by library: done");
        }
        sleep(dice.millis(100, 2500)).await;
        // a resume that finds no database is made up for in the end
        if timeout(PATIENCE, land.app.trash.resume(&scope, &by())).await.is_ok_and(|done| done.is_ok()) {
            land.tally.add("asked: resume by library: done");
        }
    }
}

/// Resumes all that is paused. For when the faults are over.
pub async fn resume_all(land: &Land) {
    for pause in land.app.trash.pauses().await.expect("no fault is left") {
        land.app.trash.resume(&scope(&pause.scope, &pause.name), &by()).await.expect("no fault is left");
    }
}

fn scope(what: &str, name: &str) -> Scope {
    match what {
        "kind" => Scope::Kind(Kind::parse(name).expect("a kind")),
        "store" => Scope::Store(StoreName::parse(name).expect("a store")),
        _ => Scope::All,
    }
}

/// Ends every hold, and lets what is stuck go on. For when the faults are over.
pub async fn settle_all(land: &Land) {
    let held: Vec<(String, String)> =
        sqlx::query_as("select kind, resource_id from reprieve.holds").fetch_all(&land.pool).await.expect("reads");
    for (kind, id) in held {
        let resource = land.app.trash.resource(&kind, &id).expect("it was held");
        land.app.trash.release(&resource, &by()).await.expect("no fault is left");
    }
    let stuck: Vec<(String, String)> =
        sqlx::query_as("select kind, resource_id from reprieve.tombstones where state = 'stuck'")
            .fetch_all(&land.pool)
            .await
            .expect("reads");
    for (kind, id) in stuck {
        let resource = land.app.trash.resource(&kind, &id).expect("it was trashed");
        land.app.trash.retry(&resource, &by()).await.expect("it is stuck");
        land.tally.add("in the end: retried what was stuck");
    }
}

fn by() -> Provenance {
    Provenance::parse("operator", "test", Some("campaign".into())).expect("a name")
}

fn draw(land: &Land, dice: &mut Dice) -> Asked {
    let wish = *dice.weighted(&[
        (40, Wish::Trash),
        (16, Wish::Restore),
        (6, Wish::Purge),
        (5, Wish::Hold),
        (9, Wish::Release),
        (6, Wish::Retry),
    ]);
    let job = dice.chance(15);
    let (kind, id) = if job {
        ("job", dice.pick(&land.jobs).to_string())
    } else {
        ("dataset", dice.pick(&land.datasets).id.to_string())
    };
    let with = if job && wish == Wish::Trash && dice.chance(60) { vec!["dataset"] } else { Vec::new() };
    let retention = (wish == Wish::Trash && dice.chance(60)).then(|| format!("{}s", dice.between(1, 8)));
    // now and then nothing that could be right
    let (kind, id) = match dice.below(40) {
        0 => (kind, uuid::Uuid::new_v4().to_string()),
        1 => (kind, "no-uuid/../*".to_owned()),
        2 => ("spaceship", id),
        _ => (kind, id),
    };
    Asked { wish, kind, id, with, retention }
}

impl Asked {
    fn message(&self) -> Value {
        let mut message =
            json!({ "v": 1, "op": self.wish.verb(), "kind": self.kind, "id": self.id, "actor": "producer" });
        if self.wish == Wish::Trash {
            message["with"] = json!(self.with);
            if let Some(retention) = &self.retention {
                message["retention"] = json!(retention);
            }
        }
        message
    }
}

async fn by_library(land: &Land, asked: &Asked) -> &'static str {
    let bin = &land.app.trash;
    let resource = match bin.resource(asked.kind, &asked.id) {
        Ok(resource) => resource,
        Err(error) => return error.code(),
    };
    let done: Result<(), TrashError> = match asked.wish {
        Wish::Trash => {
            let request = TrashRequest {
                resource,
                with: bin.kinds(asked.with.iter().copied()).expect("kinds of the map"),
                retention: asked.retention.as_deref().map(|text| Retention::parse(text).expect("seconds")),
                by: by(),
            };
            let trashed = bin.trash(&request).await;
            trashed.map(|trashed| land.ledger.acknowledge(trashed.tombstone.id.0, Acknowledged::Trashed))
        }
        // a purge is asked for by message alone
        Wish::Restore | Wish::Purge => {
            let restored = bin.restore(&resource, IfChildrenLost::RestoreTheRest, &by()).await;
            restored.map(|restored| land.ledger.acknowledge(restored.tombstone.id.0, Acknowledged::Restored))
        }
        Wish::Hold => bin.hold(&resource, &by()).await.map(|_| ()),
        Wish::Release => bin.release(&resource, &by()).await.map(|_| ()),
        Wish::Retry => bin.retry(&resource, &by()).await.map(|_| ()),
    };
    done.map_or_else(|error| error.code(), |()| "done")
}

async fn by_http(land: &Land, to: std::net::SocketAddr, asked: &Asked) -> &'static str {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let verb = asked.wish.verb();
    let mut body = json!({ "actor": "operator" });
    match asked.wish {
        Wish::Trash => {
            body["dry_run"] = json!(false);
            body["with"] = json!(asked.with);
            body["retention"] = json!(asked.retention);
        }
        Wish::Retry => body["dry_run"] = json!(false),
        _ => {}
    }
    let body = body.to_string();
    let id: String = percent_encoding::utf8_percent_encode(&asked.id, percent_encoding::NON_ALPHANUMERIC).to_string();
    let request = format!(
        "POST /v1/resources/{}/{id}/{verb} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        asked.kind,
        body.len()
    );
    let Ok(mut stream) = tokio::net::TcpStream::connect(to).await else { return "not up" };
    let mut answer = Vec::new();
    if stream.write_all(request.as_bytes()).await.is_err() || stream.read_to_end(&mut answer).await.is_err() {
        return "cut off";
    }
    match answer.get(9..12) {
        Some(b"200") => {
            note(land, asked.wish, &answer);
            "done"
        }
        Some(b"400" | b"404" | b"422") => "not possible",
        Some(b"409") => "refused",
        Some(b"503" | b"500") => "database away",
        Some(_) => "another answer",
        None => "cut off",
    }
}

/// Writes down what a 200 says.
fn note(land: &Land, wish: Wish, answer: &[u8]) {
    let as_what = match wish {
        Wish::Trash => Acknowledged::Trashed,
        Wish::Restore | Wish::Purge => Acknowledged::Restored,
        Wish::Hold | Wish::Release | Wish::Retry => return,
    };
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(&[][..], |at| &answer[at + 4..]);
    // one that was cut in the middle says nothing
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return };
    let id = body["result"]["tombstone"]["tombstone_id"].as_str().and_then(|id| id.parse().ok());
    land.tally.must(id.is_some(), || format!("a 200 that names no tombstone: {body}"));
    id.into_iter().for_each(|id| land.ledger.acknowledge(id, as_what));
}
