//! Which recorded objects another resource needs too.
//!
//! Invariant: an object is nobody else's only when every kind that can name it has been asked and has said so. A query
//! that fails, or answers what it was not asked, or an entry that the map no longer has, means that nobody knows, and the
//! caller must not go on. Who waits in the trash may be restored, and needs its objects like who is live; who is past
//! the point of no return needs them no more.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use crate::{
    domain::{
        ids::{Kind, ResourceId, ResourceRef},
        location::{KeyPlace, Location},
        map::{ObjectsAt, ResourceKind, ResourceMap, Sql},
        state::State,
    },
    store::{
        StoreError,
        platform::{self, Locking},
        recorded, tombstones,
    },
};

/// Keys that stay, each with one of those who need it.
pub type Kept = BTreeMap<String, String>;

/// Who else needs some objects.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who may.
    pub map: &'a ResourceMap,
    /// The resource that they are recorded for.
    pub of: &'a ResourceRef,
    /// Who goes: itself, and in a plan who goes along. What these need among themselves goes with the last of them.
    pub leaving: &'a BTreeSet<ResourceRef>,
    /// Where the objects are.
    pub at: &'a KeyPlace,
    /// Their keys.
    pub keys: &'a [&'a str],
}

impl Question<'_> {
    /// Those that somebody else needs.
    ///
    /// # Errors
    /// A query failed, or says something that cannot be understood; or the map no longer knows who else names them.
    pub async fn kept(self, conn: &mut PgConnection) -> Result<Kept, StoreError> {
        let Self { map, of, at, keys, .. } = self;
        can_tell(map, of, at)?;
        let mut kept = Kept::new();
        if keys.is_empty() {
            return Ok(kept);
        }
        for kind in map.kinds() {
            self.named(&mut *conn, kind, &mut kept).await?;
            self.live_below(&mut *conn, kind, &mut kept).await?;
        }
        // the platform may have removed their rows, or its query may pass over what is in the trash
        for (key, kind, id) in recorded::waiting_for(&mut *conn, of, at, keys).await? {
            kept.entry(key).or_insert_with(|| format!("{kind} {id}"));
        }
        let above: BTreeMap<&str, Vec<&str>> = keys.iter().fold(BTreeMap::new(), |mut above, key| {
            key.match_indices('/').for_each(|(at, _)| above.entry(&key[..=at]).or_default().push(key));
            above
        });
        let prefixes: Vec<&str> = above.keys().copied().collect();
        for (prefix, kind, id) in recorded::waiting_below(&mut *conn, of, at, &prefixes).await? {
            for key in above.get(prefix.as_str()).into_iter().flatten() {
                kept.entry((*key).to_owned()).or_insert_with(|| format!("{kind} {id}, whose prefix it lies below"));
            }
        }
        Ok(kept)
    }

    /// Asks the inverse queries of a kind.
    async fn named(self, conn: &mut PgConnection, kind: &ResourceKind, kept: &mut Kept) -> Result<(), StoreError> {
        let Self { map, leaving, at, keys, .. } = self;
        for named in kind.named_objects().filter(|named| named.reaches(&at.store, &at.bucket)) {
            // in both forms in which the platform may have them
            let mut names: BTreeMap<String, &str> =
                keys.iter().map(|key| (format!("s3://{}/{key}", at.bucket), *key)).collect();
            if named.only_bucket() == Some(at.bucket.as_str()) {
                names.extend(keys.iter().map(|key| ((*key).to_owned(), *key)));
            }
            let asked: Vec<String> = names.keys().cloned().collect();
            for namer in recorded::namers(&mut *conn, map, kind, named, leaving, &asked).await? {
                let name = namer.name.as_deref().unwrap_or("a null");
                let key = namer.name.as_deref().and_then(|name| names.get(name)).ok_or_else(|| {
                    StoreError::Unusable(format!(
                        "the named_by query of kind {} returned {name:?}, which was not among the names in $1: its \
                         first column has to be the name as it was asked",
                        kind.kind
                    ))
                })?;
                if !namer.is_known {
                    return Err(nobody(kind, name, namer.id.as_deref().unwrap_or_default()));
                }
                let who = namer.id.unwrap_or_else(|| "without an id".to_owned());
                kept.entry((*key).to_owned()).or_insert_with(|| format!("{} {who}", kind.kind));
            }
        }
        Ok(())
    }

    /// Looks for live resources below whose own prefix a key lies. Where a query says the prefixes of a kind, only those
    /// of what is in the trash are known.
    async fn live_below(self, conn: &mut PgConnection, kind: &ResourceKind, kept: &mut Kept) -> Result<(), StoreError> {
        let Self { map, leaving, at, keys, .. } = self;
        let mut owners: BTreeMap<ResourceId, BTreeSet<&str>> = BTreeMap::new();
        let templates = kind.objects.iter().filter_map(|objects| match objects {
            ObjectsAt::Template { store, bucket, prefix, .. } if *store == at.store && *bucket == at.bucket => {
                Some(prefix)
            }
            _ => None,
        });
        let templates: Vec<_> = templates.collect();
        for key in keys.iter().filter(|key| !kept.contains_key(**key)) {
            for id in templates.iter().filter_map(|template| template.id_in(key, kind.id_type)) {
                owners.entry(id).or_default().insert(key);
            }
        }
        let is_leaving_too = |id: &ResourceId| {
            let same_table = |one: &ResourceRef| map.kind(one.kind.as_str()).is_ok_and(|own| own.table == kind.table);
            leaving.iter().any(|one| one.id == *id && same_table(one))
        };
        let mut found = Vec::new();
        for (id, below) in owners.into_iter().filter(|(id, _)| !is_leaving_too(id)) {
            let Some(row) = platform::find(&mut *conn, kind, &id, Locking::None).await?.filter(|row| row.fits) else {
                continue;
            };
            let owner = ResourceRef { kind: kind.kind.clone(), id };
            if is_leaving(&mut *conn, map, kind, &owner).await? {
                continue;
            }
            let prefixes = templates.iter().filter_map(|template| {
                template.render(&owner.id, |column| row.columns.get(column).cloned().flatten()).ok()
            });
            let prefixes: Vec<_> = prefixes.collect();
            let inside = below.into_iter().filter(|key| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())));
            found.extend(inside.map(|key| (key.to_owned(), format!("{owner}, whose prefix it lies below"))));
        }
        kept.extend(found);
        Ok(())
    }
}

/// Kept for one who is not there, an object would be nobody's as soon as the rows are gone.
fn nobody(kind: &ResourceKind, name: &str, id: &str) -> StoreError {
    StoreError::Unusable(format!(
        "the named_by query of kind {} says that {id:?} names {name:?}, and {} has no row with this {}: either its second \
         column is not the id of the resource, or a link has outlived its resource and should be deleted",
        kind.kind,
        kind.table,
        kind.id.as_str()
    ))
}

/// Whether objects are recorded by key for anybody in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Records {
    /// Nobody has looked, or they are.
    Perhaps,
    /// Somebody has looked just now, and they were not.
    NoneYet,
}

/// Who else names an object below one of these prefixes, and which: of live resources where the map has a query for it
/// (`named_below`), of those in the trash by what is recorded for them, whatever the map says by now.
///
/// # Errors
/// A query failed: then nobody knows.
pub async fn below(
    conn: &mut PgConnection,
    map: &ResourceMap,
    of: &ResourceRef,
    along: &BTreeSet<ResourceRef>,
    prefixes: &[Location],
    records: Records,
) -> Result<Vec<(ResourceRef, String)>, StoreError> {
    // before the live ones as well as after them: whoever is restored or trashed in between is in one of the three
    // answers, since each statement of a claim sees what was committed before it
    let mut found = match records {
        Records::Perhaps => recorded_below(&mut *conn, of, prefixes).await?,
        Records::NoneYet => Vec::new(),
    };
    let leaving: BTreeSet<ResourceRef> = along.iter().chain([of]).cloned().collect();
    let asks = asks_below(map, prefixes);
    for (kind, query, start) in &asks {
        for namer in recorded::namers_below(&mut *conn, map, kind, query, &leaving, start).await? {
            let id = ResourceId::from_stored(namer.id.unwrap_or_else(|| "without an id".to_owned()));
            found.push((ResourceRef { kind: kind.kind.clone(), id }, namer.name.unwrap_or_default()));
        }
    }
    if !asks.is_empty() {
        for again in recorded_below(&mut *conn, of, prefixes).await? {
            if !found.contains(&again) {
                found.push(again);
            }
        }
    }
    Ok(found)
}

/// The queries that know of names below these prefixes, each with what such names begin with, as an address and as a key.
fn asks_below<'a>(map: &'a ResourceMap, prefixes: &[Location]) -> Vec<(&'a ResourceKind, &'a Sql, String)> {
    let mut asks = Vec::new();
    for kind in map.kinds() {
        for named in kind.named_objects() {
            let Some(query) = &named.named_below else { continue };
            for at in prefixes.iter().filter(|at| named.reaches(&at.store, &at.bucket)) {
                asks.push((kind, query, format!("s3://{}/{}", at.bucket, at.prefix)));
                asks.extend(named.only_bucket().map(|_| (kind, query, at.prefix.to_string())));
            }
        }
    }
    asks
}

async fn recorded_below(
    conn: &mut PgConnection,
    of: &ResourceRef,
    prefixes: &[Location],
) -> Result<Vec<(ResourceRef, String)>, StoreError> {
    if prefixes.is_empty() {
        return Ok(Vec::new());
    }
    let found = recorded::recorded_below(conn, of, prefixes).await?;
    let named = |(kind, id, key)| (ResourceRef { kind: Kind::from_stored(kind), id: ResourceId::from_stored(id) }, key);
    Ok(found.into_iter().map(named).collect())
}

/// Whether the map still says who else may name what is recorded in a place.
///
/// # Errors
/// It does not.
pub fn can_tell(map: &ResourceMap, of: &ResourceRef, at: &KeyPlace) -> Result<(), StoreError> {
    let kind = map.kind(of.kind.as_str()).ok();
    let is_known = kind.is_some_and(|kind| kind.named_objects().any(|named| named.reaches(&at.store, &at.bucket)));
    if is_known {
        return Ok(());
    }
    Err(StoreError::Unusable(format!(
        "the resource map no longer says who names the objects of {} in s3://{}/ (store {}): an entry of \
         [[resource.objects]] with `keys` and `named_by` is missing; add it again to go on",
        of.kind, at.bucket, at.store
    )))
}

/// Whether it is past the point of no return itself, by whichever kind of its table. A purge that found no row there is
/// not that of one who has the id now.
async fn is_leaving(
    conn: &mut PgConnection,
    map: &ResourceMap,
    kind: &ResourceKind,
    owner: &ResourceRef,
) -> Result<bool, StoreError> {
    for kin in map.kinds().filter(|kin| kin.table == kind.table) {
        let resource = ResourceRef { kind: kin.kind.clone(), id: owner.id.clone() };
        let open = tombstones::open_of(&mut *conn, &resource).await?;
        if open.is_some_and(|open| matches!(open.state, State::Purging | State::Stuck) && open.row_found != Some(false))
        {
            return Ok(true);
        }
    }
    Ok(false)
}
