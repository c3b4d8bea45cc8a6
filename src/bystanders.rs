//! Who else would be hurt: other resources of the map that a purge of this one would reach.
//!
//! Invariant: a resource that is live, or in the trash on its own, loses neither row nor object to the purge of
//! another. It is named as a blocker before anything is written, and again at the point of no return.

pub mod named;
pub mod rows;

use std::collections::BTreeSet;

use sqlx::PgConnection;

use self::named::Records;
use crate::{
    domain::{
        ids::ResourceRef,
        location::Location,
        map::{ResourceKind, ResourceMap},
        tombstone::Blocker,
    },
    places::{self, UnknownPlace},
    store::{
        foreign_keys::Known,
        platform::{self, Locking},
        tombstones,
    },
};

/// What a child is called whose objects would go, and that can be asked to go along.
const CHILD: &str = "child";

/// The kind of the child that a blocker is.
pub fn child_kind(blocker: &Blocker) -> Option<&str> {
    // its label begins with the resource, and that with the kind
    blocker.label.split(' ').next().filter(|_| blocker.reference == CHILD)
}

/// The resource that is to go, and where its objects lie.
#[derive(Debug, Clone, Copy)]
pub struct Leaving<'a> {
    /// Its kind.
    pub kind: &'a ResourceKind,
    /// Which.
    pub resource: &'a ResourceRef,
    /// What its purge would empty.
    pub locations: &'a [Location],
    /// Whether others can have objects recorded below.
    pub records: Records,
}

/// Names the bystanders, apart from those of `along`, which go with it.
///
/// # Errors
/// A query failed, or a bystander's places cannot be told: then nobody knows, and the caller must not go on.
pub async fn of(
    conn: &mut PgConnection,
    map: &ResourceMap,
    known: &Known,
    leaving: Leaving<'_>,
    along: &BTreeSet<ResourceRef>,
) -> Result<Vec<Blocker>, UnknownPlace> {
    let Leaving { kind, resource, locations, records } = leaving;
    let blocker = |reference: &str, who: &ResourceRef, why: &str| Blocker {
        resource: resource.to_string(),
        reference: reference.into(),
        id: who.id.to_string(),
        label: format!("{who}: {why}"),
    };
    let mut found = Vec::new();
    for other in map.kinds() {
        if other.kind != kind.kind && other.table == kind.table {
            let same = ResourceRef { kind: other.kind.clone(), id: resource.id.clone() };
            if tombstones::open_of(&mut *conn, &same).await?.is_some() {
                found.push(blocker("same row", &same, "is in the trash, and is the same row"));
            }
        }
    }
    for child in known.keys(&mut *conn, map).await?.taken(&mut *conn, map, resource).await? {
        if !along.contains(&child) {
            let why = "its row would be deleted along with this one, by a foreign key or as a child row";
            found.push(blocker("cascade", &child, why));
        }
    }
    for children in &kind.children {
        let Ok(other) = map.kind(children.kind.as_str()) else { continue };
        if !may_reach(kind, other) {
            continue;
        }
        for raw in platform::child_ids(&mut *conn, kind, &resource.id, children).await? {
            let Ok(id) = other.id_type.parse(&raw) else { continue };
            let child = ResourceRef { kind: other.kind.clone(), id };
            if along.contains(&child) {
                continue;
            }
            let row = platform::find(&mut *conn, other, &child.id, Locking::None).await?;
            let Some(row) = row.filter(|row| row.fits) else { continue };
            let inside = places::resolve(&mut *conn, other, &child.id, &row).await?;
            if inside.iter().any(|inner| locations.iter().any(|outer| outer.contains(inner))) {
                found.push(blocker(CHILD, &child, "its objects lie below the prefix of this one"));
            }
        }
    }
    if map.kinds().any(|other| other.kind != kind.kind && may_reach(kind, other)) {
        for open in tombstones::open_below(&mut *conn, resource, locations).await? {
            if !along.contains(&open) {
                found.push(blocker("in the trash", &open, "its objects lie below the prefix of this one"));
            }
        }
    }
    for (who, key) in named::below(&mut *conn, map, resource, along, locations, records).await? {
        if !along.contains(&who) {
            found.push(blocker("named object", &who, &format!("names {key}, which lies below the prefix of this one")));
        }
    }
    found.dedup_by(|a, b| a.label == b.label);
    Ok(found)
}

/// Whether objects of `inner` can lie below a prefix of `outer`, as far as the map tells; where a query names places,
/// only the query knows.
fn may_reach(outer: &ResourceKind, inner: &ResourceKind) -> bool {
    let unknown =
        outer.asks_for_places() && !inner.objects.is_empty() || inner.asks_for_places() && !outer.objects.is_empty();
    unknown || outer.may_reach(inner).is_some()
}
