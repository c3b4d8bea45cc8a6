//! From the client to the store and back, with the fault in between.
//!
//! Invariant: a request is read whole and then carried out in a task of its own. So a client that gives up or dies does
//! not undo it, which is how a real store behaves. What is not a fault is passed on as it was sent: target, Host and
//! body are what the client signed.

use std::sync::Arc;

use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::body::{AnswerBody, Cut, read};
use super::fault::{Fault, KeyFault, Op, Which, Work};
use super::request::{Answer, Asked};
use super::state::{Chosen, State};
use super::xml::{self, Entry};

/// The one server behind all connections. Cheap to clone.
#[derive(Clone)]
pub struct Proxy {
    pub state: Arc<State>,
    /// `host:port` of the store.
    pub upstream: String,
    /// As the client's requests are passed on.
    pub http: Client<HttpConnector, AnswerBody>,
    /// For what the client did not ask in one request.
    pub s3: aws_sdk_s3::Client,
}

impl Proxy {
    pub async fn run(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().serve(stream))),
                // descriptors ran out: let others get on
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn serve(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let handler = service_fn(move |request| self.clone().answer(request));
        // an error is a connection that was cut, by them or by us
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), handler).await;
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<AnswerBody>, Cut> {
        let (parts, body) = request.into_parts();
        let body = read(body).await.map_err(|_| Cut)?;
        let asked = Asked::new(parts, body);
        tokio::spawn(self.carry_out(asked)).await.map_err(|_| Cut)?
    }

    async fn carry_out(self, asked: Asked) -> Result<Response<AnswerBody>, Cut> {
        let is_head = asked.parts.method == Method::HEAD;
        let Some(chosen) = self.state.choose(&asked) else {
            return self.pass_on(&asked).await.map(|answer| plain(answer, is_head));
        };
        match chosen.fault.clone() {
            Fault::Closed => {
                self.state.happened(&chosen);
                Err(Cut)
            }
            Fault::InternalError(Work::Left) => Ok(self.refuse(&chosen, Answer::error(500, "InternalError"))),
            Fault::SlowDown => Ok(self.refuse(&chosen, Answer::error(503, "SlowDown"))),
            Fault::TooManyRequests(seconds) => {
                Ok(self.refuse(&chosen, Answer::error(429, "TooManyRequests").retry_after(seconds)))
            }
            Fault::Unavailable(seconds) => {
                Ok(self.refuse(&chosen, Answer::error(503, "SlowDown").retry_after(seconds)))
            }
            Fault::Forbidden => Ok(self.refuse(&chosen, Answer::error(403, "AccessDenied"))),
            Fault::Keys(which, how) => self.some_keys(&asked, chosen, &which, how).await,
            Fault::SlowWork(by) => {
                self.state.happened(&chosen);
                self.later(by).await;
                self.pass_on(&asked).await.map(|answer| plain(answer, is_head))
            }
            fault => {
                let answer = self.pass_on(&asked).await?;
                self.after_the_work(&asked, answer, chosen, fault).await
            }
        }
    }

    fn refuse(&self, chosen: &Chosen, answer: Answer) -> Response<AnswerBody> {
        self.state.happened(chosen);
        plain(answer, false)
    }

    /// The store has answered; what becomes of the answer.
    async fn after_the_work(
        &self,
        asked: &Asked,
        answer: Answer,
        chosen: Chosen,
        fault: Fault,
    ) -> Result<Response<AnswerBody>, Cut> {
        let replaced = match fault {
            Fault::InternalError(_) => Some(Answer::error(500, "InternalError")),
            Fault::Garbage => Some(Answer::xml(200, "<html><body>It works!</body></html>".into())),
            Fault::ErrorInOk => Some(Answer::xml(200, xml::error("InternalError", "by the fault proxy"))),
            Fault::EmptyOk => Some(Answer::xml(200, String::new())),
            Fault::Stale => self.stale(asked, &answer),
            Fault::CutShort(keep) => xml::cut_short(&answer.text(), keep.max(1)).map(|page| Answer::xml(200, page)),
            Fault::SlowAnswer(by) => {
                self.state.happened(&chosen);
                self.later(by).await;
                return Ok(plain(answer, asked.parts.method == Method::HEAD));
            }
            Fault::AnswerLost => {
                self.state.happened(&chosen);
                return Err(Cut);
            }
            Fault::CutBody | Fault::CutChunked | Fault::Stalled => {
                if answer.body.is_empty() {
                    chosen.could_not();
                    return Ok(plain(answer, asked.parts.method == Method::HEAD));
                }
                self.state.happened(&chosen);
                return Ok(self.half(answer, &fault));
            }
            _ => unreachable!("all others happen before the work"),
        };
        match replaced {
            Some(replaced) => Ok(self.refuse(&chosen, replaced)),
            None => {
                chosen.could_not();
                Ok(plain(answer, false))
            }
        }
    }

    /// Half of the answer, and then the connection is cut: soon, or when it is calm.
    fn half(&self, answer: Answer, fault: &Fault) -> Response<AnswerBody> {
        let length = answer.body.len();
        let half = answer.body.slice(..length.div_ceil(2));
        let body = match fault {
            Fault::Stalled => AnswerBody::stalled_after(half, Box::pin(self.state.until_calm())),
            _ => AnswerBody::cut_after(half),
        };
        let mut response = respond(answer.status, &answer, body);
        if !matches!(fault, Fault::CutChunked) {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        response
    }

    /// The first answer to the same listing, if it shows something that is gone and hides nothing that is there.
    fn stale(&self, asked: &Asked, fresh: &Answer) -> Option<Answer> {
        let first = self.state.first_listing(&asked.identity(), fresh);
        let (old, new) = (first.text(), fresh.text());
        let (was, is) = (xml::page_entries(&old), xml::page_entries(&new));
        let hides_nothing = xml::promises_more(&old) || is.is_subset(&was);
        (hides_nothing && !was.is_subset(&is)).then_some(first)
    }

    /// Something happens to some of the keys of a DeleteObjects.
    async fn some_keys(
        &self,
        asked: &Asked,
        chosen: Chosen,
        which: &Which,
        how: KeyFault,
    ) -> Result<Response<AnswerBody>, Cut> {
        let numbered = asked.objects.iter().cloned().enumerate();
        let (hit, rest): (Vec<_>, Vec<_>) = numbered.partition(|(n, object)| which.hits(*n, &object.key));
        let [hit, rest] = [hit, rest].map(|side| side.into_iter().map(|(_, object)| object).collect::<Vec<_>>());
        if hit.is_empty() {
            chosen.could_not();
            return self.pass_on(asked).await.map(|answer| plain(answer, false));
        }
        let work = if how.work() == Work::Done { asked.objects.clone() } else { rest.clone() };
        let done = self.delete(&asked.bucket, work).await?;
        // of those that were hit the answer says something else
        let mut said: Vec<Entry> = done.into_iter().filter(|entry| !named(&hit, entry)).collect();
        said.extend(hit.into_iter().filter_map(|object| say(object, how)));
        Ok(self.refuse(&chosen, Answer::xml(200, xml::delete_result(&said))))
    }

    /// Deletes in our own name. What the store says of each.
    async fn delete(&self, bucket: &str, objects: Vec<Entry>) -> Result<Vec<Entry>, Cut> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let identifiers = objects.into_iter().map(|object| {
            let identifier = ObjectIdentifier::builder().key(object.key).set_version_id(object.version);
            identifier.build().expect("it has a key")
        });
        let delete = Delete::builder().set_objects(Some(identifiers.collect())).quiet(false).build();
        let request = self.s3.delete_objects().bucket(bucket).delete(delete.expect("it has objects"));
        let Ok(answer) = request.send().await else {
            self.state.upstream_failed();
            return Err(Cut);
        };
        let deleted = answer.deleted.unwrap_or_default().into_iter().map(|entry| Entry {
            element: "Deleted".into(),
            key: entry.key.unwrap_or_default(),
            version: entry.version_id.filter(|id| !id.is_empty()).or(entry.delete_marker_version_id),
            ..Entry::default()
        });
        let failed = answer.errors.unwrap_or_default().into_iter().map(|entry| Entry {
            element: "Error".into(),
            key: entry.key.unwrap_or_default(),
            version: entry.version_id,
            code: entry.code.unwrap_or_default(),
            message: entry.message.unwrap_or_default(),
        });
        let entries: Vec<Entry> = deleted.chain(failed).collect();
        self.note_deleted(bucket, &entries);
        Ok(entries)
    }

    fn note_deleted(&self, bucket: &str, entries: &[Entry]) {
        let deleted = entries.iter().filter(|entry| entry.element == "Deleted");
        self.state.deleted(bucket, deleted.map(|entry| entry.key.as_str()));
    }

    /// Sends the request on as it is, and notes what the answer tells.
    async fn pass_on(&self, asked: &Asked) -> Result<Answer, Cut> {
        let answer = match self.forward(asked).await {
            Some(answer) => answer,
            None => {
                self.state.upstream_failed();
                return Err(Cut);
            }
        };
        match asked.op {
            Op::DeleteObjects if answer.status == 200 => {
                self.note_deleted(&asked.bucket, &xml::entries(&answer.body).unwrap_or_default());
            }
            Op::DeleteObject if answer.status < 300 => {
                self.state.deleted(&asked.bucket, asked.subjects.iter().map(String::as_str));
            }
            op if op.lists() && answer.status == 200 => drop(self.state.first_listing(&asked.identity(), &answer)),
            _ => {}
        }
        Ok(answer)
    }

    async fn forward(&self, asked: &Asked) -> Option<Answer> {
        let target = asked.parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::new(AnswerBody::whole(asked.body.clone()));
        *request.method_mut() = asked.parts.method.clone();
        *request.uri_mut() = format!("http://{}{target}", self.upstream).parse().ok()?;
        *request.headers_mut() = asked.parts.headers.clone();
        request.headers_mut().remove(CONNECTION);
        request.headers_mut().remove(TRANSFER_ENCODING);
        let (parts, body) = self.http.request(request).await.ok()?.into_parts();
        Some(Answer { status: parts.status.as_u16(), headers: parts.headers, body: read(body).await.ok()? })
    }

    /// Waits, but not beyond the storm.
    async fn later(&self, by: std::time::Duration) {
        let _ = tokio::time::timeout(by, self.state.until_calm()).await;
    }
}

/// Whether this entry is about one of these objects.
fn named(objects: &[Entry], entry: &Entry) -> bool {
    objects.iter().any(|object| {
        object.key == entry.key
            && (object.version == entry.version || object.version.is_none() || entry.version.is_none())
    })
}

fn say(object: Entry, how: KeyFault) -> Option<Entry> {
    let code = match how {
        KeyFault::Missing(_) => return None,
        KeyFault::Lie => return Some(Entry { element: "Deleted".into(), ..object }),
        KeyFault::InternalError(_) => "InternalError",
        KeyFault::SlowDown(_) => "SlowDown",
        KeyFault::AccessDenied(_) => "AccessDenied",
    };
    Some(Entry { element: "Error".into(), code: code.into(), message: "by the fault proxy".into(), ..object })
}

fn respond(status: u16, answer: &Answer, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    *response.headers_mut() = answer.headers.clone();
    for hop in [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        response.headers_mut().remove(hop);
    }
    response
}

/// The answer as it is. To a HEAD it names a length that it does not have.
fn plain(answer: Answer, is_head: bool) -> Response<AnswerBody> {
    let body = AnswerBody::whole(if is_head { Bytes::new() } else { answer.body.clone() });
    let mut response = respond(answer.status, &answer, body);
    if let Some(length) = answer.headers.get(CONTENT_LENGTH).filter(|_| is_head) {
        response.headers_mut().insert(CONTENT_LENGTH, length.clone());
    }
    response
}
