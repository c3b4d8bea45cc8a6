//! A private SeaweedFS: an S3 server that is neither ours nor Amazon's, in one process, with one pair of credentials
//! that it insists on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
};
use reprieve::embedded::keeper::{Charge, Keeper, Signal, free_port};
use tokio::sync::OnceCell;

/// One second on an idle machine.
const STARTING: Duration = Duration::from_secs(60);

/// The access key of the one identity.
pub const ACCESS_KEY: &str = "reprieve-test";
/// Its secret key.
pub const SECRET_KEY: &str = "reprieve-test-secret";
/// It does not care, but signatures name one.
pub const REGION: &str = "us-east-1";

/// Ends the server at once (it takes 14 s over an orderly end, for nobody's good) and removes the sockets that it
/// puts into /tmp, whatever TMPDIR says, one for each gRPC port.
const SCRIPT: &str = r#"
weed=$1; shift
trap 'kill -KILL "$!" 2>/dev/null; for port in $PORTS; do rm -f /tmp/seaweedfs-*-grpc-$port.sock; done; exit 0' TERM
"$weed" "$@" &
wait "$!"
"#;

/// A private S3 server. Dropping it ends it and removes its data.
pub struct SeaweedFs {
    keeper: Keeper,
    dir: PathBuf,
    port: u16,
}

/// This binary's S3 server, for tests that leave it running.
pub async fn shared() -> &'static SeaweedFs {
    static SERVER: OnceCell<SeaweedFs> = OnceCell::const_new();
    SERVER.get_or_init(SeaweedFs::start).await
}

impl SeaweedFs {
    /// Starts a server of its own, for a test that kills it.
    pub async fn start() -> SeaweedFs {
        let weed = find();
        let dir = super::server_directory("seaweedfs");
        for name in ["data", "logs"] {
            std::fs::create_dir(dir.join(name)).expect("our own directory");
        }
        let ports = [(); 5].map(|()| free_port().expect("a port is free"));
        let [master, volume, filer, s3, admin] = ports;
        let flags = [
            format!("-dir={}", dir.join("data").display()),
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            format!("-master.port={master}"),
            format!("-volume.port={volume}"),
            format!("-filer.port={filer}"),
            format!("-s3.port={s3}"),
            format!("-admin.port={admin}"),
            // Parts that nobody asks here, and a report to its makers.
            "-admin.ui=false".to_owned(),
            "-webdav=false".to_owned(),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
            "-master.telemetry=false".to_owned(),
            // A missing bucket must be an error, as it is everywhere else.
            "-s3.autoCreateBucket=false".to_owned(),
            // Every bucket takes seven volumes, and every test a bucket.
            "-volume.max=2000".to_owned(),
            "-master.volumeSizeLimitMB=64".to_owned(),
            format!("-filer.localSocket={}", dir.join("filer.sock").display()),
            format!("-s3.localSocket={}", dir.join("s3.sock").display()),
        ];
        let mut args = vec!["-c".into(), SCRIPT.into(), "reprieve-seaweedfs".into(), weed.into()];
        // unless told, it logs into /tmp
        args.extend([format!("-logdir={}", dir.join("logs").display()).into(), "mini".into()]);
        args.extend(flags.map(Into::into));
        let grpc_ports = ports.map(|port| (port + 10_000).to_string()).join(" ");
        let keeper = Keeper::hire(&Charge {
            program: "/bin/sh".into(),
            args,
            env: vec![
                ("HOME".into(), dir.clone().into_os_string()),
                ("PORTS".into(), grpc_ports.into()),
                ("AWS_ACCESS_KEY_ID".into(), ACCESS_KEY.into()),
                ("AWS_SECRET_ACCESS_KEY".into(), SECRET_KEY.into()),
            ],
            account: None,
            log: dir.join("out"),
            dir: dir.clone(),
            ending: Signal::Term,
            grace: Duration::from_secs(5),
        })
        .expect("/bin/sh starts");
        let mut server = SeaweedFs { keeper, dir, port: s3 };
        server.start_again().await;
        server
    }

    /// Its S3 address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A new client, for the runtime of one test.
    pub fn client(&self) -> Client {
        client(&self.endpoint(), ACCESS_KEY, SECRET_KEY)
    }

    /// A new, empty bucket.
    pub async fn fresh_bucket(&self) -> String {
        let name = super::unique("bucket");
        self.client().create_bucket().bucket(&name).send().await.expect("a new name in a server of our own");
        name
    }

    /// The server crashes; its data stays. Blocks for a moment.
    pub fn kill9(&mut self) {
        // The script in between turns it into a SIGKILL.
        self.keeper.end(Signal::Term).expect("the keeper answers");
    }

    /// Starts it again, on the same port and data; returns when it answers a signed request.
    pub async fn start_again(&mut self) {
        self.keeper.start().expect("the keeper answers");
        super::wait_until("SeaweedFS listens", STARTING, async || {
            let log = || std::fs::read_to_string(self.dir.join("out")).unwrap_or_default();
            assert!(self.keeper.is_running(), "SeaweedFS ended while starting:\n{}", log());
            super::connect(self.port).await.is_some()
        })
        .await;
        let client = self.client();
        super::wait_until("SeaweedFS answers", STARTING, async || client.list_buckets().send().await.is_ok()).await;
    }
}

/// A client as the product makes it for a custom endpoint: path style, no checksums that nobody asked for.
pub fn client(endpoint: &str, access_key: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .region(Region::new(REGION))
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "tests"))
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Client::from_conf(config)
}

fn find() -> PathBuf {
    const VARIABLE: &str = "REPRIEVE_TEST_WEED";
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/weed");
    let path = std::env::var_os(VARIABLE).map_or(ours, PathBuf::from);
    assert!(
        path.is_file(),
        "SeaweedFS is not at {}; `scripts/setup test` installs it there, or set {VARIABLE} to a `weed` program",
        path.display()
    );
    path
}
