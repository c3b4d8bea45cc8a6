//! Looks once more: a fresh listing of every location, from the beginning.
//!
//! Invariant: [`Verified`] is made here and nowhere else, and only after a listing of each location has come to its end
//! without showing one object, version or delete marker, and every recorded key has been looked for as well.

use super::{Budget, PurgeError, Purger, claim::Claimed, empty::Left, uploads::NoUploads};
use crate::failpoint;

/// Nothing is left below any of the tombstone's prefixes.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) claimed: Box<Claimed>,
}

/// What the fresh listing showed.
#[derive(Debug)]
#[must_use]
pub(super) enum Verification {
    /// Nothing.
    Verified(Verified),
    /// Objects that came after they were listed: a late writer. The first of them.
    Refilled(Box<Claimed>, String),
    /// The slice is over; recorded objects are left to look for.
    OutOfTime(Box<Claimed>),
}

impl Purger {
    pub(super) async fn verify(&self, no_uploads: NoUploads, budget: &Budget) -> Result<Verification, PurgeError> {
        let NoUploads { mut claimed } = no_uploads;
        failpoint::at("verify.begun");
        for location in &claimed.tombstone.locations {
            let store = self.stores.at(location)?;
            let mut after = None;
            loop {
                let page = store.objects.list(&location.bucket, location.prefix.as_str(), after.as_ref()).await?;
                if let Some(entry) = page.entries.first() {
                    let found = format!("s3://{}/{}", location.bucket, entry.object.key);
                    return Ok(Verification::Refilled(claimed, found));
                }
                match page.next {
                    Some(next) => after = Some(next),
                    None => break,
                }
            }
            failpoint::at("verify.location_empty");
        }
        match self.find_recorded(&mut claimed, budget).await? {
            Left::Nothing => {}
            Left::Some(found) => return Ok(Verification::Refilled(claimed, found)),
            Left::OutOfTime => return Ok(Verification::OutOfTime(claimed)),
        }
        failpoint::at("verify.done");
        Ok(Verification::Verified(Verified { claimed }))
    }
}
