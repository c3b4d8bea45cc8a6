//! Drives the server as production code does: through the SDK, over a socket.

mod deletes;
mod faults;
mod listings;
mod locks;
mod objects;
mod pages;
mod uploads;
mod versions;

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::operation::delete_objects::builders::DeleteObjectsFluentBuilder;
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use secrecy::ExposeSecret;

use super::*;

const BUCKET: &str = "data";

/// A server with an empty bucket, and a client that tries everything once.
async fn server() -> (EmbeddedS3, Client) {
    let server = EmbeddedS3::start(Options::default()).await.unwrap();
    server.store().create_bucket(BUCKET).unwrap();
    let client = client_with(&server, &Options::default());
    (server, client)
}

async fn versioned_server() -> (EmbeddedS3, Client) {
    let (server, client) = server().await;
    server.store().set_versioning(BUCKET, Versioning::Enabled).unwrap();
    (server, client)
}

fn client_with(server: &EmbeddedS3, options: &Options) -> Client {
    let credentials = Credentials::new(&options.access_key, options.secret_key.expose_secret(), None, None, "test");
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(server.endpoint())
        .region(Region::new(REGION))
        .credentials_provider(credentials)
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(30)).build());
    Client::from_conf(config.build())
}

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("runs/{number:05}.bin")).collect()
}

fn named(key: &str) -> ObjectIdentifier {
    ObjectIdentifier::builder().key(key).build().unwrap()
}

fn named_version(key: &str, version: &str) -> ObjectIdentifier {
    ObjectIdentifier::builder().key(key).version_id(version).build().unwrap()
}

fn batch(client: &Client, objects: Vec<ObjectIdentifier>) -> DeleteObjectsFluentBuilder {
    let delete = Delete::builder().set_objects(Some(objects)).build().unwrap();
    client.delete_objects().bucket(BUCKET).delete(delete)
}

fn batch_of(client: &Client, keys: &[&str]) -> DeleteObjectsFluentBuilder {
    batch(client, keys.iter().map(|key| named(key)).collect())
}

/// The keys that an answer calls deleted.
fn deleted(answer: &DeleteObjectsOutput) -> Vec<&str> {
    answer.deleted().iter().filter_map(|entry| entry.key()).collect()
}

/// The keys that an answer calls failed, with their codes.
fn failed(answer: &DeleteObjectsOutput) -> Vec<(&str, &str)> {
    answer.errors().iter().filter_map(|entry| Some((entry.key()?, entry.code()?))).collect()
}

/// The code and the HTTP status of an error answer.
fn refusal<E: ProvideErrorMetadata, O>(
    result: Result<O, SdkError<E, aws_sdk_s3::config::http::HttpResponse>>,
) -> (String, u16) {
    let error = result.err().expect("the request was to be refused");
    let status = error.raw_response().expect("an answer came").status().as_u16();
    (error.code().unwrap_or_default().to_owned(), status)
}

fn refused(code: &str, status: u16) -> (String, u16) {
    (code.to_owned(), status)
}
