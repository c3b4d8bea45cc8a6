//! `migrate`, `check`, and configurations with mistakes.

use reprieve::embedded::keeper::free_port;
use reprieve::embedded::postgres::{Options, PrivatePostgres};
use serde_json::Value;

use crate::process::{Ended, Service};
use crate::support::heimdall::Shape;
use crate::support::seaweedfs;
use crate::world::{Places, Settings, World};

/// What stands in every place for a secret here; no output may show it.
const SECRET: &str = "hunter2hunter2hunter2";

fn config(world: &World) -> String {
    std::fs::read_to_string(&world.config).expect("our own file")
}

/// Runs `check` with another configuration and map.
async fn check(world: &World, config: &str, map: &str) -> Ended {
    world.write("map.toml", map);
    let file = world.write("other.toml", config);
    let path = file.display().to_string();
    let mut command = crate::process::reprieve();
    command.args(["--config", &path, "check", "--json"]);
    Ended::of(command).await
}

/// The problems among the findings of a `check`.
fn problems(ended: &Ended) -> Vec<String> {
    let findings: Vec<Value> = serde_json::from_str(&ended.stdout).expect("one document");
    let problems = findings.iter().filter(|finding| finding["level"] == "problem");
    problems.map(|finding| format!("{}: {}", finding["about"], finding["finding"])).collect()
}

#[tokio::test]
async fn the_real_map_fits_the_real_schema() {
    let world = World::new(Settings::default()).await;
    let text = world.cli(&["check"]).await.with(0).stdout;
    assert!(text.contains("`serve` declares what is missing") && !text.contains("start once with"), "{text}");
    let service = world.serve(&[]);
    service.says("worker consumes").await;
    let text = world.cli(&["check"]).await.with(0).stdout;
    for landmark in ["fits this program", "fit the database", "no versions", "its queues are there", "its guard on"] {
        assert!(text.contains(landmark), "{landmark:?} is missing in {text}");
    }
    assert!(!text.contains("PROBLEM") && !text.contains("not installed"), "{text}");
    // lineage that a purge would erase in silence is named
    assert!(text.contains("models.synthetic_dataset_id") && text.contains("set to null"), "{text}");
    let json = world.cli(&["check", "--json"]).await.with(0);
    assert_eq!(problems(&json), Vec::<String>::new());
}

#[tokio::test]
async fn a_bucket_that_two_stores_list_by_two_addresses_is_pointed_out() {
    let world = World::new(Settings::default()).await;
    let config = config(&world);
    let from = config.find("[stores.main]").expect("a store");
    let to = config[from + 1..].find("\n[").map_or(config.len(), |end| from + 1 + end + 1);
    let alias = config[from..to].replace("[stores.main]", "[stores.alias]").replace("127.0.0.1", "localhost");
    let file = world.write("two.toml", &format!("{config}\n{alias}"));
    let mut command = crate::process::reprieve();
    command.args(["--config", &file.display().to_string(), "check"]);
    let text = Ended::of(command).await.with(0).stdout;
    assert!(text.contains("it lists a bucket") && text.contains("are one server"), "{text}");
}

#[tokio::test]
async fn columns_that_a_purge_would_scan_a_table_for_are_named_however_far_away() {
    let world = World::new(Settings::default()).await;
    let schema = "
        set search_path to heimdall;
        create table labels (id int primary key, sample_at timestamptz, sample_id uuid,
            foreign key (sample_at, sample_id) references synthetic_iq_samples (timestamp, id) on delete cascade);
        create table reports (id int primary key, dataset_id uuid references synthetic_datasets on delete cascade);
        create index reports_of_few on reports (dataset_id) where id < 100;
        create table pages (id int primary key, report int references reports on delete cascade);
        create index pages_of_reports on pages (report) where report is not null;
        create table notes (id int primary key, page int references pages)";
    sqlx::raw_sql(schema).execute(&world.pool).await.expect("new tables");
    let text = world.cli(&["check", "--json"]).await.with(0).stdout;
    let findings: Vec<Value> = serde_json::from_str(&text).expect("one document");
    let named = |column: &str| {
        let about = findings.iter().filter_map(|finding| finding["finding"].as_str());
        about.filter(|text| text.contains(column) && text.contains("has no index")).count()
    };
    for (column, times) in [
        ("measurement_features", 1),
        ("heimdall.labels.sample_at", 1),
        ("heimdall.reports.dataset_id", 1),
        ("heimdall.pages.report", 0),
        ("heimdall.notes.page", 1),
        ("synthetic_iq_samples\".dataset_id", 0),
        ("synthetic_iq_samples.dataset_id", 0),
    ] {
        assert_eq!(named(column), times, "{column}: {findings:#?}");
    }
}

#[tokio::test]
async fn rows_that_would_refuse_a_purge_its_end_are_named_by_check_and_refuse_the_trash() {
    let world = World::new(Settings::default()).await;
    let (dataset, _) = world.dataset("set a", Shape { samples: 1, receivers: 1 }).await;
    let schema = "
        set search_path to heimdall;
        create table reports (id int primary key, dataset_id uuid references synthetic_datasets on delete cascade);
        create table pages (id int primary key, report int references reports on delete cascade);
        create table notes (id int primary key, page int, constraint notes_page foreign key (page) references pages);
        alter table training_jobs add made_for uuid references synthetic_datasets on delete cascade;
        alter table measurement_features add sample_at timestamptz, add sample uuid,
            add foreign key (sample_at, sample) references synthetic_iq_samples (timestamp, id);
        alter table synthetic_iq_samples add before_at timestamptz, add before uuid,
            add foreign key (before_at, before) references synthetic_iq_samples (timestamp, id)";
    sqlx::raw_sql(schema).execute(&world.pool).await.expect("new tables");
    let text = world.cli(&["check"]).await.with(0).stdout;
    for found in [
        "heimdall.reports.dataset_id deletes its rows",
        "heimdall.pages.report deletes its rows",
        "heimdall.notes.page refuses",
        "heimdall.training_jobs.made_for deletes rows of the kind job",
        "heimdall.synthetic_iq_samples.before_at, before refuses the deletion of rows of heimdall.synthetic_iq_samples that it \
         points at, unless they go in one transaction",
        "the [[resource.rows]] of heimdall.measurement_features belongs before that of heimdall.synthetic_iq_samples",
    ] {
        assert!(text.contains(found), "{found:?} is missing in {text}");
    }
    let rows = format!(
        "insert into heimdall.reports values (1, '{dataset}'); insert into heimdall.pages values (1, 1), (2, 1);
         insert into heimdall.notes values (1, 1), (2, 2), (3, null)"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(rows)).execute(&world.pool).await.expect("rows");
    let id = dataset.to_string();
    for execute in [&[][..], &["--execute"]] {
        let args = [&["trash", "dataset", &id], execute].concat();
        let ended = world.cli(&args).await.with(3);
        assert!(
            ended.stderr.contains("2 rows of heimdall.notes") && ended.stderr.contains("(notes_page)"),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains("[[resource.rows]]"), "{}", ended.stderr);
        let json = world.cli(&[&args[..], &["--json"]].concat()).await.with(3).json();
        assert_eq!(json["error"]["details"]["blockers"][0]["reference"], "foreign key", "{json:#}");
    }
}

#[tokio::test]
async fn every_problem_of_a_map_that_does_not_fit_is_named_at_once() {
    let world = World::new(Settings::default()).await;
    let map = world
        .map_text()
        .replace("name = \"name\"", "name = \"title\"")
        .replace(
            "select id, model_name from heimdall.models where synthetic_dataset_id = $1 and is_active",
            "select id, modelname from heimdall.models where id = $1",
        )
        .replace("table = \"heimdall.measurement_features\"", "table = \"heimdall.features\"")
        .replace("column = \"training_job_id\"", "column = \"job\"")
        .replace(
            "select id from heimdall.synthetic_datasets where created_by_job_id = $1",
            "select id frm heimdall.synthetic_datasets where created_by_job_id = $1",
        );
    let config = config(&world).replace(
        &format!("buckets = [\"{}\"]", world.bucket),
        &format!("buckets = [\"{}\", \"nowhere-to-be-found\"]", world.bucket),
    );
    let ended = check(&world, &config, &map).await.with(7);
    let found = problems(&ended);
    for (about, says) in [
        ("dataset", "title"),
        ("dataset", "modelname"),
        ("dataset", "heimdall.features"),
        ("job", "job"),
        ("job", "syntax error"),
        ("nowhere-to-be-found", "NoSuchBucket"),
    ] {
        assert!(found.iter().any(|one| one.contains(about) && one.contains(says)), "{about}, {says}: {found:#?}");
    }
    assert!(!found.iter().any(|one| one.contains(" at line ")), "no line of PostgreSQL's own source: {found:#?}");
    assert!(ended.stderr.is_empty(), "with --json nothing else is printed: {}", ended.stderr);

    // a table that is missing altogether does not keep the next kind from being looked at
    let map = world
        .map_text()
        .replace("table = \"heimdall.synthetic_datasets\"", "table = \"heimdall.datasets\"\nsoft_delete = \"gone_at\"")
        .replace("name = \"job_name\"", "name = \"title\"");
    let found = problems(&check(&world, &config, &map).await.with(7));
    for (about, says) in [("dataset", "datasets"), ("job", "title"), ("nowhere-to-be-found", "NoSuchBucket")] {
        assert!(found.iter().any(|one| one.contains(about) && one.contains(says)), "{about}, {says}: {found:#?}");
    }
}

#[tokio::test]
async fn servers_that_are_away_or_refuse_are_each_named_and_no_secret_is_shown() {
    let postgres = PrivatePostgres::start(Options { tcp: true, settings: Vec::new() }).await.expect("starts");
    let world = World::new(Settings::default()).await;
    let config = config(&world);
    let map = world.map_text();
    let password = postgres.url().split(['@', ':']).nth(2).expect("a password").to_owned();
    let nobody = free_port().expect("a port");
    let line = |key: &str| config.lines().find(|line| line.starts_with(key)).expect("is there").to_owned();
    let (database, broker) = (line("url = \"postgres"), line("url = \"amqp"));

    // wrong passwords everywhere
    let wrong = config
        .replace(&database, &format!("url = \"{}\"", postgres.url().replace(&password, SECRET)))
        .replace(&broker, &broker.replace("guest:guest", &format!("guest:{SECRET}")))
        .replace(seaweedfs::SECRET_KEY, SECRET);
    let ended = check(&world, &wrong, &map).await.with(7);
    let found = problems(&ended);
    for (about, says) in [
        ("database", "password authentication failed"),
        ("main", "SignatureDoesNotMatch"),
        ("broker", "Login was refused"),
    ] {
        assert!(found.iter().any(|one| one.contains(about) && one.contains(says)), "{about}, {says}: {found:#?}");
    }
    assert!(!ended.all().contains(SECRET), "{}", ended.all());

    // nobody there
    let away = config
        .replace(
            &database,
            &format!("url = \"postgres://app:{SECRET}@127.0.0.1:{nobody}/platform\"\nconnect_timeout = \"1s\""),
        )
        .replace("\nconnect_timeout = \"1s\"", "")
        .replace(&broker, &format!("url = \"amqp://app:{SECRET}@127.0.0.1:{nobody}/%2f\""))
        .replace(
            &line("endpoint"),
            &format!("endpoint = \"http://127.0.0.1:{nobody}\"\noperation_timeout = \"2s\"\nattempt_timeout = \"1s\""),
        );
    let ended = check(&world, &away, &map).await.with(7);
    let found = problems(&ended);
    for about in ["database", "main", "broker"] {
        assert!(found.iter().any(|one| one.contains(about)), "{about}: {found:#?}");
    }
    assert!(!ended.all().contains(SECRET), "{}", ended.all());
}

/// An address where connections are accepted by nobody: whoever asks waits.
async fn silent() -> (tokio::net::TcpListener, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("has one").to_string();
    (listener, address)
}

#[tokio::test]
async fn servers_that_stand_still_are_each_named_after_seconds() {
    let world = World::new(Settings::default()).await;
    let config = config(&world);
    let line = |key: &str| config.lines().find(|line| line.starts_with(key)).expect("is there").to_owned();
    let ((_postgres, postgres), (_store, store), (_broker, broker)) = tokio::join!(silent(), silent(), silent());
    let still = config
        .replace(&line("url = \"postgres"), &format!("url = \"postgres://app:{SECRET}@{postgres}/platform\""))
        .replace(&line("url = \"amqp"), &format!("url = \"amqp://app:{SECRET}@{broker}/%2f\""))
        .replace(&line("endpoint"), &format!("endpoint = \"http://{store}\""))
        .replace(&format!("[\"{}\"]", world.bucket), &format!("[\"{}\", \"another\"]", world.bucket));
    let ended = check(&world, &still, &world.map_text()).await.with(7);
    let found = problems(&ended);
    for (about, address) in [("database", &postgres), ("store main", &store), ("broker", &broker)] {
        // the client of the broker has a limit of its own, which is as long
        let is_bound = |one: &String| one.contains("within 10s") || one.contains("no answer from the broker in time");
        let says = |one: &String| one.contains(about) && one.contains(address.as_str()) && is_bound(one);
        assert!(found.iter().any(says), "{about} at {address}: {found:#?}");
    }
    assert!(found.iter().any(|one| one.contains("bucket another") && one.contains("not looked at")), "{found:#?}");
    assert!(!ended.all().contains(SECRET), "{}", ended.all());
}

#[tokio::test]
async fn what_is_known_of_one_server_is_shown_while_another_is_waited_for() {
    let world = World::new(Settings::default()).await;
    let config = config(&world);
    let endpoint = config.lines().find(|line| line.starts_with("endpoint")).expect("is there");
    let (store, address) = silent().await;
    let file = world.write("still.toml", &config.replace(endpoint, &format!("endpoint = \"http://{address}\"")));
    let mut command = crate::process::reprieve();
    command.args(["--config", &file.display().to_string(), "check"]);
    let mut checking = Service::spawn(command, &world.dir().join("check.log"));
    checking.says("fits this program").await;
    assert!(!checking.log().contains("store main"), "nothing is known of it yet: {}", checking.log());
    // now it refuses, and is known to be away
    drop(store);
    assert_eq!(checking.end(crate::support::SOON).await.code(), Some(7));
    let log = checking.log();
    assert!(log.contains("PROBLEM  store main") && log.contains("broker"), "{log}");
    assert_eq!(log.matches("finding").count(), 1, "one table: {log}");
}

#[tokio::test]
async fn serve_without_a_section_that_its_roles_need_ends_as_with_any_mistake_of_the_configuration() {
    let world = World::new(Settings::default()).await;
    let config = config(&world);
    let (before, broker) = config.split_once("[broker]").expect("a section");
    let after = broker.find("\n[").map_or("", |end| &broker[end..]);
    let file = world.write("without.toml", &format!("{before}{after}"));
    let mut command = crate::process::reprieve();
    command.args(["--config", &file.display().to_string(), "serve"]);
    let ended = Ended::of(command).await.with(6);
    assert!(ended.stderr.contains("need a section [broker]"), "{}", ended.stderr);
}

#[tokio::test]
async fn two_kinds_over_the_same_rows_are_pointed_out() {
    let world = World::new(Settings::default()).await;
    let twin = "\n[[resource]]\nkind = \"twin\"\ntable = \"heimdall.synthetic_datasets\"\n";
    let warned = async |map: String| {
        let ended = check(&world, &config(&world), &map).await;
        let findings: Vec<Value> = serde_json::from_str(&ended.stdout).expect("one document");
        findings.iter().any(|one| one["level"] == "warning" && one["finding"].to_string().contains("same rows"))
    };
    assert!(!warned(world.map_text()).await);
    assert!(warned(format!("{}{twin}", world.map_text())).await);
    let parts = format!("{}{twin}where = \"name like 'x%'\"\n", world.map_text());
    assert!(warned(parts).await, "the other has no `where`");
}

#[tokio::test]
async fn a_database_that_was_not_migrated_is_told_apart_and_serve_refuses_it() {
    let world = World::unmigrated(Places::shared().await, Settings::default()).await;
    let found = problems(&world.cli(&["check", "--json"]).await.with(7));
    assert!(found.iter().any(|one| one.contains("reprieve migrate")), "{found:#?}");
    for args in [&["list"][..], &["trash", "dataset", &uuid::Uuid::nil().to_string(), "--execute"]] {
        // the row is asked for first, and there is none
        let ended = world.cli(args).await;
        assert!(ended.code == 1 && ended.stderr.contains("reprieve migrate") || ended.code == 4, "{ended:?}");
    }
    let serve = world.cli(&["serve"]).await.with(1);
    assert!(serve.stderr.contains("run `reprieve migrate` first"), "{}", serve.stderr);
    let mut both = world.json(&["migrate"]).await;
    assert_eq!(both["ok"], true);
    both = world.json(&["migrate", "--guards"]).await;
    assert_eq!(both["guards_installed"], 3);
    assert_eq!(world.json(&["migrate", "--guards"]).await["guards_installed"], 3);
    assert!(world.cli(&["migrate"]).await.with(0).stdout.contains("up to date"));
    // a newer program has been here: what it has written, this one may not know to delete
    let newer = "insert into reprieve.migrations (version, description, success, checksum, execution_time)
                 values (9999, 'of a newer program', true, '\\x00', 0)";
    sqlx::raw_sql(newer).execute(&world.pool).await.expect("recorded");
    let serve = world.cli(&["serve"]).await.with(1);
    assert!(serve.stderr.contains("migration 9999 of a newer program"), "{}", serve.stderr);
    let found = problems(&world.cli(&["check", "--json"]).await.with(7));
    assert!(found.iter().any(|one| one.contains("newer program")), "{found:#?}");
    world.cli(&["migrate"]).await.with(1);
}

#[tokio::test]
async fn migrating_from_several_processes_at_once_is_safe() {
    for _ in 0..3 {
        let world = World::unmigrated(Places::shared().await, Settings::default()).await;
        let all = (0..4).map(|_| world.cli(&["migrate", "--guards"]));
        for ended in futures_util::future::join_all(all).await {
            ended.with(0);
        }
        let recorded: Vec<String> =
            sqlx::query_scalar("select version::text from reprieve.migrations order by version")
                .fetch_all(&world.pool)
                .await
                .expect("read");
        let files = std::fs::read_dir("migrations").expect("there").filter_map(Result::ok);
        let count = files.filter(|file| file.path().extension().is_some_and(|kind| kind == "sql")).count();
        let each: Vec<String> = (1..=count).map(|version| version.to_string()).collect();
        assert_eq!(recorded, each, "each migration is recorded once");
        world.cli(&["list"]).await.with(0);
    }
}

#[tokio::test]
async fn whoever_may_not_migrate_is_told_which_right_is_missing_and_to_whom() {
    let world = World::unmigrated(Places::shared().await, Settings::default()).await;
    let run = async |sql: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&world.pool).await.expect("we may");
    };
    let database: String =
        sqlx::query_scalar("select current_database()::text").fetch_one(&world.pool).await.expect("a name");
    let role = format!("no_rights_{}", database.replace('-', "_"));
    run(format!("create role {role}")).await;
    let and = if world.database_url.contains('?') { '&' } else { '?' };
    let url = format!("{}{and}options=-crole%3D{role}", world.database_url);
    let migrate = async |args: &[&str]| {
        let mut command = world.command(&[&["migrate"], args].concat());
        command.env("REPRIEVE__DATABASE__URL", &url);
        Ended::of(command).await
    };
    let told = migrate(&[]).await.with(1).stderr;
    let grant = format!("grant create on database \"{database}\" to \"{role}\"");
    assert!(told.contains("permission denied") && told.contains(&grant) && !told.contains("at line"), "{told}");
    run(grant).await;
    migrate(&[]).await.with(0);
    run(format!("grant usage on schema heimdall to {role}; grant select on all tables in schema heimdall to {role}"))
        .await;
    let told = migrate(&["--guards"]).await.with(1).stderr;
    assert!(told.contains("installed by the owner of the platform's tables"), "{told}");
    run(format!("drop owned by {role} cascade; drop role {role}")).await;
}

#[tokio::test]
async fn every_mistake_of_a_configuration_is_reported_at_once_and_no_secret_is_shown() {
    let world = World::unmigrated(Places::shared().await, Settings::default()).await;
    let bad = format!(
        r#"
        maps = ["gone.toml"]
        typo = 1
        [database]
        url = "mysql://app:{SECRET}@db/platform"
        max_connections = 1
        [broker]
        url = "http://app:{SECRET}@mq"
        namespace = "white space"
        [stores.main]
        endpoint = "ftp://store"
        access_key = "key"
        buckets = ["UPPER"]
        batch_size = 1001
        [retention]
        default = "0d"
        [purge]
        lease = "soon"
        backoff_initial = "1h"
        backoff_max = "1m"
        [api]
        listen = "0.0.0.0:80"
        [service]
        log = "reprieve=loud"
        "#
    );
    let file = world.write("bad.toml", &bad);
    let path = file.display().to_string();
    for verb in [&["list"][..], &["serve"], &["migrate"], &["check"], &["trash", "dataset", "x", "--execute"]] {
        let mut command = crate::process::reprieve();
        command.args(["--config", &path]).args(verb);
        let ended = Ended::of(command).await.with(6);
        for key in [
            "gone.toml",
            "typo",
            "database.url",
            "database.max_connections",
            "broker.url",
            "broker.namespace",
            "stores.main.endpoint",
            "stores.main.secret_key",
            "stores.main.buckets",
            "stores.main.batch_size",
            "retention.default",
            "purge.lease",
            "purge.backoff_max",
            "api.token",
            "service.log",
        ] {
            assert!(ended.stderr.contains(key), "{key} is missing in {}", ended.stderr);
        }
        assert!(!ended.all().contains(SECRET), "{}", ended.all());
    }
    // the environment is part of it, and its mistakes are as well
    let mut command = world.command(&["list"]);
    command.env("REPRIEVE__DATABASE__URL", format!("mysql://{SECRET}")).env("REPRIEVE__PURGE__LEASE", "never");
    let ended = Ended::of(command).await.with(6);
    assert!(ended.stderr.contains("database.url") && ended.stderr.contains("purge.lease"), "{}", ended.stderr);
    assert!(!ended.all().contains(SECRET), "{}", ended.all());
    // the map comes from files alone
    for name in ["REPRIEVE__RESOURCE__0", "REPRIEVE__RESOURCE", "REPRIEVE__MAPS"] {
        let mut command = world.command(&["list"]);
        command.env(name, "x");
        let ended = Ended::of(command).await.with(6);
        assert!(ended.stderr.contains(name) && ended.stderr.contains("files alone"), "{}", ended.stderr);
    }
    // a file that is none, and no file at all
    let mut command = crate::process::reprieve();
    command.args(["--config", "/nowhere/reprieve.toml", "list", "--json"]);
    let ended = Ended::of(command).await.with(6).json();
    assert_eq!(ended["error"]["code"], "invalid_config", "{ended:#}");
    let mut command = crate::process::reprieve();
    command.arg("list").current_dir(world.dir());
    std::fs::rename(&world.config, world.dir().join("hidden.toml")).expect("our own file");
    let ended = Ended::of(command).await.with(6);
    assert!(ended.stderr.contains("--config"), "{}", ended.stderr);
}
