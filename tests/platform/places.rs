//! What is stored of a place is not believed: it is held against the rules and the configuration before it is emptied.

use std::sync::Arc;

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::location::StoreName;
use reprieve::domain::state::State;
use reprieve::objects::Versioning;
use reprieve::objects::flow::Flow;
use reprieve::objects::memory::MemoryStore;
use reprieve::objects::stores::{NamedStore, Stores};
use reprieve::purge::{Purger, SliceEnd};
use reprieve::store::tombstones::{self, Filter};

use crate::bench::{BUCKET, Bench, alice, budget};

/// Overwrites a part of a tombstone's first location.
async fn tamper(bench: &Bench, id: TombstoneId, field: &str, value: &str) {
    bench
        .run(&format!(
            "update reprieve.tombstones set locations = jsonb_set(locations, '{{0,{field}}}', '{value}') where id = '{id}'"
        ))
        .await;
}

#[tokio::test]
async fn a_stored_prefix_that_reaches_too_far_is_an_error_that_names_its_tombstone() {
    for prefix in ["\"\"", "\"/\"", "\"synthetic\"", "\"synthetic/../\"", "null"] {
        let bench = Bench::heimdall().await;
        let (a, _) = (bench.dataset("set a", 3).await, bench.dataset("set b", 3).await);
        let id = bench.trash_due("dataset", a).await;
        tamper(&bench, id, "prefix", prefix).await;
        let refused = bench.try_slice(id).await.expect_err("not a place").to_string();
        assert!(refused.contains(&id.to_string()) && refused.contains("locations"), "{prefix}: {refused}");
        assert_eq!(bench.objects(), 6, "{prefix}");
        assert_eq!(bench.value::<String>("select state from reprieve.tombstones").await, "trashed");
    }
}

#[tokio::test]
async fn a_tombstone_that_cannot_be_read_hides_no_other_from_the_list() {
    let bench = Bench::heimdall().await;
    let bad = bench.trash("dataset", bench.dataset("set a", 1).await).await;
    let good = bench.trash("dataset", bench.dataset("set b", 1).await).await;
    tamper(&bench, bad, "prefix", "\"\"").await;
    let mut conn = bench.store.conn().await.expect("the database is there");
    let listed = tombstones::list(&mut conn, &Filter { limit: 10, ..Filter::default() }).await.expect("lists");
    assert_eq!(listed.iter().map(|tombstone| tombstone.id).collect::<Vec<_>>(), [good]);
    let other = bench.dataset("set c", 1).await;
    let id = bench.trash_due("dataset", other).await;
    bench.slice(id).await;
    assert_eq!((bench.state(id).await, bench.objects.memory().count(BUCKET)), (State::Purged, 2));
}

/// A worker whose configuration has this store for the only one.
fn purger(bench: &Bench, named: NamedStore) -> Purger {
    let stores = Stores::new([(StoreName::parse("main").expect("a name"), named)]);
    let (map, config) = (Arc::new(bench.config.map.clone()), bench.config.purge.clone());
    Purger::new(bench.store.clone(), map, stores, config, bench.metrics.clone()).expect("fine settings")
}

/// The store as it was when the tombstones were written.
fn as_it_was(bench: &Bench) -> NamedStore {
    let config = &bench.config.stores[&StoreName::parse("main").expect("a name")];
    let (buckets, address) = (config.buckets.clone(), config.address());
    NamedStore { objects: bench.objects.clone(), batch_size: 1000, buckets, address, flow: Flow::new(config.ceiling) }
}

/// A purge that has not touched anything, and says why; when its store is as it was again, it goes on.
async fn is_refused_until_it_is_as_it_was(bench: &Bench, id: TombstoneId, named: NamedStore, why: &str) {
    let (objects, rows) = (bench.objects(), bench.count("heimdall.synthetic_iq_samples").await);
    let end = purger(bench, named).run_slice(id, &budget()).await.expect("the database is there");
    let (SliceEnd::Stuck(reason) | SliceEnd::Deferred(reason)) = end else { panic!("{end:?}") };
    assert!(reason.contains(why), "{reason}");
    assert_eq!((bench.objects(), bench.count("heimdall.synthetic_iq_samples").await), (objects, rows));
    assert_eq!(bench.tombstone(id).await.last_error.as_deref(), Some(reason.as_str()));
    if bench.state(id).await == State::Stuck {
        bench.bin.retry(&bench.tombstone(id).await.resource, &alice()).await.expect("goes on");
    }
    bench.make_due(id).await;
    let end = purger(bench, as_it_was(bench)).run_slice(id, &budget()).await.expect("the database is there");
    assert_eq!(end, SliceEnd::Purged);
    assert_eq!(bench.objects(), 0);
}

async fn due(bench: &Bench) -> TombstoneId {
    let dataset = bench.dataset("set a", 20).await;
    bench.trash_due("dataset", dataset).await
}

#[tokio::test]
async fn nothing_in_a_bucket_that_is_no_longer_listed_is_touched() {
    let bench = Bench::heimdall().await;
    let id = due(&bench).await;
    let named = NamedStore { buckets: vec!["second-bucket".into()], ..as_it_was(&bench) };
    is_refused_until_it_is_as_it_was(&bench, id, named, "does not list the bucket \"heimdall-synthetic-iq\"").await;
}

#[tokio::test]
async fn a_store_that_is_another_server_now_does_not_pass_for_empty() {
    let bench = Bench::heimdall().await;
    let id = due(&bench).await;
    let objects = Arc::new(MemoryStore::new().with_bucket(BUCKET, Versioning::Off));
    let named = NamedStore { objects, address: "http://new:9000".into(), ..as_it_was(&bench) };
    is_refused_until_it_is_as_it_was(&bench, id, named, "was at http://127.0.0.1:1 when this was trashed").await;
}

#[tokio::test]
async fn a_tombstone_of_before_addresses_were_kept_is_purged_as_ever() {
    let bench = Bench::heimdall().await;
    let id = due(&bench).await;
    bench.run("update reprieve.tombstones set locations = (select jsonb_agg(l - 'endpoint') from jsonb_array_elements(locations) l)").await;
    assert!(bench.tombstone(id).await.locations.iter().all(|at| at.endpoint.is_none()));
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(bench.objects(), 0);
}

#[tokio::test]
async fn the_same_store_under_a_new_address_is_told_to_the_trash_as_the_manual_says() {
    let bench = Bench::heimdall().await;
    let id = due(&bench).await;
    let manual = include_str!("../../docs/operations.md");
    let (_, section) = manual.split_once("## A store that moved").expect("the section");
    let (_, sql) = section.split_once("```sql").expect("its statement");
    let (sql, _) = sql.split_once("```").expect("its end");
    bench.run(&sql.replace("http://old:9000", "http://127.0.0.1:1")).await;
    let locations = bench.tombstone(id).await.locations;
    assert_eq!(locations.len(), 2);
    assert!(locations.iter().all(|at| at.endpoint.as_deref() == Some("http://new:9000")), "{locations:?}");
    let named = NamedStore { address: "http://new:9000".into(), ..as_it_was(&bench) };
    let end = purger(&bench, named).run_slice(id, &budget()).await.expect("the database is there");
    assert_eq!((end, bench.objects()), (SliceEnd::Purged, 0));
}
