//! The figures of `docs/metrics.md`: each is exported as promised, and together they keep its laws, also after faults.

use std::net::SocketAddr;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::amqp::Amqp;
use crate::behind_proxy::{Faulty, settings};
use crate::exposition::{Exposition, address_in, ask, promised, routes};
use crate::process::Service;
use crate::s3_proxy::{ALWAYS, Fault, KeyFault, Op, Weather, Which, Work};
use crate::support::heimdall::{Dataset, Model};
use crate::support::{SOON, wait_until};
use crate::world::{PURGED, Settings};

const KINDS: [&str; 2] = ["dataset", "job"];

/// What the configuration of these tests gives, as the page calls it.
fn given(faulty: &Faulty, roles: &[&str]) -> impl Fn(&str) -> Vec<Vec<String>> {
    let one = |value: &str| vec![value.to_owned()];
    let all = move |values: &[&str]| values.iter().map(|value| one(value)).collect::<Vec<_>>();
    let bucket = vec!["main".to_owned(), faulty.world.bucket.clone()];
    let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
    move |what| match what {
        "version" => all(&[env!("CARGO_PKG_VERSION")]),
        "kinds" => all(&KINDS),
        "kinds with a size" => all(&["dataset"]),
        "stores" => all(&["main"]),
        "buckets" => vec![bucket.clone()],
        "roles" => roles.iter().map(|role| vec![role.clone()]).collect(),
        "broker roles" => {
            let needs_broker = |role: &&String| ["intake", "relay", "worker"].contains(&role.as_str());
            roles.iter().filter(needs_broker).map(|role| vec![role.clone()]).collect()
        }
        "routes" => routes(),
        other => panic!("the page speaks of {other:?}"),
    }
}

/// Everything that the page promises is shown, with every label set and as that type, and nothing else of ours.
fn is_as_promised(shown: &Exposition, given: impl Fn(&str) -> Vec<Vec<String>>, with_facts: bool) {
    let mut families = shown.families();
    families.retain(|name, _| name.starts_with("reprieve_"));
    for metric in promised() {
        let is_fact = {
            let page = include_str!("../../docs/metrics.md");
            let row =
                page.lines().find(|line| line.starts_with(&format!("| `{}` |", metric.name))).expect("it is a row");
            row.contains("| database, `api` |")
        };
        let expected = metric.label_sets(&given);
        let found = families.remove(&metric.name);
        if is_fact && !with_facts {
            assert_eq!(found, None, "{}", metric.name);
            continue;
        }
        if expected.is_empty() {
            assert_eq!(found, None, "{}", metric.name);
            continue;
        }
        let found = found.unwrap_or_else(|| panic!("{} is not shown: {}", metric.name, shown.text));
        assert_eq!(found, expected, "the label sets of {}", metric.name);
        assert_eq!(shown.types[&metric.name], metric.kind, "the type of {}", metric.name);
    }
    assert!(families.is_empty(), "not on the page: {families:?}");
    assert!(shown.types.contains_key("process_start_time_seconds") && shown.types.contains_key("process_open_fds"));
}

async fn is_valid(text: &str) {
    let promtool = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut promtool = promtool.expect("promtool is installed, see scripts/setup");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).await.expect("written");
    let ended = promtool.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned() + &String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.is_empty(), "{said}");
}

/// A running service and its API.
struct Running<'a> {
    faulty: &'a Faulty,
    api: SocketAddr,
    _service: Service,
}

impl Running<'_> {
    async fn post(&self, id: Uuid, verb: &str, more: Value) -> (u16, Value) {
        let mut body = json!({ "actor": "alice" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let (status, text) =
            ask(self.api, "POST", &format!("/v1/resources/dataset/{id}/{verb}"), &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    async fn trash(&self, id: Uuid) {
        let (status, answer) = self.post(id, "trash", json!({ "dry_run": false })).await;
        assert_eq!((status, &answer["status"]), (200, &json!("trashed")), "{answer}");
    }

    /// Waits until nothing is under way and what is shown of the database is as it is now, and reads the figures then.
    async fn figures(&self) -> Exposition {
        let open = self.number("select count(*)::float8 from reprieve.tombstones where closed_at is null").await;
        let stuck = self.number("select count(*)::float8 from reprieve.tombstones where state = 'stuck'").await;
        let mut now = Exposition::default();
        wait_until("nothing is under way", PURGED, async || {
            now = Exposition::scrape(self.api).await;
            now.one("reprieve_deliveries_in_progress", &[]) == 0.0
                && now.sum("reprieve_store_requests_in_flight", &[]) == 0.0
                && now.sum("reprieve_open_tombstones", &[("state", "purging")]) == 0.0
                && now.sum("reprieve_open_tombstones", &[("state", "stuck")]) == stuck
                && now.sum("reprieve_open_tombstones", &[]) == open
        })
        .await;
        now
    }

    async fn number(&self, sql: &'static str) -> f64 {
        sqlx::query_scalar(sql).fetch_one(&self.faulty.world.pool).await.expect("counted")
    }

    async fn keeps_the_laws(&self, now: &Exposition) {
        let sum = |name: &str, labels: &[(&str, &str)]| now.sum(name, labels);
        let of_store = [("store", "main")];
        let requested = sum("reprieve_store_keys_requested_total", &of_store);
        assert_eq!(requested, sum("reprieve_store_keys_total", &of_store), "1");
        let ended = sum("reprieve_deliveries_total", &[]) + now.one("reprieve_deliveries_in_progress", &[]);
        assert_eq!(now.one("reprieve_deliveries_received_total", &[]), ended, "2");
        for kind in KINDS {
            let of = [("kind", kind)];
            let finished = sum("reprieve_purges_finished_total", &of);
            let open = |states: &[&str]| -> f64 {
                states
                    .iter()
                    .map(|state| now.one("reprieve_open_tombstones", &[("kind", kind), ("state", state)]))
                    .sum()
            };
            let (trashed, restored) =
                (sum("reprieve_tombstones_trashed_total", &of), sum("reprieve_tombstones_restored_total", &of));
            assert_eq!(trashed - restored - finished, open(&["trashed", "blocked", "purging", "stuck"]), "3, {kind}");
            let started = sum("reprieve_purges_started_total", &of);
            assert_eq!(started - finished, open(&["purging", "stuck"]), "4, {kind}");
            let (stuck, retried) = (sum("reprieve_purges_stuck_total", &of), sum("reprieve_purges_retried_total", &of));
            assert_eq!(stuck - retried, open(&["stuck"]), "5, {kind}");
            for (name, count) in [
                ("reprieve_purge_duration_seconds_count", finished),
                ("reprieve_purge_lag_seconds_count", finished),
                ("reprieve_restore_window_left_seconds_count", restored),
            ] {
                assert_eq!(sum(name, &of), count, "8, {name}, {kind}");
            }
        }
        for operation in ["trash", "restore", "purge", "hold", "release", "retry"] {
            let refused = sum("reprieve_requests_total", &[("operation", operation), ("result", "refused")]);
            assert_eq!(refused, sum("reprieve_refusals_total", &[("operation", operation)]), "9, {operation}");
        }
        for operation in ["list", "delete", "list_uploads", "abort_upload", "look"] {
            let of = [("store", "main"), ("operation", operation)];
            let timed = sum("reprieve_store_request_duration_seconds_count", &of);
            assert_eq!(sum("reprieve_store_requests_total", &of), timed, "10, {operation}");
        }
        self.agrees_with_receipts(now).await;
    }

    async fn agrees_with_receipts(&self, now: &Exposition) {
        let deleted = now.sum("reprieve_objects_total", &[("outcome", "deleted")]);
        let absent = now.sum("reprieve_objects_total", &[("outcome", "absent")]);
        assert_eq!(deleted, self.number("select sum(objects_deleted)::float8 from reprieve.tombstones").await, "6");
        assert_eq!(absent, self.number("select sum(objects_absent)::float8 from reprieve.tombstones").await, "6");
        let receipts = "select coalesce(sum((details #>> '{objects,deleted}')::bigint), 0)::float8
                        from reprieve.audit where event = 'purged'";
        let unfinished = "select coalesce(sum(objects_deleted), 0)::float8 from reprieve.tombstones
                          where state in ('purging', 'stuck')";
        assert_eq!(deleted, self.number(receipts).await + self.number(unfinished).await, "6, receipts");
        let bytes =
            "select sum((details ->> 'bytes_freed')::bigint)::float8 from reprieve.audit where event = 'purged'";
        assert_eq!(now.sum("reprieve_freed_bytes_total", &[]), self.number(bytes).await, "7, bytes");
        let rows =
            "select sum((details ->> 'rows_deleted')::bigint)::float8 from reprieve.audit where event = 'purged'";
        assert_eq!(now.sum("reprieve_rows_deleted_total", &[]), self.number(rows).await, "7, rows");
        let uploads = "select sum((details ->> 'uploads_aborted')::bigint)::float8 from reprieve.audit
                       where event = 'purged'";
        assert_eq!(now.sum("reprieve_uploads_aborted_total", &[]), self.number(uploads).await, "7, uploads");
    }
}

#[tokio::test]
async fn every_figure_is_there_from_the_first_scrape_and_they_add_up_after_purges_through_faults() {
    const SEED: u64 = 20_260_722;
    let faulty = Faulty::new(Settings { max_attempts: 50, batch_size: 5, ..settings() }).await;
    let world = &faulty.world;
    let service = world.serve(&[]);
    service.says("serving").await;
    let api = address_in(&service.log(), "api listens");
    let first = Exposition::scrape(api).await;
    is_as_promised(&first, given(&faulty, &["api", "intake", "relay", "sweeper", "worker"]), true);
    is_valid(&first.text).await;
    assert_eq!(first.one("reprieve_started", &[]), 1.0);
    assert_eq!(first.sum("reprieve_store_batch_size", &[]), 5.0, "as configured: nothing was refused yet");
    let amqp = Amqp::beside(world, &service).await;
    let run = Running { faulty: &faulty, api, _service: service };

    let weather = Weather { errors: 60, throttling: 40, keys: 300, cuts: 80, ..Weather::passing() };
    faulty.proxy.storm(SEED, weather);
    let (denied, denied_prefix) = faulty.dataset("denied").await;
    let one_key = Fault::Keys(Which::First(1), KeyFault::AccessDenied(Work::Left));
    let (later, later_prefix) = faulty.dataset("mended later").await;
    faulty.proxy.rule(Op::DeleteObjects.below(&denied_prefix), ALWAYS, one_key.clone());
    let mended = faulty.proxy.rule(Op::DeleteObjects.below(&later_prefix), ALWAYS, one_key);
    let mut purged = Vec::new();
    for n in 0..4 {
        let (id, _) = faulty.dataset(&format!("{n}")).await;
        run.trash(id).await;
        purged.push(id);
    }
    run.trash(denied).await;
    run.trash(later).await;
    // by message, over the command line of nobody: what commands do, no process that is scraped has done
    let (by_message, _) = faulty.dataset("by message").await;
    let request =
        |op: &str, id: Uuid| json!({ "v": 1, "op": op, "kind": "dataset", "id": id.to_string(), "actor": "service" });
    assert_eq!(amqp.ask(&request("trash", by_message)).await["status"], "trashed");
    purged.push(by_message);
    assert_eq!(amqp.ask(&request("restore", Uuid::new_v4())).await["error"]["code"], "not_found");

    // restored, refused, malformed, a dry run
    let (kept, _) = faulty.dataset("kept").await;
    let week = json!({ "dry_run": false, "retention": "7d" });
    assert_eq!(run.post(kept, "trash", json!({})).await.1["status"], "would_trash");
    assert_eq!(run.post(kept, "trash", week.clone()).await.1["status"], "trashed");
    assert_eq!(run.post(kept, "restore", json!({})).await.1["status"], "restored");
    assert_eq!(run.post(kept, "trash", week).await.1["status"], "trashed");
    let used = Dataset::iq_raw("used").insert(&world.pool).await;
    Model { datasets: vec![used], active: true, ..Model::named("active") }.insert(&world.pool).await;
    assert_eq!(run.post(used, "trash", json!({ "dry_run": false })).await.1["code"], "in_use");
    assert_eq!(run.post(used, "trash", json!({ "no": "such field" })).await.0, 400);
    // its use comes after the trash, past a guard that somebody switched off
    let (blocked, _) = faulty.dataset("blocked").await;
    let sql = "alter table heimdall.models disable trigger all";
    sqlx::raw_sql(sql).execute(&world.pool).await.expect("switched off");
    run.trash(blocked).await;
    Model { datasets: vec![blocked], production: true, ..Model::named("late") }.insert(&world.pool).await;

    for id in purged.iter().chain([&later]) {
        world.until("purged or stuck", *id, |now| now.state == if *id == later { "stuck" } else { "purged" }).await;
    }
    world.until_state(denied, "stuck").await;
    world.until_state(blocked, "blocked").await;
    mended.end();
    assert_eq!(run.post(later, "retry", json!({})).await.1["status"], "would_retry");
    assert_eq!(run.post(later, "retry", json!({ "dry_run": false })).await.1["status"], "retried");
    world.until_state(later, "purged").await;
    assert!(faulty.proxy.counts().values().sum::<u64>() > 20, "{:?}", faulty.proxy.counts());

    world.cli(&["pause", "--kind", "job"]).await.with(0);
    let now = run.figures().await;
    run.keeps_the_laws(&now).await;
    is_as_promised(&now, given(&faulty, &["api", "intake", "relay", "sweeper", "worker"]), true);
    is_valid(&now.text).await;
    let dataset = ("kind", "dataset");
    for (name, labels, least) in [
        ("reprieve_purges_finished_total", &[dataset][..], 6.0),
        ("reprieve_purges_blocked_total", &[dataset], 1.0),
        ("reprieve_store_requests_total", &[("result", "transient")], 1.0),
        ("reprieve_store_requests_total", &[("result", "throttled")], 1.0),
        ("reprieve_key_retries_total", &[("store", "main")], 1.0),
        ("reprieve_store_attempts_total", &[("store", "main")], now.sum("reprieve_store_requests_total", &[]) / 2.0),
        ("reprieve_published_total", &[("topic", "purge")], 8.0),
        ("reprieve_database_acquires_total", &[("result", "ok")], 50.0),
        ("reprieve_sweeps_total", &[("result", "ok")], 1.0),
        ("reprieve_store_keys_total", &[("outcome", "failed_permanent")], 2.0),
    ] {
        assert!(now.sum(name, labels) >= least, "{name} {labels:?} is {}", now.sum(name, labels));
    }
    for (name, labels, exactly) in [
        ("reprieve_open_tombstones", &[dataset, ("state", "stuck")][..], 1.0),
        ("reprieve_open_tombstones", &[dataset, ("state", "blocked")], 1.0),
        ("reprieve_coming_due_tombstones", &[dataset, ("within", "7d")], 1.0),
        ("reprieve_coming_due_tombstones", &[dataset, ("within", "1d")], 0.0),
        ("reprieve_recently_trashed_tombstones", &[dataset, ("origin", "message")], 1.0),
        ("reprieve_recently_trashed_tombstones", &[dataset, ("origin", "api")], 9.0),
        ("reprieve_refusals_total", &[("operation", "trash"), ("reason", "in_use")], 1.0),
        ("reprieve_refusals_total", &[("operation", "restore"), ("reason", "not_found")], 1.0),
        ("reprieve_requests_total", &[("result", "malformed")], 1.0),
        ("reprieve_requests_total", &[("operation", "trash"), ("result", "ok")], 10.0),
        ("reprieve_broker_connected", &[], 3.0),
        ("reprieve_pauses", &[("scope", "kind")], 1.0),
        ("reprieve_role_info", &[], 5.0),
    ] {
        assert_eq!(now.sum(name, labels), exactly, "{name} {labels:?}");
    }
    wait_until("the queues were looked at", SOON, async || {
        Exposition::scrape(api).await.one("reprieve_queue_messages", &[("queue", "dead")]) == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_process_without_the_api_shows_its_own_figures_alone_where_it_is_told_to_listen() {
    let faulty = Faulty::new(settings()).await;
    let address = ("REPRIEVE__SERVICE__LISTEN", "127.0.0.1:0");
    for roles in [&["worker"][..], &["relay", "sweeper"], &["sweeper"]] {
        let service = faulty.world.serve_with(&["--roles", &roles.join(",")], &[address]);
        service.says("serving").await;
        let shown = Exposition::scrape(address_in(&service.log(), "health and metrics listen")).await;
        is_as_promised(&shown, given(&faulty, roles), false);
        is_valid(&shown.text).await;
    }
}
