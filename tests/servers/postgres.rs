use reprieve::embedded::postgres::{Options, PrivatePostgres, StartError};
use sqlx::{Connection, PgConnection};

async fn answers(url: &str) -> bool {
    let mut connection = PgConnection::connect(url).await.expect("connects");
    sqlx::query_scalar::<_, bool>("select true").fetch_one(&mut connection).await.expect("answers")
}

#[tokio::test]
async fn it_answers_on_its_socket_and_leaves_nothing_behind() {
    let server = PrivatePostgres::start(Options::default()).await.expect("starts");
    let url = server.create_database("it's a \"name\"/?&%").await.expect("creates");
    assert!(answers(&url).await);

    let encoded = url.split("host=").nth(1).and_then(|rest| rest.split('&').next()).expect("names its directory");
    let dir = percent_encoding::percent_decode_str(encoded).decode_utf8().expect("utf-8").into_owned();
    let pid = server.pid().expect("runs");
    assert!(std::path::Path::new(&dir).exists() && std::path::Path::new(&format!("/proc/{pid}")).exists());
    drop(server);
    assert!(!std::path::Path::new(&dir).exists(), "{dir} is gone");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is gone");
}

#[tokio::test]
async fn it_keeps_address_and_data_over_crashes_and_restarts() {
    let settings = vec![("deadlock_timeout".to_owned(), "123ms".to_owned())];
    let mut server = PrivatePostgres::start(Options { tcp: true, settings }).await.expect("starts");
    let url = server.create_database("kept").await.expect("creates");
    let mut open = PgConnection::connect(&url).await.expect("connects");
    sqlx::raw_sql("create table t (n int); insert into t values (7)").execute(&mut open).await.expect("ok");

    server.kill9().expect("killed");
    assert!(PgConnection::connect(&url).await.is_err(), "it is down");
    server.start_again().await.expect("recovers");
    let mut connection = PgConnection::connect(&url).await.expect("connects");
    let timeout: String = sqlx::query_scalar("show deadlock_timeout").fetch_one(&mut connection).await.expect("set");
    assert_eq!(timeout, "123ms");

    server.stop().expect("stops, although a session is open");
    server.start_again().await.expect("starts");
    let mut connection = PgConnection::connect(&url).await.expect("connects");
    let n: i32 = sqlx::query_scalar("select n from t").fetch_one(&mut connection).await.expect("kept");
    assert_eq!(n, 7);
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let settings = vec![("no_such_setting".to_owned(), "1".to_owned())];
    let error = PrivatePostgres::start(Options { tcp: false, settings }).await.expect_err("must not start");
    assert!(matches!(&error, StartError::Ended { log, .. } if log.contains("no_such_setting")), "{error}");
}
