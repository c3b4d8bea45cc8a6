//! What happens to the connections between the program and a server: the same for broker and database.

use std::time::Duration;

use tokio::time::sleep;

use super::dice::Dice;
use crate::tcp_proxy::{Direction, End, TcpProxy};

/// One of these.
#[derive(Debug, Clone, Copy)]
pub enum Blow {
    /// All connections end now, in order or not.
    Cut,
    /// The connection ends that carries a certain byte, at most so many from now.
    CutWithin(usize),
    /// No byte moves for a while.
    Stall,
    /// Every buffer comes so many milliseconds late, at least and at most.
    Slow(u64, u64),
    /// Nobody gets in for a while, and all are thrown out.
    Refuse,
}

/// Whether it happened. A while is over, and all is as before, when it returns.
pub async fn strike(proxy: &TcpProxy, blow: Blow, dice: &mut Dice) -> bool {
    match blow {
        Blow::Cut => return proxy.cut(*dice.pick(&[End::Fin, End::Rst])) > 0,
        Blow::CutWithin(bytes) => {
            let direction = *dice.pick(&[Direction::ToServer, Direction::ToClient]);
            proxy.cut_after(direction, dice.below(bytes));
        }
        Blow::Stall => {
            proxy.stall();
            sleep(dice.millis(300, 4000)).await;
            proxy.resume();
        }
        Blow::Slow(least, most) => {
            proxy.slow(dice.millis(least, most));
            sleep(dice.millis(500, 2000)).await;
            proxy.slow(Duration::ZERO);
        }
        Blow::Refuse => {
            proxy.refuse(true);
            proxy.cut(End::Rst);
            sleep(dice.millis(200, 2000)).await;
            proxy.refuse(false);
        }
    }
    true
}
