//! Rows that nobody has told of, and that refuse a purge its end: a foreign key lets no row go that they point at.
//!
//! Invariant: such a row is a user like one that the map names. It refuses the trash, and blocks the purge before its
//! first object is deleted: at the rows, where PostgreSQL would refuse, the objects are gone.

use sqlx::PgConnection;

use crate::{
    domain::{ids::ResourceRef, map::ResourceMap, tombstone::Blocker, words::counted},
    store::{
        StoreError,
        foreign_keys::{Known, Refusing, Spared},
    },
};

/// What such a use is called, where the map's references have names of their own.
pub const FOREIGN_KEY: &str = "foreign key";

/// Names the foreign keys that would refuse, and of how many rows.
///
/// # Errors
/// A table may not be read: then nobody knows, and the caller must not go on.
pub async fn refusing(
    conn: &mut PgConnection,
    map: &ResourceMap,
    known: &Known,
    resource: &ResourceRef,
    spared: Spared<'_>,
) -> Result<Vec<Blocker>, StoreError> {
    let keys = known.keys(&mut *conn, map).await?;
    let refusing = keys.refusing(conn, map, resource, spared).await?;
    Ok(refusing.into_iter().map(|found| blocker(resource, &found)).collect())
}

fn blocker(resource: &ResourceRef, found: &Refusing) -> Blocker {
    let Refusing { table, key, rows, at_least, too_late_for } = found;
    let some = format!("{}{}", if *at_least { "more than " } else { "" }, counted(*rows, "row"));
    let label = match too_late_for {
        None => format!("{some} of {table}, which nothing deletes in time, would refuse its deletion"),
        Some(other) => format!(
            "{some} of {table}, which the map deletes after those of {other}, would refuse its deletion: their \
             [[resource.rows]] belongs before that of {other}"
        ),
    };
    Blocker { resource: resource.to_string(), reference: FOREIGN_KEY.into(), id: key.clone(), label }
}
