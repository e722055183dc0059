"""What can be checked of `infra/` without a cloud."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import typer
import yaml

from model.commands import annotate
from pipeline.commands.flags import typer_command
from pipeline.executors.metrics import METRICS


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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_tests_of_float_sums_run_as_on_another_processor_too(repository: Path) -> None:
    done = subprocess.run(["make", "-n", "test-variant"], cwd=repository, capture_output=True, text=True, check=True)
    listed = {word for word in done.stdout.split() if word.startswith("tests/")}
    assert all((repository / name).is_file() for name in listed)
    tests = (repository / "tests").rglob("test_*.py")
    summing = {path for path in tests if re.search(r"^from tests\.numeric", path.read_text(), re.MULTILINE)}
    assert summing
    assert {path.relative_to(repository).as_posix() for path in summing} <= listed, "the Makefile's NUMERIC lacks them"
    assert "make test-variant\n" in (repository / ".ci/run").read_text()


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


def instructions(path: Path) -> list[str]:
    """Of a Dockerfile, one a line, without comments."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_images_are_built_of_what_is_there(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    extras, installed = project["project"]["optional-dependencies"], {}
    for path in (repository / "infra/docker").glob("Dockerfile.*"):
        lines = instructions(path)
        copied = [
            name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
        ]
        assert all((repository / name).exists() for name in copied), copied
        named = [name for line in lines for found in re.findall(r"'\.\[([\w,]+)\]'", line) for name in found.split(",")]
        assert set(named) <= set(extras), path.name
        if named:  # what the build reads beside the packages themselves
            needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
            assert needed | {"pipeline", "model"} <= set(copied), path.name
        installed[path.name] = set(named)
    assert "app" in installed["Dockerfile.cpu"]


def test_the_public_desk_is_started_by_flags_that_exist(repository: Path) -> None:
    image = {
        line.split(" ", 1)[0]: line.split(" ", 1)[1]
        for line in instructions(repository / "infra/docker/Dockerfile.desk")
    }
    compose = yaml.safe_load((repository / "infra/desk/compose.yaml").read_text(encoding="utf-8"))
    caddy = (repository / "infra/desk/Caddyfile").read_text(encoding="utf-8")
    desk = compose["services"]["desk"]
    assert f"-t {image['FROM']} " in (repository / "infra/docker/Dockerfile.cpu").read_text(encoding="utf-8")
    assert f"-t {desk['image']} " in (repository / "infra/docker/Dockerfile.desk").read_text(encoding="utf-8")
    entry = json.loads(image["ENTRYPOINT"])
    for command in (json.loads(image["CMD"]), desk["command"]):
        given = flags_of_annotate([*entry, *command])
        assert given["read_only"] is True
        assert given["images"][0].startswith(json.loads(image["VOLUME"])[0])
    assert caddy.split()[0] == annotate._origin(given["origin"][0]).partition("://")[2]
    assert f"reverse_proxy 127.0.0.1:{given['port']}\n" in caddy
    assert desk["network_mode"] == "service:proxy"  # the desk answers at the loopback address alone
    assert list(desk["environment"]) == [annotate.TOKEN_VARIABLE]
    assert {each.rpartition(":")[0].rpartition(":")[2] for each in desk["volumes"]} == {"/data"}


def flags_of_annotate(words: list[str]) -> dict[str, Any]:
    """What the command line makes of words, without running it."""
    assert words[:2] == ["grainmill", "annotate"]
    app = typer.Typer()
    app.command()(typer_command(annotate.run))
    return typer.main.get_command(app).make_context("annotate", words[2:]).params


def test_the_dashboard_shows_metrics_that_exist(repository: Path) -> None:
    dashboard = json.loads((repository / "infra/monitoring/grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for text in expressions for name in re.findall(r"ray_(grainmill_\w+)", text)}
    assert named == set(METRICS), "a metric that nobody exports, or one that nobody shows"
    for text in expressions:
        for name, labels in re.findall(r"by \((\w+)\) \(rate\(ray_(\w+)", text):
            assert name in METRICS[labels][1], f"{text}: {labels} has no label {name}"
        for name in re.findall(r"ray_(grainmill_\w+)", text):
            counts = METRICS[name][0] == "counter"
            assert (f"rate(ray_{name}[" in text) == counts, f"{text}: a rate of a gauge, or a counter without one"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_prometheus_keeps_what_the_dashboard_needs(repository: Path) -> None:
    scrape = yaml.safe_load((repository / "infra/monitoring/prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = scrape["scrape_configs"]
    (rule,) = job["metric_relabel_configs"]
    assert rule["action"] == "keep"
    assert all(re.fullmatch(rule["regex"], f"ray_{name}") for name in METRICS)


def ray_start_flags(repository: Path) -> set[str]:
    """Every flag that some file here gives to `ray start`, as a parameter of a manifest or on a command line."""
    found = set()
    for path in (repository / "infra").rglob("*"):
        if path.suffix in {".yaml", ".sbatch"}:
            text = path.read_text(encoding="utf-8").replace("\\\n", " ")
            for line in re.findall(r"ray start ([^\n]*)", text):
                found |= set(re.findall(r"--[a-z][a-z-]+", line))
    for manifest in manifests(repository):
        if manifest["apiVersion"] == "ray.io/v1":
            spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
            for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
                found |= {f"--{name}" for name in group["rayStartParams"]}
    return found


def test_flags_of_ray_start_exist(repository: Path) -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    found = ray_start_flags(repository)
    assert {"--head", "--address", "--num-cpus"} <= found
    assert found <= known


def test_every_cluster_is_guarded_by_a_token(repository: Path) -> None:
    for name in ("ray/aws.yaml", "ray/gcp.yaml"):
        cluster = yaml.safe_load((repository / "infra" / name).read_text(encoding="utf-8"))
        assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
        assert "~/.ray/auth_token" in cluster["file_mounts"]
    for manifest in manifests(repository):
        if manifest["apiVersion"] == "ray.io/v1":
            for template in pod_templates(manifest["spec"]):
                for container in template["spec"]["containers"]:
                    variables = {each["name"]: each for each in container["env"]}
                    assert variables["RAY_AUTH_MODE"]["value"] == "token"
                    assert "secretKeyRef" in variables["RAY_AUTH_TOKEN"]["valueFrom"]
    assert "export RAY_AUTH_MODE RAY_AUTH_TOKEN" in (repository / "infra/slurm/mine.sbatch").read_text(encoding="utf-8")


def test_versions_agree(repository: Path) -> None:
    pinned = re.search(r"^ray==(\S+)$", (repository / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned is not None
    for manifest in manifests(repository):
        if manifest["apiVersion"] == "ray.io/v1":
            spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
            assert spec["rayVersion"] == pinned.group(1)


def test_the_readme_lists_every_file(repository: Path) -> None:
    readme = (repository / "infra/README.md").read_text(encoding="utf-8")
    for path in (repository / "infra").rglob("*"):
        if path.is_file() and path.suffix not in {".pyc"} and path.name not in {"README.md", "make_venv.sh"}:
            assert f"`{path.relative_to(repository / 'infra')}`" in readme, path
