//! What is stored of a place is not believed: it is held against the rules and the configuration before it is emptied.

use reprieve::domain::ids::TombstoneId;
use reprieve::domain::state::State;
use reprieve::store::tombstones::{self, Filter};

use crate::bench::{BUCKET, Bench};

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
