"""The manifests in ``deploy/kubernetes``: by Kubernetes' own schemas, and beside the program that they run."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jsonschema
import kubernetes_validate
import pytest
import yaml

from activities.environment import SECRETS, unknown_settings
from activities.interface import TILE_QUEUE, WORKFLOW_QUEUE
from activities.render.child import ChildLimits
from api.__main__ import GRACE_S
from api.settings import ApiSettings
from deploy.check.settings import READERS
from deploy.programs import CACHE
from tests.missing import miss
from tests.servers.kustomize import installed_kustomize
from tests.unit.test_readme import commands
from tests.unit.test_settings_documented import documented_settings
from worker.app import LONGEST_STOP

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
DOCKERFILE = FOLDER.parent / "Dockerfile"
README = FOLDER.parent / "README.md"
KUBERNETES_VERSIONS = ("1.30", "1.37")
SECRETS_AT = "/run/secrets/sitelink"
COMPONENTS = ("hpa", "keda", "r2-events", "webhooks")

Manifest = dict[str, Any]

_COUNT = {"type": "integer", "minimum": 1}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_KEDA_SPEC = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {name: {"type": "string"} for name in ("apiVersion", "kind", "name", "envSourceContainerName")},
        },
        "pollingInterval": _COUNT,
        "cooldownPeriod": _COUNT,
        "minReplicaCount": {"type": "integer", "minimum": 0},
        "maxReplicaCount": _COUNT,
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "restoreToOriginalReplicaCount": {"type": "boolean"},
                # Kubernetes' own ``behavior``, which the schema of its autoscaler checks.
                "horizontalPodAutoscalerConfig": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"behavior": {"type": "object"}, "name": {"type": "string"}},
                },
            },
        },
        "triggers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["type", "metadata"],
                "properties": {
                    "type": {"enum": ["cpu", "prometheus", "temporal"]},
                    "name": {"type": "string"},
                    "metadata": _TEXTS,
                    "metricType": {"enum": ["AverageValue", "Value", "Utilization"]},
                    "useCachedMetrics": {"type": "boolean"},
                },
            },
        },
    },
}
"""What KEDA documents of a ScaledObject, as far as it is of use here: https://keda.sh/docs/2.17/reference/scaledobject-spec/"""

KEDA_TRIGGERS = {
    # https://keda.sh/docs/2.17/scalers/cpu/
    "cpu": ({"value"}, {"containerName"}),
    # https://keda.sh/docs/2.17/scalers/temporal/; each of the first three also by the name of a variable of the pods
    "temporal": (
        {"endpointFromEnv", "taskQueue"},
        {"namespaceFromEnv", "queueTypes", "targetQueueSize", "activationTargetQueueSize", "minConnectTimeout", "tlsServerName"},
    ),
    # https://keda.sh/docs/2.17/scalers/prometheus/
    "prometheus": ({"serverAddress", "query", "threshold"}, {"activationThreshold", "ignoreNullValues", "namespace", "unsafeSsl"}),
}
"""The metadata that each kind of trigger must have, and may have."""


def manifests_of(path: Path) -> list[Manifest]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != "kustomization.yaml")
MANIFESTS = [(path, manifest) for path in FILES for manifest in manifests_of(path)]


def of_kind(kind: str) -> list[Any]:
    """The manifests of a kind, each named in the test's report."""
    return [
        pytest.param(manifest, id=str(path.relative_to(FOLDER)) + ":" + manifest["metadata"]["name"])
        for path, manifest in MANIFESTS
        if manifest["kind"] == kind
    ]


def env_file(path: Path) -> dict[str, str]:
    """The settings of a file of kustomize."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


IMAGE = dict(re.findall(r"^(?:ENV)? +(SITELINK_\w+)=(\S+)", DOCKERFILE.read_text(), re.MULTILINE))
BASE = env_file(FOLDER / "base" / "settings.env")
EXAMPLE = env_file(FOLDER / "overlays" / "example" / "settings.env")
PROGRAMS = {"api": "api", "events": "api events"}
"""The program of each role that is no worker."""
QUEUE = {"SITELINK_EVENTS_ACCOUNT": "a1", "SITELINK_EVENTS_QUEUE": "b2"}
"""The settings that an overlay with the component ``r2-events`` adds."""


def role_of(deployment: Manifest) -> str:
    """``api``, ``workflow``, ``tile``, ``webhook`` or ``events``."""
    return cast("str", deployment["metadata"]["labels"]["app.kubernetes.io/component"])


def pod_of(deployment: Manifest) -> Manifest:
    """What its pods are."""
    return cast("Manifest", deployment["spec"]["template"]["spec"])


def container_of(deployment: Manifest) -> Manifest:
    """The one container of its pods."""
    (container,) = pod_of(deployment)["containers"]
    return cast("Manifest", container)


def variables_of(deployment: Manifest) -> dict[str, str]:
    """The environment of its container."""
    container = container_of(deployment)

    def value(variable: Manifest) -> str:
        if "value" in variable:
            return cast("str", variable["value"])
        reference = variable["valueFrom"]["resourceFieldRef"]
        kind, resource = reference["resource"].split(".")
        assert reference["divisor"] == "1"
        return str(-(-quantity(container["resources"][kind][resource]) // 1).__ceil__())

    return {**IMAGE, **BASE, **EXAMPLE, **{variable["name"]: value(variable) for variable in container["env"]}}


def quantity(text: str) -> float:
    """Cores or bytes. https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/."""
    units = {"m": 0.001, "": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    match = re.fullmatch(r"(\d+)(m|Ki|Mi|Gi|)", text)
    assert match, text
    return int(match[1]) * units[match[2]]


def check_schema(manifest: Manifest, version: str) -> None:
    """Fails where Kubernetes would refuse or ignore a field."""
    if manifest["apiVersion"] != "keda.sh/v1alpha1":
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    assert manifest["kind"] == "ScaledObject"
    spec = manifest["spec"]
    jsonschema.validate(spec, _KEDA_SPEC)
    for trigger in spec["triggers"]:
        must, may = KEDA_TRIGGERS[trigger["type"]]
        names = trigger["metadata"].keys()
        assert must <= names <= must | may, trigger
        assert ("metricType" in trigger) == (trigger["type"] == "cpu")
    if advanced := spec.get("advanced"):  # the same field of an autoscaler of Kubernetes
        target = {"scaleTargetRef": {"kind": "Deployment", "name": "any"}, "maxReplicas": spec["maxReplicaCount"]}
        autoscaler = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "any"}}
        kubernetes_validate.validate({**autoscaler, "spec": {**target, **advanced["horizontalPodAutoscalerConfig"]}}, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_has_the_fields_of_its_schema(path: Path, version: str) -> None:
    """No field is unknown or of the wrong type, in the oldest and in the newest Kubernetes."""
    for manifest in manifests_of(path):
        check_schema(manifest, version)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_every_file_is_part_of_its_kustomization(path: Path) -> None:
    """Every file that is listed is there, and every file that is there is listed."""
    (kustomization,) = manifests_of(path)
    listed = [*kustomization.get("resources", ()), *kustomization.get("components", ())]
    listed += [name for generator in kustomization.get("configMapGenerator", ()) for name in generator["envs"]]
    assert all((path.parent / name).exists() for name in listed)
    assert {file.name for file in path.parent.iterdir()} - {path.name} == {name for name in listed if not name.startswith("..")}


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_each_process_accepts_its_settings(deployment: Manifest, tmp_path: Path) -> None:
    """The program reads the environment as in the pod, with each secret in the file that is mounted there; no name is a typo."""
    role, variables = role_of(deployment), variables_of(deployment)
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(deployment)["volumeMounts"]}
    (items,) = (volume["secret"]["items"] for volume in pod_of(deployment)["volumes"] if "secret" in volume)
    mounted = {f"{mounts['secrets']}/{item['path']}" for item in items}
    assert mounts["secrets"] == SECRETS_AT
    secret_names = [name for name in variables if name.removesuffix("_FILE") in SECRETS]
    assert {variables[name] for name in secret_names} == mounted
    (tmp_path / "secret").write_text("0123456789abcdef" * 4 + "\n")
    here = {**variables, **QUEUE, **{name: str(tmp_path / "secret") for name in secret_names}}
    program = PROGRAMS.get(role, f"worker {role}")
    READERS[program](here)
    assert unknown_settings(here) == []
    assert {name.removesuffix("_FILE") for name in variables} <= documented_settings()
    assert not [name for name in {**BASE, **EXAMPLE} if name in SECRETS]
    assert {*BASE, *variables_of_role(deployment)} & set(EXAMPLE) == set()
    # The image's entry point is ``python -m``, by a program that reaps processes and passes signals on.
    assert container_of(deployment)["args"] == program.split()
    assert "command" not in container_of(deployment)


def variables_of_role(deployment: Manifest) -> list[str]:
    """The names of the variables that only this role has."""
    return [variable["name"] for variable in container_of(deployment)["env"]]


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_ports_are_those_that_the_program_listens_on(deployment: Manifest) -> None:
    """The API's default port, and the port of the metrics, which Prometheus is told; probes ask a port that is there."""
    ports = {port["name"]: port["containerPort"] for port in container_of(deployment)["ports"]}
    metrics = int(IMAGE["SITELINK_METRICS_PORT"])
    is_api = role_of(deployment) == "api"
    assert ports == ({"http": ApiSettings.port, "metrics": metrics} if is_api else {"metrics": metrics})
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"prometheus.io/scrape": "true", "prometheus.io/port": str(metrics)}
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/livez" if is_api else "/readyz"), ("livenessProbe", "/livez")):
        assert container_of(deployment)[probe]["httpGet"] == {"path": path, "port": "http" if is_api else "metrics"}


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_a_pod_has_the_time_that_its_process_takes_to_stop(deployment: Manifest) -> None:
    """Kubernetes kills it later than the program itself gives up."""
    container, role = container_of(deployment), role_of(deployment)
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    assert hook[0] == "sleep"
    longest_s = GRACE_S if role in PROGRAMS else LONGEST_STOP[role].total_seconds()
    assert pod_of(deployment)["terminationGracePeriodSeconds"] >= longest_s + int(hook[1]) + 10


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_a_pod_may_do_little(deployment: Manifest) -> None:
    """No root, no writable system, no privilege, no token of the cluster, no variable that looks like a setting."""
    pod, container = pod_of(deployment), container_of(deployment)
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
    assert pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    # The Service's links are SITELINK_API_PORT and so on.
    assert pod["enableServiceLinks"] is False
    # What is no part of the system may be written, within bounds.
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {IMAGE["SITELINK_DATA_DIR"], "/tmp", SECRETS_AT}  # noqa: S108 - in the pod
    assert all("secret" in volume or volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_a_pod_runs_as_the_user_of_the_image(deployment: Manifest) -> None:
    """Kubernetes needs the number to know that it is not root."""
    *_, (user, group) = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE.read_text(), re.MULTILINE)
    context = pod_of(deployment)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user), int(group), int(group))


def test_a_tile_worker_has_room_for_its_slots_and_its_scratch() -> None:
    """The kernel must not end the worker before a page's own limit does, nor the kubelet before the scratch's limit."""
    (deployment,) = (parameter.values[0] for parameter in of_kind("Deployment") if role_of(parameter.values[0]) == "tile")
    variables, container = variables_of(deployment), container_of(deployment)
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    slots = int(variables["SITELINK_RENDER_SLOTS"])
    assert slots == 2 == quantity(requests["cpu"])
    page_bytes = int(variables.get("SITELINK_RENDER_MEMORY_BYTES", ChildLimits.memory_bytes))
    assert quantity(limits["memory"]) >= slots * page_bytes + (2 << 30)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    sizes = {volume["name"]: quantity(volume["emptyDir"]["sizeLimit"]) for volume in pod_of(deployment)["volumes"] if "emptyDir" in volume}
    scratch = sizes[mounts[variables["SITELINK_DATA_DIR"]]]
    assert "SITELINK_SCRATCH_DIR" not in variables
    # Beside the tiles that wait lie the pages in work, each of at most two thirds of its memory, and the PDFs of the uploads.
    assert scratch >= int(variables["SITELINK_SCRATCH_LIMIT_BYTES"]) + slots * page_bytes + 8 * ApiSettings.max_file_bytes
    assert quantity(limits["ephemeral-storage"]) > sum(sizes.values())


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_the_api_has_memory_for_its_uploads(deployment: Manifest) -> None:
    """Each role has resources; the API's memory holds the uploads that it receives, twice."""
    resources = container_of(deployment)["resources"]
    assert resources["requests"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert resources["limits"].keys() == {"memory", "ephemeral-storage"}
    if role_of(deployment) == "api":
        assert quantity(resources["limits"]["memory"]) >= 2 * ApiSettings.upload_memory_bytes + (1 << 30)


@pytest.mark.parametrize("deployment", of_kind("Deployment"))
def test_each_pod_is_spread_and_has_a_budget(deployment: Manifest) -> None:
    """Selectors select these pods and no others; one pod may be away at once, and none for a new version."""
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == deployment["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": "sitelink", "app.kubernetes.io/component": role_of(deployment)}
    spread = pod_of(deployment)["topologySpreadConstraints"]
    assert [constraint["topologyKey"] for constraint in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert all(constraint["labelSelector"]["matchLabels"] == labels for constraint in spread)
    name = deployment["metadata"]["name"]
    (budget,) = (parameter.values[0] for parameter in of_kind("PodDisruptionBudget") if parameter.values[0]["metadata"]["name"] == name)
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    assert deployment["spec"]["replicas"] > 1
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_network_policies_let_each_pod_reach_what_it_needs() -> None:
    """Everybody: names, Temporal; all but the workflow workers: the bucket, by https, and never the node's metadata."""
    policies = {parameter.values[0]["metadata"]["name"]: parameter.values[0]["spec"] for parameter in of_kind("NetworkPolicy")}

    def egress_ports(role: str) -> set[int]:
        return {
            port["port"]
            for policy in policies.values()
            if selects(policy["podSelector"], {"app.kubernetes.io/name": "sitelink", "app.kubernetes.io/component": role})
            for rule in policy.get("egress", ())
            for port in rule["ports"]
        }

    assert egress_ports("workflow") == {53, 7233}
    for role in ("api", "tile", "webhook", "events"):
        assert egress_ports(role) == {53, 7233, 443}
    (rule,) = policies["sitelink-bucket"]["egress"]
    assert ["169.254.0.0/16"] in [block["ipBlock"]["except"] for block in rule["to"]]
    assert [rule["ports"] for rule in policies["sitelink"]["ingress"]] == [[{"port": "metrics"}]]
    assert [rule["ports"] for rule in policies["sitelink-api"]["ingress"]] == [[{"port": "http"}]]
    assert EXAMPLE["TEMPORAL_ADDRESS"].endswith(":7233")
    assert EXAMPLE["SITELINK_S3_ENDPOINT"].startswith("https://")


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels selects these labels."""
    return selector["matchLabels"].items() <= labels.items() and all(
        expression["operator"] == "In" and labels[expression["key"]] in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


def test_autoscalers_ask_for_what_there_is() -> None:
    """Queues, metric and Deployments have the names that the program and the base give them."""
    scaled = {parameter.values[0]["metadata"]["name"]: parameter.values[0]["spec"] for parameter in of_kind("ScaledObject")}
    triggers = {name: {trigger["type"]: trigger["metadata"] for trigger in spec["triggers"]} for name, spec in scaled.items()}
    assert triggers["sitelink-tile"]["temporal"]["taskQueue"] == TILE_QUEUE
    assert triggers["sitelink-tile"]["temporal"]["queueTypes"] == "activity"
    assert triggers["sitelink-workflow"]["temporal"]["taskQueue"] == WORKFLOW_QUEUE
    assert triggers["sitelink-workflow"]["temporal"]["queueTypes"] == "workflow"
    for metadata in (triggers["sitelink-tile"]["temporal"], triggers["sitelink-workflow"]["temporal"]):
        assert {metadata["endpointFromEnv"], metadata["namespaceFromEnv"]} <= EXAMPLE.keys()
    (metric,) = re.findall(r"[a-z]+_[a-z_]+", triggers["sitelink-tile"]["prometheus"]["query"])
    assert f"| `{metric}` | workflow |" in README.read_text()
    deployments = {parameter.values[0]["metadata"]["name"] for parameter in of_kind("Deployment")}
    for spec in (*scaled.values(), *(parameter.values[0]["spec"] for parameter in of_kind("HorizontalPodAutoscaler"))):
        assert spec["scaleTargetRef"]["name"] in deployments
        # A tile worker at least, and more than one of each, so that one may go.
        assert spec.get("minReplicaCount", spec.get("minReplicas")) == 2
        assert spec.get("maxReplicaCount", spec.get("maxReplicas")) > 2


def test_the_ingress_leads_to_the_service() -> None:
    """And the Service to the API's pods."""
    (ingress,), (service,) = ([parameter.values[0] for parameter in of_kind(kind)] for kind in ("Ingress", "Service"))
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}
    assert rule["host"] == EXAMPLE["SITELINK_PUBLIC_HOSTS"] == ingress["spec"]["tls"][0]["hosts"][0]
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert service["spec"]["selector"] == {"app.kubernetes.io/name": "sitelink", "app.kubernetes.io/component": "api"}


def test_readme_makes_the_secret_that_the_pods_mount() -> None:
    """With the keys that the base needs; and what it applies is there, in the namespace that it has made."""
    (created, secret, applied, shown) = commands("kubectl")
    keys = {word.removeprefix("--from-file=") for word in secret if word.startswith("--from-file=")}
    pods = [pod_of(manifest) for path, manifest in MANIFESTS if manifest["kind"] == "Deployment" and path.parent.name == "base"]
    volumes = [volume["secret"] for pod in pods for volume in pod["volumes"] if "secret" in volume]
    assert keys == {item["key"] for volume in volumes for item in volume["items"]}
    assert {volume["secretName"] for volume in volumes} == {secret[6]}
    assert applied[:3] == ["kubectl", "apply", "-k"]
    (kustomization,) = manifests_of(FOLDER.parents[1] / applied[3] / "kustomization.yaml")
    assert {created[3], secret[2], shown[2]} == {kustomization["namespace"]}


@pytest.fixture(scope="module")
def kustomize() -> Path:
    """The program. Without it a test run on CI fails; elsewhere its tests are skipped."""
    binary = installed_kustomize(CACHE)
    if binary is None:
        miss("No kustomize here; `make test` gets it first.")
    return binary


def rendered(kustomize: Path, folder: Path) -> list[Manifest]:
    """What ``kubectl apply -k`` would send."""
    build = subprocess.run([kustomize, "build", folder], capture_output=True, text=True, timeout=300, check=False)
    assert build.returncode == 0, build.stderr
    assert "deprecated" not in build.stderr
    return [document for document in yaml.safe_load_all(build.stdout) if document]


def test_the_example_is_rendered_for_its_namespace(kustomize: Path) -> None:
    """Every manifest is valid and in the namespace; every pod has the image and the settings of the overlay."""
    manifests = rendered(kustomize, FOLDER / "overlays" / "example")
    for manifest in manifests:
        check_schema(manifest, KUBERNETES_VERSIONS[-1])
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "sitelink"
    (settings,) = (manifest for manifest in manifests if manifest["kind"] == "ConfigMap")
    assert settings["data"] == {**BASE, **EXAMPLE}
    for deployment in deployments_in(manifests):
        container = container_of(deployment)
        assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
        assert container["image"] == "registry.example.com/sitelink:0.1.0"


@pytest.mark.parametrize("component", ["", *COMPONENTS])
def test_each_component_is_rendered_with_the_base(kustomize: Path, tmp_path: Path, component: str) -> None:
    """Valid manifests; Kubernetes does not set the number of pods where an autoscaler does; each autoscaler is the only one."""
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": [os.path.relpath(FOLDER / "base", tmp_path.resolve())],
                "components": [os.path.relpath(FOLDER / "components" / component, tmp_path.resolve())] if component else [],
            }
        )
    )
    manifests = rendered(kustomize, tmp_path)
    for manifest in manifests:
        check_schema(manifest, KUBERNETES_VERSIONS[-1])
        assert "namespace" not in manifest["metadata"]
    scaled = [
        manifest["spec"]["scaleTargetRef"]["name"]
        for manifest in manifests
        if manifest["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]
    assert len(scaled) == len(set(scaled)) == {"hpa": 2, "keda": 3}.get(component, 0)
    for deployment in deployments_in(manifests):
        assert ("replicas" in deployment["spec"]) == (deployment["metadata"]["name"] not in scaled)
        if component == "webhooks" and role_of(deployment) in ("api", "webhook"):
            assert variables_of(deployment)["SITELINK_WEBHOOK_SECRET_FILE"] == f"{SECRETS_AT}/SITELINK_WEBHOOK_SECRET"
            test_each_process_accepts_its_settings(deployment, tmp_path)


def deployments_in(manifests: list[Manifest]) -> Iterator[Manifest]:
    """The Deployments among them: at least the three of the base."""
    found = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    assert {role_of(deployment) for deployment in found} >= {"api", "workflow", "tile"}
    return iter(found)
