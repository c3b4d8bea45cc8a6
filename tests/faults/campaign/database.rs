//! What happens to PostgreSQL, to the connections to it and to the statements on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reprieve::embedded::postgres::PrivatePostgres;
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use super::dice::Dice;
use super::land::Land;
use super::line;
use crate::tcp_proxy::{Lost, TcpProxy};

/// The next so many writes fail, with an error of our choice. The counter is a sequence: no rollback gives it back.
pub const TRIPWIRE: &str = "
create table truth.error (code text not null);
insert into truth.error values ('40001');
create sequence truth.errors minvalue -1 maxvalue 1000000 start 1000000;
select setval('truth.errors', 1000000);
create function truth.trip() returns trigger language plpgsql security definer as $$
begin
    if (select last_value from truth.errors) < 1000000 then
        perform nextval('truth.errors');
        raise exception 'asked for by the test' using errcode = (select code from truth.error);
    end if;
    if tg_op = 'DELETE' then return old; end if;
    return new;
end $$;
create trigger trip before insert or update on reprieve.tombstones for each row execute function truth.trip();
create trigger trip before insert on reprieve.audit for each row execute function truth.trip();
create trigger trip before delete on heimdall.synthetic_iq_samples for each statement execute function truth.trip();
create trigger trip before delete on heimdall.synthetic_datasets for each row execute function truth.trip();
";

/// Serialisation failure, deadlock, statement cancelled, ended by an operator, disk full, too many connections, read-only.
const CODES: [&str; 7] = ["40001", "40P01", "57014", "57P01", "53100", "53300", "25006"];

/// The database of a campaign, and what stands between it and the program.
pub struct Database {
    pub land: Arc<Land>,
    pub server: PrivatePostgres,
    pub proxy: TcpProxy,
    /// Without the proxy.
    pub url: String,
}

#[derive(Debug, Clone, Copy)]
enum Blow {
    Line(line::Blow),
    LoseCommit,
    Fail,
    Terminate,
    Full,
    Kill,
    Restart,
}

const BLOWS: [(u32, Blow); 11] = [
    (4, Blow::Line(line::Blow::Cut)),
    (6, Blow::Line(line::Blow::CutWithin(50_000))),
    (6, Blow::LoseCommit),
    (2, Blow::Line(line::Blow::Stall)),
    (2, Blow::Line(line::Blow::Slow(1, 30))),
    (2, Blow::Line(line::Blow::Refuse)),
    (8, Blow::Fail),
    (4, Blow::Terminate),
    (2, Blow::Full),
    (1, Blow::Kill),
    (1, Blow::Restart),
];

impl Database {
    /// Blows until `end`, and leaves everything running.
    pub async fn weather(mut self, end: Instant) -> Database {
        let mut dice = Dice::of(self.land.settings.seed, "database");
        while Instant::now() < end {
            sleep(dice.millis(300, 3500)).await;
            let blow = *dice.weighted(&BLOWS);
            if self.strike(blow, &mut dice).await {
                self.land.tally.add(format!("fault: database: {blow:?}"));
            }
        }
        self.proxy.forget();
        self.set_errors(0, CODES[0]).await;
        for (what, count) in self.proxy.counts() {
            self.land.tally.add_many(format!("database's proxy: {what}"), count);
        }
        self
    }

    /// Whether it happened.
    async fn strike(&mut self, blow: Blow, dice: &mut Dice) -> bool {
        match blow {
            Blow::Line(blow) => line::strike(&self.proxy, blow, dice).await,
            Blow::LoseCommit => {
                let lost = *dice.pick(&[Lost::Request, Lost::Answer]);
                self.proxy.cut_at("COMMIT", lost, dice.below(20));
                true
            }
            Blow::Fail => {
                let code = *dice.pick(&CODES);
                self.set_errors(dice.between(1, 8), code).await;
                self.land.tally.add(format!("database: the next writes fail with {code}"));
                true
            }
            Blow::Terminate => self.terminate().await,
            Blow::Full => self.fill(dice.millis(300, 2500)).await,
            Blow::Kill => {
                self.server.kill9().expect("it ends");
                sleep(dice.millis(0, 1500)).await;
                self.server.start_again().await.expect("it starts again");
                true
            }
            Blow::Restart => {
                self.server.stop().expect("it ends");
                self.server.start_again().await.expect("it starts again");
                true
            }
        }
    }

    async fn set_errors(&self, writes: u64, code: &str) {
        let left = 1_000_000 - i64::try_from(writes).expect("few");
        let set = async || {
            let mut conn = PgConnection::connect(&self.url).await.ok()?;
            sqlx::query("update truth.error set code = $1").bind(code).execute(&mut conn).await.ok()?;
            sqlx::query("select setval('truth.errors', $1)").bind(left).execute(&mut conn).await.ok()
        };
        crate::support::wait_until("the tripwire is set", crate::support::SOON, async || set().await.is_some()).await;
    }

    /// Ends every session but its own, as an operator can.
    async fn terminate(&self) -> bool {
        let Ok(mut conn) = PgConnection::connect(&self.url).await else { return false };
        let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                   where pid <> pg_backend_pid() and datname = current_database()";
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut conn).await.is_ok_and(|ended| ended > 0)
    }

    /// Takes every connection that the server has to give.
    async fn fill(&self, time: Duration) -> bool {
        const MOST: usize = 400;
        let mut taken = Vec::new();
        while taken.len() < MOST
            && let Ok(conn) = PgConnection::connect(&self.url).await
        {
            taken.push(conn);
        }
        sleep(time).await;
        !taken.is_empty()
    }
}
