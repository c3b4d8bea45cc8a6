//! What comes between a purge and its next request: a shutdown at the gate, somebody else's need before another try.

use std::num::NonZeroU32;
use std::time::Duration;

use reprieve::domain::outcome::FailureClass;
use reprieve::objects::faulty::{Times, failure};
use reprieve::purge::{Budget, SliceEnd};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, HEIMDALL, budget};
use crate::gate::At;
use crate::support::{SOON, wait_until};

#[tokio::test]
async fn a_shutdown_is_heard_in_the_row_at_the_gate_and_nothing_is_sent_after_it() {
    let bench = Bench::with(HEIMDALL, "", |config| {
        config.stores.values_mut().for_each(|store| {
            store.batch_size = 10;
            // a batch every hundred seconds and more
            store.ceiling.objects_per_second = NonZeroU32::new(1);
        });
    })
    .await;
    let dataset = bench.dataset("set a", 40).await;
    let id = bench.trash_due("dataset", dataset).await;
    let stop = CancellationToken::new();
    let (worker, long) = (bench.purger(), Budget::new(Duration::from_secs(600), stop.clone()));
    let working = tokio::spawn(async move { worker.run_slice(id, &long).await });
    wait_until("the first batch has gone", SOON, async || bench.objects.faults.batches().len() == 1).await;
    stop.cancel();
    assert_eq!(working.await.expect("no panic").expect("the database is there"), SliceEnd::Continues);
    assert_eq!(bench.objects.faults.batches().len(), 1);
}

#[tokio::test]
async fn a_named_object_that_the_store_did_not_delete_at_once_is_asked_about_before_another_try() {
    let bench = crate::keyed::albums().await;
    crate::keyed::name(&bench, "a", &["k1", "k2"]).await;
    let id = bench.trash_due("album", "a").await;
    bench.objects.faults.fail_key("k1", Times::Next(1), failure("InternalError", FailureClass::Transient));
    let gate = bench.objects.stop_a_delete(0, At::After);
    let worker = bench.purger();
    let working = tokio::spawn(async move { worker.run_slice(id, &budget()).await });
    gate.reached().await;
    // the store has not deleted it, and a live album names it now
    crate::keyed::link(&bench, "b", &["k1"]).await;
    gate.open();
    let end = working.await.expect("no panic").expect("the database is there");
    assert!(matches!(&end, SliceEnd::Failed(why) if why.contains("InternalError")), "{end:?}");
    assert_eq!(crate::keyed::held(&bench), ["k1"]);
    bench.make_due(id).await;
    assert_eq!(bench.slice(id).await, SliceEnd::Purged);
    assert_eq!(crate::keyed::held(&bench), ["k1"]);
}
