//! The memory of answered requests.
//!
//! Invariant: the answer to a request with a message id is written in the transaction that carries the request out,
//! so a duplicate, however late within the time it is remembered, is answered again and changes nothing. Only the same
//! body, byte for byte, is a duplicate: the answer to one wish is never given to another.

use std::time::Duration;

use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use super::StoreError;

/// What is known of a message id.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Nothing: it is ours until the transaction ends.
    New,
    /// The same body came before, and this was its answer.
    Answered(Value),
    /// Another body came under this id.
    Reused,
}

/// Claims a message id for a body. A second process with the same id waits here for the first one's commit.
///
/// # Errors
/// The statement failed.
pub async fn claim(conn: &mut PgConnection, message_id: &str, body: &[u8]) -> Result<Claim, StoreError> {
    let claimed = sqlx::query(
        "insert into reprieve.requests (message_id, digest, answer) values ($1, sha256($2), 'null')
         on conflict do nothing",
    )
    .bind(message_id)
    .bind(body)
    .execute(&mut *conn)
    .await?;
    if claimed.rows_affected() == 1 {
        return Ok(Claim::New);
    }
    let (is_same, answer): (bool, Json<Value>) =
        sqlx::query_as("select digest = sha256($2), answer from reprieve.requests where message_id = $1")
            .bind(message_id)
            .bind(body)
            .fetch_one(conn)
            .await?;
    Ok(if is_same { Claim::Answered(answer.0) } else { Claim::Reused })
}

/// Keeps the answer to a claimed message id.
///
/// # Errors
/// The statement failed.
pub async fn answer(conn: &mut PgConnection, message_id: &str, answer: &Value) -> Result<(), StoreError> {
    sqlx::query("update reprieve.requests set answer = $2 where message_id = $1")
        .bind(message_id)
        .bind(Json(answer))
        .execute(conn)
        .await?;
    Ok(())
}

/// Gives a claimed message id back, unanswered.
///
/// # Errors
/// The statement failed.
pub async fn release(conn: &mut PgConnection, message_id: &str) -> Result<(), StoreError> {
    sqlx::query("delete from reprieve.requests where message_id = $1").bind(message_id).execute(conn).await?;
    Ok(())
}

/// Forgets answers older than `age`; at most 10,000 at once.
///
/// # Errors
/// The statement failed.
pub async fn forget(conn: &mut PgConnection, age: Duration) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from reprieve.requests where message_id in (
             select message_id from reprieve.requests where answered_at < now() - $1 * interval '1 second' limit 10000)",
    )
    .bind(age.as_secs_f64())
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
