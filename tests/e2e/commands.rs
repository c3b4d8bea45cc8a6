//! The commands that people type: what they print, what they change, and the exit codes that `--help` promises.

use std::process::Stdio;

use serde_json::{Value, json};
use uuid::Uuid;

use reprieve::embedded::keeper::free_port;

use crate::process::{Ended, reprieve};
use crate::support::heimdall::{Dataset, Model, Shape};
use crate::world::{Settings, World};

const SHAPE: Shape = Shape { samples: 5, receivers: 4 };

async fn world() -> World {
    World::new(Settings { window: "1h", ..Settings::default() }).await
}

async fn everything(world: &World) -> (i64, i64, i64, i64) {
    sqlx::query_as(
        "select (select count(*) from reprieve.tombstones), (select count(*) from reprieve.outbox),
                (select count(*) from reprieve.audit), (select count(*) from heimdall.synthetic_datasets)",
    )
    .fetch_one(&world.pool)
    .await
    .expect("counted")
}

#[tokio::test]
async fn trashing_is_a_dry_run_until_told_otherwise_and_happens_once() {
    let world = world().await;
    let (dataset, _) = world.dataset("night run", SHAPE).await;
    let id = dataset.to_string();
    let before = everything(&world).await;
    let plan = world.cli(&["trash", "dataset", &id]).await.with(0);
    for landmark in ["night run", &format!("s3://{}/synthetic/{id}/", world.bucket), "20", "1h", "--execute"] {
        assert!(plan.stdout.contains(landmark), "{landmark:?} is missing in {}", plan.stdout);
    }
    let plan = world.json(&["trash", "dataset", &id]).await;
    assert_eq!((&plan["dry_run"], &plan["members"][0]["name"]), (&json!(true), &json!("night run")));
    let objects: i64 = plan["counts"].as_array().expect("counts").iter().filter_map(|c| c["objects"].as_i64()).sum();
    assert_eq!(objects, 20);
    assert_eq!(everything(&world).await, before, "looking is free");

    let done =
        world.cli(&["trash", "dataset", &id, "--execute", "--actor", "alice", "--reason", "too old"]).await.with(0);
    assert!(done.stdout.contains(&format!("trashed dataset {id}")) && done.stdout.contains("reprieve restore"));
    let after = everything(&world).await;
    let again = world.cli(&["trash", "dataset", &id, "--execute"]).await.with(0);
    assert!(again.stdout.contains("in the trash already"), "{}", again.stdout);
    assert_eq!(world.json(&["trash", "dataset", &id, "--execute"]).await["already"], true);
    assert!(world.cli(&["trash", "dataset", &id]).await.with(0).stdout.contains("in the trash already"));
    assert_eq!(everything(&world).await, after, "the second time changes nothing");

    let waiting = world.cli(&["retry", "dataset", &id, "--execute"]).await.with(5);
    assert!(waiting.stderr.contains("is trashed, not stuck"), "{}", waiting.stderr);
    let upper = id.to_uppercase();
    let shown = world.json(&["show", "dataset", &upper]).await;
    assert_eq!((&shown["tombstone"]["actor"], &shown["tombstone"]["reason"]), (&json!("alice"), &json!("too old")));
    let text = world.cli(&["show", "dataset", &id]).await.with(0).stdout;
    for landmark in ["night run", "alice", "too old", "trashed"] {
        assert!(text.contains(landmark), "{landmark:?} is missing in {text}");
    }

    assert!(world.cli(&["list"]).await.with(0).stdout.contains(&id));
    assert!(world.cli(&["restore", "dataset", &id]).await.with(0).stdout.contains("restored dataset"));
    assert_eq!(world.json(&["restore", "dataset", &id]).await["already"], true);
    assert!(world.cli(&["list"]).await.with(0).stdout.contains("the trash is empty"));
    let all = world.json(&["list", "--all"]).await;
    assert_eq!((all.as_array().map(Vec::len), &all[0]["state"]), (Some(1), &json!("restored")));
    assert_eq!(world.json(&["list", "--state", "trashed,purged"]).await, json!([]));
    assert_eq!(world.json(&["list", "--state", "restored", "--kind", "job"]).await, json!([]));
}

#[tokio::test]
async fn what_is_stuck_is_never_said_to_need_nothing() {
    let world = world().await;
    let (id, _) = world.dataset("stuck", SHAPE).await;
    let id = id.to_string();
    world.cli(&["trash", "dataset", &id, "--execute"]).await.with(0);
    let stuck = "update reprieve.tombstones set state = 'stuck', purging_at = now(), last_error = 'NoSuchBucket'";
    sqlx::raw_sql(stuck).execute(&world.pool).await.expect("marked");
    for args in [&["trash", "dataset", &id][..], &["trash", "dataset", &id, "--execute"]] {
        let told = world.cli(args).await.with(0).stdout;
        assert!(told.contains("NoSuchBucket") && told.contains(&format!("reprieve retry dataset {id}")), "{told}");
        assert!(!told.contains("nothing to do"), "{told}");
    }
}

#[tokio::test]
async fn what_waits_for_its_next_try_is_shown_first_and_tried_when_asked_for() {
    let world = world().await;
    let (id, _) = world.dataset("waits", SHAPE).await;
    let id = id.to_string();
    world.cli(&["trash", "dataset", &id, "--execute"]).await.with(0);
    let waits =
        "update reprieve.tombstones set state = 'purging', purging_at = now(), last_error = 'the store is away',
            trashed_at = now() - interval '2 days', purge_after = now() - interval '1 day',
            next_attempt_at = now() + interval '1 hour';
        update reprieve.outbox set available_at = now() + interval '1 hour' where topic = 'purge'";
    sqlx::raw_sql(waits).execute(&world.pool).await.expect("marked");
    let before = everything(&world).await;
    let would = world.cli(&["retry", "dataset", &id]).await.with(0).stdout;
    for landmark in ["it waits until 20", "the store is away", "dry run", "--execute"] {
        assert!(would.contains(landmark), "{landmark:?} is missing in {would}");
    }
    assert_eq!(world.json(&["retry", "dataset", &id]).await["tombstone"]["state"], "purging");
    assert_eq!(everything(&world).await, before, "looking is free");

    let done = world.cli(&["retry", "dataset", &id, "--execute", "--actor", "olga"]).await.with(0).stdout;
    assert!(done.contains("goes on; it was to wait until 20") && done.contains("the store is away"), "{done}");
    let shown = world.json(&["show", "dataset", &id]).await;
    assert!(
        shown["history"].as_array().is_some_and(|all| all.iter().any(|entry| entry["event"] == "retried")),
        "{shown:#}"
    );
    let again = world.cli(&["retry", "dataset", &id, "--execute"]).await.with(5);
    assert!(again.stderr.contains("it is due since") && again.stderr.contains("reprieve health"), "{}", again.stderr);
}

#[tokio::test]
async fn every_way_to_fail_has_its_exit_code_and_says_what_to_do() {
    let world = world().await;
    let (used, _) = world.dataset("used", SHAPE).await;
    let (kept, _) = world.dataset("benchmark-v1", SHAPE).await;
    let (free, _) = world.dataset("free", SHAPE).await;
    Model { datasets: vec![used], active: true, ..Model::named("localiser 7") }.insert(&world.pool).await;
    Model { datasets: vec![free, used], production: true, ..Model::named("fingerprinter") }.insert(&world.pool).await;
    let (used, kept, nobody) = (used.to_string(), kept.to_string(), Uuid::nil().to_string());
    let before = everything(&world).await;
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["trash", "dataset", "not-a-uuid"], 2, &["malformed id", "UUID"]),
        (&["trash", "dataset", "-1"], 2, &["malformed id"]),
        (&["trash", "planet", &nobody], 2, &["planet", "dataset", "job"]),
        (&["trash", "dataset", &used, "--with", "planet"], 2, &["planet"]),
        (&["trash", "dataset", &used, "--with", "job"], 2, &["no children"]),
        (&["trash", "dataset", &used, "--retention", "soon"], 2, &["14d"]),
        (&["trash", "dataset", &used, "--actor", " "], 2, &["is no actor"]),
        (&["trash", "dataset", &used, "--force"], 2, &["--force"]),
        (&["trash", "dataset"], 2, &["ID"]),
        (&["pause"], 2, &["--all"]),
        (&["pause", "--store", "elsewhere"], 2, &["elsewhere", "main"]),
        (&["pause", "--kind", "planet"], 2, &["planet"]),
        (&["list", "--state", "lost"], 2, &["lost", "trashed, blocked"]),
        (&["list", "--limit", "0"], 2, &["0"]),
        (&["serve", "--roles", "bogus"], 2, &["bogus", "api, intake, relay, sweeper, worker"]),
        (&["serve", "--roles", "worker,,api"], 2, &["role"]),
        (&["trash", "dataset", &used], 3, &["localiser 7", "fingerprinter", "active model", "deactivate"]),
        (&["trash", "dataset", &used, "--execute"], 3, &["localiser 7", "fingerprinter"]),
        (&["trash", "dataset", &nobody], 4, &["there is no dataset"]),
        (&["restore", "dataset", &nobody], 4, &["there is no dataset"]),
        (&["restore", "dataset", &used], 4, &["not in the trash"]),
        (&["show", "dataset", &used], 4, &["not in the trash"]),
        (&["show", "dataset", &nobody], 4, &[]),
        (&["hold", "dataset", &nobody], 4, &["there is no dataset"]),
        (&["retry", "dataset", &used], 4, &["not in the trash"]),
        (&["trash", "dataset", &kept, "--execute"], 5, &["protected"]),
    ];
    for (args, code, says) in cases {
        let ended = world.cli(args).await;
        for text in *says {
            assert!(ended.stderr.contains(text), "{args:?} should speak of {text:?}: {}", ended.stderr);
        }
        assert!(!ended.stderr.is_empty() && ended.stdout.is_empty(), "{args:?}");
        ended.with(*code);
        let json: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let json = world.cli(&json).await.with(*code).json();
        assert_eq!(json["ok"], false, "{json:#}");
        assert!(json["error"]["code"].is_string() && json["error"]["message"].is_string(), "{json:#}");
    }
    for args in [&["--json", "trash", "dataset"][..], &["bury", "--json"]] {
        let ended = world.cli(args).await.with(2);
        assert_eq!(ended.json()["error"]["code"], "usage", "{args:?}");
        assert!(ended.stderr.is_empty(), "{args:?}: {}", ended.stderr);
    }
    assert_eq!(everything(&world).await, before, "a refusal changes nothing");
    let refused = world.cli(&["trash", "dataset", &used, "--execute", "--json"]).await.with(3).json();
    let labels = refused["error"]["details"]["blockers"].as_array().expect("blockers").iter();
    assert_eq!(labels.map(|blocker| &blocker["label"]).collect::<Vec<_>>(), ["localiser 7", "fingerprinter"]);
}

#[tokio::test]
async fn help_documents_every_verb_and_exit_code() {
    let help = |args: &[&str]| {
        let mut command = reprieve();
        command.args(args);
        Ended::of(command)
    };
    let text = help(&["--help"]).await.with(0).stdout;
    for verb in [
        "migrate", "check", "serve", "trash", "restore", "list", "show", "retry", "hold", "release", "pause", "resume",
        "demo", "dev", "health",
    ] {
        assert!(text.contains(verb), "{verb}");
        assert!(help(&[verb, "--help"]).await.with(0).stdout.contains("Usage: reprieve"), "{verb}");
    }
    for code in 0..=7 {
        assert!(text.lines().any(|line| line.starts_with(&format!("  {code}  "))), "exit code {code}");
    }
    let mut command = reprieve();
    command.args(["trash", "--help"]).env("REPRIEVE_ACTOR", "somebody");
    let text = Ended::of(command).await.with(0).stdout;
    assert!(text.contains("[env: REPRIEVE_ACTOR]") && !text.contains("somebody"), "{text}");
    assert!(help(&["--version"]).await.with(0).stdout.starts_with("reprieve "));
    help(&[]).await.with(2);
}

#[tokio::test]
async fn whoever_looks_at_a_purge_that_waits_sees_when_it_is_tried_again_and_for_what_it_waits() {
    let world = world().await;
    let id = Dataset::iq_raw("throttled").insert(&world.pool).await;
    world.trash("dataset", id).await;
    let (id, why) = (id.to_string(), "DeleteObjects: SlowDown: reduce your rate, at s3://b/p/");
    let stands = async |how: &str| {
        let sql = format!(
            "update reprieve.tombstones set last_error = '{why}', purging_at = now(),
                 trashed_at = now() - interval '2 hours',
                 purge_after = now() - interval '1 hour', fence = 1, {how} where resource_id = '{id}'"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&world.pool).await.expect("made so");
        let shown = world.cli(&["show", "dataset", &id]).await.with(0).stdout;
        (shown, world.cli(&["list"]).await.with(0).stdout)
    };
    let waits = "state = 'purging', next_attempt_at = now() + interval '2 hours 30 minutes', attempts = 0,
                 objects_listed = 1, objects_deleted = 1";
    // a night of it
    let sql = "insert into reprieve.audit (event, tombstone_id, kind, resource_id, actor, origin, details)
               select 'purge_failed', id, kind, resource_id, 'worker ' || n, 'worker',
                      jsonb_build_object('attempt', 0, 'reason', $1::text)
               from reprieve.tombstones, generate_series(1, 9) n where resource_id = $2";
    sqlx::query(sql).bind(why).bind(&id).execute(&world.pool).await.expect("written");
    let (shown, listed) = stands(waits).await;
    for part in
        [why, "purge_failed (9 times)", "tries again  20", "(in 2h 29m), by itself", "attempts     0 of 10 have failed"]
    {
        assert!(shown.contains(part), "{part:?} is missing in {shown}");
    }
    assert!(shown.matches("purge_failed").count() == 1 && !shown.contains("\"attempt\""), "{shown}");
    for part in ["1 object gone; tries again in 2h 29m; ", why] {
        assert!(listed.contains(part), "{part:?} is missing in {listed}");
    }
    let json = world.json(&["show", "dataset", &id]).await;
    assert!(json["tombstone"]["next_attempt_at"].is_string() && json.get("max_attempts").is_none(), "{json}");

    // somebody is at it; it is about to be taken up; it waits for a date; it waits for somebody
    let leased = "lease_owner = 'w', lease_until = now() + interval '1 minute'";
    let due = "lease_owner = null, lease_until = null, next_attempt_at = now() - interval '1 second'";
    for (how, is_told) in [
        (leased, false),
        (due, false),
        ("state = 'stuck', retry_at = now() + interval '2 hours 30 minutes'", true),
        ("retry_at = null, next_attempt_at = now() + interval '2 hours 30 minutes'", false),
    ] {
        let (shown, listed) = stands(how).await;
        for text in [&shown, &listed] {
            assert_eq!(text.contains("in 2h 29m"), is_told, "{how}: {text}");
            assert!(text.contains(why), "{how}: {text}");
        }
        assert!(!shown.contains("attempts "), "{how}: {shown}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_failure() {
    let world = world().await;
    for n in 0..300 {
        let id = Dataset::iq_raw(&format!("set {n}")).insert(&world.pool).await;
        if n < 2 {
            world.trash("dataset", id).await;
        }
    }
    sqlx::query(
        "insert into reprieve.tombstones (id, kind, resource_id, actor, origin, locations, trashed_at, purge_after, next_attempt_at)
         select gen_random_uuid(), 'dataset', gen_random_uuid()::text, 'a', 'cli', '[]', now(), now() + '1h', now() + '1h'
         from generate_series(1, 3000)",
    )
    .execute(&world.pool)
    .await
    .expect("many");
    for json in ["", "--json"] {
        let binary = env!("CARGO_BIN_EXE_reprieve");
        let line = format!("{binary} --config {} list --limit 10000 {json} | head -1", world.config.display());
        let mut command = std::process::Command::new("/bin/bash");
        command.args(["-o", "pipefail", "-c", &line]).stdin(Stdio::null()).env_remove("REPRIEVE_CONFIG");
        let ended = Ended::of(command).await.with(0);
        assert_eq!((ended.stdout.lines().count(), ended.stderr.as_str()), (1, ""));
    }
}

#[tokio::test]
async fn a_hold_keeps_what_is_due_until_it_is_released() {
    let world = World::new(Settings::default()).await;
    let (dataset, put) = world.dataset("held", SHAPE).await;
    let id = dataset.to_string();
    let hold = ["hold", "dataset", &id, "--reason", "audit 2026", "--actor", "olga"];
    assert_eq!(world.json(&hold).await["changed"], true);
    assert!(world.cli(&hold).await.with(0).stdout.contains("held already"));
    let refused = world.cli(&["trash", "dataset", &id, "--execute"]).await.with(5);
    for text in ["held by olga", "audit 2026", &format!("reprieve release dataset {id}")] {
        assert!(refused.stderr.contains(text), "{}", refused.stderr);
    }
    assert_eq!(world.json(&["release", "dataset", &id]).await["changed"], true);
    assert!(world.cli(&["release", "dataset", &id]).await.with(0).stdout.contains("was not held"));

    world.trash("dataset", dataset).await;
    world.json(&hold).await;
    let _service = world.serve(&[]);
    let now = world.until("it was due, and left alone", dataset, |now| now.last_error.is_some()).await;
    assert!(now.last_error.as_deref().is_some_and(|why| why.contains("held by olga: audit 2026")), "{now:?}");
    assert_eq!((now.state.as_str(), world.objects(dataset).await), ("trashed", put));
    assert!(world.cli(&["show", "dataset", &id]).await.with(0).stdout.contains("audit 2026"));
    world.json(&["release", "dataset", &id]).await;
    world.purged("dataset", dataset, put, 1 + 5 + 3).await;
    let late = world.cli(&["hold", "dataset", &id]).await.with(4);
    assert!(late.stderr.contains("there is no"), "{}", late.stderr);
    let shown: Value = world.json(&["show", "dataset", &id]).await;
    let events = shown["history"].as_array().expect("entries").iter().map(|entry| entry["event"].clone());
    let events: Vec<Value> = events.collect();
    for event in ["trashed", "held", "released", "purge_begun", "purged"] {
        assert!(events.contains(&json!(event)), "{event} is missing in {events:?}");
    }
}

#[tokio::test]
async fn where_nothing_can_have_been_carried_out_nobody_is_told_that_it_may() {
    let world = World::new(Settings::default()).await;
    let nowhere = format!("postgres://a:b@127.0.0.1:{}/x", free_port().expect("a port"));
    let id = Uuid::new_v4().to_string();
    for args in [
        &["list"][..],
        &["show", "dataset", &id],
        &["trash", "dataset", &id],
        &["retry", "dataset", &id],
        &["trash", "dataset", &id, "--execute"],
        &["hold", "dataset", &id],
    ] {
        let mut command = world.command(args);
        command.env("REPRIEVE__DATABASE__URL", &nowhere).env("REPRIEVE__DATABASE__ACQUIRE_TIMEOUT", "1s");
        let told = Ended::of(command).await.with(1).stderr;
        assert!(told.contains("cannot be reached") && told.contains("nothing was carried out"), "{args:?}: {told}");
        assert!(!told.contains("not known"), "{args:?}: {told}");
    }
}

#[tokio::test]
async fn without_any_ca_certificate_a_store_at_https_is_refused_in_words_and_one_at_http_is_used() {
    let world = World::new(Settings::default()).await;
    let port = free_port().expect("a port");
    for (endpoint, says) in [
        (format!("https://127.0.0.1:{port}"), "no CA certificate"),
        // an address of nobody: it is asked, and does not answer
        (format!("http://nobody.invalid:{port}"), "problem"),
    ] {
        let mut command = world.command(&["check"]);
        command.env("REPRIEVE__STORES__MAIN__ENDPOINT", &endpoint);
        command.env("SSL_CERT_FILE", "/nonexistent").env("SSL_CERT_DIR", "/nonexistent");
        let ended = Ended::of(command).await;
        assert!([1, 7].contains(&ended.code) && ended.stderr.contains(says), "{endpoint}: {ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}
