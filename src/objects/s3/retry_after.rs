//! A store that names a time is not asked again before it.
//!
//! Invariant: the SDK, which knows nothing of Retry-After and would come back within a second, does not try again when
//! an answer has one. The wait is up to whoever asked: it may be longer than a request may take.

use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};

use crate::objects::error::retry_after;

/// Leaves retries to the caller where the store names a time.
#[derive(Debug)]
pub(super) struct LeaveItToTheCaller;

impl ClassifyRetry for LeaveItToTheCaller {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().and_then(retry_after) {
            Some(_) => RetryAction::RetryForbidden,
            None => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "retry-after"
    }
}
