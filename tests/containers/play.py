"""Acts docker/compose.yaml out without a container engine: play.py TREE TOOLS BINARY.

Each service is played by this machine's own program, on a free port of loopback and in a directory of its own, with the
very environment, command, scripts and files that compose.yaml gives it; only addresses and directories are replaced.
The story is the one that `ready.sh` tells a newcomer to try. What is not shown: the images, and how an engine wires them.

Every wait is for a condition and bounded; every server ends with this process, however that ends."""

import contextlib
import ctypes
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from common import Problem, Tree, expect, temporary
from compose import COMPOSE, configuration, environment
from image import entrypoint

STARTING = 120
UNUSED, USED = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2))
OBJECTS = 2000  # of UNUSED: seed.sh puts five for each of its samples


class Stage:
    def __init__(self, tree, folder):
        self.tree, self.folder = tree, folder
        self.services = tree.yaml(COMPOSE)["services"]
        self.ends = contextlib.ExitStack()
        ports = (
            "postgres:5432",
            "rabbitmq:5672",
            "rabbitmq:15692",
            "seaweedfs:8333",
            "reprieve:8320",
            "prometheus:9090",
        )
        self.ports = {address: free_port() for address in ports}

    def here(self, text):
        """A text of compose.yaml or of what it mounts, with its addresses as they are on this stage."""
        for address, port in self.ports.items():
            text = text.replace(address, f"127.0.0.1:{port}")
        return text.replace("0.0.0.0:8320", f"127.0.0.1:{self.ports['reprieve:8320']}")

    def given(self, name):
        return {key: self.here(value) for key, value in environment(self.services[name]).items()}

    def directory(self, name, account=None):
        path = self.folder / name
        path.mkdir(mode=0o700)
        if account:
            shutil.chown(path, account)
        return path

    def serve(self, name, command, environment, account=None, ending=signal.SIGKILL):
        """A server that is ended with us."""
        log = open(self.folder / f"{name}.log", "wb")
        bare = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        process = subprocess.Popen(
            list(map(str, command)), env=bare | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            user=account, preexec_fn=end_with_parent, cwd=self.folder,
        )  # fmt: skip
        self.ends.callback(end, process, ending)
        return process

    def once(self, name):
        """A service that is a script, played to its end."""
        service = self.services[name]
        shell, mounted = service["entrypoint"]
        (volume,) = (volume for volume in service["volumes"] if volume.split(":")[1] == mounted)
        script = self.tree.root / "docker" / volume.split(":")[0]
        bare = {"PATH": os.environ["PATH"]}
        ended = subprocess.run(
            [shell, script], env=bare | self.given(name), capture_output=True, text=True, timeout=STARTING
        )
        expect(ended.returncode == 0, f"{name}: exit code {ended.returncode}: {ended.stdout}{ended.stderr}")
        return ended.stdout

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end(process, how):
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port():
    # below what the kernel hands out by itself, and where port + 10000 is one too (SeaweedFS takes that as well)
    while True:
        port = 12000 + secrets.randbelow(9000)
        with socket.socket() as first, socket.socket() as second:
            with contextlib.suppress(OSError):
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10_000))
                return port


def until(what, holds, limit=STARTING):
    end = time.monotonic() + limit
    while not (found := holds()):
        if time.monotonic() > end:
            raise Problem(f"{what}: not within {limit} s")
        time.sleep(0.1)  # between two looks
    return found


def fetched(url):
    """The body of an answer of 200, if there is one."""
    with contextlib.suppress(OSError):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode() or " "
    return None


def program(name, *places):
    for path in [*places, shutil.which(name)]:
        if path and Path(path).exists():
            return Path(path)
    raise Problem(f"{name} was not found; scripts/setup test installs it")


def postgres(stage):
    given, service = stage.given("postgres"), stage.services["postgres"]
    bins = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = program("initdb", *map(str, bins[-1:]))
    account = None
    if os.geteuid() == 0:  # which it refuses to run as
        account = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
    home = stage.directory("postgres", account)
    password = home / "password"
    password.write_text(given["POSTGRES_PASSWORD"])
    if account:
        shutil.chown(password, account)
    made = subprocess.run(
        [initdb, "--pgdata", home / "data", "--username", given["POSTGRES_USER"], "--pwfile", password,
         "--auth", "scram-sha-256", "--no-sync"],
        user=account, cwd=home, capture_output=True, text=True, timeout=STARTING,
    )  # fmt: skip
    expect(made.returncode == 0, f"initdb: {made.stderr}")
    port = str(stage.ports["postgres:5432"])
    command = [initdb.with_name("postgres"), "-D", home / "data", "-p", port, "-k", home, "-h", "127.0.0.1", "-F"]
    stage.serve("postgres", command, {}, account, signal.SIGINT)

    def psql(database, *arguments):
        login = {"PATH": os.environ["PATH"], "PGPASSWORD": given["POSTGRES_PASSWORD"], "PGCONNECT_TIMEOUT": "5"}
        command = ["psql", "-qX", "-h", "127.0.0.1", "-p", port, "-U", given["POSTGRES_USER"], "-v", "ON_ERROR_STOP=1"]
        return subprocess.run(
            [*command, "-d", database, *arguments], env=login, capture_output=True, text=True, timeout=60
        )

    until("PostgreSQL answers", lambda: psql("postgres", "-c", "select").returncode == 0)
    # what the image's entrypoint does with an empty directory
    scripts = sorted(
        volume.split(":")[1::-1] for volume in service["volumes"] if "/docker-entrypoint-initdb.d/" in volume
    )
    expect(scripts, "no script fills the database")
    steps = [["-c", f"create database {given['POSTGRES_DB']}"]]
    steps += [["-f", stage.tree.root / "docker" / source] for _, source in scripts]
    for n, step in enumerate(steps):
        ended = psql(given["POSTGRES_DB"] if n else "postgres", *step)
        expect(ended.returncode == 0, f"psql {step}: {ended.stderr}")


def rabbitmq(stage):
    given, home = stage.given("rabbitmq"), stage.directory("rabbitmq")
    server = program("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server")
    port, names, distribution = stage.ports["rabbitmq:5672"], free_port(), free_port()
    metrics = f"prometheus.tcp.port = {stage.ports['rabbitmq:15692']}\nprometheus.tcp.ip = 127.0.0.1\n"
    users = f"default_user = {given['RABBITMQ_DEFAULT_USER']}\ndefault_pass = {given['RABBITMQ_DEFAULT_PASS']}\n"
    (home / "rabbitmq.conf").write_text(f"disk_free_limit.absolute = 1MB\nlog.console = false\n{metrics}{users}")
    (home / "plugins").write_text("[rabbitmq_prometheus].")  # on in the image
    cookie = home / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    # in the foreground: left alone, the node would start one that nobody ends
    epmd = program("epmd", "/usr/bin/epmd", "/usr/lib/erlang/bin/epmd")
    stage.serve("epmd", [epmd, "-port", names, "-address", "127.0.0.1"], {})
    stage.serve("rabbitmq", [server], {
        "HOME": str(home),
        "RABBITMQ_NODENAME": f"reprieve-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "logs"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the server, so that a signal meets it
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
    })  # fmt: skip
    until("RabbitMQ answers", lambda: fetched(f"http://127.0.0.1:{stage.ports['rabbitmq:15692']}/metrics"))


def seaweedfs(stage):
    service, home = stage.services["seaweedfs"], stage.directory("seaweedfs")
    weed = program("weed", os.environ.get("REPRIEVE_TEST_WEED", stage.tree.root / ".venv/bin/weed"))
    ours = {"-dir": home, "-ip": "127.0.0.1", "-ip.bind": "127.0.0.1"}
    mini, *flags = service["command"]
    flags = [
        f"{flag.split('=')[0]}={ours[flag.split('=')[0]]}" if flag.split("=")[0] in ours else flag for flag in flags
    ]
    ports = {"s3": stage.ports["seaweedfs:8333"]} | {
        part: free_port() for part in ("master", "volume", "filer", "admin")
    }
    # what a container has for itself
    flags += [f"-{part}.port={port}" for part, port in ports.items()]
    flags += [f"-{part}.localSocket={home}/{part}.sock" for part in ("filer", "s3")]
    flags += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    for port in ports.values():
        stage.ends.callback(
            lambda grpc: [left.unlink() for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{grpc}.sock")], port + 10_000
        )
    stage.serve("seaweedfs", [weed, f"-logdir={home}", mini, *flags], stage.given("seaweedfs") | {"HOME": str(home)})
    *_, check = service["healthcheck"]["test"]
    check = check.replace("127.0.0.1:8333", f"127.0.0.1:{ports['s3']}")
    until("SeaweedFS is healthy", lambda: fetched(check))


def ours(stage, name):
    """The program, its arguments before those of a command, and its environment, as this service has them."""
    service = stage.services[name]
    expect(entrypoint(stage.tree)[0].endswith("/reprieve"), "the image runs another program")
    config = configuration(stage.tree, service, stage.directory(f"{name}-etc"))
    config.write_text(stage.here(config.read_text()))
    return [stage.tree.binary, "--config", config], stage.given(name)


def run(program, arguments, given):
    ended = subprocess.run([*program, *arguments], env=given, capture_output=True, text=True, timeout=STARTING)
    return ended.returncode, ended.stdout, ended.stderr


def left(stage):
    """How many objects of UNUSED the store has, by a listing of its own."""
    given = stage.given("seed")
    url = f"{given['S3_ENDPOINT']}/{given['S3_BUCKET']}?list-type=2&max-keys=5000&prefix=synthetic%2F{UNUSED}%2F"
    login = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{given['S3_ACCESS_KEY']}:{given['S3_SECRET_KEY']}"]
    ended = subprocess.run(["curl", "-sSf", *login, url], capture_output=True, text=True, timeout=60)
    expect(ended.returncode == 0 and "<ListBucketResult" in ended.stdout, f"not listed: {ended.stdout}{ended.stderr}")
    expect("<IsTruncated>true" not in ended.stdout, "more objects than one page holds")
    return ended.stdout.count("<Key>")


def story(stage):
    program, given = ours(stage, "migrate")
    code, out, err = run(program, stage.services["migrate"]["command"], given)
    expect(code == 0, f"migrate: {out}{err}")
    stage.once("seed")
    code, out, err = run(program, ["check"], given)
    expect(code == 0, f"check: {out}{err}")
    expect(left(stage) == OBJECTS, f"{left(stage)} objects were seeded")

    program, given = ours(stage, "reprieve")
    service = stage.serve("reprieve", [*program, *stage.services["reprieve"]["command"]], given, ending=signal.SIGTERM)
    _, _, *health = stage.services["reprieve"]["healthcheck"]["test"]
    until("the service is healthy", lambda: run(program, health, given)[0] == 0 and service.poll() is None)
    told = stage.once("ready")
    tried = re.findall(r"docker compose exec reprieve reprieve (.+)", told)
    expect(
        [words.split()[0] for words in tried] == ["trash", "trash", "restore", "show"], f"ready.sh tells to try {tried}"
    )
    use, trash, restore, show = (words.split() for words in tried)
    for arguments, wanted in ((use, 3), (trash, 0), (restore, 0)):
        code, out, err = run(program, arguments, given)
        expect(code == wanted, f"{arguments}: exit code {code}: {out}{err}")
    expect(left(stage) == OBJECTS, "what was restored has lost objects")
    trash[trash.index("--retention") + 1] = "10s"  # the shortest, not to wait for longer
    code, out, err = run(program, trash, given)
    expect(code == 0, f"{trash}: exit code {code}: {out}{err}")

    def purged():
        code, out, err = run(program, [*show, "--json"], given)
        expect(code == 0 and service.poll() is None, f"{out}{err}{stage.log('reprieve')}")
        shown = json.loads(out)
        return shown if '"state": "purged"' in json.dumps(shown) else None

    shown = until("the dataset is purged", purged)
    expect(left(stage) == 0, "the purge has left objects")
    stage.once("seed")
    expect(left(stage) == 0, "a second start brings back what was purged")
    expect(f'"objects_deleted": {OBJECTS}' in json.dumps(shown), f"the receipt is another: {json.dumps(shown)}")

    prometheus(stage)
    service.send_signal(signal.SIGTERM)
    expect(service.wait(60) == 0, f"not ended in good order: {stage.log('reprieve')}")


def prometheus(stage):
    """It finds what it scrapes where prometheus.yml says, but for the exporter, which is not on this machine."""
    folder = stage.directory("prometheus")
    shutil.copytree(stage.tree.root / "docker/prometheus", folder / "etc")
    config = folder / "etc/prometheus.yml"
    config.write_text(stage.here(config.read_text()).replace("scrape_interval: 10s", "scrape_interval: 1s"))
    listen = f"127.0.0.1:{stage.ports['prometheus:9090']}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={listen}"]
    stage.serve("prometheus", [program("prometheus"), *flags], {})

    def up():
        found = json.loads(fetched(f"http://{listen}/api/v1/query?query=up") or '{"data": {"result": []}}')
        return {of["metric"]["job"] for of in found["data"]["result"] if of["value"][1] == "1"} >= {
            "reprieve",
            "rabbitmq",
        }

    until("Prometheus scrapes Reprieve and RabbitMQ", up)


def main():
    tree = Tree(*(Path(argument).absolute() for argument in sys.argv[1:4]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("docker: play: ended"))
    with temporary() as folder:
        # PostgreSQL's account has to get through
        Path(folder).chmod(0o711)
        stage = Stage(tree, Path(folder))
        with stage.ends:
            try:
                for server in (postgres, rabbitmq, seaweedfs):
                    server(stage)
                story(stage)
            except (Problem, subprocess.TimeoutExpired) as problem:
                logs = "".join(f"\n--- {log.name}\n{stage.log(log.stem)}" for log in Path(folder).glob("*.log"))
                sys.exit(f"docker: play: {problem}{logs}")
    print("docker: play: compose.yaml acted out, from its first start to a receipt")


if __name__ == "__main__":
    main()
