//! What a configuration with mistakes is told.

use std::fs;

use secrecy::ExposeSecret;

use super::*;

const GOOD: &str = r#"
    [database]
    url = "postgres://app:hunter2@db/platform"
    [broker]
    url = "amqp://app:hunter3@mq/%2f"
    [stores.main]
    endpoint = "http://127.0.0.1:9000"
    access_key = "key"
    secret_key = "hunter4"
    buckets = ["data-sets"]
    [[resource]]
    kind = "dataset"
    table = "heimdall.synthetic_datasets"
    soft_delete = { column = "lifecycle_stage", live = "active", trashed = "deleted" }
    [[resource.objects]]
    store = "main"
    prefix = "synthetic/{id}/"
"#;

fn load(files: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
        paths.push(dir.path().join(name));
    }
    Config::load(&paths[..1])
}

fn problems(text: &str) -> Vec<String> {
    load(&[("reprieve.toml", text)]).expect_err("has mistakes").problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_good_file_loads_with_defaults_that_are_safe() {
    let config = load(&[("reprieve.toml", GOOD)]).unwrap();
    assert_eq!(config.database.url.expose_secret(), "postgres://app:hunter2@db/platform");
    assert_eq!(config.retention.default.to_string(), "14d");
    assert!(config.api.listen.ip().is_loopback());
    let dataset = config.map.kind("dataset").unwrap();
    assert!(
        matches!(&dataset.soft_delete, Some(crate::domain::map::SoftDelete::Pair { trashed, .. }) if trashed == "deleted")
    );
}

#[test]
fn an_empty_file_is_told_all_that_it_lacks() {
    let found = problems("");
    assert!(found.iter().any(|one| one.starts_with("database.url")), "{found:?}");
    assert!(found.iter().any(|one| one.contains("there is no [[resource]]")), "{found:?}");
    assert!(
        !problems("maps = [\"gone.toml\"]").iter().any(|one| one.contains("there is no [[resource]]")),
        "it may be there"
    );
    assert!(!problems("resource = 1").iter().any(|one| one.contains("there is no [[resource]]")), "it is malformed");
}

#[test]
fn each_of_the_purges_at_once_has_a_connection_unless_somebody_says_how_many_there_are() {
    for (text, most) in
        [("", 22), ("[purge]\nconcurrency = 40", 46), ("[purge]\nconcurrency = 40\n[database]\nmax_connections = 5", 5)]
    {
        let (purge, database) = text.split_once("[database]").unwrap_or((text, ""));
        let text = format!("{}\n{purge}", GOOD.replace("[database]", &format!("[database]\n{database}")));
        assert_eq!(load(&[("reprieve.toml", &text)]).unwrap().database.max_connections, most, "{text}");
    }
}

#[test]
fn a_store_is_known_by_its_endpoint_or_by_the_region_of_aws() {
    let address = |text: &str| load(&[("reprieve.toml", text)]).unwrap().stores.values().next().unwrap().address();
    assert_eq!(address(GOOD), "http://127.0.0.1:9000");
    let aws = GOOD.replace("endpoint = \"http://127.0.0.1:9000\"", "region = \"eu-central-1\"");
    assert_eq!(address(&aws), "aws/eu-central-1");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_key() {
    let text = GOOD
        .replace("postgres://", "mysql://")
        .replace("prefix = \"synthetic/{id}/\"", "prefix = \"synthetic/\"")
        .replace("[broker]", "[purge]\nlease = \"soon\"\ncuncurrency = 4\n[retention]\ndefault = \"0d\"\n[broker]")
        .replace("kind = \"dataset\"", "kind = \"Data Set\"");
    let found = problems(&text).join("\n");
    for key in [
        "database.url",
        "purge.lease",
        "purge.cuncurrency",
        "retention.default",
        "(Data Set).kind",
        "objects[0].prefix",
    ] {
        assert!(found.contains(key), "{key} in:\n{found}");
    }
}

#[test]
fn no_message_and_no_debug_output_shows_a_secret() {
    let config = load(&[("reprieve.toml", GOOD)]).unwrap();
    let shown = format!("{config:?}");
    for text in [
        GOOD.replace("postgres://", "mysql://"),
        GOOD.replace("secret_key = \"hunter4\"", "secret_key = [\"hunter4\"]"),
        GOOD.replace("url = \"amqp", "url = = \"amqp"),
        GOOD.replace("url = \"postgres://app:hunter2@db/platform\"", "url = \"postgres://app:hunter2@db/platform"),
    ] {
        let found = problems(&text).join("\n");
        assert!(!found.is_empty() && !found.contains("hunter"), "{found}");
    }
    assert!(!shown.contains("hunter"), "{shown}");
}

#[test]
fn a_bucket_that_two_stores_list_is_refused() {
    let twin = "[stores.other]\nendpoint = \"http://127.0.0.1:9000/\"\nbuckets = [\"data-sets\"]\naccess_key = \"key\"\nsecret_key = \"k\"\n";
    let found = problems(&GOOD.replace("[stores.main]", &format!("{twin}[stores.main]"))).join("\n");
    assert!(
        found.contains("stores.other.buckets") && found.contains("data-sets") && found.contains("stores.main"),
        "{found}"
    );
}

#[test]
fn a_root_prefix_a_missing_store_and_a_foreign_bucket_are_refused_at_load() {
    for (from, to, key) in [
        ("synthetic/{id}/", "/", "prefix"),
        ("synthetic/{id}/", "{id}", "prefix"),
        ("store = \"main\"", "store = \"mian\"", "store"),
        ("store = \"main\"", "store = \"main\"\nbucket = \"other\"", "bucket"),
    ] {
        let found = problems(&GOOD.replace(from, to)).join("\n");
        assert!(found.contains(&format!("objects[0].{key}")), "{to} gave {found}");
    }
}

#[test]
fn a_store_without_its_plural_is_told_what_is_meant() {
    let found = problems(&GOOD.replace("[stores.main]", "[store.main]")).join("\n");
    assert!(found.contains("store: is not a key") && found.contains("`stores` is meant"), "{found}");
    assert!(
        found.contains("there is no section [stores.main]; write one") && !found.contains("there are: \n"),
        "{found}"
    );
}

#[test]
fn resources_come_from_map_files_beside_the_file_too() {
    let (base, resource) = GOOD.split_once("[[resource]]").unwrap();
    let config = load(&[
        ("reprieve.toml", &format!("maps = [\"map.toml\"]\n{base}")),
        ("map.toml", &format!("[[resource]]{resource}")),
    ]);
    assert!(config.unwrap().map.kind("dataset").is_ok());
    let missing = load(&[("reprieve.toml", &format!("maps = [\"gone.toml\"]\n{base}"))]).unwrap_err();
    assert!(missing.to_string().contains("gone.toml: there is no such file"), "{missing}");
}

#[test]
fn an_id_that_is_protected_is_one_however_it_is_spelt() {
    let id = "00000000-0000-0000-0000-00000000000f";
    let protecting =
        |id: &str| GOOD.replace("[[resource]]\n", &format!("[[resource]]\nprotect = {{ ids = [{id:?}] }}\n"));
    assert_ne!(protecting(id), GOOD);
    let config = load(&[("reprieve.toml", &protecting(&id.to_uppercase()))]).expect("good");
    let kind = config.map.kinds().next().expect("one");
    assert_eq!(kind.protect.ids.iter().map(|id| id.as_str()).collect::<Vec<_>>(), [id]);
    let found = problems(&protecting("18")).join("\n");
    assert!(found.contains("ids") && found.contains("a UUID such as"), "{found}");
}

#[test]
fn a_child_of_a_kind_that_does_not_exist_is_named() {
    let text = format!("{GOOD}\n[[resource.children]]\nkind = \"sample\"\nquery = \"select id from s where d = $1\"\n");
    assert!(problems(&text).join("\n").contains("no resource of the kind \"sample\""));
}

#[test]
fn the_api_does_not_leave_loopback_without_a_token() {
    let found =
        problems(&format!("{}\n", GOOD.replace("[broker]", "[api]\nlisten = \"0.0.0.0:80\"\n[broker]"))).join("\n");
    assert!(found.contains("api.token"), "{found}");
}

#[test]
fn a_secret_from_the_environment_replaces_the_one_from_a_file_in_either_form() {
    let table = serde_json::json!({ "database": { "url_file": "/run/url", "url": "postgres://new" }, "x": 1 });
    let Value::Object(mut root) = table else { unreachable!() };
    let names = ["REPRIEVE__DATABASE__URL", "REPRIEVE__NOWHERE__URL", "REPRIEVE_CONFIG", "PATH"].map(str::to_owned);
    prefer_environment(&mut root, names.into_iter());
    assert_eq!(Value::Object(root), serde_json::json!({ "database": { "url": "postgres://new" }, "x": 1 }));
}

#[test]
fn two_kinds_with_one_place_for_their_objects_are_refused() {
    let (_, resource) = GOOD.split_once("[[resource]]").unwrap();
    let copied =
        resource.replace("kind = \"dataset\"", "kind = \"recording\"").replace("synthetic_datasets", "sessions");
    let found = problems(&format!("{GOOD}\n[[resource]]{copied}")).join("\n");
    assert!(found.contains("resource (recording).objects.prefix") && found.contains("share"), "{found}");
}

#[test]
fn addresses_that_cannot_be_read_are_mistakes_and_their_secrets_stay_hidden() {
    for (from, to, said) in [
        ("/platform", "/platform?sslpassword=hunter5", "sslpassword"),
        ("hunter2@db", "hunter2/x@db:99999", "cannot be read"),
        ("hunter3@mq", "hunter3@mq:99999", "cannot be read"),
    ] {
        let found = problems(&GOOD.replace(from, to)).join("\n");
        assert!(found.contains(said) && !found.contains("hunter"), "{to}: {found}");
    }
}

#[test]
fn a_file_that_is_missing_is_the_only_thing_said() {
    let error = Config::load(&[PathBuf::from("/nowhere/reprieve.toml")]).unwrap_err();
    assert_eq!(error.problems.len(), 1, "{error}");
}

#[test]
fn secrets_can_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("url");
    fs::write(&secret, "postgres://from-file/db\n").unwrap();
    let from_file = GOOD.replace("url = \"postgres://app:hunter2@db/platform\"", &format!("url_file = {secret:?}"));
    let config = load(&[("reprieve.toml", &from_file)]).unwrap();
    assert_eq!(config.database.url.expose_secret(), "postgres://from-file/db");
}

const KEYED: &str = r#"
    [[resource]]
    kind = "album"
    table = "public.albums"
    [[resource.objects]]
    store = "main"
    keys = "select key, etag from public.files where album_id = $1"
    named_by = "select key, album_id from public.files where key = any($1)"
    only_if_unchanged = true
"#;

#[test]
fn objects_can_be_named_one_by_one_where_it_can_be_told_who_else_names_them() {
    let config = load(&[("reprieve.toml", &format!("{GOOD}{KEYED}"))]).unwrap();
    let album = config.map.kind("album").unwrap();
    let named: Vec<_> = album.named_objects().collect();
    assert_eq!((named.len(), named[0].only_bucket(), named[0].only_if_unchanged), (1, Some("data-sets"), true));
    assert_eq!(album.key_places()[0].to_string(), "0 keys in s3://data-sets/ (store main)");
}

#[test]
fn a_key_query_that_cannot_be_checked_is_refused_with_its_key() {
    let without = |line: &str| KEYED.lines().filter(|l| !l.contains(line)).collect::<Vec<_>>().join("\n");
    for (text, key, why) in [
        (without("named_by"), "objects[0].named_by", "is missing"),
        (without("keys ="), "objects[0].named_by", "belongs to `keys`"),
        (without("keys ="), "objects[0].only_if_unchanged", "belongs to `keys`"),
        (without("keys ="), "objects[0].prefix", "give one of"),
        (KEYED.replace("where key = any($1)", ""), "objects[0].named_by", "does not mention $1, the list of names"),
        (
            KEYED.replace("named_by", "named_below = \"select 1\"\nnamed_by"),
            "objects[0].named_below",
            "does not mention $1, what",
        ),
        (KEYED.replace("any($1)", "any($1) and $2"), "objects[0].named_by", "mentions $2"),
        (KEYED.replace("where album_id = $1", ""), "objects[0].keys", "does not mention $1, the id"),
        (KEYED.replace("keys =", "prefix = \"a/{id}/\"\nkeys ="), "objects[0].prefix", "give one of"),
        (KEYED.replace("= true", "= 3"), "objects[0].only_if_unchanged", "true or false"),
        (KEYED.replace("\"main\"", "\"main\"\nbucket = \"else\""), "objects[0].bucket", "does not list"),
    ] {
        let found = problems(&format!("{GOOD}{text}"));
        assert!(found.iter().any(|found| found.contains(key) && found.contains(why)), "{key} {why} in {found:#?}");
    }
}
