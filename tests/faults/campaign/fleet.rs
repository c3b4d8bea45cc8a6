//! The processes of Reprieve: several of the real binary, each killed, ended, stopped and started again at any moment.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reprieve::embedded::keeper::free_port;
use tokio::time::sleep;

use super::dice::Dice;
use super::land::Land;
use crate::process::Service;

/// What each process of the fleet does. At least two of every role.
const ROLES: [&str; 4] =
    ["api,intake,relay,sweeper,worker", "api,intake,relay,sweeper,worker", "worker,relay", "worker,sweeper,intake"];

/// SIGTERM to exit, whatever is down meanwhile: above `service.shutdown_deadline`.
const ORDERLY: Duration = Duration::from_secs(60);

/// The processes.
pub struct Fleet {
    land: Arc<Land>,
    ships: Vec<Ship>,
}

struct Ship {
    roles: &'static str,
    api: SocketAddr,
    service: Option<Service>,
}

/// What can happen to a process.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    Terminate,
    Stop,
    /// Dies at a named instant, some time after it is started.
    FailPoint,
}

impl Fleet {
    pub fn new(land: &Arc<Land>) -> Fleet {
        let ship = |roles| {
            let port = free_port().expect("a port is free");
            Ship { roles, api: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), service: None }
        };
        let mut fleet = Fleet { land: Arc::clone(land), ships: ROLES.map(ship).into() };
        (0..fleet.ships.len()).for_each(|at| fleet.launch(at, None));
        fleet
    }

    /// Where HTTP is answered.
    pub fn apis(&self) -> Vec<SocketAddr> {
        self.ships.iter().filter(|ship| ship.roles.contains("api")).map(|ship| ship.api).collect()
    }

    fn launch(&mut self, at: usize, fail_point: Option<&str>) {
        let ship = &mut self.ships[at];
        let api = ship.api.to_string();
        let mut env = vec![("REPRIEVE__API__LISTEN", api.as_str())];
        env.extend(fail_point.map(|what| ("FAILPOINTS", what)));
        ship.service = Some(self.land.world.serve_with(&["--roles", ship.roles], &env));
    }

    /// Blows until `end`, then every process runs undisturbed.
    pub async fn weather(mut self, end: Instant) -> Fleet {
        let mut dice = Dice::of(self.land.settings.seed, "fleet");
        let points = fail_points();
        while Instant::now() < end {
            sleep(dice.millis(200, 2000)).await;
            self.replace_the_dead();
            let at = dice.below(self.ships.len());
            let blow = *dice.weighted(&[(4, Blow::Kill), (2, Blow::Terminate), (2, Blow::Stop), (6, Blow::FailPoint)]);
            self.strike(at, blow, &points, &mut dice).await;
        }
        for at in 0..self.ships.len() {
            self.kill(at);
            self.launch(at, None);
        }
        self
    }

    async fn strike(&mut self, at: usize, blow: Blow, points: &[String], dice: &mut Dice) {
        let tally = &self.land.tally;
        match blow {
            Blow::Kill => {
                tally.add("fault: kill -9 of a process");
                self.kill(at);
                sleep(dice.millis(0, 1500)).await;
                self.launch(at, None);
            }
            Blow::Terminate => {
                let service = self.ships[at].service.as_mut().expect("launched");
                if service.has_ended() {
                    return self.replace_the_dead();
                }
                // one that is told to end while it still starts ends, as it would by any signal
                let starts = !service.log().contains("\"serving\"");
                let ended = service.terminate(ORDERLY).await;
                // or it has met its fail point on the way
                let in_order = ended.success() || starts || self.died_as_told(at);
                let tally = &self.land.tally;
                tally.add("fault: SIGTERM of a process");
                tally.must(in_order, || format!("SIGTERM ended a process with {ended}"));
                tally.must(!self.panicked(at), || "a process panicked".into());
                self.launch(at, None);
            }
            Blow::Stop => {
                tally.add("fault: process stopped and continued");
                let service = self.ships[at].service.as_ref().expect("it runs");
                service.signal("STOP");
                // the lease is 2 s
                sleep(dice.millis(300, 5000)).await;
                service.signal("CONT");
            }
            Blow::FailPoint => {
                let point = dice.pick(points);
                let set = format!("{point}={}*off->return", dice.below(4));
                self.kill(at);
                self.launch(at, Some(&set));
            }
        }
    }

    /// Starts those again that have met a fail point.
    fn replace_the_dead(&mut self) {
        for at in 0..self.ships.len() {
            if self.ships[at].service.as_mut().is_some_and(Service::has_ended) {
                self.land.tally.add("fault: process died at a fail point");
                self.land
                    .tally
                    .must(self.died_as_told(at), || format!("a process ended by itself:\n{}", self.last_words(at)));
                self.land.tally.must(!self.panicked(at), || "a process panicked".into());
                self.launch(at, None);
            }
        }
    }

    fn kill(&mut self, at: usize) {
        self.land.tally.must(!self.panicked(at), || "a process panicked".into());
        if let Some(mut service) = self.ships[at].service.take() {
            service.kill9();
        }
    }

    /// Whether its fail point was what ended it.
    fn died_as_told(&self, at: usize) -> bool {
        self.ships[at].service.as_ref().is_some_and(|service| service.log().contains(": the process dies here"))
    }

    fn last_words(&self, at: usize) -> String {
        const LINES: usize = 5;
        let log = self.ships[at].service.as_ref().map(Service::log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// Whether the log of a process tells of a panic. A panic is a bug whatever the faults were.
    fn panicked(&self, at: usize) -> bool {
        self.ships[at].service.as_ref().is_some_and(|service| service.log().contains("panicked at"))
    }

    /// Ends every process in good order.
    pub async fn moor(mut self) {
        for at in 0..self.ships.len() {
            self.land.tally.must(!self.panicked(at), || "a process panicked".into());
            let service = self.ships[at].service.as_mut().expect("launched by the end of the weather");
            self.land.tally.must(!service.has_ended(), || "a process has ended by itself".into());
            let ended = service.terminate(ORDERLY).await;
            self.land.tally.must(ended.success(), || format!("SIGTERM ended a process with {ended}"));
        }
    }
}

/// The names of all fail points, from the source.
fn fail_points() -> Vec<String> {
    let mut points = Vec::new();
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the source is here").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                let calls = text.split("failpoint::at(\"").skip(1);
                points.extend(calls.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    points.sort();
    points.dedup();
    assert!(!points.is_empty(), "the source has no fail points");
    points
}
