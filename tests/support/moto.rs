//! A private moto: AWS's S3 as its client library's tests know it, with versions, object lock and legal hold. It lets
//! everybody in, and checks no checksums.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::Client;
use reprieve::embedded::keeper::{Charge, Keeper, Signal, free_port};
use tokio::sync::OnceCell;

/// Three seconds on an idle machine.
const STARTING: Duration = Duration::from_secs(60);

/// What it is asked with; it takes any.
pub const ACCESS_KEY: &str = "reprieve-test";
/// As [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "reprieve-test-secret";

/// A private S3 server. Dropping it ends it; its data is in its memory.
pub struct Moto {
    _keeper: Keeper,
    port: u16,
}

/// This binary's moto, for tests that leave it running.
pub async fn shared() -> &'static Moto {
    static SERVER: OnceCell<Moto> = OnceCell::const_new();
    SERVER.get_or_init(Moto::start).await
}

impl Moto {
    async fn start() -> Moto {
        let dir = super::server_directory("moto");
        let port = free_port().expect("a port is free");
        let args = ["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()];
        let mut keeper = Keeper::hire(&Charge {
            program: find(),
            args: args.map(Into::into).into(),
            env: vec![("HOME".into(), dir.clone().into_os_string())],
            account: None,
            log: dir.join("out"),
            dir: dir.clone(),
            ending: Signal::Term,
            grace: Duration::from_secs(5),
        })
        .expect("python starts");
        keeper.start().expect("the keeper answers");
        super::wait_until("moto listens", STARTING, async || {
            let log = || std::fs::read_to_string(dir.join("out")).unwrap_or_default();
            assert!(keeper.is_running(), "moto ended while starting:\n{}", log());
            super::connect(port).await.is_some()
        })
        .await;
        Moto { _keeper: keeper, port }
    }

    /// Its S3 address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A new client, for the runtime of one test.
    pub fn client(&self) -> Client {
        super::seaweedfs::client(&self.endpoint(), ACCESS_KEY, SECRET_KEY)
    }
}

fn find() -> PathBuf {
    const VARIABLE: &str = "REPRIEVE_TEST_MOTO_PYTHON";
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let path = std::env::var_os(VARIABLE).map_or(ours, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no {}; `scripts/setup test` installs moto there, or set {VARIABLE} to a python that has it",
        path.display()
    );
    path
}
