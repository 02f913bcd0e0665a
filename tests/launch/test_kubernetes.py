"""launch/kubernetes.yaml is what the API takes, and says what the launchers mean by their exit statuses."""

from typing import Any

import pytest

from logtrain.core.entry import INTERRUPTED, RANK_LOST, WRONG_INPUT
from tests.support import LAUNCH

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with transformers")

# What the API (batch/v1 and v1, Kubernetes 1.31 and later) says of the fields used: {} any value, a type, or values.
PORT = {"name": str, "port": int}
SERVICE = {"clusterIP": ["None"], "publishNotReadyAddresses": bool, "selector": {str: str}, "ports": [PORT]}
RULE = {
    "action": ["Ignore", "FailJob", "Count", "FailIndex"],
    "onExitCodes": {"containerName": str, "operator": ["In", "NotIn"], "values": [int]},
    "onPodConditions": [{"type": str, "status": ["True", "False", "Unknown"]}],
}
TERM = {"topologyKey": str, "labelSelector": {"matchLabels": {str: str}}}
CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str}],
    "lifecycle": {"preStop": {"exec": {"command": [str]}}},
    "resources": {"limits": {str: int}},
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}
VOLUME = {"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": ["", "Memory"]}}
POD = {
    "restartPolicy": ["Never", "OnFailure"],
    "subdomain": str,
    "terminationGracePeriodSeconds": int,
    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [TERM]}},
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
JOB = {
    "completionMode": ["Indexed", "NonIndexed"],
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podReplacementPolicy": ["Failed", "TerminatingOrFailed"],
    "podFailurePolicy": {"rules": [RULE]},
    "template": {"metadata": {"labels": {str: str}}, "spec": POD},
}


@pytest.fixture(scope="module")
def objects() -> dict[str, dict]:
    documents = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def check(value: Any, schema: Any, where: str) -> None:
    """Raises AssertionError for a field that the API does not know, or a value of another type."""
    if isinstance(schema, type):
        assert type(value) is schema, f"{where} = {value!r}"
    elif isinstance(schema, dict) and str in schema:
        assert all(isinstance(key, str) and type(inner) is schema[str] for key, inner in value.items()), where
    elif isinstance(schema, dict):
        assert isinstance(value, dict), where
        assert value.keys() <= schema.keys(), f"{where}: {value.keys() - schema.keys()}"
        for key, inner in value.items():
            check(inner, schema[key], f"{where}.{key}")
    elif isinstance(schema[0], str):
        assert value in schema, f"{where} = {value!r}"
    else:
        for i, inner in enumerate(value):
            check(inner, schema[0], f"{where}[{i}]")


def test_the_fields_are_the_apis(objects):
    assert {kind: of["apiVersion"] for kind, of in objects.items()} == {"Service": "v1", "Job": "batch/v1"}
    check(objects["Service"]["spec"], SERVICE, "Service")
    check(objects["Job"]["spec"], JOB, "Job")


def test_the_official_schema(objects):
    """With `pip install kubernetes-validate`, which carries it."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (22 MB) beside the tests")
    for document in objects.values():
        validate.validate(document, "1.31", strict=True)


def test_statuses_mean_what_the_launchers_mean(objects):
    spec = objects["Job"]["spec"]
    actions = {
        code: rule["action"]
        for rule in reversed(spec["podFailurePolicy"]["rules"])
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {INTERRUPTED: "Ignore", WRONG_INPUT: "FailJob"}
    assert RANK_LOST not in actions  # counts, and is tried again
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else the API refuses podFailurePolicy


def test_pods_find_the_first_by_its_name(objects):
    job, service = objects["Job"], objects["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {item["name"]: item["value"] for item in container["env"]}
    host, port = environment["PET_RDZV_ENDPOINT"].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert int(environment["PET_NNODES"]) == job["spec"]["parallelism"] == job["spec"]["completions"]
    assert "--resume=auto" in container["args"]
