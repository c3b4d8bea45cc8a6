//! Objects that are named one by one, with the real binary: check, plan, purge, show.

use serde_json::Value;

use crate::support::heimdall::{self, Shape};
use crate::world::{Settings, World};

const SHAPE: Shape = Shape { samples: 3, receivers: 1 };

/// Before the first objects of the real map.
const NAMED: &str = "[[resource.objects]]
store = \"main\"
bucket = \"BUCKET\"
keys = \"select key from heimdall.attachments where dataset_id = $1\"
named_by = \"select key, dataset_id from heimdall.attachments where key = any($1)\"
";

async fn world() -> World {
    let world = World::new(Settings::default()).await;
    let map = std::fs::read_to_string(world.config.with_file_name("map.toml")).expect("the world's map");
    let named = NAMED.replace("BUCKET", &world.bucket);
    world.write("map.toml", &map.replacen("[[resource.objects]]", &format!("{named}[[resource.objects]]"), 1));
    let table = "create table heimdall.attachments (dataset_id uuid, key text)";
    sqlx::raw_sql(table).execute(&world.pool).await.expect("a new table");
    world
}

fn findings(check: &Value) -> Vec<String> {
    let findings = check.as_array().expect("a list").iter();
    findings.map(|finding| format!("{} {}", finding["level"], finding["finding"])).collect()
}

#[tokio::test]
async fn they_are_counted_in_the_plan_purged_and_told_of_and_a_shared_one_stays() {
    let world = world().await;
    let (id, put) = world.dataset("a", SHAPE).await;
    let (other, _) = world.dataset("b", SHAPE).await;
    let keys: Vec<String> = (0..4).map(|n| format!("attached/{n}.bin")).collect();
    heimdall::put_keys(&world.s3, &world.bucket, [&keys[..], &["attached/1.bin.bak".to_owned()]].concat()).await;
    for (of, keys) in [(id, &keys[..]), (other, &keys[2..3])] {
        sqlx::query("insert into heimdall.attachments select $1, unnest($2::text[])")
            .bind(of)
            .bind(keys)
            .execute(&world.pool)
            .await
            .expect("inserts");
    }
    let check = world.json(&["check"]).await;
    let told = findings(&check).join("\n");
    assert!(told.contains("no index of attachments finds what its named_by query asks for"), "{told}");
    assert!(told.contains("without asking whether the kind dataset names an object below"), "{told}");
    sqlx::raw_sql("create index on heimdall.attachments (key)").execute(&world.pool).await.expect("an index");
    let told = findings(&world.json(&["check"]).await).join("\n");
    assert!(!told.contains("no index of attachments"), "{told}");

    let plan = world.cli(&["trash", "dataset", &id.to_string()]).await.with(0).stdout;
    let line =
        format!("4 keys in s3://{}/ (store main), of which 1 stays: another resource names it too", world.bucket);
    assert!(plan.contains(&line), "{plan}");
    let _service = world.serve(&[]);
    world.trash("dataset", id).await;
    world.until_state(id, "purged").await;
    assert_eq!(world.objects_below("attached/").await, 2, "the shared one, and a neighbour");
    let receipt = &world.json(&["show", "dataset", &id.to_string()]).await["receipt"];
    assert_eq!(
        (&receipt["objects"]["kept"], &receipt["objects"]["deleted"]),
        (&1.into(), &(put + 3).into()),
        "{receipt:#}"
    );
    let shown = world.cli(&["show", "dataset", &id.to_string()]).await.with(0).stdout;
    assert!(shown.contains("1 object, since another resource names the same"), "{shown}");
    assert!(shown.contains("4 keys in s3://"), "{shown}");
}

#[tokio::test]
async fn a_query_that_does_not_fit_is_a_problem() {
    let world = world().await;
    let map = std::fs::read_to_string(world.config.with_file_name("map.toml")).expect("the world's map");
    for (from, to, why) in [
        ("select key from heimdall.attachments", "select gone from heimdall.attachments", "the keys query failed"),
        ("select key, dataset_id from", "select key from", "the named_by query failed"),
    ] {
        world.write("map.toml", &map.replace(from, to));
        let ended = world.cli(&["check", "--json"]).await.with(7);
        assert!(ended.stdout.contains(why), "{}", ended.stdout);
    }
}

#[tokio::test]
async fn what_only_a_purge_can_find_out_is_said() {
    let world = world().await;
    let map = std::fs::read_to_string(world.config.with_file_name("map.toml")).expect("the world's map");
    let before = findings(&world.json(&["check"]).await).join("\n");
    assert!(!before.contains("cannot be told") && !before.contains("ETags"), "{before}");
    let model = format!(
        "\n[[resource]]\nkind = \"model\"\ntable = \"heimdall.models\"\n[[resource.objects]]\nstore = \"main\"\n\
         bucket = \"{}\"\nquery = \"select model_name from heimdall.models where id = $1\"\n",
        world.bucket
    );
    let plain = "select key from heimdall.attachments where dataset_id = $1\"";
    let etags = "select key, null from heimdall.attachments where dataset_id = $1\"\nonly_if_unchanged = true";
    assert!(map.contains(plain) && !map.contains("kind = \"model\""));
    world.write("map.toml", &format!("{}{model}", map.replace(plain, etags)));
    let check = world.json(&["check"]).await;
    let told = findings(&check);
    for says in [
        "is not kept for a live model below whose prefix it lies",
        "lies inside one of the kind dataset, or around one, cannot be told",
        "whether it compares ETags, only a delete can show",
    ] {
        assert!(told.iter().any(|one| one.starts_with("\"warning\"") && one.contains(says)), "{says}: {told:#?}");
    }
}
