"""docker/compose.yaml: the compose specification's schema, and what it cannot say. Ports are loopback's, passwords come
from documented variables, what is mounted exists, what is waited for can be waited for, and the program reads the
configuration just as the services get it."""

import re
import shutil
from pathlib import Path

from common import expect, is_command, is_read, seconds, settings, temporary
from image import entrypoint

COMPOSE = "docker/compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def check(tree):
    tree.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
    services = tree.yaml(COMPOSE)["services"]
    variables(tree)
    for name, service in services.items():
        ports(name, service)
        mounts(tree, name, service)
        waits(services, name, service)
    configured(tree, services)
    targets(tree, services)


def resolve(text):
    """With every variable at its default, as on a machine where none is set."""
    return VARIABLE.sub(lambda found: found[2], str(text))


def environment(service):
    return {name: resolve(value) for name, value in service.get("environment", {}).items()}


def variables(tree):
    used = set(VARIABLE.findall(tree.text(COMPOSE)))
    documented = {tuple(line.split("=", 1)) for line in tree.text("docker/.env.example").splitlines() if "=" in line}
    expect(used == documented, f"compose.yaml and .env.example differ in {sorted(used ^ documented)}")
    for name, default in used:
        expect(re.fullmatch(r"[A-Za-z0-9._~-]+", default), f"{name}: {default!r} cannot stand in a URL")


def ports(name, service):
    for port in service.get("ports", []):
        expect(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)), f"{name}: port {port} is open beyond this machine")


def mounts(tree, name, service):
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            expect((tree.root / "docker" / source).exists(), f"{name}: {source} is mounted and does not exist")
            expect(volume.endswith(":ro"), f"{name}: {source} is mounted to be written")


def waits(services, name, service):
    for other, how in service.get("depends_on", {}).items():
        expect(other in services, f"{name} waits for {other}, which is no service")
        if how["condition"] == "service_healthy":
            expect("healthcheck" in services[other], f"{name} waits for the health of {other}, which has no check")
        if how["condition"] == "service_completed_successfully":
            expect("restart" not in services[other], f"{name} waits for the end of {other}, which is started again")


def configuration(tree, service, into):
    """What the service finds at /etc/reprieve, laid out in a folder."""
    for volume in service["volumes"]:
        source, target, _ = volume.split(":")
        source, target = tree.root / "docker" / source, into / Path(target).relative_to("/etc/reprieve")
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return into / "reprieve.toml"


def configured(tree, services):
    ours = {name: service for name, service in services.items() if service["image"] == "reprieve:demo"}
    expect(ours, "no service runs the program")
    for name, service in ours.items():
        with temporary() as folder:
            config = configuration(tree, service, Path(folder))
            is_read(tree, config, environment(service), f"compose service {name}")
            text = config.read_text()
        if service["command"][0] == "serve":
            asked, *command = service["healthcheck"]["test"][1:]
            expect([asked] == entrypoint(tree), f"{name}: its check runs {asked}, which is not the image's program")
            is_command(tree, command, f"{name}'s check")
            deadline = seconds(settings(text)["service.shutdown_deadline"])
            grace = seconds(service["stop_grace_period"])
            expect(grace > deadline, f"{name}: killed after {grace} s, with {deadline} s to shut down")
            listens = settings(text)["api.listen"].split(":")[1]
            published = {port.split(":")[2] for port in service["ports"]}
            expect(published == {listens}, f"{name}: publishes {published} and listens on {listens}")
        buckets = re.findall(r'buckets = \["([^"]+)"\]', text)
        seeded = environment(services["seed"])["S3_BUCKET"]
        expect(buckets == [seeded], f"buckets differ: {buckets}, {seeded}")


def targets(tree, services):
    """Addresses of services in compose.yaml and in what it mounts."""
    text = tree.text(COMPOSE) + tree.text("docker/demo/reprieve.toml")
    for host in re.findall(r"(?:https?://|@)([a-z-]+):\d+", resolve(text)):
        expect(host in services, f"an address names {host}, which is no service")
