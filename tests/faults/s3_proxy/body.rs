//! Bodies of answers that do not have to end well.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// Between the first half and the cut, so that the half has left when the connection is closed.
const FLUSH: Duration = Duration::from_millis(20);

/// The connection is to be closed in the middle.
#[derive(Debug, thiserror::Error)]
#[error("connection cut")]
pub struct Cut;

/// Bytes, and what comes after them.
pub struct AnswerBody {
    chunks: VecDeque<Bytes>,
    /// What is waited for before the connection is cut; `None` for a body that ends well.
    cut: Option<BoxFuture<'static, ()>>,
}

impl AnswerBody {
    pub fn whole(bytes: Bytes) -> AnswerBody {
        AnswerBody { chunks: Some(bytes).filter(|bytes| !bytes.is_empty()).into_iter().collect(), cut: None }
    }

    /// The connection is cut soon after `bytes`.
    pub fn cut_after(bytes: Bytes) -> AnswerBody {
        AnswerBody::stalled_after(bytes, tokio::time::sleep(FLUSH).boxed())
    }

    /// Nothing comes after `bytes` until `released`, and then the connection is cut.
    pub fn stalled_after(bytes: Bytes, released: BoxFuture<'static, ()>) -> AnswerBody {
        AnswerBody { chunks: VecDeque::from([bytes]), cut: Some(released) }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(chunk) = self.chunks.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match &mut self.cut {
            Some(released) => {
                ready!(released.poll_unpin(cx));
                Poll::Ready(Some(Err(Cut)))
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && self.cut.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.cut {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum()),
        }
    }
}

/// Reads a body to its end.
pub async fn read(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.into())
}
