//! What a store has to show before it gets a delete on a condition, without any real one: it answers as the test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use reprieve::domain::outcome::{KeyOutcome, ObjectRef};
use reprieve::objects::s3::{DeletePolicy, S3Credentials, S3Settings, S3Store, VersionsPolicy};
use reprieve::objects::{NO_CONDITIONS, ObjectStore, Permit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ETAG: &str = "0123456789abcdef0123456789abcdef";

/// What a store says of an object that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OfAbsent {
    /// That it is deleted, as most do; on a condition too.
    Deleted,
    /// That there is none; on a condition too.
    NoSuchKey,
    /// That it is deleted, and on a condition that there is none, as Amazon does.
    NoSuchKeyOnCondition,
    /// That it is deleted, and on a condition that this does not hold, as SeaweedFS does.
    Refused,
}

/// How one kind of request is answered.
#[derive(Debug, Clone, Copy)]
struct Manner {
    of_absent: OfAbsent,
    heeds: bool,
}

const AMAZON: Manner = Manner { of_absent: OfAbsent::NoSuchKeyOnCondition, heeds: true };
const GOOGLE: Manner = Manner { of_absent: OfAbsent::NoSuchKey, heeds: false };

/// What it says of its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Versions {
    Off,
    Kept,
    Denied,
}

/// A bucket, and the ETags of what is in it by key.
#[derive(Debug)]
struct Bucket {
    single: Manner,
    batch: Manner,
    versions: Versions,
    objects: BTreeMap<String, String>,
    /// Each delete of one that is not there, as `single` or `batch`, and whether on a condition.
    asked: Vec<(&'static str, bool)>,
}

impl Bucket {
    fn new(single: Manner, batch: Manner) -> Self {
        let objects = ["same", "other"].map(|key| (key.to_owned(), ETAG.to_owned())).into();
        Self { single, batch, versions: Versions::Off, objects, asked: Vec::new() }
    }

    fn with(self, versions: Versions) -> Self {
        Self { versions, ..self }
    }

    /// The code of an error; none: it is deleted.
    fn delete(&mut self, of: &'static str, key: &str, etag: Option<&str>) -> Option<&'static str> {
        let manner = if of == "single" { self.single } else { self.batch };
        let Some(has) = self.objects.get(key) else {
            self.asked.push((of, etag.is_some()));
            return match (manner.of_absent, etag) {
                (OfAbsent::NoSuchKey, _) | (OfAbsent::NoSuchKeyOnCondition, Some(_)) => Some("NoSuchKey"),
                (OfAbsent::Refused, Some(_)) => Some("PreconditionFailed"),
                _ => None,
            };
        };
        if manner.heeds && etag.is_some_and(|etag| etag != has) {
            return Some("PreconditionFailed");
        }
        self.objects.remove(key);
        None
    }
}

#[derive(Debug)]
struct Server(Mutex<BTreeMap<&'static str, Bucket>>);

impl Server {
    async fn start(buckets: impl IntoIterator<Item = (&'static str, Bucket)>) -> (Arc<Self>, String) {
        let server = Arc::new(Self(Mutex::new(buckets.into_iter().collect())));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(answer(serving.clone(), connection));
            }
        });
        (server, address)
    }

    /// With one bucket, called so.
    async fn with_bucket(bucket: Bucket) -> (Arc<Self>, String) {
        Self::start([("bucket", bucket)]).await
    }

    fn of<T>(&self, bucket: &str, look: impl FnOnce(&mut Bucket) -> T) -> T {
        look(self.0.lock().expect("no panic").get_mut(bucket).expect("a bucket of the test"))
    }

    fn left(&self, bucket: &str) -> Vec<String> {
        self.of(bucket, |bucket| bucket.objects.keys().cloned().collect())
    }

    fn asked(&self, bucket: &str) -> Vec<(&'static str, bool)> {
        self.of(bucket, |bucket| bucket.asked.clone())
    }
}

async fn answer(server: Arc<Server>, mut connection: TcpStream) {
    let mut request = String::new();
    let mut buffer = [0; 4096];
    let body_begins = loop {
        if let Some(at) = request.find("\r\n\r\n") {
            break at + 4;
        }
        match connection.read(&mut buffer).await {
            Ok(read @ 1..) => request.push_str(&String::from_utf8_lossy(&buffer[..read])),
            _ => return,
        }
    };
    let header = |name: &str| {
        let mut lines = request[..body_begins].lines().filter_map(|line| line.split_once(':'));
        lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let if_match = header("if-match").map(|etag| etag.trim_matches('"').to_owned());
    while request.len() < body_begins + length {
        match connection.read(&mut buffer).await {
            Ok(read @ 1..) => request.push_str(&String::from_utf8_lossy(&buffer[..read])),
            _ => return,
        }
    }
    let target = request.split(' ').nth(1).expect("a target").to_owned();
    let path = target.split('?').next().expect("a path").trim_start_matches('/');
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let (status, body) = if request.starts_with("DELETE") {
        match server.of(bucket, |bucket| bucket.delete("single", key, if_match.as_deref())) {
            None => ("204 No Content", String::new()),
            Some("NoSuchKey") => ("404 Not Found", "<Error><Code>NoSuchKey</Code></Error>".to_owned()),
            Some(code) => ("412 Precondition Failed", format!("<Error><Code>{code}</Code></Error>")),
        }
    } else if request.starts_with("POST") {
        let objects = request[body_begins..].split("<Object>").skip(1);
        let results = objects.map(|object| {
            let field = |name: &str| {
                let (_, rest) = object.split_once(&format!("<{name}>"))?;
                Some(rest.split('<').next()?.replace("&quot;", "").replace('"', ""))
            };
            let key = field("Key").expect("a key");
            match server.of(bucket, |bucket| bucket.delete("batch", &key, field("ETag").as_deref())) {
                None => format!("<Deleted><Key>{key}</Key></Deleted>"),
                Some(code) => format!("<Error><Key>{key}</Key><Code>{code}</Code></Error>"),
            }
        });
        ("200 OK", format!("<DeleteResult>{}</DeleteResult>", results.collect::<String>()))
    } else {
        let space = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
        let configured = |status| format!("<VersioningConfiguration {space}>{status}</VersioningConfiguration>");
        match server.of(bucket, |bucket| bucket.versions) {
            Versions::Off => ("200 OK", configured("")),
            Versions::Kept => ("200 OK", configured("<Status>Enabled</Status>")),
            Versions::Denied => ("403 Forbidden", "<Error><Code>AccessDenied</Code></Error>".to_owned()),
        }
    };
    let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let _ = connection.write_all(answer.as_bytes()).await;
}

async fn store_at(address: &str, delete: DeletePolicy) -> S3Store {
    let credentials =
        S3Credentials { access_key_id: "someone".into(), secret_access_key: "something".into(), session_token: None };
    let custom = S3Settings::custom(address.to_owned(), "us-east-1", credentials);
    S3Store::new(&S3Settings { delete, versions: VersionsPolicy::Current, ..custom }).await
}

/// Asks for one object that has its ETag and one that has another; says what came of them.
async fn delete_both(store: &S3Store, bucket: &str) -> Vec<String> {
    let object = |key: &str| ObjectRef { key: key.into(), version: None };
    let asked = [(object("same"), ETAG.to_owned()), (object("other"), ETAG.replace('0', "f"))];
    let answer = store.delete_unchanged(&Permit::unlimited(), bucket, &asked).await;
    let told = answer.into_outcomes().into_iter().map(|(_, outcome)| match outcome {
        KeyOutcome::Failed(why) => why.code,
        other => format!("{other:?}"),
    });
    told.collect()
}

#[tokio::test]
async fn a_store_that_answers_404_for_what_is_absent_has_not_shown_that_it_heeds_etags() {
    for delete in [DeletePolicy::Single, DeletePolicy::Auto] {
        let (server, address) = Server::with_bucket(Bucket::new(GOOGLE, GOOGLE)).await;
        assert_eq!(delete_both(&store_at(&address, delete).await, "bucket").await, [NO_CONDITIONS, NO_CONDITIONS]);
        assert_eq!(server.left("bucket"), ["other", "same"]);
        assert_eq!(server.asked("bucket"), [("single", true), ("single", false)]);
    }
}

#[tokio::test]
async fn a_store_that_answers_404_to_the_condition_alone_has_shown_it() {
    for delete in [DeletePolicy::Single, DeletePolicy::Auto] {
        let (server, address) = Server::with_bucket(Bucket::new(AMAZON, AMAZON)).await;
        assert_eq!(delete_both(&store_at(&address, delete).await, "bucket").await, ["Deleted", "PreconditionFailed"]);
        assert_eq!(server.left("bucket"), ["other"]);
        let batches = server.asked("bucket").iter().filter(|(of, _)| *of == "batch").count();
        assert_eq!(batches, if delete == DeletePolicy::Single { 0 } else { 2 });
    }
}

#[tokio::test]
async fn what_is_shown_for_single_deletes_is_not_believed_of_batches() {
    let blind = [GOOGLE, Manner { of_absent: OfAbsent::Deleted, heeds: false }];
    let single = [AMAZON, Manner { of_absent: OfAbsent::Refused, heeds: true }];
    for (single, batch) in single.into_iter().flat_map(|single| blind.map(|batch| (single, batch))) {
        let (server, address) = Server::with_bucket(Bucket::new(single, batch)).await;
        let store = store_at(&address, DeletePolicy::Auto).await;
        assert_eq!(delete_both(&store, "bucket").await, ["Deleted", "PreconditionFailed"]);
        assert_eq!(server.left("bucket"), ["other"], "{single:?}, {batch:?}");
        assert!(server.asked("bucket").contains(&("batch", true)), "{:?}", server.asked("bucket"));
    }
}

#[tokio::test]
async fn where_versions_are_kept_nothing_is_asked_that_would_leave_a_delete_marker() {
    let (server, address) = Server::with_bucket(Bucket::new(AMAZON, AMAZON).with(Versions::Kept)).await;
    let store = store_at(&address, DeletePolicy::Auto).await;
    assert_eq!(delete_both(&store, "bucket").await, [NO_CONDITIONS, NO_CONDITIONS]);
    assert_eq!((server.left("bucket").len(), server.asked("bucket")), (2, vec![]));
}

#[tokio::test]
async fn where_nobody_may_know_whether_versions_are_kept_nothing_is_asked_or_deleted() {
    let seaweed = Manner { of_absent: OfAbsent::Refused, heeds: true };
    let (server, address) = Server::with_bucket(Bucket::new(seaweed, seaweed).with(Versions::Denied)).await;
    let store = store_at(&address, DeletePolicy::Auto).await;
    assert_eq!(delete_both(&store, "bucket").await, ["AccessDenied", "AccessDenied"]);
    assert_eq!((server.left("bucket").len(), server.asked("bucket")), (2, vec![]));
}

#[tokio::test]
async fn what_one_bucket_has_shown_is_not_believed_of_another() {
    let blind = Manner { of_absent: OfAbsent::Deleted, heeds: false };
    let others: [&dyn Fn() -> Bucket; 2] =
        [&|| Bucket::new(AMAZON, AMAZON).with(Versions::Kept), &|| Bucket::new(blind, blind)];
    for other in others {
        for order in [["other", "bucket"], ["bucket", "other"]] {
            let (server, address) = Server::start([("bucket", Bucket::new(AMAZON, AMAZON)), ("other", other())]).await;
            let store = store_at(&address, DeletePolicy::Auto).await;
            for bucket in order.into_iter().chain(order) {
                delete_both(&store, bucket).await;
            }
            assert_eq!(server.left("other"), ["other", "same"], "{:?} in {order:?}", other());
            assert_eq!(server.left("bucket"), ["other"], "{:?} in {order:?}", other());
        }
    }
}
