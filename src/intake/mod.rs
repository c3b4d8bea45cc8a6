//! The intake: other services' requests to trash, restore and purge.
//!
//! Invariant: a request, its reply and the memory of both are one transaction, so a request that is delivered twice is
//! carried out once and answered the same. What can never be carried out goes to the dead letters with the reason;
//! what is refused now (in use, held) is answered and kept in the audit log.
//!
//! A request has no other copy than its message, so none becomes a dead letter for what it cannot help. While the
//! database is away the intake keeps what it has in hand and tries again; a request whose row is locked waits alone; and
//! what goes back to the queue goes in a way that can be repeated without end.

mod waiting;

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::waiting::{BUSY, Held, Waiting};
use crate::{
    domain::{
        cause::Cause,
        ids::ResourceRef,
        retention::Retention,
        tombstone::{Provenance, Tombstone},
    },
    failpoint,
    queue::{
        Consumer, Delivery, QueueError, Source, TaskQueue,
        message::{self, Op, Request},
    },
    retry::{Backoff, InvalidBackoff},
    store::{
        StoreError,
        audit::{self, Happened, NewEntry},
        commit, impatient,
        outbox::{self, Reply},
        requests::{self, Claim},
    },
    telemetry::{
        Metrics,
        metrics::{Operation, Origin},
        trace::{self, End, Work},
    },
    trash::{IfChildrenLost, TrashBin, TrashError, TrashRequest},
};

/// Requests taken from the broker ahead of time. They are carried out one after another.
const PREFETCH: u16 = 16;

/// The same after a start, until a request comes that was never handed out before: what has taken a process down comes
/// first, and with it the broker would count a failed delivery of everything that was taken ahead, up to the dead letters.
const CAREFUL: u16 = 1;

/// How long a request waits for a lock before it gives way to the others; the second time it comes later.
const FOR_A_LOCK: Duration = Duration::from_millis(250);

/// How long requests are kept in hand while the database is away. The broker takes a delivery back that was not answered
/// for half an hour, and every return counts.
const IN_HAND: Duration = Duration::from_secs(10 * 60);

/// Between tries while the database is away.
const AWAY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Statements of a request that may take long: the map's queries.
const REQUEST: u32 = 5;

/// The longest message id that is remembered.
const MOST_ID: usize = 255;

/// The code of a refusal: another request came under this message id.
const REUSED: &str = "message_id_reused";

/// What is counted of a request, once its transaction is committed.
enum Counted {
    CarriedOut(Op, Done),
    NotCarriedOut(Operation, &'static str),
}

/// What a request has changed.
enum Done {
    Trashed(Vec<Tombstone>),
    Restored(Vec<Tombstone>),
}

/// Takes requests in.
#[derive(Debug, Clone)]
pub struct Intake {
    trash: TrashBin,
    metrics: Metrics,
    /// Waits between tries of one whose row is locked.
    busy: Backoff,
    /// Waits while the database is away.
    away: Backoff,
}

/// A request that was understood, and to what it belongs.
#[derive(Clone, Copy)]
struct Asked<'a> {
    request: &'a Request,
    cause: &'a Cause,
}

impl Asked<'_> {
    fn provenance(self) -> Result<Provenance, TrashError> {
        let by = Provenance::parse(&self.request.actor, "message", self.request.reason.clone())?;
        Ok(by.within(self.cause.clone()))
    }
}

/// What a request came to.
enum Verdict {
    /// Answered; refusals too.
    Answered(Value),
    /// It can never be carried out.
    Malformed { reply: Value, reason: String },
}

impl Intake {
    /// An intake for this trash bin.
    ///
    /// # Errors
    /// None with the constants that stand here.
    pub fn new(trash: TrashBin, metrics: Metrics) -> Result<Self, InvalidBackoff> {
        Ok(Self { trash, metrics, busy: Backoff::new(BUSY.0, BUSY.1)?, away: Backoff::new(AWAY.0, AWAY.1)? })
    }

    /// Consumes requests until the queue ends or `stop` is cancelled. `supervise` calls it again.
    ///
    /// # Errors
    /// The queue's connection ended, or the database has been away for long (what was in hand goes back to the queue).
    pub async fn run(&self, queue: &dyn TaskQueue, stop: &CancellationToken) -> Result<(), QueueError> {
        self.trash.store().ping().await.map_err(away)?;
        let mut waiting = Waiting::new(self.busy);
        // a consumer that has been cancelled keeps its channel, for the answers to what it has handed out
        let mut consumers = Vec::new();
        let mut ended = Ok(());
        for prefetch in [CAREFUL, PREFETCH] {
            let mut consumer = queue.consumer(Source::Requests, prefetch).await?;
            let connected = self.metrics.messages().connected("intake");
            tracing::info!(prefetch, "intake consumes");
            ended = self.take_in(consumer.as_mut(), &mut waiting, prefetch, stop).await;
            // what came behind, as far as it is here, so that the order stays
            while let Some(Ok(Some(unseen))) = consumer.next().now_or_never() {
                waiting.keep(unseen);
            }
            ended = ended.and(consumer.cancel().await);
            consumers.push((consumer, connected));
            if ended.is_err() || stop.is_cancelled() {
                break;
            }
        }
        for delivery in waiting.into_all() {
            log_answer(delivery.answer.requeue().await);
        }
        ended
    }

    /// Carries requests out until `stop` is cancelled, or a careful one has survived a request that was never handed out
    /// before. A request whose answer fails keeps its place in the prefetch until the consumer ends, and when every
    /// place is taken nothing would come any more: that ends it, too.
    async fn take_in(
        &self,
        consumer: &mut dyn Consumer,
        waiting: &mut Waiting,
        prefetch: u16,
        stop: &CancellationToken,
    ) -> Result<(), QueueError> {
        let is_careful = prefetch == CAREFUL;
        let mut unanswered = 0;
        loop {
            let request = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                delivery = consumer.next() => match delivery? {
                    Some(delivery) => waiting.queue_up(Held::new(delivery)),
                    None => return Err(QueueError::new("consume requests", "the broker ended the consumer")),
                },
                held = waiting.next() => Some(held),
            };
            let Some(request) = request else { continue };
            let is_fresh = request.delivery.redeliveries == 0;
            unanswered += match self.handle(request, stop).await {
                Ok(answered) => usize::from(!answered),
                Err((held, StoreError::Busy(_))) => put_off(waiting.again_later(held)).await,
                Err((held, error)) => {
                    waiting.keep_first(held);
                    return if stop.is_cancelled() { Ok(()) } else { Err(away(error)) };
                }
            };
            if is_careful && (is_fresh || unanswered > 0) {
                return Ok(());
            }
            if unanswered >= usize::from(prefetch) {
                return Err(QueueError::new("answer requests", "the broker takes no answers: see the warnings before"));
            }
        }
    }

    /// Carries one request out, as soon as there is a database, and says whether its delivery was answered. It comes
    /// back when it is busy, or there is no database for long.
    async fn handle(&self, held: Held, stop: &CancellationToken) -> Result<bool, (Held, StoreError)> {
        let (work, cause) = Work::message(&held.delivery, &held.cause);
        work.run(self.handle_within(&cause, held, stop)).await
    }

    async fn handle_within(
        &self,
        cause: &Cause,
        held: Held,
        stop: &CancellationToken,
    ) -> Result<bool, (Held, StoreError)> {
        let (began, mut delays) = (Instant::now(), self.away.delays());
        let mut reported = false;
        failpoint::at("intake.received");
        loop {
            let error = match self.trash.store().within(REQUEST, self.carry_out(&held.delivery, cause)).await {
                Ok(verdict) => {
                    failpoint::at("intake.committed");
                    return Ok(self.answer(held.delivery, verdict).await);
                }
                Err(error) => error,
            };
            let message_id = held.delivery.message_id.as_deref();
            match &error {
                StoreError::Busy(_) => {
                    tracing::debug!(%error, message_id, "request waits for a lock");
                    trace::ended("busy", End::Well);
                    return Err((held, error));
                }
                StoreError::Unavailable(_) | StoreError::NotMigrated(_) => {}
                StoreError::Platform { .. } | StoreError::Unusable(_) | StoreError::Other(_) => {
                    // it would fail again, and hold up every request behind it
                    trace::ended("failed", End::Badly);
                    let verdict = Verdict::Malformed { reply: Value::Null, reason: error.to_string() };
                    return Ok(self.answer(held.delivery, verdict).await);
                }
            }
            if began.elapsed() >= IN_HAND {
                return Err((held, error));
            }
            if !std::mem::replace(&mut reported, true) {
                tracing::error!(%error, message_id, "intake waits for the database");
            }
            tokio::select! {
                () = stop.cancelled() => return Err((held, error)),
                () = tokio::time::sleep(delays.next().unwrap_or(AWAY.1)) => {}
            }
        }
    }

    async fn answer(&self, delivery: Delivery, verdict: Verdict) -> bool {
        // it comes again if this fails, and is answered from memory or found done
        let answered = log_answer(match verdict {
            Verdict::Answered(_) => delivery.answer.ack().await,
            Verdict::Malformed { reason, .. } => {
                tracing::warn!(reason, message_id = delivery.message_id, "request set aside");
                self.metrics.messages().dead_letter("requests");
                delivery.answer.dead_letter(&reason).await
            }
        });
        failpoint::at("intake.answered");
        answered
    }

    async fn carry_out(&self, delivery: &Delivery, cause: &Cause) -> Result<Verdict, StoreError> {
        let mut tx = self.trash.store().begin().await?;
        impatient(&mut tx, FOR_A_LOCK).await?;
        let message_id = delivery.message_id.as_deref().filter(|id| is_storable(id) && id.len() <= MOST_ID);
        let claim = match message_id {
            Some(id) => requests::claim(&mut tx, id, &delivery.body).await?,
            None => Claim::New,
        };
        if let Claim::Answered(answer) = claim {
            tracing::info!(message_id, "request was answered before");
            reply(&mut tx, delivery, cause, &answer).await?;
            commit(tx).await?;
            return Ok(Verdict::Answered(answer));
        }
        // the id, and the memory of its answer, belong to the request that came first
        let message_id = message_id.filter(|_| claim != Claim::Reused);
        let mut keep = message_id;
        let (verdict, counted) = match Request::decode(&delivery.body) {
            Ok(request) if claim == Claim::Reused => {
                let verdict = self.refuse_reuse(&mut tx, Asked { request: &request, cause }).await?;
                (verdict, Counted::NotCarriedOut(operation(request.op), REUSED))
            }
            Ok(request) => {
                use sqlx::Acquire;
                // a refusal may come half-way through: what it wrote until then goes, the answer stays
                let mut part = tx.begin().await?;
                let asked = Asked { request: &request, cause };
                match self.dispatch(&mut part, asked).await {
                    Ok((answer, done)) => {
                        part.commit().await?;
                        (Verdict::Answered(answer), Counted::CarriedOut(request.op, done))
                    }
                    Err(TrashError::Store(error)) if error.is_transient() => return Err(error),
                    Err(error) => {
                        part.rollback().await?;
                        // a map that does not fit is mended, and then the same request is worth another try
                        keep = keep.filter(|_| !matches!(error, TrashError::Store(_)));
                        let counted = Counted::NotCarriedOut(operation(request.op), error.code());
                        (self.refuse(&mut tx, asked, &error).await?, counted)
                    }
                }
            }
            Err(malformed) => {
                let reason = malformed.to_string();
                let reply = message::reply_refused(None, "malformed", &reason, Value::Null);
                (Verdict::Malformed { reply, reason }, Counted::NotCarriedOut(Operation::Unknown, "malformed"))
            }
        };
        let (Verdict::Answered(answer) | Verdict::Malformed { reply: answer, .. }) = &verdict;
        match (keep, message_id) {
            (Some(id), _) => requests::answer(&mut tx, id, answer).await?,
            (None, Some(id)) => requests::release(&mut tx, id).await?,
            (None, None) => {}
        }
        reply(&mut tx, delivery, cause, answer).await?;
        failpoint::at("intake.uncommitted");
        commit(tx).await?;
        self.count(counted);
        Ok(verdict)
    }

    fn count(&self, counted: Counted) {
        let requests = self.metrics.requests();
        match counted {
            Counted::CarriedOut(op, done) => {
                trace::ended("carried_out", End::Well);
                requests.carried_out(Origin::Message, operation(op));
                match done {
                    Done::Trashed(tombstones) => requests.trashed(Origin::Message, &tombstones),
                    Done::Restored(tombstones) => requests.restored(Origin::Message, &tombstones),
                }
            }
            Counted::NotCarriedOut(operation, code) => {
                trace::ended(code, End::Well);
                requests.not_carried_out(Origin::Message, operation, code);
            }
        }
    }

    async fn dispatch(&self, conn: &mut sqlx::PgConnection, asked: Asked<'_>) -> Result<(Value, Done), TrashError> {
        let request = asked.request;
        let resource = self.trash.resource(&request.kind, &request.id)?;
        let by = asked.provenance()?;
        let trash_request = |resource: ResourceRef, by| -> Result<TrashRequest, TrashError> {
            Ok(TrashRequest {
                resource,
                with: self.trash.kinds(request.with.iter().map(String::as_str))?,
                retention: request.retention.as_deref().map(Retention::parse).transpose()?,
                by,
            })
        };
        let (status, result, done) = match request.op {
            Op::Trash => {
                let trashed = self.trash.trash_in(conn, &trash_request(resource, by)?).await?;
                let done = Done::Trashed(trashed.written().cloned().collect());
                (if trashed.already { "already_trashed" } else { "trashed" }, json!(trashed), done)
            }
            Op::Restore => {
                let if_lost = if request.partial { IfChildrenLost::RestoreTheRest } else { IfChildrenLost::Refuse };
                let restored = self.trash.restore_in(conn, &resource, if_lost, &by).await?;
                let done = Done::Restored(restored.closed().cloned().collect());
                (if restored.already { "already_restored" } else { "restored" }, json!(restored), done)
            }
            Op::Purge => {
                let answer = self.trash.request_purge_in(conn, &trash_request(resource, by)?).await?;
                (answer.status, json!(answer), Done::Trashed(answer.written))
            }
        };
        tracing::info!(op = request.op.as_str(), kind = request.kind, id = request.id, status, "request carried out");
        Ok((message::reply_ok(request.op, status, result), done))
    }

    /// Answers a refusal and keeps it, so that a request without `reply_to` is not refused in silence.
    async fn refuse(
        &self,
        conn: &mut sqlx::PgConnection,
        asked: Asked<'_>,
        error: &TrashError,
    ) -> Result<Verdict, StoreError> {
        let request = asked.request;
        let (code, text) = (error.code(), error.to_string());
        tracing::warn!(op = request.op.as_str(), kind = request.kind, id = request.id, code, "request refused");
        let reply = message::reply_refused(Some(request.op), code, &text, error.details());
        if error.is_malformed() {
            return Ok(Verdict::Malformed { reply, reason: text });
        }
        self.note_refusal(conn, asked, code, &text).await?;
        Ok(Verdict::Answered(reply))
    }

    /// Answers a request whose message id another one has used. To carry it out could do a wish twice that its sender
    /// has written anew; to give it the other's answer would tell a sender that its wish was done.
    async fn refuse_reuse(&self, conn: &mut sqlx::PgConnection, asked: Asked<'_>) -> Result<Verdict, StoreError> {
        let request = asked.request;
        let text = "another request with this message_id came before: nothing was carried out; send it with a new one";
        tracing::warn!(
            op = request.op.as_str(),
            kind = request.kind,
            id = request.id,
            code = REUSED,
            "request refused"
        );
        self.note_refusal(conn, asked, REUSED, text).await?;
        Ok(Verdict::Answered(message::reply_refused(Some(request.op), REUSED, text, Value::Null)))
    }

    async fn note_refusal(
        &self,
        conn: &mut sqlx::PgConnection,
        asked: Asked<'_>,
        code: &str,
        text: &str,
    ) -> Result<(), StoreError> {
        let Ok(by) = asked.provenance() else { return Ok(()) };
        let request = asked.request;
        let resource = self.trash.resource(&request.kind, &request.id).ok();
        let details = json!({ "op": request.op, "code": code, "message": text });
        let entry =
            NewEntry { event: Happened::Refused, tombstone: None, resource: resource.as_ref(), by: &by, details };
        audit::write(conn, entry).await
    }
}

fn operation(op: Op) -> Operation {
    match op {
        Op::Trash => Operation::Trash,
        Op::Restore => Operation::Restore,
        Op::Purge => Operation::Purge,
    }
}

fn away(error: StoreError) -> QueueError {
    QueueError::new("carry a request out", error.to_string())
}

/// Sends requests to the end of their queue, and says how many could not be. After the first of them the others stay
/// unanswered, too: they are for one resource, and come again in their order when the consumer ends.
async fn put_off(busy: Vec<Held>) -> usize {
    let mut busy = busy.into_iter();
    while let Some(held) = busy.next() {
        let (message_id, correlation_id) = (held.delivery.message_id.as_deref(), held.cause.correlation_id());
        tracing::warn!(message_id, correlation_id, "request stays busy, others go first");
        if !log_answer(held.delivery.answer.put_off().await) {
            return 1 + busy.len();
        }
    }
    0
}

/// `false`: the answer failed. That is no loss, the broker hands the message out again when the consumer ends.
fn log_answer(answered: Result<bool, QueueError>) -> bool {
    match &answered {
        Ok(true) => {}
        Ok(false) => tracing::debug!("stale request, the broker hands it out again"),
        Err(error) => tracing::warn!(%error, "request not answered, the broker hands it out again"),
    }
    answered.is_ok()
}

async fn reply(
    conn: &mut sqlx::PgConnection,
    delivery: &Delivery,
    cause: &Cause,
    payload: &Value,
) -> Result<(), StoreError> {
    // the requester's own, whatever it looks like: it knows its answers by it
    let correlation_id = delivery.correlation_id.as_deref().filter(|id| is_storable(id));
    match delivery.reply_to.as_deref().filter(|queue| is_storable(queue)) {
        Some(queue) => {
            let trace = cause.trace.as_ref();
            outbox::reply(conn, Reply { queue, correlation_id, trace, payload }).await
        }
        None => Ok(()),
    }
}

/// Properties come from outside too, and PostgreSQL stores no NUL.
fn is_storable(property: &str) -> bool {
    !property.is_empty() && !property.contains('\0')
}
