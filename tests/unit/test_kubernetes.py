"""The manifests, as they stand: valid for Kubernetes, right about Tidegate, and as locked down as the docs say.

KEDA's ScaledObject is not part of Kubernetes' schemas. Its fields are written down here, strictly: what its reference
does not name is refused.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import kubernetes_validate
import msgspec
import pytest
import yaml
from msgspec import Meta
from typer.main import get_command

from pipelines.cli.main import found_commands
from pipelines.config import load

ROOT = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
KUBERNETES = ("1.29", "1.32", kubernetes_validate.latest_version())
OWN_KINDS = ("Kustomization", "ScaledObject")


class _Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class _Target(_Strict):
    name: str
    api_version: str = msgspec.field(name="apiVersion", default="apps/v1")
    kind: str = "Deployment"
    envSourceContainerName: str = ""  # noqa: N815 - KEDA's own name


class _Policy(_Strict):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Meta(gt=0)]
    periodSeconds: Annotated[int, Meta(gt=0, le=1800)]  # noqa: N815


class _Rules(_Strict):
    policies: list[_Policy] = []
    stabilizationWindowSeconds: Annotated[int, Meta(ge=0, le=3600)] = 0  # noqa: N815
    selectPolicy: Literal["Max", "Min", "Disabled"] = "Max"  # noqa: N815
    tolerance: str = ""


class _Behavior(_Strict):
    scaleUp: _Rules  # noqa: N815
    scaleDown: _Rules  # noqa: N815


class _HpaConfig(_Strict):
    behavior: _Behavior
    name: str = ""


class _Advanced(_Strict):
    horizontalPodAutoscalerConfig: _HpaConfig  # noqa: N815
    restoreToOriginalReplicaCount: bool = False  # noqa: N815


class _Fallback(_Strict):
    failureThreshold: Annotated[int, Meta(ge=1)]  # noqa: N815
    replicas: Annotated[int, Meta(ge=1)]
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"] = "static"


class _PrometheusMetadata(_Strict):
    """KEDA takes strings only."""

    serverAddress: str  # noqa: N815
    query: str
    threshold: str
    activationThreshold: str = "0"  # noqa: N815
    ignoreNullValues: Literal["true", "false"] = "true"  # noqa: N815
    namespace: str = ""
    customHeaders: str = ""  # noqa: N815
    queryParameters: str = ""  # noqa: N815
    unsafeSsl: Literal["true", "false"] = "false"  # noqa: N815


class _Trigger(_Strict):
    type: Literal["prometheus"]
    metadata: _PrometheusMetadata
    name: str
    # The fallback works with this type only.
    metricType: Literal["AverageValue"]  # noqa: N815
    useCachedMetrics: bool = False  # noqa: N815


class _Spec(_Strict):
    scaleTargetRef: _Target  # noqa: N815
    minReplicaCount: Annotated[int, Meta(ge=1)]  # noqa: N815
    maxReplicaCount: Annotated[int, Meta(ge=1)]  # noqa: N815
    triggers: Annotated[list[_Trigger], Meta(min_length=1)]
    fallback: _Fallback
    advanced: _Advanced
    pollingInterval: Annotated[int, Meta(ge=1)] = 30  # noqa: N815
    cooldownPeriod: int = 300  # noqa: N815


class _ScaledObject(_Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]  # noqa: N815
    kind: Literal["ScaledObject"]
    metadata: dict[str, Any]
    spec: _Spec


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.relative_to(ROOT)}:{document['kind']}-{document.get('metadata', {}).get('name', '')}", document)
        for path in sorted(ROOT.rglob("*.yaml"))
        if path.name != "pipeline.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


DOCUMENTS = dict(documents())
PIPELINE = load(ROOT / "overlays" / "both" / "pipeline.yaml")


def of_kind(*kinds: str) -> list[Any]:
    return [pytest.param(one, id=name) for name, one in DOCUMENTS.items() if one["kind"] in kinds]


@pytest.mark.parametrize(
    "document", [pytest.param(d, id=n) for n, d in DOCUMENTS.items() if d["kind"] not in OWN_KINDS]
)
@pytest.mark.parametrize("version", KUBERNETES)
def test_a_manifest_is_what_kubernetes_takes(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_a_mistake_would_be_found():
    document = yaml.safe_load((ROOT / "base" / "edge" / "settler.yaml").read_text())
    document["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("document", of_kind("ScaledObject"))
def test_a_scaled_object_is_what_keda_takes_and_ends_at_the_partitions(document):
    spec = msgspec.convert(document, _ScaledObject).spec
    assert spec.maxReplicaCount == PIPELINE.partitions
    assert spec.minReplicaCount <= spec.fallback.replicas <= spec.maxReplicaCount
    name = spec.scaleTargetRef.name
    (target,) = [one for one in DOCUMENTS.values() if one["kind"] == "Deployment" and one["metadata"]["name"] == name]
    assert "replicas" not in target["spec"], "an apply would take back what KEDA did"
    queries = " ".join(trigger.metadata.query for trigger in spec.triggers)
    assert "tidegate_group_seconds_behind" in queries
    group = PIPELINE.topics.edge_group if name == "edge-worker" else "cloud"
    assert queries.count(f'group="{group}"') == queries.count("{")


@pytest.mark.parametrize("document", of_kind("Deployment", "Job"))
def test_a_pod_may_do_nothing_that_it_need_not(document):
    pod = document["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("document", of_kind("Deployment"))
def test_a_worker_is_probed_labelled_and_called_as_the_command_line_has_it(document):
    template = document["spec"]["template"]
    assert document["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    for probe, path in (("startupProbe", "/healthz"), ("readinessProbe", "/healthz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": "metrics"}
    assert container["ports"] == [{"name": "metrics", "containerPort": 9464}]
    assert {"name": "TIDEGATE_METRICS", "value": "0.0.0.0:9464"} in container["env"]
    command, *arguments = container["args"]
    known = {option for one in get_command(found_commands()[command].load()).params for option in one.opts}
    assert {word for word in arguments if word.startswith("--")} <= known


@pytest.mark.parametrize("document", of_kind("PodDisruptionBudget"))
def test_a_disruption_budget_is_for_a_deployment_that_is_there(document):
    labels = document["spec"]["selector"]["matchLabels"]
    assert [
        one
        for one in DOCUMENTS.values()
        if one["kind"] == "Deployment" and labels.items() <= one["spec"]["template"]["metadata"]["labels"].items()
    ]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("kustomization.yaml")), ids=lambda path: str(path.parent.name))
def test_a_kustomization_names_what_is_there_and_leaves_nothing_out(path):
    found = yaml.safe_load(path.read_text())
    named = {(path.parent / name).resolve() for name in found["resources"]}
    generated = {path.parent / name for maps in found.get("configMapGenerator", []) for name in maps["files"]}
    assert [one for one in named | generated if not one.exists()] == []
    assert {one for one in path.parent.glob("*.yaml") if one != path} == {
        one for one in named if one.is_file()
    } | generated


def test_what_pods_mount_is_brought_by_the_overlay():
    claims, maps = set(), set()
    for document in DOCUMENTS.values():
        if document["kind"] in ("Deployment", "Job"):
            for volume in document["spec"]["template"]["spec"]["volumes"]:
                claims |= {volume["persistentVolumeClaim"]["claimName"]} if "persistentVolumeClaim" in volume else set()
                maps |= {volume["configMap"]["name"]} if "configMap" in volume else set()
    overlay = yaml.safe_load((ROOT / "overlays" / "both" / "kustomization.yaml").read_text())
    assert maps == {one["name"] for one in overlay["configMapGenerator"]}
    assert claims == {one["metadata"]["name"] for one in DOCUMENTS.values() if one["kind"] == "PersistentVolumeClaim"}
