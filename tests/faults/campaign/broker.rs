//! What happens to the broker, to the connections to it and to the messages in it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::dice::Dice;
use super::land::Land;
use super::line;
use super::listener::Listener;
use crate::mischief::{Mischief, Victim};
use crate::support::rabbitmq::RabbitMq;
use crate::tcp_proxy::{End, TcpProxy};

/// The broker of a campaign, and what stands between it and the program.
pub struct Broker {
    pub land: Arc<Land>,
    pub server: RabbitMq,
    pub proxy: TcpProxy,
    pub listener: Listener,
    pub mischief: Option<Mischief>,
}

#[derive(Debug, Clone, Copy)]
enum Blow {
    Line(line::Blow),
    CrashChannels,
    CloseConnections,
    NoMemory,
    Freeze,
    Kill,
    Restart,
    Wipe,
    Drop,
    Duplicate,
    Reorder,
    Delay,
    Release,
    Hurry,
    Forge,
    ForgeHuge,
}

const BLOWS: [(u32, Blow); 20] = [
    (4, Blow::Line(line::Blow::Cut)),
    (6, Blow::Line(line::Blow::CutWithin(20_000))),
    (2, Blow::Line(line::Blow::Stall)),
    (2, Blow::Line(line::Blow::Slow(5, 60))),
    (2, Blow::Line(line::Blow::Refuse)),
    (3, Blow::CrashChannels),
    (2, Blow::CloseConnections),
    (1, Blow::NoMemory),
    (1, Blow::Freeze),
    (2, Blow::Kill),
    (1, Blow::Restart),
    (1, Blow::Wipe),
    (6, Blow::Drop),
    (6, Blow::Duplicate),
    (4, Blow::Reorder),
    (5, Blow::Delay),
    (5, Blow::Release),
    (8, Blow::Hurry),
    (8, Blow::Forge),
    (1, Blow::ForgeHuge),
];

impl Broker {
    /// Blows until `end`, and leaves everything running and every message that it kept given back.
    pub async fn weather(mut self, end: Instant) -> Broker {
        let mut dice = Dice::of(self.land.settings.seed, "broker");
        while Instant::now() < end {
            sleep(dice.millis(200, 2500)).await;
            let blow = *dice.weighted(&BLOWS);
            if self.strike(blow, &mut dice).await {
                self.land.tally.add(format!("fault: broker: {blow:?}"));
            }
        }
        self.proxy.forget();
        if let Some(mischief) = &mut self.mischief {
            // without a connection, the broker has taken back what it kept
            let _ = mischief.release(dice.rng()).await;
        }
        for (what, count) in self.proxy.counts() {
            self.land.tally.add_many(format!("broker's proxy: {what}"), count);
        }
        self
    }

    /// Whether it happened.
    async fn strike(&mut self, blow: Blow, dice: &mut Dice) -> bool {
        match blow {
            Blow::Line(blow) => line::strike(&self.proxy, blow, dice).await,
            Blow::CrashChannels | Blow::CloseConnections | Blow::NoMemory if !self.server.is_reachable() => false,
            Blow::CrashChannels => self.server.crash_channels() > 0,
            Blow::CloseConnections => self.server.close_connections() > 0,
            Blow::NoMemory => {
                self.server.lacks_memory();
                sleep(dice.millis(300, 2500)).await;
                self.server.has_memory();
                true
            }
            Blow::Freeze => {
                self.server.freeze();
                sleep(dice.millis(300, 3000)).await;
                self.server.thaw();
                true
            }
            Blow::Kill => {
                self.server.kill9();
                self.server.start_again().await;
                true
            }
            Blow::Restart => {
                self.server.stop();
                self.server.start_again().await;
                true
            }
            Blow::Wipe => {
                self.wipe().await;
                true
            }
            _ => timeout(Duration::from_secs(10), self.tamper(blow, dice)).await.unwrap_or_else(|_| {
                self.mischief = None;
                false
            }),
        }
    }

    /// Loses every queue and message. Nobody publishes meanwhile, and the listener has heard what there was to hear.
    async fn wipe(&mut self) {
        self.proxy.refuse(true);
        self.proxy.cut(End::Rst);
        self.listener.catch_up().await;
        self.server.wipe().await;
        // what was confirmed until now may be lost
        self.land.ledger.wipes.fetch_add(1, Ordering::SeqCst);
        self.listener.declare().await;
        self.proxy.refuse(false);
        self.on_disk().await;
    }

    /// Waits until the queues would survive a crash.
    pub async fn on_disk(&self) {
        for queue in ["requests", "purge", "dead"] {
            self.server.queue_on_disk(&format!("{}.{queue}", self.land.world.namespace)).await;
        }
    }

    async fn tamper(&mut self, blow: Blow, dice: &mut Dice) -> bool {
        if self.mischief.is_none() {
            self.mischief = Mischief::connect(&self.land.broker_url, &self.land.world.namespace).await.ok();
        }
        let open = if matches!(blow, Blow::Hurry) { self.open().await } else { Vec::new() };
        let Some(mischief) = &mut self.mischief else { return false };
        let (most, victim) = (u16::try_from(dice.between(1, 5)).expect("small"), *dice.pick(&Victim::ALL));
        let rng = dice.rng();
        let done = match blow {
            Blow::Drop => mischief.drop_tasks(rng, most).await,
            Blow::Duplicate => mischief.duplicate(rng, victim, most).await,
            Blow::Reorder => mischief.reorder(rng, victim, most).await,
            Blow::Delay => mischief.delay(rng, victim, most).await,
            Blow::Release => mischief.release(rng).await,
            Blow::Hurry => mischief.hurry(&open).await,
            Blow::ForgeHuge => mischief.forge_as(rng, victim, crate::mischief::Forgery::Huge).await.map(|_| 1),
            _ => mischief.forge(rng, victim).await.map(|_| 1),
        };
        // the broker was killed, or has closed the channel
        let Ok(messages) = done else {
            self.mischief = None;
            return false;
        };
        self.land.tally.add_many(format!("messages: {blow:?}"), u64::try_from(messages).expect("a count"));
        messages > 0
    }

    /// Some tombstones whose time has not come, or that somebody works on already. None, if the database does not say.
    async fn open(&self) -> Vec<Uuid> {
        let some = "select id from reprieve.tombstones where state in ('trashed', 'blocked', 'purging')
                    order by purge_after desc limit 8";
        sqlx::query_scalar(some).fetch_all(&self.land.pool).await.unwrap_or_default()
    }
}
