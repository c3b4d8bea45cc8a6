//! Looks once more: a fresh listing of every location, from the beginning.
//!
//! Invariant: [`Verified`] is made here and nowhere else, and only after a listing of each location has come to its end
//! without showing one object, version or delete marker, and every recorded key has been looked for as well.

use super::{Budget, PurgeError, Purger, claim::Claimed, empty::Left, uploads::NoUploads};
use crate::{domain::outcome::EntryKind, failpoint, objects::ObjectEntry};

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
    /// Something came after its place was listed: what, with the first of it.
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
                let place = |entry: &ObjectEntry| format!("s3://{}/{}", location.bucket, entry.object.key);
                let object = page.entries.iter().find(|entry| entry.kind != EntryKind::Marker);
                let why = object.map(|object| appeared(&place(object)));
                if let Some(why) = why.or_else(|| page.entries.first().map(|marker| left_markers(&place(marker)))) {
                    return Ok(Verification::Refilled(claimed, why));
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
            Left::Some(found) => return Ok(Verification::Refilled(claimed, appeared(&found))),
            Left::OutOfTime => return Ok(Verification::OutOfTime(claimed)),
        }
        failpoint::at("verify.done");
        Ok(Verification::Verified(Verified { claimed }))
    }
}

fn appeared(found: &str) -> String {
    format!("objects appeared after their prefix was emptied, such as {found}: is a writer still running?")
}

/// Seen of SeaweedFS where versioning is suspended: a deleted marker of the version "null" is answered as deleted, and
/// is there again.
fn left_markers(found: &str) -> String {
    format!(
        "delete markers are below a prefix that was emptied, and no object beside them, such as {found}: either the store does not \
         let them go (some do not while versioning is suspended), or somebody deletes there"
    )
}
