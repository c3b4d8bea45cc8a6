//! Asks the caller's permit right before a request leaves, for each attempt that the SDK makes of it.
//!
//! Invariant: an attempt that the permit does not cover never reaches the transport. What stays open are the instants
//! between the answer and the write to the socket, a connection that has to be made first among them.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};

use crate::objects::{PERMIT_OVER, Permit};

/// Stands between the SDK's retries and the transport, for one request.
#[derive(Debug, Clone)]
pub(super) struct Permitted {
    permit: Permit,
    refused: Arc<AtomicBool>,
}

impl Permitted {
    pub(super) fn by(permit: &Permit) -> Self {
        Self { permit: permit.clone(), refused: Arc::default() }
    }

    /// Whether an attempt was refused. Earlier attempts may have left, and their answers be lost.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Intercept for Permitted {
    fn name(&self) -> &'static str {
        "Permitted"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.permit.holds() {
            return Ok(());
        }
        self.refused.store(true, Ordering::Relaxed);
        Err(PERMIT_OVER.into())
    }
}
