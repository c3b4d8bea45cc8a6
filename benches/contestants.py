"""Who empties a prefix, on which servers, and how each is measured.

A peer is a process from start to end: its time, its processor time with that of its children, and its peak memory, as
the kernel counts them. The Python ones count from their first request on, so that importing is not held against them.
Reprieve is `serve --roles worker,relay`, at rest before: its time is that from the claim to the receipt as the database
wrote them down, its processor time that of the process since it was at rest, its memory the peak of the whole process.
"""
import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid

LONGEST = 900
BUCKET = "bench"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true"}
TICK = os.sysconf("SC_CLK_TCK")

SCHEMA = """
create schema bench;
create table bench.datasets (id uuid primary key, name text not null);
create table bench.samples (id bigint generated always as identity primary key,
  dataset_id uuid not null references bench.datasets, path text not null, created_at timestamptz default now());
create index on bench.samples (dataset_id);
create table bench.models (id uuid primary key, name text not null, dataset_id uuid references bench.datasets,
  is_active boolean not null);
create index on bench.models (dataset_id);
"""

MAP = f"""
[[resource]]
kind = "dataset"
table = "bench.datasets"
id = "id"
id_type = "uuid"
name = "name"
[[resource.objects]]
store = "main"
bucket = "{BUCKET}"
prefix = "synthetic/{{id}}/"
[[resource.rows]]
table = "bench.samples"
column = "dataset_id"
[[resource.references]]
name = "active model"
query = "select id, name from bench.models where dataset_id = $1 and is_active"
"""

# Everything that is not here is at its default.
CONFIG = """
maps = ["map.toml"]
[database]
url = "{database}"
[broker]
url = "{broker}"
namespace = "{namespace}"
[stores.main]
endpoint = "{endpoint}"
access_key = "{access}"
secret_key = "{secret}"
buckets = ["{bucket}"]
[retention]
default = "1s"
minimum = "1s"
[purge]
backoff_initial = "200ms"
backoff_max = "2s"
[relay]
poll = "50ms"
[api]
listen = "127.0.0.1:{port}"
"""


class Servers:
    """`bench-servers`: one request a line, one answer a line."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, do, **fields):
        print(json.dumps({"do": do, **fields}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"bench-servers ended over {do}")
        return json.loads(answer)

    def end(self):
        self.process.stdin.close()
        self.process.wait(60)


class Place:
    """A prefix with objects below it, and who may empty it."""

    def __init__(self, endpoint, access, secret, dataset, synthetic):
        self.endpoint, self.access, self.secret = endpoint, access, secret
        self.dataset, self.prefix, self.synthetic = dataset, f"synthetic/{dataset}/", synthetic

    def env(self):
        surroundings = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return surroundings | KEYS | {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}


def of_process(argv, env):
    """Runs a program to its end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        watch = threading.Timer(LONGEST, process.kill)
        watch.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        watch.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        run = {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss * 1024}
        out.seek(0), err.seek(0)
        said, complaint = out.read(), err.read().strip().splitlines()
    if process.returncode != 0:
        run["error"] = (complaint or [f"exit code {process.returncode}"])[-1][:200]
    return run, said


def program(argv_of):
    return lambda place: of_process(argv_of(place), place.env())[0]


class Bench:
    """The servers, the programs, and a way to make a place to empty."""

    def __init__(self, root, binaries):
        self.root, self.binaries = root, binaries
        self.venv = root / "target" / "bench" / "venv" / "bin"
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="reprieve-bench-"))
        self.servers = Servers(binaries / "examples" / "bench-servers")
        self.seaweedfs = None
        self.reprieve = Reprieve(self)
        self.contestants = {
            "reprieve": self.reprieve.empty,
            "bare": program(lambda place: [binaries / "examples" / "bench-bare", place.endpoint, BUCKET, place.prefix]),
            "s5cmd": program(lambda place: [self.venv / "s5cmd", "--log", "error", "--endpoint-url", place.endpoint,
                                            "rm", f"s3://{BUCKET}/{place.prefix}*"]),
            "rclone": program(lambda place: [
                self.venv / "rclone", "--config", os.devnull, "delete", f":s3:{BUCKET}/{place.prefix}",
                "--s3-provider", "Other", "--s3-endpoint", place.endpoint, "--s3-env-auth", "--s3-force-path-style",
                "--checkers", "64", "--transfers", "64"]),
            "boto3": self.python("boto3"),
            "minio-py": self.python("minio"),
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.servers.end()
        shutil.rmtree(self.directory, ignore_errors=True)

    def python(self, library):
        def run(place):
            argv = [self.venv / "python", self.root / "benches" / "python_peers.py", library, place.endpoint, BUCKET]
            run, said = of_process([*argv, place.prefix], place.env())
            return run | (json.loads(said) if said else {})
        return run

    def synthetic(self, behaviour, datasets):
        """A synthetic S3 with objects below the prefix of each dataset."""
        endpoint = self.servers("synthetic", **behaviour)["endpoint"]
        for dataset, count, names in datasets:
            self.servers("add", bucket=BUCKET, prefix=f"synthetic/{dataset}/", count=count, names=names)
        return Place(endpoint, KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"], datasets[0][0], True)

    def place(self, behaviour, objects, names):
        dataset = uuid.uuid4()
        if behaviour is not None:
            return self.synthetic(behaviour, [(dataset, objects, names)])
        self.seaweedfs = self.seaweedfs or self.servers("seaweedfs")
        it = self.seaweedfs
        place = Place(it["endpoint"], it["access_key"], it["secret_key"], dataset, False)
        self.servers("put", bucket=BUCKET, prefix=place.prefix, count=objects, names=names)
        return place

    def counts(self, place):
        if not place.synthetic:
            return self.servers("left", bucket=BUCKET, prefix=place.prefix)
        counts = self.servers("counts", bucket=BUCKET)
        requests = counts["lists"] + counts["batch_deletes"] + counts["single_deletes"] + counts["others"]
        return counts | {"requests": requests + counts["refused"]}

    def machine(self):
        said = lambda *argv: subprocess.run(argv, capture_output=True, text=True, cwd=self.root).stdout.strip()
        field = lambda file, name: next(line.split(":")[1].strip() for line in open(file) if line.startswith(name))
        tool = lambda name, *argv: said(self.venv / name, *argv).splitlines()[:1] if (self.venv / name).exists() else []
        packages = said(self.venv / "pip", "list", "--format", "freeze") if self.venv.exists() else ""
        pinned = [line.replace("==", " ") for line in packages.splitlines() if line.split("==")[0] in ("boto3", "minio")]
        return {
            "processor": field("/proc/cpuinfo", "model name"), "cores": os.cpu_count(),
            "memory_gib": round(int(field("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
            "system": f"Linux {platform.release()}", "rustc": said("rustc", "--version"),
            "peers": ", ".join(["s5cmd " + "".join(tool("s5cmd", "version")), *tool("rclone", "version"), *pinned]),
            "commit": said("git", "rev-parse", "--short", "HEAD"),
        }


class Service:
    """A process of the real binary, from the outside."""

    def __init__(self, command, log, says):
        self.log = log
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=open(log, "w"), stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while says not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"it does not say {says!r}:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def peak(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Reprieve:
    """The real engine: a tombstone, its task, and what the database says of it at the end."""

    def __init__(self, bench):
        self.bench, self.database = bench, None

    def sql(self, statement):
        return self.bench.servers("sql", url=self.database, statement=statement).get("rows")

    def configure(self, place):
        """Configuration for a store, on the database and the broker of this benchmark."""
        directory, servers = self.bench.directory, self.bench.servers
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        first = self.database is None
        if first:
            self.database, self.broker = servers("postgres")["url"], servers("rabbitmq")["url"]
        self.config = directory / "reprieve.toml"
        self.config.write_text(CONFIG.format(
            database=self.database, broker=self.broker, namespace=f"bench-{self.port}", endpoint=place.endpoint,
            access=place.access, secret=place.secret, bucket=BUCKET, port=self.port))
        (directory / "map.toml").write_text(MAP)
        if first:
            self.sql(SCHEMA)
            subprocess.run(self.command("migrate"), check=True, stdout=subprocess.DEVNULL)

    def command(self, *args):
        return [self.bench.binaries / "reprieve", "--config", self.config, *args]

    def serve(self, roles, says):
        return Service(self.command("serve", "--roles", roles), self.bench.directory / f"{roles}.log", says)

    def insert(self, datasets, rows=0):
        ids = ",".join(f"'{dataset}'" for dataset in datasets)
        self.sql(f"insert into bench.datasets select id, 'set ' || id from unnest(array[{ids}]::uuid[]) id")
        if rows:
            self.sql(f"insert into bench.samples (dataset_id, path) select id, 'synthetic/' || id || '/' || n"
                     f" from unnest(array[{ids}]::uuid[]) id, generate_series(1, {rows}) n")
        self.sql("analyze bench.datasets, bench.samples")

    def trash(self, datasets, a_second=None):
        """By the API, on a few connections; at so many a second, or as fast as it goes."""
        began, threads = time.monotonic(), 4
        body = json.dumps({"actor": "bench", "dry_run": False})

        def some(mine):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            for place, dataset in mine:
                if a_second:
                    time.sleep(max(0, began + place / a_second - time.monotonic()))
                connection.request("POST", f"/v1/resources/dataset/{dataset}/trash", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status == 200, said
        numbered = list(enumerate(datasets))
        workers = [threading.Thread(target=some, args=(numbered[n::threads],)) for n in range(threads)]
        [worker.start() for worker in workers], [worker.join() for worker in workers]

    def purged(self, datasets, quiet):
        """Waits for all of them to be closed, and adds up what the tombstones say."""
        ids = ",".join(f"'{dataset}'" for dataset in datasets)
        ours = f"reprieve.tombstones where resource_id in ({ids})"
        open_ones = f"select count(*) = {len(datasets)} from {ours} and state in ('purged', 'stuck')"
        ended = self.bench.servers("until", url=self.database, query=open_ones, seconds=LONGEST)["holds"]
        found = self.sql(
            "select count(*) filter (where state = 'purged') as purged, sum(objects_deleted + objects_absent) as gone,"
            " sum(rows_deleted) as rows, max(last_error) as error,"
            " extract(epoch from max(closed_at) - min(purging_at)) as seconds,"
            " extract(epoch from max(closed_at) - min(queued_at)) as since_queued,"
            " percentile_cont(array[0.5, 0.99, 1]) within group"
            f"   (order by extract(epoch from closed_at - purge_after)) as latency from {ours}")[0]
        if not ended or found["purged"] != len(datasets):
            quiet["error"] = f"{found['purged']} of {len(datasets)} purged: {found['error']}"
        return found

    def measured(self, datasets, task):
        """What a process of worker and relay needs for `task`, beyond being there."""
        with self.serve("worker,relay", "worker consumes") as service:
            time.sleep(0.5)
            run, before = {"idle_rss": service.peak()}, service.cpu()
            task()
            found = self.purged(datasets, run)
            run |= {"cpu": service.cpu() - before, "rss": service.peak()}
        return run, found

    def empty(self, place):
        self.configure(place)
        self.insert([place.dataset], rows=1)
        with self.serve("api", "serving"):
            run, found = self.measured([place.dataset], lambda: self.trash([place.dataset]))
        return run | {"seconds": found["seconds"], "receipt": found["gone"]}

    def many(self, count, objects):
        """A backlog first, and then datasets that come due one after the other."""
        datasets = [uuid.uuid4() for _ in range(count + count // 5)]
        place = self.bench.synthetic({}, [(dataset, objects, "heimdall") for dataset in datasets])
        self.configure(place)
        self.insert(datasets, rows=1)
        backlog, paced = datasets[:count], datasets[count:]
        with self.serve("api", "serving"):
            self.trash(backlog)
            time.sleep(1.1)  # until the last of them is due: no condition says it but the clock
            run, found = self.measured(backlog, lambda: None)
            latency, _ = self.latency(paced)
        run |= {"seconds": found["since_queued"], "receipt": found["gone"] / objects}
        return run | latency | {"left": self.bench.counts(place)["left"]}

    def latency(self, datasets):
        run, found = self.measured(datasets, lambda: self.trash(datasets, a_second=100))
        median, most, longest = found["latency"]
        named = {"latency": round(median, 3), "latency_p99": round(most, 3), "latency_max": round(longest, 3)}
        return named | ({"error": run["error"]} if "error" in run else {}), run

    def rows(self, count):
        dataset = uuid.uuid4()
        self.configure(self.bench.synthetic({}, [(dataset, 0, "flat")]))
        self.insert([dataset], rows=count)
        with self.serve("api", "serving"):
            run, found = self.measured([dataset], lambda: self.trash([dataset]))
        left = self.sql("select count(*) as n from bench.samples")[0]["n"]
        return run | {"seconds": found["seconds"], "receipt": found["rows"] - 1, "left": left}

    def one_statement(self, count):
        """What a plain cascade would do: one statement, one transaction, one long lock."""
        dataset = uuid.uuid4()
        self.configure(self.bench.synthetic({}, [(dataset, 0, "flat")]))
        self.insert([dataset], rows=count)
        began = time.monotonic()
        self.sql(f"delete from bench.samples where dataset_id = '{dataset}'; delete from bench.datasets where id = '{dataset}'")
        return {"seconds": time.monotonic() - began, "cpu": 0, "rss": 0, "left": 0}
