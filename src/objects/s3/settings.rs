//! How to reach an S3 store.
//!
//! Invariant: every wait of the client has a limit (the SDK's defaults have none), secrets do not show in `Debug`, and
//! explicit credentials mean that no file, environment variable or metadata service is asked for any.

use std::net::IpAddr;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use secrecy::{ExposeSecret, SecretString};

use super::retry_after::LeaveItToTheCaller;
use super::sent::Sent;

/// An access key.
#[derive(Debug, Clone)]
pub struct S3Credentials {
    /// The key's id.
    pub access_key_id: String,
    /// The key's secret.
    pub secret_access_key: SecretString,
    /// The token that comes with temporary credentials.
    pub session_token: Option<SecretString>,
}

/// Which versions a listing shows, and a purge so deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VersionsPolicy {
    /// On a bucket that keeps versions, all of them and the delete markers.
    #[default]
    All,
    /// Only current objects, whatever the bucket keeps; a delete leaves a marker there, and the data stays. For stores
    /// where a lifecycle rule removes what is not current.
    Current,
}

/// What protects the body of a DeleteObjects request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChecksumPolicy {
    /// CRC32, and where a store refuses that, Content-MD5 from then on.
    #[default]
    Auto,
    /// The SDK's own.
    Crc32,
    /// What S3 asked for before it had others, and some stores still do.
    ContentMd5,
    /// Nothing but the signature.
    None,
}

/// How objects are named to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeletePolicy {
    /// Many in a request, and one by one where the store does not take that.
    #[default]
    Auto,
    /// Many in a request; a store that refuses it has failed.
    Batch,
    /// One by one.
    Single,
}

/// How to reach an S3 store.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The URL of a store that is not AWS.
    pub endpoint: Option<String>,
    /// The region to sign for. Never looked up.
    pub region: String,
    /// `None`: the SDK's default chain (environment, profile, web identity, container, instance).
    pub credentials: Option<S3Credentials>,
    /// Whether the bucket is in the path and not in the host's name; most stores that are not AWS want it.
    pub path_style: bool,
    /// The longest time to make a connection.
    pub connect_timeout: Duration,
    /// The longest time from sending a request to the first byte of its answer.
    pub read_timeout: Duration,
    /// The longest time for one attempt.
    pub attempt_timeout: Duration,
    /// The longest time for a request with its retries.
    pub operation_timeout: Duration,
    /// Tries of one whole request within the SDK (standard mode: at most 3 s of back-off for three tries, and a retry
    /// budget for the client). Small: keys and slices are retried by their owners, who can stop in between.
    pub attempts: u32,
    /// Which versions to see.
    pub versions: VersionsPolicy,
    /// The checksum of batches.
    pub checksum: ChecksumPolicy,
    /// Whether there are batches.
    pub delete: DeletePolicy,
    /// Whether deletes bypass locks in governance mode; the credentials need the right to.
    pub governance_bypass: bool,
}

impl S3Settings {
    /// AWS with the default credentials chain and limits that suit 1000-key deletes on a slow store.
    pub fn new(region: impl Into<String>) -> Self {
        Self {
            endpoint: None,
            region: region.into(),
            credentials: None,
            path_style: false,
            connect_timeout: Duration::from_secs(5),
            // SeaweedFS was measured at 4.4 s for one batch of 1000 under load.
            read_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(40),
            operation_timeout: Duration::from_secs(120),
            attempts: 3,
            versions: VersionsPolicy::All,
            checksum: ChecksumPolicy::Auto,
            delete: DeletePolicy::Auto,
            governance_bypass: false,
        }
    }

    /// Another store than AWS, path style, with explicit credentials.
    pub fn custom(endpoint: impl Into<String>, region: impl Into<String>, credentials: S3Credentials) -> Self {
        Self { endpoint: Some(endpoint.into()), credentials: Some(credentials), path_style: true, ..Self::new(region) }
    }

    /// Whether there is what the client needs to trust a server with: the SDK's own way of telling that there is no
    /// certificate at all is a panic.
    ///
    /// # Errors
    /// [`NoCertificates`].
    pub fn can_trust(&self) -> Result<(), NoCertificates> {
        match &self.endpoint {
            Some(endpoint) if is_plain(endpoint) && (self.credentials.is_some() || on_loopback(endpoint)) => Ok(()),
            _ if has_certificates() => Ok(()),
            endpoint => Err(NoCertificates(endpoint.clone().unwrap_or_else(|| "AWS".into()))),
        }
    }

    /// The SDK's client. With `credentials` set, nothing outside these settings is read.
    pub(super) async fn client(&self, sent: Sent) -> Client {
        let builder = match &self.credentials {
            Some(credentials) => {
                Builder::new().behavior_version(BehaviorVersion::latest()).credentials_provider(credentials.to_sdk())
            }
            None => {
                let region = Region::new(self.region.clone());
                Builder::from(&aws_config::defaults(BehaviorVersion::latest()).region(region).load().await)
            }
        };
        let builder = builder
            .region(Region::new(self.region.clone()))
            .force_path_style(self.path_style)
            .timeout_config(self.timeouts())
            .retry_config(RetryConfig::standard().with_max_attempts(self.attempts.max(1)))
            .retry_classifier(LeaveItToTheCaller)
            .interceptor(sent)
            // The SDK's newer default sends and expects CRC32 everywhere, which other stores reject or do not send.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        let builder = match &self.endpoint {
            // The SDK's own client takes HTTP_PROXY for every address, and no proxy reaches our loopback.
            // Nor can it be made without a certificate, which plain HTTP needs none of.
            Some(endpoint) if on_loopback(endpoint) || (is_plain(endpoint) && !has_certificates()) => {
                builder.endpoint_url(endpoint).http_client(aws_smithy_http_client::Builder::new().build_http())
            }
            Some(endpoint) => builder.endpoint_url(endpoint),
            None => builder,
        };
        Client::from_conf(builder.build())
    }

    fn timeouts(&self) -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(self.connect_timeout)
            .read_timeout(self.read_timeout)
            .operation_attempt_timeout(self.attempt_timeout)
            .operation_timeout(self.operation_timeout)
            .build()
    }
}

impl S3Credentials {
    fn to_sdk(&self) -> Credentials {
        Credentials::new(
            &self.access_key_id,
            self.secret_access_key.expose_secret(),
            self.session_token.as_ref().map(|token| token.expose_secret().to_owned()),
            None,
            "reprieve",
        )
    }
}

/// A machine, or a container, without any CA certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no CA certificate on this machine by which {0} could be trusted: install them (in Debian the package \
     ca-certificates), or name a file with some in SSL_CERT_FILE"
)]
pub struct NoCertificates(String);

fn has_certificates() -> bool {
    !rustls_native_certs::load_native_certs().certs.is_empty()
}

fn is_plain(endpoint: &str) -> bool {
    endpoint.starts_with("http://")
}

/// Whether the endpoint is on this machine, over plain HTTP.
fn on_loopback(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => host,
        _ => authority,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_other_hosts() {
        for endpoint in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:9000/", "http://127.1.2.3/x"] {
            assert!(on_loopback(endpoint), "{endpoint}");
        }
        for endpoint in [
            "https://127.0.0.1:9000",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://10.0.0.1:80",
            "http://someone@example.com:80",
            "127.0.0.1:9000",
        ] {
            assert!(!on_loopback(endpoint), "{endpoint}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let settings = S3Settings::custom(
            "http://127.0.0.1:1",
            "eu",
            S3Credentials {
                access_key_id: "id".into(),
                secret_access_key: "hush-secret".into(),
                session_token: Some("hush-token".into()),
            },
        );
        assert!(!format!("{settings:?}").contains("hush"), "{settings:?}");
    }
}
