"""A check that cannot fail checks nothing. Plants a mistake into a copy of the tree, one after the other, and insists
that the check which is there for it finds it: planted.py TREE TOOLS BINARY."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Problem, Tree, temporary
from lint import CHECKS

PARTS = (
    "docker",
    "config",
    "migrations",
    "src",
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    ".dockerignore",
)
K8S = "docker/kubernetes"

# (check, file, what stands there, what is planted instead, a part of what the check says)
MISTAKES = [
    ("yaml", "docker/compose.yaml", "name: reprieve-demo", "name: reprieve-demo\nname: twice", "duplication of key"),
    ("shell", "docker/demo/seed.sh", '"$work/object"\n', "$work/object\n", "SC2086"),
    ("image", "docker/Dockerfile", "WORKDIR /build", "WORKDIR build", "DL3000"),
    ("image", "docker/Dockerfile", "FROM rust:1.95.0-slim", "FORM rust:1.95.0-slim", "hadolint"),
    ("image", "docker/Dockerfile", "FROM rust:1.95", "FROM rust:1.80", "older than rust-version"),
    ("image", "docker/Dockerfile", "COPY migrations migrations\n", "", "does not copy"),
    ("image", "docker/Dockerfile", "COPY src src", "COPY sources src", "no such path"),
    ("image", "docker/Dockerfile", "USER 65532:65532", "USER nonroot", "DL3066"),
    ("image", "docker/Dockerfile", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL", "STOPSIGNAL"),
    ("image", "docker/Dockerfile", "ARG VERSION=0", "ARG VERSION=9", "not that of Cargo.toml"),
    ("image", "docker/Dockerfile", "bookworm@sha256:", "bookworm AS x #", "FROM"),
    ("image", "docker/Dockerfile", 'CMD ["serve"]', "CMD serve", "DL3025"),
    ("image", ".dockerignore", "!config\n", "", "keeps config"),
    ("image", ".dockerignore", "*\n", "*.log\n", "lets .git/HEAD"),
    ("compose", "docker/compose.yaml", "    restart: ", "    restarts: ", "restarts"),
    ("compose", "docker/compose.yaml", "127.0.0.1:9090:9090", "9090:9090", "beyond this machine"),
    ("compose", "docker/compose.yaml", "REPRIEVE__API__TOKEN:", "REPRIEVE__API__TOKENS:", "api.tokens"),
    ("compose", "docker/compose.yaml", "./demo/ready.sh:", "./demo/redy.sh:", "does not exist"),
    ("image", "docker/Dockerfile", '"health", "--live"', '"health", "--alive"', "the program has no"),
    ("image", "docker/Dockerfile", 'CMD ["/usr/local/bin/reprieve", "health"', 'CMD ["curl"', "not the image's program"),
    ("compose", "docker/compose.yaml", "seed: {condition: service_completed", "seed: {condition: service_healthy} #", "no check"),
    ("compose", "docker/compose.yaml", "/reprieve, health]", "/reprieve, healthy]", "the program has no"),
    ("compose", "docker/compose.yaml", "stop_grace_period: 40s", "stop_grace_period: 10s", "killed after 10 s"),
    ("compose", "docker/compose.yaml", "S3_BUCKET: heimdall", "S3_BUCKET: other", "buckets differ"),
    ("compose", "docker/compose.yaml", "-demo-rabbitmq}", "-demo/rabbit}", "differ"),
    ("compose", "docker/.env.example", "DEMO_GRAFANA_PASSWORD=", "GRAFANA_PASSWORD=", "differ"),
    ("compose", "docker/demo/reprieve.toml", "recheck_max", "recheck_most", "purge.recheck_most"),
    ("compose", "docker/demo/reprieve.toml", "//seaweedfs:", "//seaweed:", "no service"),
    ("compose", "docker/demo/reprieve.toml", ":8320", ":8321", "listens on 8321"),
    ("monitoring", "docker/prometheus/prometheus.yml", "scrape_interval: 10s", "scrape_interval: ten", "promtool"),
    ("monitoring", "docker/prometheus/prometheus.yml", "alerts.yml", "alarms.yml", "promtool"),
    ("monitoring", "docker/prometheus/prometheus.yml", "postgres-exporter:", "exporter:", "no service"),
    (
        "monitoring",
        "docker/prometheus/prometheus.yml",
        "reprieve:8320",
        "reprieve:8080",
        "not where the program listens",
    ),
    (
        "monitoring",
        "docker/grafana/provisioning/datasources/prometheus.yaml",
        "//prometheus:",
        "//grafana:",
        "no Prometheus",
    ),
    ("monitoring", "docker/grafana/provisioning/dashboards/reprieve.yaml", "/var/lib/", "/var/", "nothing is mounted"),
    ("kubernetes", f"{K8S}/base/kustomization.yaml", "relay.yaml", "relais.yaml", "relais.yaml"),
    (
        "kubernetes",
        f"{K8S}/keda/kustomization.yaml",
        "name: reprieve-worker",
        "name: reprieve-toiler",
        "both say how many",
    ),
    ("kubernetes", f"{K8S}/base/api.yaml", "replicas: 2", "replica: 2", "replica"),
    ("kubernetes", f"{K8S}/base/network-policies.yaml", "port: 53}", "port: true}", "True is not valid"),
    ("kubernetes", f"{K8S}/keda/scaled-object.yaml", "maxReplicaCount: 8", "maxReplicas: 8", "maxReplicas"),
    (
        "kubernetes",
        f"{K8S}/keda/scaled-object.yaml",
        "stabilizationWindowSeconds: 300",
        "stabilization: 300",
        "stabilization",
    ),
    ("kubernetes", f"{K8S}/keda/scaled-object.yaml", "queueName: reprieve.purge", "queueName: purge", "purge queue"),
    ("kubernetes", f"{K8S}/keda/scaled-object.yaml", "key: broker_url", "key: amqp_url", "no secret"),
    ("kubernetes", f"{K8S}/pod-monitor/pod-monitor.yaml", "path: /metrics", "paths: /metrics", "paths"),
    (
        "kubernetes",
        f"{K8S}/base/config/reprieve.toml",
        "max_connections",
        "most_connections",
        "database.most_connections",
    ),
    ("kubernetes", f"{K8S}/base/config/map.toml", 'prefix = "datasets/{id}/"', 'prefix = "/"', "prefix"),
    ("kubernetes", f"{K8S}/example/secret.yaml", "broker_url:", "amqp_url:", "differ"),
    ("kubernetes", f"{K8S}/base/worker.yaml", "path: /health/ready", "path: /ready", "readiness probe"),
    ("kubernetes", f"{K8S}/base/worker.yaml", "containerPort: 8320", "containerPort: 8080", "listens on 8320"),
    ("kubernetes", f"{K8S}/base/worker.yaml", '"worker"', '"worker,api"', "nothing else answers"),
    ("kubernetes", f"{K8S}/base/intake.yaml", "SERVICE__LISTEN", "SERVICE__LOG", "nothing else answers"),
    ("kubernetes", f"{K8S}/base/api.yaml", "seconds: 5}", "seconds: 20}", "killed after 45 s"),
    ("kubernetes", f"{K8S}/base/network-policies.yaml", "TCP, port: 5672", "TCP, port: 5673", "lets out nothing on"),
    ("kubernetes", f"{K8S}/base/network-policies.yaml", "UDP, port: 53", "UDP, port: 54", "lets out nothing on"),
    ("kubernetes", f"{K8S}/pod-monitor/prometheus-rule.yaml", "> 6 * 3600", "> 9 * 3600", "is not alerts.yml"),
    ("kubernetes", f"{K8S}/base/worker.yaml", "PeriodSeconds: 45", "PeriodSeconds: 30", "killed after 30 s"),
    ("kubernetes", f"{K8S}/base/worker.yaml", "runAsUser: 65532", "runAsUser: 1000", "another than the image's user"),
    ("kubernetes", f"{K8S}/base/worker.yaml", "secretName: reprieve,", "secretName: others,", "no Secret others"),
    ("kubernetes", f"{K8S}/base/relay.yaml", "relay,sweeper", "relay", "the roles that run"),
    ("kubernetes", f"{K8S}/base/migrate.yaml", "Filesystem: true", "Filesystem: false", "securityContext"),
    ("kubernetes", f"{K8S}/base/migrate.yaml", "[migrate, --guards]", "[migrate, --guard]", "the program has no"),
    ("kubernetes", f"{K8S}/base/service.yaml", "component: api", "component: worker", "the API's pods alone"),
    (
        "kubernetes",
        f"{K8S}/base/disruption-budgets.yaml",
        "component: relay",
        "component: relays",
        "disruption budgets",
    ),
    ("kubernetes", f"{K8S}/base/network-policies.yaml", "[Ingress, Egress]", "[Ingress]", "does not shut"),
    (
        "kubernetes",
        f"{K8S}/base/network-policies.yaml",
        "- from:\n        - podSel",
        "- from: []\n      x:\n        - podSel",
        "x",
    ),
]


def missed(tree, mistake):
    """Why this mistake was not found as it should have been, if so."""
    check, file, stands, planted, said = mistake
    what = f"{file}: {planted!r} for {stands!r}"
    with temporary() as folder:
        for part in PARTS:
            source, target = tree.root / part, Path(folder, part)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        path = Path(folder, file)
        text = path.read_text()
        if stands not in text:
            return f"{what}: it does not stand there"
        path.write_text(text.replace(stands, planted, 1))
        try:
            CHECKS[check](Tree(Path(folder), tree.tools, tree.binary))
        except Problem as problem:
            return None if said in str(problem) else f"{what}: found as something else: {problem}"
    return f"{what}: not found"


def main():
    tree = Tree(*(Path(argument).absolute() for argument in sys.argv[1:4]))
    with ThreadPoolExecutor(2) as pool:
        unfound = [why for why in pool.map(lambda mistake: missed(tree, mistake), MISTAKES) if why]
    if unfound:
        sys.exit("docker: planted: " + "\ndocker: planted: ".join(unfound))
    print(f"docker: planted: {len(MISTAKES)} mistakes, each found")


if __name__ == "__main__":
    main()
