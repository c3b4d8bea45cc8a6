//! A TCP proxy in front of a server, for faults of the network: connections that are cut, in the middle of an answer
//! too, that stand still, that are slow, or that are refused.
//!
//! Invariant: it changes no byte and no order. It holds at most one buffer for each direction of a connection, and
//! runs on a thread of its own, so that a test that blocks does not slow the network down. Every fault that took
//! place is counted when it takes place, and not when it is asked for.
#![allow(dead_code, reason = "the campaign and the tests of single faults each use their own part")]

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Held for each direction of a connection.
const BUFFER: usize = 16 * 1024;

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, as if the other side had closed.
    Fin,
    /// Reset: what was under way is lost.
    Rst,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What is lost when a connection is cut at a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The server never gets it.
    Request,
    /// The server has carried it out, and nobody is told.
    Answer,
}

/// What happened, by name: `connections`, `refused`, `cut` (connections, by [`TcpProxy::cut`]), `cut in the middle`,
/// `request lost`, `answer lost`, `stalled` (connections that had bytes to move, or were opened, while it stood
/// still), `stranded` (directions of connections that had bytes to move when they had been forgotten), `slowed`
/// (buffers).
pub type Counts = BTreeMap<&'static str, u64>;

#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    stalled: bool,
    refusing: bool,
    delay: Duration,
}

#[derive(Debug)]
enum Trap {
    Bytes { direction: Direction, left: usize },
    Request { pattern: Vec<u8>, lost: Lost, skip: usize },
}

struct Shared {
    upstream: SocketAddr,
    mode: watch::Sender<Mode>,
    /// How many times everything was cut, and how.
    cuts: watch::Sender<(u64, End)>,
    over: watch::Sender<bool>,
    traps: Mutex<Vec<Trap>>,
    counts: Mutex<Counts>,
    open: watch::Sender<usize>,
    /// The connections up to this number do not move any more.
    stranded: watch::Sender<u64>,
}

/// A running proxy. Dropping it cuts everything.
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl TcpProxy {
    /// Listens on a free port of 127.0.0.1 for `upstream`.
    pub fn start(upstream: SocketAddr) -> TcpProxy {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        listener.set_nonblocking(true).expect("a socket of our own");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream,
            mode: watch::Sender::new(Mode::default()),
            cuts: watch::Sender::new((0, End::Fin)),
            over: watch::Sender::new(false),
            traps: Mutex::default(),
            counts: Mutex::default(),
            open: watch::Sender::new(0),
            stranded: watch::Sender::new(0),
        });
        let serving = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        std::thread::spawn(move || runtime.block_on(serving.serve(listener)));
        TcpProxy { address, shared }
    }

    /// In front of the server of a URL with a host and a port; the URL that leads through it.
    pub fn before(url: &str) -> (TcpProxy, String) {
        let rest = url.split_once("://").expect("a URL").1;
        let authority = rest.split(['/', '?']).next().expect("not empty");
        let host = authority.rsplit('@').next().expect("not empty");
        let proxy = TcpProxy::start(host.parse().expect("an address and a port"));
        let through = url.replacen(host, &proxy.address.to_string(), 1);
        (proxy, through)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections now; new ones are taken. How many there were.
    pub fn cut(&self, end: End) -> usize {
        let open = *self.shared.open.borrow();
        self.shared.cuts.send_modify(|cuts| *cuts = (cuts.0 + 1, end));
        open
    }

    /// Resets the connection that carries the `bytes`-th byte from now on in this direction, all connections taken
    /// together, before that byte is passed on. Once.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        lock(&self.shared.traps).push(Trap::Bytes { direction, left: bytes });
    }

    /// Resets the connection on which the client sends `pattern` the next time but `skip`. Once. The request or its
    /// answer is lost.
    pub fn cut_at(&self, pattern: &str, lost: Lost, skip: usize) {
        lock(&self.shared.traps).push(Trap::Request { pattern: pattern.into(), lost, skip });
    }

    /// Forgets what was to be cut and has not been yet; how many of those.
    pub fn forget(&self) -> usize {
        std::mem::take(&mut *lock(&self.shared.traps)).len()
    }

    /// A black hole: connections stay open, new ones are accepted, and no byte moves until [`Self::resume`].
    pub fn stall(&self) {
        self.shared.mode.send_modify(|mode| mode.stalled = true);
    }

    /// Lets everything move that was held.
    pub fn resume(&self) {
        self.shared.mode.send_modify(|mode| mode.stalled = false);
    }

    /// Forgets the connections that there are, as a firewall does: they stay open, and no byte moves on them any more.
    /// New ones work. How many there were.
    pub fn strand(&self) -> usize {
        self.shared.stranded.send_replace(self.count("connections"));
        self.open()
    }

    /// Lets every buffer wait so long before it is passed on; zero is the end of it.
    pub fn slow(&self, delay: Duration) {
        self.shared.mode.send_modify(|mode| mode.delay = delay);
    }

    /// Resets new connections at once; the others stay.
    pub fn refuse(&self, refusing: bool) {
        self.shared.mode.send_modify(|mode| mode.refusing = refusing);
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        lock(&self.shared.counts).clone()
    }

    /// How often this has happened so far.
    pub fn count(&self, what: &str) -> u64 {
        lock(&self.shared.counts).get(what).copied().unwrap_or(0)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.shared.over.send_replace(true);
    }
}

/// What both directions of a connection know.
struct Line {
    /// Counted from 1.
    number: u64,
    /// The next answer does not arrive.
    losing: watch::Sender<bool>,
}

/// Why a connection ends before its two sides do.
enum Cut {
    Reset,
    Closed,
}

impl From<io::Error> for Cut {
    fn from(_: io::Error) -> Cut {
        Cut::Reset
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, listener: std::net::TcpListener) {
        let listener = TcpListener::from_std(listener).expect("a socket of our own");
        let mut over = self.over.subscribe();
        loop {
            let accepted = tokio::select! {
                _ = over.wait_for(|over| *over) => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((client, _)) = accepted else { continue };
            if self.mode.borrow().refusing {
                self.count("refused");
                let _ = client.set_zero_linger();
                continue;
            }
            let number = self.count("connections");
            let (shared, cuts) = (Arc::clone(&self), self.cuts.subscribe());
            tokio::spawn(async move {
                shared.open.send_modify(|open| *open += 1);
                shared.carry(client, number, cuts).await;
                shared.open.send_modify(|open| *open -= 1);
            });
        }
    }

    async fn carry(&self, mut client: TcpStream, number: u64, mut cuts: watch::Receiver<(u64, End)>) {
        cuts.borrow_and_update();
        let connect = async {
            self.moving(number).await;
            TcpStream::connect(self.upstream).await
        };
        let connected = tokio::select! {
            connected = connect => connected,
            _ = cuts.changed() => {
                self.count("cut");
                return;
            }
        };
        let Ok(mut server) = connected else {
            let _ = client.set_zero_linger();
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ended = {
            let line = Line { number, losing: watch::Sender::new(false) };
            let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
            let up = self.pump(from_client, to_server, Direction::ToServer, &line);
            let down = self.pump(from_server, to_client, Direction::ToClient, &line);
            tokio::select! {
                ended = async { tokio::try_join!(up, down) } => ended.err(),
                changed = cuts.changed() => {
                    self.count("cut");
                    let is_reset = changed.is_err() || cuts.borrow().1 == End::Rst;
                    Some(if is_reset { Cut::Reset } else { Cut::Closed })
                }
            }
        };
        if matches!(ended, Some(Cut::Reset)) {
            let _ = (client.set_zero_linger(), server.set_zero_linger());
        }
    }

    /// Passes on what comes until the sender closes.
    async fn pump(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        direction: Direction,
        line: &Line,
    ) -> Result<(), Cut> {
        let mut buffer = vec![0; BUFFER];
        // the end of the buffer before, for a pattern that lies across the two
        let mut before = Vec::new();
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                to.shutdown().await?;
                return Ok(());
            }
            let bytes = &buffer[..read];
            self.let_pass(line.number).await;
            if direction == Direction::ToClient && *line.losing.borrow() {
                self.count("answer lost");
                return Err(Cut::Reset);
            }
            if let Some(passed) = self.cut_in(direction, read) {
                to.write_all(&bytes[..passed]).await?;
                self.count("cut in the middle");
                return Err(Cut::Reset);
            }
            if direction == Direction::ToServer {
                match self.loses(&before, bytes) {
                    Some(Lost::Request) => {
                        self.count("request lost");
                        return Err(Cut::Reset);
                    }
                    Some(Lost::Answer) => {
                        line.losing.send_replace(true);
                    }
                    None => {}
                }
                before = bytes[read.saturating_sub(LONGEST_PATTERN)..].to_vec();
            }
            to.write_all(bytes).await?;
        }
    }

    /// Waits as long as nothing may move, and then for the delay.
    async fn let_pass(&self, number: u64) {
        self.moving(number).await;
        let delay = self.mode.borrow().delay;
        if !delay.is_zero() {
            self.count("slowed");
            tokio::time::sleep(delay).await;
        }
    }

    async fn moving(&self, number: u64) {
        if *self.stranded.borrow() >= number {
            self.count("stranded");
            std::future::pending::<()>().await;
        }
        if self.mode.borrow().stalled {
            self.count("stalled");
            let mut mode = self.mode.subscribe();
            // the sender is our own
            let _ = mode.wait_for(|mode| !mode.stalled).await;
        }
    }

    /// How many of these bytes still pass, if the connection is to be cut among them.
    fn cut_in(&self, direction: Direction, bytes: usize) -> Option<usize> {
        let mut traps = lock(&self.traps);
        let mut sprung = None;
        traps.retain_mut(|trap| match trap {
            Trap::Bytes { direction: of, left } if *of == direction => {
                if *left > bytes || sprung.is_some() {
                    *left = left.saturating_sub(bytes).max(1);
                    return true;
                }
                sprung = Some(left.saturating_sub(1));
                false
            }
            _ => true,
        });
        sprung
    }

    /// What is to be lost, if these bytes bring a request that somebody waits for.
    fn loses(&self, before: &[u8], bytes: &[u8]) -> Option<Lost> {
        let mut traps = lock(&self.traps);
        let mut sprung = None;
        traps.retain_mut(|trap| match trap {
            Trap::Request { pattern, lost, skip } if sprung.is_none() => {
                let tail = &before[before.len().saturating_sub(pattern.len() - 1)..];
                let text = [tail, bytes].concat();
                if !text.windows(pattern.len()).any(|window| window == pattern) {
                    return true;
                }
                if *skip > 0 {
                    *skip -= 1;
                    return true;
                }
                sprung = Some(*lost);
                false
            }
            _ => true,
        });
        sprung
    }

    fn count(&self, what: &'static str) -> u64 {
        let mut counts = lock(&self.counts);
        let count = counts.entry(what).or_default();
        *count += 1;
        *count
    }
}

/// Of what is looked for in requests.
const LONGEST_PATTERN: usize = 64;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while it is held")
}
