//! A world whose store is behind the fault proxy, and the order of events in it.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::process::Service;
use crate::s3_proxy::S3Proxy;
use crate::support::heimdall::Shape;
use crate::support::seaweedfs::{self, ACCESS_KEY, SECRET_KEY};
use crate::world::{Places, Settings, World};

/// Objects of each dataset here: three batches of [`settings`].
pub const SHAPE: Shape = Shape { samples: 7, receivers: 4 };
pub const PUT: i64 = 28;
/// Rows of each: its own, its samples, its features.
pub const ROWS: i64 = 1 + 7 + 3;

/// So few attempts that an outage which counted as one would leave a purge stuck; all purges at once; time-outs that a
/// test can wait for.
pub fn settings() -> Settings {
    Settings {
        batch_size: 10,
        max_attempts: 2,
        lease: "10s",
        concurrency: 64,
        purge: "concurrency = 64",
        store: "attempt_timeout = \"4s\"\noperation_timeout = \"30s\"",
        ..Settings::default()
    }
}

/// Notes when the rows of which dataset go.
const WATCH: &str = "
    create table public.rows_gone (dataset text not null, at timestamptz not null);
    create function public.note_rows_gone() returns trigger language plpgsql as $$
    begin
        insert into public.rows_gone
        select coalesce(to_jsonb(old) ->> 'dataset_id', to_jsonb(old) ->> 'id'), clock_timestamp();
        return old;
    end $$;
    create trigger note_rows_gone before delete on heimdall.synthetic_datasets
        for each row execute function public.note_rows_gone();
    create trigger note_rows_gone before delete on heimdall.synthetic_iq_samples
        for each row execute function public.note_rows_gone();
    create trigger note_rows_gone before delete on heimdall.measurement_features
        for each row execute function public.note_rows_gone();";

/// A world on shared servers, its store behind a proxy of its own. `world.s3` goes past the proxy.
pub struct Faulty {
    pub world: World,
    pub proxy: S3Proxy,
}

impl Faulty {
    pub async fn new(settings: Settings) -> Faulty {
        let store = seaweedfs::shared().await;
        let proxy = S3Proxy::start(&store.endpoint(), ACCESS_KEY, SECRET_KEY).await;
        let places = Places { s3_endpoint: proxy.endpoint(), ..Places::shared().await };
        let mut world = World::unmigrated(places, settings).await;
        world.s3 = store.client();
        world.cli(&["migrate", "--guards"]).await.with(0);
        sqlx::raw_sql(WATCH).execute(&world.pool).await.expect("watched");
        Faulty { world, proxy }
    }

    /// A dataset of [`PUT`] objects; its id and prefix.
    pub async fn dataset(&self, name: &str) -> (Uuid, String) {
        // the platform wants them short and different
        let name = format!("{name:.60} {}", Uuid::new_v4().simple());
        let (id, put) = self.world.dataset(&name, SHAPE).await;
        assert_eq!((put, self.world.rows(id).await), (PUT, ROWS));
        (id, format!("synthetic/{id}/"))
    }

    pub async fn trash(&self, ids: &[Uuid]) {
        // a process each
        for some in ids.chunks(4) {
            join_all(some.iter().map(|id| self.world.trash("dataset", *id))).await;
        }
    }

    pub fn serve(&self) -> Service {
        self.world.serve(&[])
    }

    /// It is purged, every object and row is counted once, and its rows went after its objects.
    pub async fn purged(&self, id: Uuid) -> Value {
        let receipt = self.world.purged("dataset", id, PUT, ROWS).await;
        self.went_in_order(id, PUT).await;
        receipt
    }

    /// No row of it went before the store had confirmed the last of its objects as deleted.
    pub async fn went_in_order(&self, id: Uuid, objects: i64) {
        let first: Option<OffsetDateTime> = sqlx::query_scalar("select min(at) from rows_gone where dataset = $1")
            .bind(id.to_string())
            .fetch_one(&self.world.pool)
            .await
            .expect("asked");
        let first_row = SystemTime::from(first.expect("its rows are gone"));
        let prefix = format!("synthetic/{id}/");
        let deleted = self.proxy.first_deleted();
        let of_it = || deleted.iter().filter(|((_, key), _)| key.starts_with(&prefix));
        assert_eq!(of_it().count(), usize::try_from(objects).expect("some"), "every deletion went through the proxy");
        for ((_, key), at) in of_it() {
            assert!(*at <= first_row, "{key} was deleted {:?} after a row", at.duration_since(first_row));
        }
    }

    /// It is set aside, and all of its rows are there. Its reason.
    pub async fn stuck(&self, id: Uuid) -> String {
        let now = self.world.until_state(id, "stuck").await;
        assert_eq!(self.world.rows(id).await, ROWS, "rows outlive objects");
        now.last_error.expect("it says why")
    }

    /// Deliveries that have failed so far, and the attempts that they have used up.
    pub async fn failures(&self, id: Uuid) -> (i64, i32) {
        sqlx::query_as(
            "select (select count(*) from reprieve.audit a where a.tombstone_id = t.id and a.event = 'purge_failed'),
                    t.attempts
             from reprieve.tombstones t where t.resource_id = $1",
        )
        .bind(id.to_string())
        .fetch_one(&self.world.pool)
        .await
        .expect("asked")
    }
}

/// Above the time-out of an attempt in [`settings`].
pub const TOO_SLOW: Duration = Duration::from_secs(6);
