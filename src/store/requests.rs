//! The memory of answered requests.
//!
//! Invariant: the answer to a request with a message id is written in the transaction that carries the request out,
//! so a duplicate, however late within the time it is remembered, is answered again and changes nothing.

use std::time::Duration;

use serde_json::Value;
use sqlx::{PgConnection, types::Json};

use super::StoreError;

/// Claims a message id: `None` if it is new (and now ours until the transaction ends), else the answer given before.
/// A second process with the same id waits here for the first one's commit.
///
/// # Errors
/// The statement failed.
pub async fn claim(conn: &mut PgConnection, message_id: &str) -> Result<Option<Value>, StoreError> {
    let claimed =
        sqlx::query("insert into reprieve.requests (message_id, answer) values ($1, 'null') on conflict do nothing")
            .bind(message_id)
            .execute(&mut *conn)
            .await?;
    if claimed.rows_affected() == 1 {
        return Ok(None);
    }
    let answer: Json<Value> = sqlx::query_scalar("select answer from reprieve.requests where message_id = $1")
        .bind(message_id)
        .fetch_one(conn)
        .await?;
    Ok(Some(answer.0))
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
