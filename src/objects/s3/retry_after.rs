//! A store that names a time, or asks for fewer deletes, is not asked again by the SDK.
//!
//! Invariant: the SDK, which knows nothing of Retry-After and would come back within a second, does not try again when an
//! answer has one: the wait is up to whoever asked, and may be longer than a request may take. Nor does it repeat a
//! delete that was refused for the rate: the gate that paces deletes has to hear of each refusal.

use aws_sdk_s3::config::interceptors::InterceptorContext;
use aws_sdk_s3::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::{delete_object::DeleteObjectError, delete_objects::DeleteObjectsError};

use crate::objects::error::{is_too_fast, retry_after};

/// Leaves retries to the caller where the store names a time, or where deletes come too fast for it.
#[derive(Debug)]
pub(super) struct LeaveItToTheCaller;

impl ClassifyRetry for LeaveItToTheCaller {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let names_a_time = context.response().and_then(retry_after).is_some();
        if names_a_time || code_of_delete(context).is_some_and(is_too_fast) {
            RetryAction::RetryForbidden
        } else {
            RetryAction::NoActionIndicated
        }
    }

    fn name(&self) -> &'static str {
        "retry-after"
    }
}

/// The code of a delete that was refused.
fn code_of_delete(context: &InterceptorContext) -> Option<&str> {
    let error = context.output_or_error()?.err()?.as_operation_error()?;
    let batch = error.downcast_ref::<DeleteObjectsError>().and_then(ProvideErrorMetadata::code);
    batch.or_else(|| error.downcast_ref::<DeleteObjectError>().and_then(ProvideErrorMetadata::code))
}
