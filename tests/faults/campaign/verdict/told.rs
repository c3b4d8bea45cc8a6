//! What was told: by the audit log, and by the answers to those who asked.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::Stands;
use crate::campaign::land::Land;
use crate::campaign::post::Acknowledged;

/// Each step of a tombstone is in the audit log once, and none that was not taken. Receipts have a check of their own.
pub async fn each_step_once(land: &Land) {
    let wrong: Vec<String> = sqlx::query_scalar(
        "select row_to_json(w)::text from (
             select t.id, t.state, t.purging_at, count(*) filter (where a.event = 'trashed') as trashed,
                    count(*) filter (where a.event = 'purge_begun') as begun,
                    count(*) filter (where a.event = 'restored') as restored
             from reprieve.tombstones t left join reprieve.audit a on a.tombstone_id = t.id group by t.id) w
         where trashed <> 1 or begun <> (purging_at is not null)::int or restored <> (state = 'restored')::int",
    )
    .fetch_all(&land.pool)
    .await
    .expect("reads");
    land.tally.must(wrong.is_empty(), || format!("the audit log tells another story: {wrong:?}"));
}

/// What somebody was told is so: a trash has its tombstone, and a restore was the end of it.
pub fn acknowledged(land: &Land, tombstones: &[Stands]) {
    let states: BTreeMap<Uuid, &str> = tombstones.iter().map(|now| (now.id, now.state.as_str())).collect();
    for (id, promised) in land.ledger.acknowledged.lock().expect("a list").iter() {
        let state = states.get(id).copied();
        let kept = match promised {
            Acknowledged::Trashed => state.is_some(),
            Acknowledged::Restored => state == Some("restored"),
        };
        land.tally.must(kept, || format!("{id} was acknowledged as {promised:?} and is {state:?}"));
        land.tally.add(format!("judged: acknowledged as {promised:?}"));
    }
}

/// Nothing began while it was held, or what brought it into the trash along with it.
pub async fn holds(land: &Land) {
    type Resource = (String, String);
    type Entry = (String, String, String, Option<String>, Option<String>);
    let entries: Vec<Entry> = sqlx::query_as(
        "select a.kind, a.resource_id, a.event, p.kind, p.resource_id from reprieve.audit a
         left join reprieve.tombstones t on t.id = a.tombstone_id left join reprieve.tombstones p on p.id = t.parent
         where a.event in ('held', 'released', 'purge_begun') and a.resource_id is not null order by a.id",
    )
    .fetch_all(&land.pool)
    .await
    .expect("reads");
    let mut held: BTreeSet<Resource> = BTreeSet::new();
    for (kind, id, event, parent_kind, parent_id) in entries {
        let about = (kind, id);
        match event.as_str() {
            "held" => {
                held.insert(about);
                land.tally.add("judged: holds");
            }
            "released" => _ = held.remove(&about),
            _ => {
                let keeps = [Some(about.clone()), parent_kind.zip(parent_id)].into_iter().flatten();
                let kept_by: Vec<Resource> = keeps.filter(|resource| held.contains(resource)).collect();
                land.tally
                    .must(kept_by.is_empty(), || format!("the purge of {about:?} began while {kept_by:?} was held"));
            }
        }
    }
}
