//! Looks for objects by their keys, in a store that only lists.
//!
//! Invariant: an object counts as absent only when a listing has come to its end that would have shown it. Nothing is
//! concluded from the order of the keys alone, which differs between stores; and a key that only begins with one that was
//! asked for is none of those.

use std::collections::BTreeSet;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};

use crate::objects::{Cursor, ObjectEntry, ObjectsError, stores::NamedStore};

/// Keys that are looked for one by one at a time.
const IN_FLIGHT: usize = 8;

/// One page of a listing of all that they have in common is tried for so many of them, before each is looked for alone.
const KEYS_A_PAGE: usize = 100;

/// What a store has of these keys, each with all that a listing shows of it (versions and delete markers too, where those
/// are listed), in the order of the keys.
///
/// # Errors
/// A listing failed: then nobody knows.
pub(in crate::purge) async fn look(
    store: &NamedStore,
    bucket: &str,
    keys: &BTreeSet<&str>,
) -> Result<Vec<ObjectEntry>, ObjectsError> {
    let mut shown = match keys.len() {
        0 => return Ok(Vec::new()),
        1 => None,
        _ => look_at_once(store, bucket, keys).await?,
    };
    if shown.is_none() {
        // Boxed: the compiler cannot yet show that a stream of borrowing futures is `Send` (rust-lang/rust#102211).
        let looks: Vec<BoxFuture<'_, Result<Vec<ObjectEntry>, ObjectsError>>> =
            keys.iter().map(|key| look_at(store, bucket, key, None).boxed()).collect();
        let mut looks = stream::iter(looks).buffered(IN_FLIGHT);
        let mut all = Vec::new();
        while let Some(found) = looks.next().await {
            all.extend(found?);
        }
        shown = Some(all);
    }
    let mut shown = shown.expect("set above");
    // stable: the versions of a key stay as they came
    shown.sort_by(|a, b| a.object.key.cmp(&b.object.key));
    Ok(shown)
}

/// Lists all that begins as all of them do, where that is not much more than they are. `None`: it is.
async fn look_at_once(
    store: &NamedStore,
    bucket: &str,
    keys: &BTreeSet<&str>,
) -> Result<Option<Vec<ObjectEntry>>, ObjectsError> {
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(Some(Vec::new())) };
    let prefix = common_prefix(first, last);
    let (mut found, mut after) = (Vec::new(), None);
    for _ in 0..=keys.len() / KEYS_A_PAGE {
        let page = store.objects.list(bucket, prefix, after.as_ref()).await?;
        found.extend(page.entries.into_iter().filter(|entry| keys.contains(entry.object.key.as_str())));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(Some(found)),
        }
    }
    Ok(None)
}

/// What a store has of a cursor's key after its version, which may be gone by now.
///
/// # Errors
/// As [`look`].
pub(in crate::purge) async fn look_on(
    store: &NamedStore,
    bucket: &str,
    after: &Cursor,
) -> Result<Vec<ObjectEntry>, ObjectsError> {
    look_at(store, bucket, &after.key, Some(after.clone())).await
}

/// Lists what begins with a key until the key itself must have been shown.
async fn look_at(
    store: &NamedStore,
    bucket: &str,
    key: &str,
    mut after: Option<Cursor>,
) -> Result<Vec<ObjectEntry>, ObjectsError> {
    let mut found = Vec::new();
    loop {
        let page = store.objects.list(bucket, key, after.as_ref()).await?;
        // of all that begins with it, it comes first, in any order that goes by names
        let is_past = page.entries.last().is_some_and(|last| last.object.key != key)
            && page.entries.is_sorted_by(|a, b| a.object.key <= b.object.key);
        found.extend(page.entries.into_iter().filter(|entry| entry.object.key == key));
        match page.next {
            Some(next) if !is_past => after = Some(next),
            _ => return Ok(found),
        }
    }
}

/// What two keys begin with, in whole characters.
fn common_prefix<'k>(a: &'k str, b: &str) -> &'k str {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    &a[..same.map(|(c, _)| c.len_utf8()).sum()]
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, sync::Arc};

    use super::*;
    use crate::objects::{
        Versioning,
        flow::{Ceiling, Flow},
        memory::MemoryStore,
    };

    fn store(memory: MemoryStore) -> NamedStore {
        let ceiling = Ceiling { concurrency: NonZeroU32::MIN, objects_per_second: None };
        let (buckets, address, flow) = (vec!["b".into()], "http://a".into(), Flow::new(ceiling));
        NamedStore { objects: Arc::new(memory), batch_size: 1000, buckets, address, flow }
    }

    async fn seen(store: &NamedStore, keys: &[&str]) -> Vec<String> {
        let shown = look(store, "b", &keys.iter().copied().collect()).await.expect("lists");
        shown.into_iter().map(|entry| entry.object.key).collect()
    }

    #[test]
    fn what_keys_have_in_common_ends_between_characters() {
        assert_eq!(common_prefix("a/ü", "a/ö"), "a/");
        assert_eq!(common_prefix("a/1", "a/10"), "a/1");
        assert_eq!(common_prefix("a", "b"), "");
    }

    #[tokio::test]
    async fn a_key_is_told_from_those_that_begin_with_it() {
        let memory = MemoryStore::new().with_page(2).with_bucket("b", Versioning::Off);
        for key in ["a/10", "a/1/x", "a/100", "a/1 ", "z"] {
            memory.put("b", key, 1);
        }
        let store = store(memory);
        assert_eq!(seen(&store, &["a/1"]).await, [""; 0]);
        assert_eq!(seen(&store, &["a/1", "a/10"]).await, ["a/10"]);
        assert_eq!(seen(&store, &["a/1", "a/100", "zz", "z"]).await, ["a/100", "z"]);
    }

    #[tokio::test]
    async fn scattered_keys_are_found_among_many_others_with_all_their_versions() {
        let memory = MemoryStore::new().with_page(3).with_bucket("b", Versioning::Kept);
        (0..500).for_each(|n| memory.put("b", &format!("k{n:03}"), 1));
        (0..7).for_each(|_| memory.put("b", "k250", 1));
        let store = store(memory);
        let found = seen(&store, &["k499", "k250", "k2500", "k000"]).await;
        assert_eq!(found.iter().filter(|key| *key == "k250").count(), 8);
        assert_eq!((found.first().map(String::as_str), found.last().map(String::as_str)), (Some("k000"), Some("k499")));
        assert_eq!(found.len(), 10);
    }

    #[tokio::test]
    async fn what_follows_a_version_is_found_when_it_is_there_and_when_it_is_gone() {
        let memory = MemoryStore::new().with_page(3).with_bucket("b", Versioning::Kept);
        (0..7).for_each(|_| memory.put("b", "k", 1));
        memory.put("b", "k1", 1);
        let store = store(memory);
        let all = look(&store, "b", &BTreeSet::from(["k"])).await.expect("lists");
        let rest = async |after: Cursor| look_on(&store, "b", &after).await;
        assert_eq!(rest(all[2].cursor()).await.expect("lists"), all[3..]);
        let _ = store.objects.delete("b", &[all[2].object.clone(), all[4].object.clone()]).await;
        assert_eq!(rest(all[2].cursor()).await.expect("lists"), [all[3].clone(), all[5].clone(), all[6].clone()]);
        assert_eq!(rest(all[6].cursor()).await.expect("lists"), []);
    }
}
