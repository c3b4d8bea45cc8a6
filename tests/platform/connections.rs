//! The database's connections, whatever becomes of those who use them.

use std::pin::pin;
use std::time::Duration;

use futures_util::poll;

use crate::bench::{Bench, HEIMDALL};
use crate::support::{SOON, wait_until};

/// Long enough for the database's answer to have come, however busy the machine is.
const AN_ANSWER: Duration = Duration::from_millis(50);

const IN_A_TRANSACTION: &str = "pg_stat_activity where datname = current_database() and application_name = 'reprieve'
    and state like 'idle in transaction%'";

async fn begins_within(bench: &Bench, steps: u32) -> bool {
    let mut begin = pin!(bench.store.begin());
    for _ in 0..steps {
        if poll!(&mut begin).is_ready() {
            return true;
        }
        tokio::time::sleep(AN_ANSWER).await;
    }
    false
}

#[tokio::test]
async fn whoever_is_cut_off_while_a_transaction_begins_leaves_none_behind() {
    let bench = Bench::with(HEIMDALL, "", |config| config.database.max_connections = 2).await;
    let mut ends = 0;
    for steps in 1.. {
        bench.store.ping().await.expect("there is a connection");
        if begins_within(&bench, steps).await {
            break;
        }
        ends += 1;
        wait_until("no session is in a transaction", SOON, async || bench.count(IN_A_TRANSACTION).await == 0).await;
    }
    assert!(ends > 1, "cut off at {ends} places: before the statement is sent, and before it is answered");
}
