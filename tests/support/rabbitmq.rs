//! A private RabbitMQ: a node of its own, with an epmd, a cookie, a home and ports of its own, so that it neither
//! finds nor disturbs a broker that runs on this machine. No plugins, hence no management API and no virtual hosts to
//! make: tests keep apart by [`unique`](super::unique) names of queues and exchanges.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use reprieve::embedded::keeper::{Charge, Keeper, Signal, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

/// Four seconds on an idle machine, most of it loading code.
const STARTING: Duration = Duration::from_secs(120);

/// Debian's own script first: the one on its PATH is a wrapper that changes the user and drops our environment.
const SERVERS: &[&str] = &["/usr/lib/rabbitmq/bin/rabbitmq-server"];
const CTLS: &[&str] = &["/usr/lib/rabbitmq/bin/rabbitmqctl"];
const CALLERS: &[&str] = &["/usr/bin/erl_call", "/usr/lib/erlang/bin/erl_call"];
const EPMDS: &[&str] = &["/usr/bin/epmd", "/usr/lib/erlang/bin/epmd"];

/// A private broker. Dropping it ends it and removes its data.
pub struct RabbitMq {
    // Dropped in this order: the node before the name server that it is registered with.
    node: Keeper,
    epmd: Keeper,
    dir: PathBuf,
    port: u16,
    env: Vec<(OsString, OsString)>,
}

/// This binary's broker, for tests that leave it running.
pub async fn shared() -> &'static RabbitMq {
    static SERVER: OnceCell<RabbitMq> = OnceCell::const_new();
    SERVER.get_or_init(RabbitMq::start).await
}

impl RabbitMq {
    /// Starts a broker of its own, for a test that kills or stops it.
    pub async fn start() -> RabbitMq {
        RabbitMq::start_with("").await
    }

    /// Starts a broker of its own, with these lines in its `rabbitmq.conf`.
    pub async fn start_with(settings: &str) -> RabbitMq {
        let server = find("rabbitmq-server", SERVERS);
        let epmd_program = find("epmd", EPMDS);
        let dir = super::server_directory("rabbitmq");
        let [port, dist_port, epmd_port] = [(); 3].map(|()| free_port().expect("a port is free"));
        write(&dir, ".erlang.cookie", &super::unique("cookie"));
        let secret = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        std::fs::set_permissions(dir.join(".erlang.cookie"), secret).expect("our own file");
        write(&dir, "enabled_plugins", "[].");
        // The default of 50 MB would block every publisher on a machine with a full disk, and the tests would hang.
        let ours = "disk_free_limit.absolute = 1MB\nlog.console = false\n";
        write(&dir, "rabbitmq.conf", &format!("{ours}{settings}\n"));

        let path = |name: &str| dir.join(name).into_os_string();
        let env = vec![
            ("HOME".into(), dir.clone().into_os_string()),
            ("RABBITMQ_NODENAME".into(), format!("reprieve-{port}@localhost").into()),
            ("RABBITMQ_NODE_IP_ADDRESS".into(), "127.0.0.1".into()),
            ("RABBITMQ_NODE_PORT".into(), port.to_string().into()),
            ("RABBITMQ_DIST_PORT".into(), dist_port.to_string().into()),
            ("ERL_EPMD_PORT".into(), epmd_port.to_string().into()),
            ("ERL_EPMD_ADDRESS".into(), "127.0.0.1".into()),
            ("RABBITMQ_MNESIA_BASE".into(), path("data")),
            ("RABBITMQ_LOG_BASE".into(), path("logs")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE".into(), path("enabled_plugins")),
            ("RABBITMQ_CONFIG_FILE".into(), path("rabbitmq.conf")),
            ("RABBITMQ_CONF_ENV_FILE".into(), "/dev/null".into()),
            ("RABBITMQ_PID_FILE".into(), path("pid")),
            // Makes the script become the server (exec), so that a signal meets it.
            ("RUNNING_UNDER_SYSTEMD".into(), "true".into()),
            // One scheduler, none of them spinning while idle: 4 s to start rather than 6 on two cores, and the tests
            // keep the cores.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS".into(), "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none".into()),
        ];
        let epmd_dir = super::server_directory("epmd");
        // In the foreground: left alone, the node would start a daemon that nobody ends.
        let mut epmd = Keeper::hire(&Charge {
            program: epmd_program,
            args: ["-port", &epmd_port.to_string(), "-address", "127.0.0.1"].map(Into::into).to_vec(),
            env: Vec::new(),
            account: None,
            log: epmd_dir.join("log"),
            dir: epmd_dir,
            ending: Signal::Kill,
            grace: Duration::from_secs(1),
        })
        .expect("/bin/sh starts");
        epmd.start().expect("the keeper answers");
        let node = Keeper::hire(&Charge {
            program: server,
            args: Vec::new(),
            env: env.clone(),
            account: None,
            log: dir.join("out"),
            dir: dir.clone(),
            ending: Signal::Kill,
            grace: Duration::from_secs(20),
        })
        .expect("/bin/sh starts");

        let mut broker = RabbitMq { node, epmd, dir, port, env };
        broker.start_again().await;
        broker
    }

    /// Its address, with the default user, who may do anything from loopback.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Waits until the broker has written down that a quorum queue exists, which it does up to half a second after
    /// declaring it (3.10; a dets table with auto-save). Killed before that, it comes back with the queue but without
    /// a leader for it, and every call on the queue times out.
    pub async fn queue_on_disk(&self, queue: &str) {
        let node = format!("reprieve-{}@localhost", self.port);
        let names = self.dir.join("data").join(&node).join("quorum").join(&node).join("names.dets");
        super::wait_until("the quorum queue is on disk", super::SOON, async || {
            let bytes = std::fs::read(&names).unwrap_or_default();
            bytes.windows(queue.len()).any(|window| window == queue.as_bytes())
        })
        .await;
    }

    /// The broker crashes; its data stays, see [`RabbitMq::queue_on_disk`]. Blocks for a moment.
    pub fn kill9(&mut self) {
        self.node.end(Signal::Kill).expect("the keeper answers");
    }

    /// Stops it in good order (about a second, blocking); its data stays.
    pub fn stop(&mut self) {
        self.node.end(Signal::Term).expect("the keeper answers");
    }

    /// Starts it again, on the same port and data; returns when it speaks AMQP.
    pub async fn start_again(&mut self) {
        self.node.start().expect("the keeper answers");
        super::wait_until("RabbitMQ answers", STARTING, async || {
            assert!(self.node.is_running(), "RabbitMQ ended while starting:\n{}", self.log());
            greets(self.port).await.is_some()
        })
        .await;
    }

    /// Loses everything that it holds, queues and messages, and runs again: the same port, an empty broker.
    pub async fn wipe(&mut self) {
        self.kill9();
        std::fs::remove_dir_all(self.dir.join("data")).expect("a crashed broker writes no more");
        self.start_again().await;
    }

    /// Stops its clock: connections stay open and nothing answers, as with a lost network. Until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.node.server().expect("it runs").to_string();
        let kill = Command::new("/bin/sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &pid]).status();
        assert!(kill.expect("/bin/sh starts").success(), "a server of our own");
    }

    /// Runs `rabbitmqctl` on it (about a second, blocking).
    pub fn ctl(&self, args: &[&str]) {
        let program = find("rabbitmqctl", CTLS);
        let output = Command::new(program).args(args).envs(self.env.iter().cloned()).output().expect("it starts");
        assert!(output.status.success(), "rabbitmqctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Evaluates Erlang in the node, and gives back what it comes to (some ten milliseconds, blocking; `rabbitmqctl`
    /// takes seconds to start).
    #[expect(
        clippy::disallowed_methods,
        reason = "it blocks anyway while it waits for the answer; a few tries, bounded"
    )]
    pub fn eval(&self, expression: &str) -> String {
        // a busy node now and then misses the caller's patience
        const TRIES: u32 = 20;
        let mut answer = self.try_eval(expression);
        for _ in 1..TRIES {
            match &answer {
                Err(why) if why.contains("failed to connect") => std::thread::sleep(Duration::from_millis(250)),
                _ => break,
            }
            answer = self.try_eval(expression);
        }
        answer.unwrap_or_else(|why| panic!("{expression}: {why}"))
    }

    /// Whether [`RabbitMq::eval`] would get an answer: a node that has just been started speaks AMQP first.
    pub fn is_reachable(&self) -> bool {
        self.try_eval("ok").is_ok()
    }

    fn try_eval(&self, expression: &str) -> Result<String, String> {
        let cookie = std::fs::read_to_string(self.dir.join(".erlang.cookie")).expect("our own file");
        let mut child = Command::new(find("erl_call", CALLERS))
            .args(["-n", &format!("reprieve-{}@localhost", self.port), "-c", &cookie, "-e"])
            .envs(self.env.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        // one that cannot connect ends without reading, and says why
        let _ = stdin.write_all(format!("{expression}.\n").as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let done = output.status.success() && said.starts_with("{ok,");
        if done { Ok(said) } else { Err(format!("{said} {}", String::from_utf8_lossy(&output.stderr))) }
    }

    /// Lets every channel look at once for deliveries that were not acknowledged within `consumer_timeout`, instead of
    /// once a minute: those that have any are closed with 406.
    pub fn check_ack_timeouts(&self) {
        self.eval("[Channel ! tick || Channel <- rabbit_channel:list()]");
    }

    /// Crashes every channel inside the broker, which closes it (and its connection) with an internal error. How many.
    pub fn crash_channels(&self) -> usize {
        self.number("length([exit(Channel, mischief) || Channel <- rabbit_channel:list()])")
    }

    /// Closes every connection in good order, as an operator can (320 CONNECTION_FORCED). How many.
    pub fn close_connections(&self) -> usize {
        let all = "rabbit_networking:connections()";
        self.number(&format!("length([(catch rabbit_networking:close_connection(C, <<\"mischief\">>)) || C <- {all}])"))
    }

    /// A memory alarm: the broker reads no more from connections that publish, until [`Self::has_memory`].
    pub fn lacks_memory(&self) {
        self.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)");
    }

    /// The end of the memory alarm.
    pub fn has_memory(&self) {
        self.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.4)");
    }

    fn number(&self, expression: &str) -> usize {
        let said = self.eval(expression);
        let number = said.trim().strip_prefix("{ok, ").and_then(|rest| rest.strip_suffix('}'));
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{expression}: {said}"))
    }

    /// The port that it speaks AMQP on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let logs = std::fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten();
        logs.fold(read(self.dir.join("out")), |all, entry| all + &read(entry.path()))
    }
}

/// Sends the protocol header and waits for the answer, which a broker that still boots does not give.
async fn greets(port: u16) -> Option<()> {
    let mut stream = super::connect(port).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
    const METHOD_FRAME: u8 = 1;
    (stream.read_u8().await.ok()? == METHOD_FRAME).then_some(())
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).expect("our own directory");
}

fn find(program: &str, places: &[&str]) -> PathBuf {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|dir| dir.join(program));
    places.iter().map(PathBuf::from).chain(on_path).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("{program} of RabbitMQ was not found in {places:?} or on PATH; `scripts/setup test` installs it")
    })
}
