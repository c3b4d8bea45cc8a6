//! The crash matrix: a process dies at every named point, is started again, and everything comes to the same end.
//!
//! Each visit has a dataset (or two) of its own: objects below two prefixes, five batches, rows in two tables, an unfinished upload below
//! each prefix. What the end must be is in [`Lane::is_purged`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Mutex;

use lapin::BasicProperties;
use serde_json::json;

use crate::lane::{Doomed, Lane, tester};
use crate::process::Service;
use crate::support::heimdall::Model;
use crate::support::wait_until;
use crate::world::PURGED;

/// Worlds at the same time; most of a visit is waiting for a lease.
const LANES: usize = 4;

/// What has to be going on for a process to come to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// A purge.
    Purge,
    /// A purge whose worker has died once.
    Again,
    /// A purge that deletes several batches at the same time.
    Wide,
    /// A purge from a store that does not list in the order of the keys.
    Unsorted,
    /// A purge of objects that are named one by one too, one of which the bystander names as well.
    Named,
    /// A purge of many slices.
    Slices,
    /// It is held when it comes due.
    Held,
    /// It is used when it comes due.
    InUse,
    /// Its row cannot be deleted, so that it fails and then is stuck.
    Refused,
    /// The claim panics.
    Panics,
    /// Its task was lost.
    Lost,
    /// Requests by message: a trash and a restore.
    Requests,
    /// By the command line.
    TrashCommand,
    RestoreCommand,
    RetryCommand,
}

use Scene::{
    Again, Held, InUse, Lost, Named, Panics, Purge, Refused, Requests, RestoreCommand, RetryCommand, Slices,
    TrashCommand, Unsorted, Wide,
};

/// Points, and how often a process passes them before it dies there.
const MATRIX: &[(Scene, &str, &[u32])] = &[
    (Purge, "relay.leased", &[0, 1]),
    (Purge, "relay.published", &[0, 1]),
    (Purge, "relay.marked_queued", &[0, 1]),
    (Purge, "relay.confirmed", &[0, 1]),
    (Purge, "worker.received", &[0]),
    (Slices, "worker.received", &[2]),
    (Purge, "claim.begun", &[0]),
    (Purge, "claim.locked", &[0]),
    (Purge, "claim.looked", &[0]),
    (Purge, "claim.uncommitted", &[0]),
    (Purge, "claim.committed", &[0]),
    (Held, "defer.uncommitted", &[0, 1]),
    (Held, "defer.committed", &[0, 1]),
    (InUse, "block.uncommitted", &[0, 1]),
    (InUse, "block.committed", &[0, 1]),
    (Again, "resume.uncommitted", &[0]),
    (Again, "resume.committed", &[0]),
    (Slices, "resume.committed", &[1]),
    (Purge, "empty.listed", &[0, 1]),
    (Purge, "empty.written", &[0, 2]),
    (Purge, "empty.answered", &[0, 2]),
    (Again, "empty.answered", &[0]),
    (Purge, "empty.counted", &[0, 2]),
    (Wide, "empty.listed", &[0, 1]),
    (Wide, "empty.written", &[0, 1]),
    (Wide, "empty.answered", &[0, 2]),
    (Wide, "empty.counted", &[0, 2]),
    (Unsorted, "careful.written", &[0, 1]),
    (Unsorted, "careful.answered", &[0, 1]),
    (Unsorted, "careful.counted", &[0, 1]),
    (Named, "keyed.uncommitted", &[0, 1]),
    (Named, "keyed.recorded", &[0, 1]),
    (Named, "keyed.asked", &[0, 1, 2]),
    (Named, "careful.written", &[0, 1]),
    (Named, "careful.answered", &[0, 1]),
    (Named, "careful.counted", &[0, 1]),
    (Named, "keyed.place_done", &[0]),
    (Named, "keyed.forgotten", &[0]),
    (Purge, "empty.location_done", &[0, 1]),
    (Purge, "empty.pass_done", &[0]),
    (Slices, "empty.begun_anew", &[0, 1]),
    (Purge, "uploads.aborted", &[0, 1]),
    (Purge, "uploads.counted", &[0, 1]),
    (Purge, "uploads.none_left", &[0]),
    (Purge, "verify.begun", &[0]),
    (Purge, "verify.location_empty", &[0, 1]),
    (Purge, "verify.done", &[0]),
    (Purge, "rows.uncommitted", &[0, 2]),
    (Purge, "rows.committed", &[0, 2]),
    (Purge, "rows.table_done", &[0]),
    (Purge, "rows.done", &[0]),
    (Purge, "finish.uncommitted", &[0]),
    (Purge, "finish.committed", &[0]),
    (Slices, "pass_on.uncommitted", &[0, 2]),
    (Slices, "pass_on.committed", &[0, 2]),
    (Refused, "pass_on.committed", &[0]),
    (Refused, "give_up.uncommitted", &[0]),
    (Refused, "give_up.committed", &[0]),
    (Panics, "set_back.uncommitted", &[0]),
    (Panics, "set_back.committed", &[0]),
    (Purge, "worker.unanswered", &[0]),
    (Slices, "worker.unanswered", &[2]),
    (Purge, "worker.answered", &[0]),
    (Lost, "sweeper.uncommitted", &[0]),
    (Lost, "sweeper.committed", &[0]),
    (Requests, "intake.received", &[0, 1]),
    (Requests, "intake.uncommitted", &[0, 1]),
    (Requests, "intake.committed", &[0, 1]),
    (Requests, "intake.answered", &[0, 1]),
    (TrashCommand, "trash.uncommitted", &[0]),
    (TrashCommand, "trash.committed", &[0]),
    (RestoreCommand, "restore.uncommitted", &[0]),
    (RestoreCommand, "restore.committed", &[0]),
    (RetryCommand, "retry.uncommitted", &[0]),
    (RetryCommand, "retry.committed", &[0]),
];

const TINY_SLICES: (&str, &str) = ("REPRIEVE__PURGE__SLICE", "1ms");
const WIDE: (&str, &str) = ("REPRIEVE__STORES__MAIN__CONCURRENCY", "4");
const TWO_ATTEMPTS: (&str, &str) = ("REPRIEVE__PURGE__MAX_ATTEMPTS", "2");

/// A process that passes `point` so often, and then dies there.
#[derive(Debug, Clone, Copy)]
struct Visit {
    scene: Scene,
    point: &'static str,
    passes: u32,
}

impl Visit {
    fn failpoints(&self) -> String {
        let Visit { point, passes, .. } = self;
        match self.scene {
            Panics => format!("claim.looked=1*panic;{point}=return"),
            _ if *passes == 0 => format!("{point}=return"),
            _ => format!("{point}={passes}*off->return"),
        }
    }

    fn env(&self) -> &'static [(&'static str, &'static str)] {
        match self.scene {
            Slices => &[TINY_SLICES],
            Wide => &[WIDE],
            Refused | RetryCommand => &[TWO_ATTEMPTS],
            _ => &[],
        }
    }

    async fn a_service_dies(&self, lane: &Lane) {
        lane.a_service_dies_at(self.point, &self.failpoints(), self.env()).await;
    }
}

#[tokio::test]
async fn whatever_step_a_process_dies_at_the_end_is_the_same() {
    let visits = MATRIX
        .iter()
        .flat_map(|(scene, point, all)| all.iter().map(|passes| Visit { scene: *scene, point, passes: *passes }));
    let visits: Mutex<VecDeque<Visit>> = Mutex::new(visits.collect());
    let lanes = (0..LANES).map(|_| async {
        let mut lane = Lane::new().await;
        let next = || visits.lock().expect("no panic").pop_front();
        while let Some(visit) = next() {
            let began = std::time::Instant::now();
            let mut after = play(&mut lane, visit).await;
            // told, not killed: the next visit finds no message that this one has not answered
            assert!(after.terminate(PURGED).await.success(), "{}", after.log());
            println!("{:?} {} after {} passes: {:?}", visit.scene, visit.point, visit.passes, began.elapsed());
        }
        let last = lane.serve(&[]);
        lane.is_quiet(last).await;
        lane.bystander_is_whole().await;
    });
    futures_util::future::join_all(lanes).await;
}

/// Lets a process die there, and looks at the end that it comes to. Gives back the service that brought it there.
async fn play(lane: &mut Lane, visit: Visit) -> Service {
    match visit.scene {
        Purge | Again | Wide | Unsorted | Named | Slices | Panics | Lost => purge(lane, visit).await,
        Held => held(lane, visit).await,
        InUse => in_use(lane, visit).await,
        Refused | RetryCommand => refused(lane, visit).await,
        Requests => requests(lane, visit).await,
        TrashCommand | RestoreCommand => commands(lane, visit).await,
    }
}

async fn purge(lane: &mut Lane, visit: Visit) -> Service {
    let doomed = match visit.scene {
        Unsorted => lane.unsorted().await,
        Named => lane.with_attachments().await,
        _ => lane.dataset().await,
    };
    lane.trash_due(doomed).await;
    match visit.scene {
        Lost => lane.run("delete from reprieve.outbox where topic = 'purge'").await,
        Again => lane.a_service_dies_at("empty.answered", "empty.answered=return", &[]).await,
        Slices if visit.point == "resume.committed" => {
            lane.a_service_dies_at("empty.answered", "empty.answered=return", visit.env()).await;
        }
        _ => {}
    }
    visit.a_service_dies(lane).await;
    let service = lane.serve(visit.env());
    lane.is_purged(doomed).await;
    assert_eq!(lane.attachments(doomed).await, i64::from(visit.scene == Named), "what the bystander names too");
    service
}

async fn held(lane: &mut Lane, visit: Visit) -> Service {
    let doomed = lane.dataset().await;
    lane.trash_due(doomed).await;
    lane.bin.hold(&lane.resource(doomed), &tester()).await.expect("in time");
    visit.a_service_dies(lane).await;
    lane.is_whole(doomed).await;
    let service = lane.serve(&[]);
    let says = |error: &Option<String>| error.as_ref().is_some_and(|error| error.contains("held by tester"));
    lane.world.until("it is held", doomed.id, |now| now.state == "trashed" && says(&now.last_error)).await;
    lane.bin.release(&lane.resource(doomed), &tester()).await.expect("it was held");
    lane.is_purged(doomed).await;
    service
}

async fn in_use(lane: &mut Lane, visit: Visit) -> Service {
    let doomed = lane.dataset().await;
    lane.trash_due(doomed).await;
    // named in json alone, which no guard sees
    let datasets = vec![lane.bystander.id, doomed.id];
    let model = Model { active: true, datasets, ..Model::named(&doomed.id.to_string()) };
    let model = model.insert(&lane.world.pool).await;
    visit.a_service_dies(lane).await;
    lane.is_whole(doomed).await;
    let service = lane.serve(&[]);
    lane.world.until_state(doomed.id, "blocked").await;
    lane.is_whole(doomed).await;
    lane.run(&format!("delete from heimdall.models where id = '{model}'")).await;
    lane.is_purged(doomed).await;
    lane.is_told_once(doomed, "blocked").await;
    service
}

async fn refused(lane: &mut Lane, visit: Visit) -> Service {
    let doomed = lane.dataset().await;
    let id = doomed.id;
    lane.run(&format!(
        "create table if not exists heimdall.shelves (dataset_id uuid);
         create index if not exists shelves_by_dataset on heimdall.shelves (dataset_id);
         create or replace function heimdall.keep_shelved() returns trigger language plpgsql as $$ begin
             if exists (select from heimdall.shelves where dataset_id = old.id) then raise 'it is on the shelves'; end if;
             return old;
         end $$;
         create or replace trigger keep_shelved before delete on heimdall.synthetic_datasets
             for each row execute function heimdall.keep_shelved();
         insert into heimdall.shelves values ('{id}')"
    ))
    .await;
    lane.trash_due(doomed).await;
    if visit.scene == Refused {
        visit.a_service_dies(lane).await;
    }
    let service = lane.serve(visit.env());
    let stuck = lane.world.until_state(id, "stuck").await;
    assert!(stuck.last_error.as_ref().is_some_and(|why| why.contains("shelves")), "{stuck:?}");
    lane.is_told_once(doomed, "stuck").await;
    lane.run(&format!("delete from heimdall.shelves where dataset_id = '{id}'")).await;
    let retry = ["retry", "dataset", &id.to_string(), "--execute"];
    if visit.scene == RetryCommand {
        lane.a_command_dies_at(visit.point, &retry).await;
    }
    if visit.point != "retry.committed" {
        lane.world.cli(&retry).await.with(0);
    }
    lane.is_purged(doomed).await;
    lane.is_told_once(doomed, "retried").await;
    service
}

/// The first request trashes one, the second restores another.
async fn requests(lane: &mut Lane, visit: Visit) -> Service {
    let (doomed, saved) = (lane.dataset().await, lane.dataset().await);
    lane.trash(saved, Some("1h")).await;
    let replies = lane.amqp.reply_queue().await;
    for (op, of) in [("trash", doomed), ("restore", saved)] {
        let request = json!({ "v": 1, "op": op, "kind": "dataset", "id": of.id.to_string(), "actor": "service" });
        let id = format!("{op} {}", of.id);
        let properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_correlation_id(op.into())
            .with_reply_to(replies.as_str().into());
        lane.amqp.publish("requests", request.to_string().as_bytes(), properties).await;
    }
    visit.a_service_dies(lane).await;
    let service = lane.serve(&[]);
    let mut answers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    wait_until("both are answered", PURGED, async || {
        while let Some(reply) = lane.amqp.try_take(&replies).await {
            let status = reply.json()["status"].as_str().expect("done").to_owned();
            answers.entry(reply.correlation_id.expect("given back")).or_default().insert(status);
        }
        answers.len() == 2
    })
    .await;
    // one that is answered twice is answered the same
    assert_eq!(answers["trash"], BTreeSet::from(["trashed".to_owned()]));
    assert_eq!(answers["restore"], BTreeSet::from(["restored".to_owned()]));
    lane.is_purged(doomed).await;
    lane.is_told_once(doomed, "trashed").await;
    is_restored(lane, saved).await;
    service
}

async fn commands(lane: &mut Lane, visit: Visit) -> Service {
    let of = lane.dataset().await;
    let id = of.id.to_string();
    let (args, event) = match visit.scene {
        TrashCommand => (vec!["trash", "dataset", &id, "--execute"], "trashed"),
        _ => (vec!["restore", "dataset", &id], "restored"),
    };
    if visit.scene == RestoreCommand {
        lane.trash(of, Some("1h")).await;
    }
    lane.a_command_dies_at(visit.point, &args).await;
    let done = i64::from(visit.point.ends_with(".committed"));
    let entries = format!("reprieve.audit where event = '{event}' and resource_id = '{id}'");
    assert_eq!(lane.count(&entries).await, done, "all of it or nothing");
    lane.world.cli(&args).await.with(0);
    assert_eq!(lane.count(&entries).await, 1, "once");
    let service = lane.serve(&[]);
    if visit.scene == TrashCommand {
        lane.is_purged(of).await;
        lane.is_told_once(of, "trashed").await;
    } else {
        is_restored(lane, of).await;
    }
    service
}

async fn is_restored(lane: &mut Lane, of: Doomed) {
    lane.world.until_state(of.id, "restored").await;
    lane.is_told_once(of, "restored").await;
    lane.is_whole(of).await;
}

#[test]
fn every_point_of_the_sources_is_visited_and_stands_in_one_place() {
    fn points(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("our own sources") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                points(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            // the module's own file only speaks of them
            if !path.ends_with("src/failpoint.rs") {
                let calls = text.split("failpoint::at(").skip(1);
                found.extend(calls.map(|call| {
                    let name = call.strip_prefix('"').and_then(|call| call.split_once('"'));
                    name.unwrap_or_else(|| panic!("no literal name in {}", path.display())).0.to_owned()
                }));
                assert!(!text.contains("fail_point!"), "{} goes around `failpoint::at`", path.display());
            }
        }
    }
    let mut found = Vec::new();
    points(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let once: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(once.len(), found.len(), "a name that stands in two places: {found:#?}");
    assert!(once.len() > 40, "only {} were found: does this test still read them?", once.len());
    let visited: BTreeSet<&str> = MATRIX.iter().map(|(_, point, _)| *point).collect();
    assert_eq!(once, visited, "left: in the sources, right: in the matrix");
}
