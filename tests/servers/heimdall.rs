use sqlx::PgPool;
use uuid::Uuid;

use crate::support::heimdall::{Dataset, Job, Model, Shape, fresh, put_objects};
use crate::support::seaweedfs;

async fn count(pool: &PgPool, sql: &'static str, dataset: Uuid) -> i64 {
    sqlx::query_scalar(sql).bind(dataset).fetch_one(pool).await.expect("counts")
}

#[tokio::test]
async fn its_rows_and_objects_are_as_the_platform_writes_them() {
    let ((pool, _), s3) = tokio::join!(fresh(), seaweedfs::shared());
    let job = Job::named("generation").insert(&pool).await;
    let dataset = Dataset { samples: 12, receivers: 4, features: 7, created_by: Some(job), ..Dataset::iq_raw("set a") };
    let dataset = dataset.insert(&pool).await;
    let features = Dataset { samples: 3, ..Dataset::feature_based("set b") }.insert(&pool).await;
    Job { status: "running", config_dataset_ids: vec![dataset], dataset: Some(dataset), ..Job::named("training") }
        .insert(&pool)
        .await;
    let model = Model { datasets: vec![features, dataset], active: true, ..Model::named("m") }.insert(&pool).await;

    let (client, bucket) = (s3.client(), s3.fresh_bucket().await);
    let put = put_objects(&client, &bucket, dataset, Shape { samples: 12, receivers: 4 }).await;
    let paths = "select value from heimdall.synthetic_iq_samples, jsonb_each_text(iq_storage_paths)
                  where dataset_id = $1 order by value collate \"C\"";
    let named: Vec<String> = sqlx::query_scalar(paths).bind(dataset).fetch_all(&pool).await.expect("paths");
    assert_eq!(named, put, "rows name their objects");
    let listed = client.list_objects_v2().bucket(&bucket).prefix(format!("synthetic/{dataset}/")).send().await;
    assert_eq!(listed.expect("listed").key_count(), Some(48));
    assert_eq!(
        count(&pool, "select count(*) from heimdall.synthetic_training_samples where dataset_id = $1", features).await,
        3
    );

    // What a plain delete of the row does there: features stay behind, and the model's lineage goes without a word.
    let delete = "delete from heimdall.synthetic_datasets where id = any($1)";
    sqlx::query(delete).bind([dataset, features]).execute(&pool).await.expect("nothing stops it");
    assert_eq!(
        count(&pool, "select count(*) from heimdall.synthetic_iq_samples where dataset_id = $1", dataset).await,
        0
    );
    assert_eq!(
        count(&pool, "select count(*) from heimdall.measurement_features where dataset_id = $1", dataset).await,
        7
    );
    let lineage = "select count(*) from heimdall.models where id = $1 and synthetic_dataset_id is null";
    assert_eq!(count(&pool, lineage, model).await, 1);
}
