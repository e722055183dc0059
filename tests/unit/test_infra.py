"""What can be checked of `infra/` without a cloud."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml


def scripts(repository: Path) -> list[Path]:
    return [*(repository / "infra").rglob("*.sbatch"), *(repository / "infra").rglob("*.sh"), repository / ".ci/run"]


def test_scripts_parse(repository: Path) -> None:
    for path in scripts(repository):
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{path.name}: {done.stderr}"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck(repository: Path) -> None:
    done = subprocess.run(["shellcheck", *scripts(repository)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_cluster_files_meet_rays_own_schema(repository: Path, name: str) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    cluster = yaml.safe_load((repository / f"infra/ray/{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    types = cluster["available_node_types"].values()
    assert any("SPOT" in json.dumps(each).upper() for each in types), "workers are meant to be spot machines"


def manifests(repository: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((repository / "infra/kubernetes").glob("*.yaml")):
        found += list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    return found


def pod_templates(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node["template"]] if "template" in node else []
        return own + [each for value in node.values() for each in pod_templates(value)]
    if isinstance(node, list):
        return [each for value in node for each in pod_templates(value)]
    return []


def test_manifests_meet_kubernetes_schemas(repository: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kinds = set()
    for manifest in manifests(repository):
        kinds.add(manifest["kind"])
        if manifest["apiVersion"] == "ray.io/v1":
            # KubeRay's own fields are not part of Kubernetes; the pods inside them are, and are checked as pods.
            for template in pod_templates(manifest["spec"]):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
                kubernetes_validate.validate(pod, "1.33", strict=True)
        else:
            kubernetes_validate.validate(manifest, "1.33", strict=True)
    assert {"RayJob", "RayCluster"} <= kinds


RAY_CLUSTER_FIELDS = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}


def test_kuberay_fields_are_known(repository: Path) -> None:
    for manifest in manifests(repository):
        if manifest["apiVersion"] != "ray.io/v1":
            continue
        spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        assert set(spec) <= RAY_CLUSTER_FIELDS
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert set(group) <= GROUP_FIELDS
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            for container in group["template"]["spec"]["containers"]:
                limits = container["resources"]["limits"]
                assert limits.get("nvidia.com/gpu") == container["resources"]["requests"].get("nvidia.com/gpu")


def test_images_run_as_nobody_special(repository: Path) -> None:
    for path in (repository / "infra/docker").glob("Dockerfile.*"):
        lines = path.read_text(encoding="utf-8").splitlines()
        users = [line.split()[1] for line in lines if line.startswith("USER ")]
        assert users, path.name
        assert users[-1] not in {"root", "0"}
        for line in lines:
            if line.startswith("FROM "):
                assert ":" in line, f"{path.name}: {line} is not pinned"
                assert not line.endswith(":latest")
