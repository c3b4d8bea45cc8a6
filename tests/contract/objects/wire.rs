//! What a client of S3 makes of a network that fails, without any S3 behind it.

use std::time::{Duration, Instant};

use reprieve::domain::outcome::{FailureClass, KeyOutcome};
use reprieve::objects::ObjectStore;
use reprieve::objects::s3::{S3Credentials, S3Settings, S3Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::names;

/// How long a test client waits for an answer.
const SHORT: Duration = Duration::from_millis(300);

async fn store_at(address: std::net::SocketAddr) -> S3Store {
    let credentials =
        S3Credentials { access_key_id: "someone".into(), secret_access_key: "something".into(), session_token: None };
    let mut settings = S3Settings::custom(format!("http://{address}"), "us-east-1", credentials);
    settings.connect_timeout = SHORT;
    settings.read_timeout = SHORT;
    settings.attempt_timeout = SHORT;
    settings.operation_timeout = SHORT * 2;
    settings.attempts = 1;
    S3Store::new(&settings).await
}

/// A server that reads what comes and answers each connection with `answer`; without one it stays silent.
async fn server(answer: Option<&'static str>) -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = connection.read(&mut request).await;
            match answer {
                Some(answer) => drop(connection.write_all(answer.as_bytes()).await),
                None => silent.push(connection),
            }
        }
    });
    address
}

/// What a delete of two keys, one of them alone by its nature, comes to; and the code of the lost answer.
async fn delete_two(store: &S3Store) -> (Vec<KeyOutcome>, Option<String>) {
    let outcome = store.delete("bucket", &names(&["a/1".to_owned(), "a/\u{1}".to_owned()])).await;
    let lost = outcome.lost_answer().map(|failure| failure.code.clone());
    (outcome.into_outcomes().into_iter().map(|(_, outcome)| outcome).collect(), lost)
}

#[tokio::test]
async fn no_answer_in_time_is_unknown_and_the_wait_has_a_limit() {
    let store = store_at(server(None).await).await;
    let began = Instant::now();
    let (outcomes, lost) = delete_two(&store).await;
    assert_eq!(outcomes, [KeyOutcome::Unknown, KeyOutcome::Unknown]);
    assert_eq!(lost.as_deref(), Some("Timeout"));
    let listed = store.list("bucket", "a/", None).await.expect_err("silence");
    assert_eq!((listed.code.as_str(), listed.class), ("Timeout", FailureClass::Transient));
    assert!(began.elapsed() < SHORT * 20, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_connection_cut_after_sending_is_unknown() {
    for half in ["", "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n<DeleteResult>"] {
        let store = store_at(server(Some(half)).await).await;
        let (outcomes, lost) = delete_two(&store).await;
        assert_eq!(outcomes[0], KeyOutcome::Unknown, "{half:?}");
        assert!(lost.is_some(), "{half:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_one_is_unknown() {
    let store = store_at(server(Some("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")).await).await;
    let (outcomes, lost) = delete_two(&store).await;
    assert_eq!(outcomes[0], KeyOutcome::Unknown);
    assert!(lost.is_some());
}

#[tokio::test]
async fn an_answer_with_nothing_in_it_is_not_an_empty_prefix() {
    for body in ["", "<ListBucketResult/>", "<VersioningConfiguration/>", "<html><body>welcome</body></html>"] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let store = store_at(server(Some(answer.leak())).await).await;
        let listed = store.list("bucket", "a/", None).await;
        assert!(listed.is_err(), "{body:?}: {listed:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_answers_502_leaves_the_outcome_unknown() {
    let store = store_at(server(Some("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")).await).await;
    let (outcomes, lost) = delete_two(&store).await;
    assert_eq!(outcomes, [KeyOutcome::Unknown, KeyOutcome::Unknown]);
    assert_eq!(lost.as_deref(), Some("Http502"));
}

#[tokio::test]
async fn a_refused_connection_is_a_transient_failure_and_known() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let store = store_at(address).await;
    let (outcomes, lost) = delete_two(&store).await;
    for outcome in outcomes {
        let KeyOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
        assert_eq!((failure.code.as_str(), failure.class), ("Connection", FailureClass::Transient));
    }
    assert_eq!(lost, None);
    let listed = store.list("bucket", "a/", None).await.expect_err("refused");
    assert_eq!((listed.code.as_str(), listed.class), ("Connection", FailureClass::Transient));
}
