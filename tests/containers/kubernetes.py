"""docker/kubernetes: rendered by kustomize as `kubectl apply` would, then held to the API's own schemas (and those of
KEDA's and the Prometheus operator's resources), and to what no schema knows: names that refer to each other, probes and
ports that the program has, a configuration that it reads, and the `restricted` profile of pod security."""

import re
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as operator
from common import Problem, expect, is_command, is_read, seconds, settings, temporary
from image import uid

FOLDER = "docker/kubernetes"
VERSIONS = ("1.31", "1.37")
CUSTOM = {"ScaledObject": keda, "TriggerAuthentication": keda, "PodMonitor": operator, "PrometheusRule": operator}
OURS = {"app.kubernetes.io/name": "reprieve"}


def check(tree):
    secret = tree.yaml(f"{FOLDER}/example/secret.yaml")
    for root in ("base", "example"):
        rendered = tree.run("kubectl", "kustomize", f"{FOLDER}/{root}")
        documents = [document for document in yaml.safe_load_all(rendered) if document]
        kinds = {}
        for document in [*documents, secret]:
            valid(document)
            kinds.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
        config = configured(tree, kinds, secret)
        for pod in pods(kinds).values():
            restricted(pod, uid(tree))
            refers(pod, kinds)
        served(tree, kinds, config)
        selected(kinds)
        walled(kinds, secret, config)
        if root == "example":
            overlaid(documents)
            scaled(tree, kinds, secret, config)
            scraped(tree, kinds)
            alerted(tree, kinds)


def valid(document):
    what = f"{document['kind']} {document['metadata']['name']}"
    if document["kind"] in CUSTOM:
        schema = closed(getattr(CUSTOM[document["kind"]], document["kind"]).model_json_schema())
        for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
            raise Problem(f"{what}: {error.json_path}: {error.message}")
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Problem(f"{what} (Kubernetes {version}): {error.message}") from error


def closed(schema):
    """Where a resource's fields are listed there are no others, which the generated schema leaves open."""
    for part in [schema, *schema["$defs"].values()]:
        if "properties" in part:
            part.setdefault("additionalProperties", False)
    return schema


def pods(kinds):
    controllers = kinds["Deployment"] | kinds["Job"]
    return {name: controller["spec"]["template"] for name, controller in controllers.items()}


def configured(tree, kinds, secret):
    """The program reads the ConfigMap, with its secrets from files as they are mounted. Gives back its settings."""
    (config,) = (document for name, document in kinds["ConfigMap"].items() if name.startswith("reprieve-config"))
    texts = config["data"]
    named = set(re.findall(r"/run/secrets/reprieve/(\w+)", texts["reprieve.toml"]))
    expect(
        named == set(secret["stringData"]),
        f"the Secret and the configuration differ in {named ^ set(secret['stringData'])}",
    )
    with temporary() as folder:
        for name, text in texts.items():
            Path(folder, name).write_text(text.replace("/run/secrets/reprieve", f"{folder}/secrets"))
        Path(folder, "secrets").mkdir()
        for name, value in secret["stringData"].items():
            Path(folder, "secrets", name).write_text(value)
        is_read(tree, Path(folder, "reprieve.toml"), {}, "the ConfigMap")
    return settings(texts["reprieve.toml"])


def restricted(pod, user):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a root that is read-only."""
    spec = pod["spec"]
    security = spec["securityContext"]
    expect(
        security["runAsNonRoot"] is True and security["runAsUser"] == user,
        "a pod runs as another than the image's user",
    )
    expect(security["seccompProfile"] == {"type": "RuntimeDefault"}, "a pod has no seccomp profile")
    for container in spec["containers"]:
        wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        expect(container["securityContext"] == wanted, f"securityContext is not {wanted}")
        expect("memory" in container["resources"]["limits"], "a container has no limit of memory")
    expect(
        not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")), "a pod shares its node's namespaces"
    )
    expect(spec["automountServiceAccountToken"] is False, "a pod is given a token that it does not need")


def refers(pod, kinds):
    spec = pod["spec"]
    expect(spec["serviceAccountName"] in kinds["ServiceAccount"], f"no ServiceAccount {spec['serviceAccountName']}")
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for volume in volumes.values():
        if "configMap" in volume:
            expect(volume["configMap"]["name"] in kinds["ConfigMap"], f"no ConfigMap {volume['configMap']['name']}")
        else:
            expect(volume["secret"]["secretName"] in kinds["Secret"], f"no Secret {volume['secret']['secretName']}")
    for container in spec["containers"]:
        paths = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in volumes}
        expect(paths == {"/etc/reprieve", "/run/secrets/reprieve"}, f"mounted at {paths}")


def served(tree, kinds, config):
    """Roles, probes, ports and the time to shut down."""
    port, deadline = int(config["api.listen"].split(":")[1]), seconds(config["service.shutdown_deadline"])
    roles = set(re.search(r"of: ([a-z, ]*[a-z])", tree.reprieve(["serve", "--help"], {}).stdout)[1].split(", "))
    run = set()
    for name, deployment in kinds["Deployment"].items():
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        verb, flag, named = container["args"]
        expect((verb, flag) == ("serve", "--roles"), f"{name}: args are {container['args']}")
        own = {one["name"]: one["value"] for one in container.get("env", [])}.get("REPRIEVE__SERVICE__LISTEN")
        # the role api would make it ready without its broker, read the facts once more, and open the API
        wanted = ("api", None) if name == "reprieve-api" else (named.replace("api", ""), config["api.listen"])
        expect((named, own) == wanted, f"{name}: has the roles {named} and listens at {own}, and nothing else answers")
        run |= set(named.split(","))
        expect(container["ports"] == [{"name": "http", "containerPort": port}], f"{name}: the API listens on {port}")
        for probe, path in (("startup", "live"), ("liveness", "live"), ("readiness", "ready")):
            asked = container[f"{probe}Probe"]["httpGet"]
            expect(asked == {"path": f"/health/{path}", "port": "http"}, f"{name}: the {probe} probe asks {asked}")
            expect(tree.route(asked["path"]), f"{name}: the program does not serve {asked['path']}")
        grace = spec["terminationGracePeriodSeconds"]
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        expect(grace > before + deadline, f"{name}: killed after {grace} s, with {deadline} s to shut down")
        expect((before > 0) == (name == "reprieve-api"), f"{name}: waits {before} s for the Service to forget it")
    expect(run == roles, f"the roles that run are {sorted(run)}, and there are {sorted(roles)}")
    (service,) = kinds["Service"].values()
    expect(
        service["spec"]["ports"] == [{"name": "http", "port": port, "targetPort": "http"}],
        "the Service's port is another",
    )
    (job,) = kinds["Job"].values()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    is_command(tree, container["args"], "the Job")


def selected(kinds):
    """Whatever selects pods by labels finds some, and a budget just those of one role."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(kinds).items()}

    def chosen(selector):
        return {name for name, of in labels.items() if selector.items() <= of.items()}

    for name, deployment in kinds["Deployment"].items():
        expect(
            chosen(deployment["spec"]["selector"]["matchLabels"]) == {name},
            f"{name} does not select its own pods alone",
        )
        budgets = [
            b for b in kinds["PodDisruptionBudget"].values() if chosen(b["spec"]["selector"]["matchLabels"]) == {name}
        ]
        expect(len(budgets) == 1, f"{name} has {len(budgets)} disruption budgets")
    (service,) = kinds["Service"].values()
    expect(chosen(service["spec"]["selector"]) == {"reprieve-api"}, "the Service does not lead to the API's pods alone")
    for name, policy in kinds["NetworkPolicy"].items():
        expect(chosen(policy["spec"]["podSelector"]["matchLabels"]), f"network policy {name} is about no pod")


def walled(kinds, secret, config):
    """Everything of ours is shut by one policy, no other lets everybody in, and what the program needs is let out."""
    rules = kinds["NetworkPolicy"]["reprieve-egress"]["spec"]["egress"]
    out = {(port["protocol"], port["port"]) for rule in rules for port in rule["ports"]}
    urls = [secret["stringData"]["database_url"], secret["stringData"]["broker_url"], config["stores.main.endpoint"]]
    needed = {("TCP", urlsplit(url).port) for url in urls} | {("UDP", 53), ("TCP", 53)}
    expect(needed <= out, f"reprieve-egress lets out nothing on {sorted(needed - out)}")
    deny = kinds["NetworkPolicy"]["reprieve-deny"]["spec"]
    shut = {"podSelector": {"matchLabels": OURS}, "policyTypes": ["Ingress", "Egress"]}
    expect(deny == shut, "reprieve-deny does not shut every pod, in both directions")
    for name, policy in kinds["NetworkPolicy"].items():
        for rule in policy["spec"].get("ingress", []):
            expect(rule.get("from") and rule.get("ports"), f"network policy {name} lets everybody in")
        for rule in policy["spec"].get("egress", []):
            expect(rule.get("ports"), f"network policy {name} lets everything out")


def overlaid(documents):
    for document in documents:
        expect(document["metadata"].get("namespace") == "reprieve", f"{document['kind']} is in no namespace")
    for container in (
        c for d in documents if d["kind"] in ("Deployment", "Job") for c in d["spec"]["template"]["spec"]["containers"]
    ):
        expect(container["image"].startswith("registry.example.com/"), "the overlay's image is not used")


def scaled(tree, kinds, secret, config):
    (scaler,) = kinds["ScaledObject"].values()
    target = kinds["Deployment"].get(scaler["spec"]["scaleTargetRef"]["name"])
    expect(target, "KEDA scales what is not there")
    expect("replicas" not in target["spec"], "KEDA and the Deployment both say how many replicas there are")
    (trigger,) = scaler["spec"]["triggers"]
    named = 'format!("{namespace}.purge")' in tree.text("src/queue/rabbitmq/topology.rs")
    queue = config.get("broker.namespace", "reprieve") + ".purge"
    expect(named and trigger["metadata"]["queueName"] == queue, "KEDA does not look at the purge queue")
    allowed = {"protocol", "queueName", "mode", "value"}
    expect(
        set(trigger["metadata"]) == allowed and trigger["type"] == "rabbitmq",
        f"KEDA's rabbitmq trigger is given {trigger}",
    )
    login = kinds["TriggerAuthentication"].get(trigger["authenticationRef"]["name"])
    expect(login, "KEDA's trigger names no authentication of ours")
    for ref in login["spec"]["secretTargetRef"]:
        expect(ref["name"] == secret["metadata"]["name"] and ref["key"] in secret["stringData"], f"no secret {ref}")


def scraped(tree, kinds):
    (monitor,) = kinds["PodMonitor"].values()
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        expect(endpoint["port"] == "http" and tree.route(endpoint["path"]), f"nothing is served at {endpoint}")
    expect(monitor["spec"]["selector"]["matchLabels"] == OURS, "the PodMonitor is about other pods")


def alerted(tree, kinds):
    (rule,) = kinds["PrometheusRule"].values()
    expect(rule["spec"] == tree.yaml("docker/prometheus/alerts.yml"), "the PrometheusRule is not alerts.yml: run rule.py")
