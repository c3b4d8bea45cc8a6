//! What a client of S3 makes of a network that fails, without any S3 behind it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reprieve::domain::outcome::{FailureClass, KeyOutcome, ObjectRef};
use reprieve::objects::s3::{S3Credentials, S3Settings, S3Store, VersionsPolicy};
use reprieve::objects::{NO_CONDITIONS, NOT_ATTEMPTED, ObjectStore, Permit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::names;

/// How long a test client waits for an answer.
const SHORT: Duration = Duration::from_millis(300);

async fn store_at(address: std::net::SocketAddr) -> S3Store {
    S3Store::new(&settings(address)).await
}

/// Of a store that is not asked about versions first.
async fn plain_store_at(address: std::net::SocketAddr) -> S3Store {
    S3Store::new(&S3Settings { versions: VersionsPolicy::Current, ..settings(address) }).await
}

fn settings(address: std::net::SocketAddr) -> S3Settings {
    let credentials =
        S3Credentials { access_key_id: "someone".into(), secret_access_key: "something".into(), session_token: None };
    let mut settings = S3Settings::custom(format!("http://{address}"), "us-east-1", credentials);
    settings.connect_timeout = SHORT;
    settings.read_timeout = SHORT;
    settings.attempt_timeout = SHORT;
    settings.operation_timeout = SHORT * 2;
    settings.attempts = 1;
    settings
}

/// A server that reads what comes and answers each connection with `answer`; without one it stays silent.
async fn server(answer: Option<&'static str>) -> std::net::SocketAddr {
    server_of(move |_| answer.map(str::to_owned)).await
}

/// A server that answers its n-th connection, counted from 0, with what `answer` gives.
async fn server_of(answer: impl Fn(usize) -> Option<String> + Send + 'static) -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut silent = Vec::new();
        for n in 0.. {
            let Ok((mut connection, _)) = listener.accept().await else { return };
            let mut request = [0; 4096];
            let _ = connection.read(&mut request).await;
            match answer(n) {
                Some(answer) => drop(connection.write_all(answer.as_bytes()).await),
                None => silent.push(connection),
            }
        }
    });
    address
}

/// A page of ListObjectsV2: its contents, and the token of the next.
fn page(contents: &str, next: Option<&str>) -> String {
    let more = next.is_some();
    let token = next.map(|next| format!("<NextContinuationToken>{next}</NextContinuationToken>")).unwrap_or_default();
    let body = format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>{token}{contents}</ListBucketResult>");
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
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
async fn an_error_after_a_lost_answer_is_the_error_that_it_is() {
    let lost = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n<ListBucketResult>";
    for (status, code, class) in
        [(403, "AccessDenied", FailureClass::Permanent), (503, "SlowDown", FailureClass::Throttled)]
    {
        let body = format!("<Error><Code>{code}</Code></Error>");
        let length = body.len();
        let refused = format!("HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        let answers = move |n| Some(if n == 0 { lost.to_owned() } else { refused.clone() });
        let settings = S3Settings { versions: VersionsPolicy::Current, ..settings(server_of(answers).await) };
        let patient = Duration::from_secs(20);
        let timeouts = S3Settings { operation_timeout: patient, attempt_timeout: patient, ..settings };
        let store = S3Store::new(&S3Settings { attempts: 2, ..timeouts }).await;
        let error = store.list("bucket", "a/", None).await.expect_err("refused");
        assert_eq!((error.code.as_str(), error.class), (code, class));
    }
}

/// Without a length, the end of the connection is the end of the answer, wherever it was cut.
#[tokio::test]
async fn an_answer_that_is_cut_before_it_says_what_there_is_does_not_say_that_there_is_nothing() {
    let cut = |body: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
    let none_listed = page("", None);
    let versioning = cut("<VersioningConfiguration>");
    let answers = move |n| Some(if n == 0 { versioning.clone() } else { none_listed.clone() });
    let listed = store_at(server_of(answers).await).await.list("bucket", "a/", None).await;
    let error = listed.expect_err("nobody knows whether it keeps versions");
    assert_eq!((error.operation, error.code.as_str()), ("GetBucketVersioning", "UnreadableAnswer"));
    let uploads = cut("<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>");
    let store = store_at(server_of(move |_| Some(uploads.clone())).await).await;
    assert_eq!(store.list_uploads("bucket", "a/", None).await.expect_err("cut").code, "UnreadableAnswer");
}

#[tokio::test]
async fn empty_pages_that_promise_more_are_followed_to_the_first_entry() {
    let entry = "<Contents><Key>a/1</Key><Size>7</Size></Contents>";
    let answers = move |n| Some(if n < 3 { page("", Some("on")) } else { page(entry, Some("further")) });
    let listed = plain_store_at(server_of(answers).await).await.list("bucket", "a/", None).await.expect("list");
    assert_eq!((listed.entries.len(), listed.entries[0].size), (1, 7));
    assert_eq!(listed.next.map(|cursor| cursor.key).as_deref(), Some("a/1"), "not the token");
}

#[tokio::test]
async fn empty_pages_without_an_end_are_an_error() {
    let store = plain_store_at(server_of(|_| Some(page("", Some("on")))).await).await;
    assert_eq!(store.list("bucket", "a/", None).await.expect_err("no end").code, "EmptyPages");
    let store = plain_store_at(server_of(|_| Some(page("", Some("")))).await).await;
    assert_eq!(store.list("bucket", "a/", None).await.expect_err("no token").code, "BrokenListing");
}

#[tokio::test]
async fn a_listing_that_shows_keys_elsewhere_is_an_error() {
    let sibling = "<Contents><Key>a10/1</Key><Size>7</Size></Contents>";
    let store = plain_store_at(server_of(move |_| Some(page(sibling, None))).await).await;
    let error = store.list("bucket", "a/", None).await.expect_err("not below a/");
    assert_eq!((error.code.as_str(), error.class), ("BrokenListing", FailureClass::Permanent));
}

#[tokio::test]
async fn a_proxy_that_answers_502_leaves_the_outcome_unknown() {
    let store = store_at(server(Some("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")).await).await;
    let (outcomes, lost) = delete_two(&store).await;
    assert_eq!(outcomes, [KeyOutcome::Unknown, KeyOutcome::Unknown]);
    assert_eq!(lost.as_deref(), Some("Http502"));
    let listed = store.list("bucket", "a/", None).await.expect_err("502").to_string();
    assert_eq!(listed, "GetBucketVersioning: Http502: the answer has no error code and no message, at s3://bucket/");
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

/// A server that answers 503, which the client tries again by itself, and counts what arrives.
async fn busy_server() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = arrived.clone();
    let answer = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let address = server_of(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Some(answer.to_owned())
    });
    (address.await, arrived)
}

#[tokio::test]
async fn no_attempt_leaves_without_a_permit_not_even_a_retry_of_the_client_itself() {
    for (permits, requests) in [(0, 0), (1, 0), (2, 1), (3, 2), (100, 3)] {
        for key in ["a/1", "a/\u{1}"] {
            let (address, arrived) = busy_server().await;
            let patient = Duration::from_secs(20);
            let timeouts = S3Settings { operation_timeout: patient, attempt_timeout: patient, ..settings(address) };
            let store = S3Store::new(&S3Settings { attempts: 3, ..timeouts }).await;
            // asked once for the request, and once for each attempt
            let left = AtomicUsize::new(permits);
            let permit = Permit::new(move || {
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
            });
            let outcome = store.delete_while(&permit, "bucket", &names(&[key.to_owned()])).await;
            assert_eq!(arrived.load(Ordering::SeqCst), requests, "{permits} permits, {key:?}");
            let lost = outcome.lost_answer().map(|why| why.code.clone());
            let outcome = outcome.into_outcomes().remove(0).1;
            match permits {
                0 => assert!(matches!(&outcome, KeyOutcome::Failed(why) if why.code == NOT_ATTEMPTED), "{outcome:?}"),
                // an attempt before it may have been carried out
                _ => assert_eq!(outcome, KeyOutcome::Unknown),
            }
            assert_eq!(lost.as_deref() == Some(NOT_ATTEMPTED), (1..=3).contains(&permits), "{lost:?}");
        }
    }
}

#[tokio::test]
async fn a_version_that_is_to_be_deleted_on_a_condition_is_refused_before_the_store_is_asked_about_conditions() {
    let (address, arrived) = busy_server().await;
    let object = ObjectRef { key: "a/1".into(), version: Some("v1".into()) };
    let asked = [(object, "etag".to_owned())];
    let answer = store_at(address).await.delete_unchanged(&Permit::unlimited(), "bucket", &asked).await;
    let (_, outcome) = answer.into_outcomes().remove(0);
    assert!(matches!(&outcome, KeyOutcome::Failed(why) if why.code == NO_CONDITIONS), "{outcome:?}");
    assert_eq!(arrived.load(Ordering::SeqCst), 0, "a question may leave a delete marker");
}

#[tokio::test]
async fn a_permit_is_asked_for_right_before_the_request_leaves() {
    let asked = Arc::new(Mutex::new(None));
    let arrived = Arc::new(Mutex::new(None));
    let at = arrived.clone();
    let address = server_of(move |_| {
        *at.lock().expect("no panic") = Some(Instant::now());
        None
    });
    let store = store_at(address.await).await;
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let last = asked.clone();
        let permit = Permit::new(move || {
            *last.lock().expect("no panic") = Some(Instant::now());
            true
        });
        let _silence = store.delete_while(&permit, "bucket", &names(&["a/1".to_owned()])).await;
        let asked: Instant = asked.lock().expect("no panic").expect("asked");
        let arrived: Instant = arrived.lock().expect("no panic").expect("arrived");
        gaps.push(arrived - asked);
    }
    println!("from the last question to the server's first byte, with a new connection: {gaps:?}");
    // far below a quarter of the shortest lease, on a busy machine too
    assert!(gaps.iter().min().expect("five") < &Duration::from_millis(200), "{gaps:?}");
}
