//! What happens to the object store and to what it answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tokio::time::sleep;

use super::dice::Dice;
use super::land::Land;
use crate::s3_proxy::{S3Proxy, Weather};
use crate::support::seaweedfs::SeaweedFs;

/// The store of a campaign, and what stands between it and the program.
pub struct Objects {
    pub land: Arc<Land>,
    pub server: SeaweedFs,
    pub proxy: S3Proxy,
}

impl Objects {
    /// Blows until `end`, and leaves everything running.
    pub async fn weather(mut self, end: Instant) -> Objects {
        let mut dice = Dice::of(self.land.settings.seed, "objects");
        while Instant::now() < end {
            let seed = dice.between(0, u64::MAX);
            let weather = self.draw(&mut dice);
            self.proxy.storm(seed, weather);
            sleep(dice.millis(1000, 6000)).await;
            self.proxy.calm();
            if dice.chance(15) {
                self.land.tally.add("fault: store: kill -9");
                self.server.kill9();
                self.server.start_again().await;
            }
            sleep(dice.millis(0, 1500)).await;
        }
        for (what, count) in self.proxy.counts() {
            self.land.tally.add_many(format!("fault: store: {what}"), count);
        }
        self.land.tally.add_many("store: requests", self.proxy.requests().values().sum());
        self
    }

    fn draw(&self, dice: &mut Dice) -> Weather {
        let passing = Weather::passing();
        match dice.below(6) {
            0 => Weather { throttling: 300, ..passing },
            1 => Weather { errors: 200, cuts: 150, ..passing },
            2 => Weather { keys: 600, ..passing },
            3 => Weather { denied_keys: 20, forbidden: 5, ..passing },
            4 if self.shows_the_past() => Weather { stale: 100, cut_short: 60, ..passing },
            _ => passing,
        }
    }

    /// Whether listings may show the past and be cut short. Then a key can be seen, and counted, twice, so it is for the
    /// odd seeds, and the even ones insist on exact counts.
    fn shows_the_past(&self) -> bool {
        self.land.settings.seed % 2 == 1
    }

    /// Whether every receipt must say exactly what was put.
    pub fn counts_are_exact(&self) -> bool {
        !self.shows_the_past()
    }

    /// When the store first said of a key that it is gone.
    pub fn first_deleted(&self) -> BTreeMap<String, SystemTime> {
        self.proxy.first_deleted().into_iter().map(|((_, key), at)| (key, at)).collect()
    }
}
