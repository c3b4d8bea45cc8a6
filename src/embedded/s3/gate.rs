//! A gate that holds requests until a test lets them pass.
//!
//! Invariant: a request that has arrived is counted before it waits, so after [`Gate::arrived`] returns, it is known
//! to be inside the store and not on its way: a test can kill the client at that very point, without a sleep.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

/// A gate, closed at first; clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate {
    /// One permit is one passage; a closed semaphore is an open gate.
    passages: Arc<Semaphore>,
    arrivals: Arc<watch::Sender<usize>>,
}

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self { passages: Arc::new(Semaphore::new(0)), arrivals: Arc::new(watch::Sender::new(0)) }
    }

    /// Returns when `requests` have come to the gate since it was made, whether or not they have passed.
    pub async fn arrived(&self, requests: usize) {
        let mut arrivals = self.arrivals.subscribe();
        arrivals.wait_for(|seen| *seen >= requests).await.expect("self holds the sender");
    }

    /// Lets so many requests pass, those that wait first.
    pub fn let_pass(&self, requests: usize) {
        self.passages.add_permits(requests);
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.passages.close();
    }

    pub(super) async fn pass(&self) {
        self.arrivals.send_modify(|seen| *seen += 1);
        if let Ok(permit) = self.passages.acquire().await {
            permit.forget();
        }
    }
}
