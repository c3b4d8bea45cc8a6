"""Prometheus and Grafana as compose.yaml runs them: promtool reads the scrape configuration, and every address and path
in it and in Grafana's provisioning is one that a service has."""

import re
import shutil
import subprocess

from common import expect, settings
from compose import COMPOSE

PROMETHEUS = "docker/prometheus/prometheus.yml"
PROVISIONING = "docker/grafana/provisioning"


def check(tree):
    expect(shutil.which("promtool"), "promtool was not found; scripts/setup test installs it")
    ended = subprocess.run(
        ["promtool", "check", "config", tree.root / PROMETHEUS], capture_output=True, text=True, timeout=60
    )
    expect(ended.returncode == 0, f"promtool: {(ended.stdout + ended.stderr).strip()}")
    services = tree.yaml(COMPOSE)["services"]
    scrapes(tree, services)
    grafana(tree, services)


def scrapes(tree, services):
    jobs = {job["job_name"]: job for job in tree.yaml(PROMETHEUS)["scrape_configs"]}
    for name, job in jobs.items():
        for target in (target for static in job["static_configs"] for target in static["targets"]):
            expect(target.split(":")[0] in services, f"job {name}: {target} is no service")
    listens = settings(tree.text("docker/demo/reprieve.toml"))["api.listen"].split(":")[1]
    ours = jobs["reprieve"]
    expect(
        ours["static_configs"][0]["targets"] == [f"reprieve:{listens}"], "job reprieve: not where the program listens"
    )
    expect(tree.route(ours.get("metrics_path", "/metrics")), "job reprieve: the program serves no such path")


def grafana(tree, services):
    service = services["grafana"]
    mounted = {target: source for source, target, _ in (volume.split(":") for volume in service["volumes"])}
    expect(
        mounted.get("/etc/grafana/provisioning") == "./grafana/provisioning", "Grafana is not given its provisioning"
    )
    sources = tree.yaml(f"{PROVISIONING}/datasources/prometheus.yaml")["datasources"]
    for source in sources:
        host = re.fullmatch(r"http://([a-z-]+):9090", source["url"])
        expect(host and services[host[1]]["image"].startswith("prom/prometheus:"), f"{source['url']} is no Prometheus")
    expect([source["isDefault"] for source in sources] == [True], "there is no default source, or more than one")
    for provider in tree.yaml(f"{PROVISIONING}/dashboards/reprieve.yaml")["providers"]:
        path = provider["options"]["path"]
        expect(path in mounted, f"dashboards are looked for in {path}, where nothing is mounted")
        home = service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        folder, _, file = home.rpartition("/")
        expect(folder == path, f"the home dashboard {home} is not among the dashboards")
        expect((tree.root / "docker" / mounted[path] / file).is_file(), f"the home dashboard {file} does not exist")
