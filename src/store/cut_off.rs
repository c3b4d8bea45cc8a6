//! Whether a `begin` of this process was ever cut off while nobody knew whether it had reached the server.
//!
//! Invariant: it is noted before the connection can go back to the pool. Which connection it was cannot be told, so from
//! the first on every one is asked when it is given back.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;

/// Shared by whoever begins and by the pool.
#[derive(Debug, Clone, Default)]
pub(super) struct CutOff {
    happened: Arc<AtomicBool>,
}

/// A `begin` under way.
pub(super) struct Watched<'a, T> {
    happened: Option<Arc<AtomicBool>>,
    begin: BoxFuture<'a, Result<T, sqlx::Error>>,
}

impl CutOff {
    pub(super) fn has_happened(&self) -> bool {
        self.happened.load(Ordering::SeqCst)
    }

    /// The same future, which notes when it is cut off.
    pub(super) fn watch<'a, T>(
        &self,
        begin: impl Future<Output = Result<T, sqlx::Error>> + Send + 'a,
    ) -> Watched<'a, T> {
        Watched { happened: Some(self.happened.clone()), begin: Box::pin(begin) }
    }
}

impl<T> Future for Watched<'_, T> {
    type Output = Result<T, sqlx::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = std::task::ready!(self.begin.as_mut().poll(context));
        // answered, one way or the other: a failed one has begun nothing
        self.happened = None;
        Poll::Ready(done)
    }
}

impl<T> Drop for Watched<'_, T> {
    fn drop(&mut self) {
        // runs before the fields are dropped, and with them the connection
        if let Some(happened) = self.happened.take() {
            happened.store(true, Ordering::SeqCst);
        }
    }
}
