//! Statements that fail in the middle of each step, with the codes of a busy, a full and a failing server: each is tried
//! again, and none counts.

use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};

use super::{Requests, SMALL, SMALL_ROWS, behind_a_proxy, nothing_is_left, settings};
use crate::support::SOON;
use crate::world::World;

/// A statement that fails, with any code, for the first so many times; a sequence counts, which no rollback undoes.
struct Failing {
    name: &'static str,
    table: &'static str,
    when: &'static str,
}

const FAILING: &[Failing] = &[
    Failing { name: "intake", table: "reprieve.requests", when: "before insert" },
    Failing { name: "trash", table: "reprieve.tombstones", when: "before insert" },
    Failing {
        name: "restore",
        table: "reprieve.tombstones",
        when: "before update of state when (new.state = 'restored')",
    },
    Failing {
        name: "claim",
        table: "reprieve.tombstones",
        when: "before update of state when (new.state = 'purging' and old.state <> 'purging')",
    },
    Failing {
        name: "checkpoint",
        table: "reprieve.tombstones",
        when: "before update when (new.objects_listed > old.objects_listed)",
    },
    Failing { name: "rows", table: "heimdall.synthetic_iq_samples", when: "before delete" },
    Failing { name: "count", table: "reprieve.tombstones", when: "before update of rows_deleted" },
    Failing { name: "last_row", table: "heimdall.synthetic_datasets", when: "before delete" },
    Failing {
        name: "finish",
        table: "reprieve.tombstones",
        when: "before update of state when (new.state = 'purged')",
    },
    Failing { name: "receipt", table: "reprieve.audit", when: "before insert when (new.event = 'purged')" },
    Failing {
        name: "lease",
        table: "reprieve.outbox",
        when: "before update of leased_until when (new.leased_until is not null)",
    },
    Failing { name: "confirm", table: "reprieve.outbox", when: "before delete" },
    Failing { name: "task", table: "reprieve.outbox", when: "before insert when (new.topic = 'purge')" },
];

impl Failing {
    async fn install(&self, pool: &PgPool, code: &str, times: i64) {
        let Failing { name, table, when } = self;
        let (event, condition) = when
            .split_once(" when ")
            .map_or((*when, String::new()), |(event, condition)| (event, format!("when {condition}")));
        let sql = format!(
            "create schema if not exists mischief;
             create or replace function mischief.fail() returns trigger language plpgsql as $$
             begin
                 if nextval('mischief.' || tg_argv[0]) <= tg_argv[2]::bigint then
                     raise exception 'injected by a test' using errcode = tg_argv[1];
                 end if;
                 return case tg_op when 'DELETE' then old else new end;
             end $$;
             create sequence mischief.{name};
             create trigger mischief_{name} {event} on {table} for each row {condition}
             execute function mischief.fail('{name}', '{code}', '{times}');"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("a trigger");
    }

    /// How often it was reached.
    async fn reached(&self, pool: &PgPool) -> i64 {
        let sql = format!("select case when is_called then last_value else 0 end from mischief.{}", self.name);
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool).await.expect("counted")
    }
}

fn every_step() -> Vec<&'static str> {
    FAILING.iter().map(|failing| failing.name).collect()
}

/// Each of these steps fails so often with this code, while one dataset is trashed and restored and another purged.
async fn steps_fail(steps: &[&str], code: &str, times: i64) -> World {
    let (world, _proxy) = behind_a_proxy(settings()).await;
    let (purged, put) = world.dataset("purged", SMALL).await;
    let (restored, _) = world.dataset("restored", SMALL).await;
    let failing = || FAILING.iter().filter(|failing| steps.contains(&failing.name));
    assert_eq!(failing().count(), steps.len());
    for failing in failing() {
        failing.install(&world.pool, code, times).await;
    }
    let service = world.serve(&[]);
    let requests = Requests::beside(&world, &service).await;
    for op in ["trash", "restore"] {
        let mut body = json!({ "v": 1, "op": op, "kind": "dataset", "id": restored, "actor": "service" });
        if op == "trash" {
            body["retention"] = json!("1d");
        }
        let answer = requests.amqp.ask(&body).await;
        assert_eq!(answer["ok"], true, "{answer:#}");
    }
    requests.trash(purged).await;
    requests.all_answered(1, "trashed").await;
    world.purged("dataset", purged, put, SMALL_ROWS).await;
    assert_eq!(world.stands(restored).await.state, "restored");
    assert!(world.is_quiet(SOON).await, "something is left to do");
    for failing in failing() {
        let reached = failing.reached(&world.pool).await;
        assert!(reached > times, "{} was reached {reached} times with {code}", failing.name);
    }
    drop(service);
    world
}

#[tokio::test]
async fn serialisation_failures_at_every_step_are_tried_again_and_count_for_nothing() {
    nothing_is_left(&steps_fail(&every_step(), "40001", 2).await).await;
}

#[tokio::test]
async fn deadlocks_at_every_step_are_tried_again_and_count_for_nothing() {
    nothing_is_left(&steps_fail(&every_step(), "40P01", 1).await).await;
}

#[tokio::test]
async fn an_outage_at_some_steps_is_waited_out_and_counts_for_nothing() {
    // disk_full; each of them makes the worker wait longer, as for any database that is away
    nothing_is_left(&steps_fail(&["intake", "trash", "claim", "checkpoint", "finish"], "53100", 1).await).await;
}

#[tokio::test]
async fn cancelled_statements_at_every_step_make_nothing_stuck() {
    let world = steps_fail(&every_step(), "57014", 1).await;
    let stuck = "select count(*) from reprieve.audit where event = 'stuck'";
    assert_eq!(sqlx::query_scalar::<_, i64>(stuck).fetch_one(&world.pool).await.expect("counted"), 0);
}
