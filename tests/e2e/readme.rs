//! The README's own example, followed word by word on real servers: tables, bucket, configuration, commands and what they
//! print.

use std::process::Command;
use std::time::Duration;

use crate::process::{Ended, Service, reprieve};
use crate::support::{seaweedfs, wait_until};
use crate::world::{Places, Settings, World};

/// The example's window, and the one that the test waits for.
const WINDOWS: (&str, &str) = ("--retention 30s", "--retention 5s");

fn readme() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    std::fs::read_to_string(path).expect("it is there")
}

/// The first block of a language in a section.
fn block(section: &str, language: &str) -> String {
    let begun = section.split(&format!("```{language}\n")).nth(1);
    let block = begun.unwrap_or_else(|| panic!("no block of {language}"));
    block.split("```").next().expect("a first part").to_owned()
}

/// The commands of a console with what each prints.
fn console(text: &str) -> Vec<(Vec<String>, String)> {
    text.split("$ reprieve ")
        .skip(1)
        .map(|part| {
            let (line, printed) = part.split_once('\n').expect("a line");
            let command = line.split(" #").next().expect("a first part").replace(WINDOWS.0, WINDOWS.1);
            (command.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect(), printed.to_owned())
        })
        .collect()
}

#[tokio::test]
async fn the_example_for_ones_own_tables_does_what_it_says() {
    let places = Places::shared().await;
    let endpoint = places.s3_endpoint.clone();
    let world = World::unmigrated(places, Settings::default()).await;
    let text = readme();
    let section =
        text.split("## Your own tables").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section");
    // a name of our own in place of a bucket that everybody has
    let bucket = format!("{}-readme", world.bucket);
    let here = |text: &str| {
        text.replace("http://localhost:9000/datasets/", &format!("{endpoint}/{bucket}/"))
            .replace("http://localhost:9000/datasets", &format!("{endpoint}/{bucket}"))
            .replace("s3://datasets/", &format!("s3://{bucket}/"))
            .replace("http://localhost:9000", &endpoint)
            .replace("buckets = [\"datasets\"] ", &format!("buckets = [\"{bucket}\"]"))
            .replace("key:secret", &format!("{}:{}", seaweedfs::ACCESS_KEY, seaweedfs::SECRET_KEY))
            .replace("access_key = \"key\"", &format!("access_key = \"{}\"", seaweedfs::ACCESS_KEY))
            .replace("secret_key = \"secret\"", &format!("secret_key = \"{}\"", seaweedfs::SECRET_KEY))
            .replace("postgres://user:password@localhost:5432/shop", &world.database_url)
            .replace(
                "url = \"amqp://guest:guest@localhost:5672/%2f\"",
                &format!("url = \"{}\"\nnamespace = \"{}\"", world.amqp_url, world.namespace),
            )
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(block(section, "sql"))).execute(&world.pool).await.expect("the tables");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-euc", &here(&block(section, "sh"))]).current_dir(world.dir());
    Ended::of(shell).await.with(0);
    let config = world.write("readme.toml", &here(&block(section, "toml"))).display().to_string();
    let run = |words: &[String]| {
        let mut command = reprieve();
        command.args(["--config", &config]).args(words);
        command
    };
    let mut service = None;
    for (words, printed) in console(&here(&block(section, "console"))) {
        if words[0] == "serve" {
            service = Some(Service::spawn(run(&words), &world.dir().join("serve-readme.log")));
            continue;
        }
        let ended = Ended::of(run(&words)).await;
        let refused = printed.starts_with("error: ");
        let ended = ended.with(if refused { 3 } else { 0 });
        let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = if refused { &ended.stderr } else { &ended.stdout };
        assert!(flat(said).contains(&flat(&printed)), "{words:?} prints {said}, and the README says {printed}");
    }
    assert!(service.is_some(), "the example ends with the service");
    let show = ["show", "dataset", "1"].map(str::to_owned);
    wait_until("it is purged", Duration::from_secs(60), async || {
        let shown = Ended::of(run(&show)).await.with(0).stdout;
        shown.contains("receipt") && shown.contains("purge_begun")
    })
    .await;
}
