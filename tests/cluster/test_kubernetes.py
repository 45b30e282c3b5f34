"""jobs/k8s as kustomize renders it: valid, restricted, and consistent with the program."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ppar_dist import exit_codes
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.launch import front
from tests.cluster.pods_manifests import (
    K8S,
    OVERLAYS,
    Manifest,
    container,
    jobs,
    one,
    overlay,
    pod_spec,
    render,
)
from tests.cluster.pods_policy import KILLED, decision, jobset_decision

REPOSITORY = K8S.parents[1]
VERSIONS = ("1.33", "1.35", "1.37")  # of Kubernetes
SCHEMAS = {
    kind: yaml.safe_load((Path(__file__).parent / "schemas" / f"{kind.lower()}.yaml").read_text())
    for kind in ("JobSet", "PodMonitor")
}
FOLDERS = [K8S / "storage", K8S / "demo", *(K8S / "overlays" / name for name in OVERLAYS)]


def check(manifest: Manifest) -> None:
    """Raise where the API server would refuse a manifest, or drop a field of it."""
    if manifest["kind"] in SCHEMAS:
        jsonschema.Draft7Validator(SCHEMAS[manifest["kind"]]).validate(manifest)
        for job in jobs([manifest]):
            check(job)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_manifest_is_valid_without_a_field_too_many(folder: Path) -> None:
    manifests = render(folder)
    assert manifests
    for manifest in manifests:
        check(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "ppar"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Job", ("spec", "template", "spec", "terminationGracePeriod"), 180),
        ("Job", ("spec", "podFailurePolicy", "rules", 0, "action"), 1),
        ("JobSet", ("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
        ("JobSet", ("spec", "failurePolicy", "maxRestart"), 3),
        ("JobSet", ("spec", "replicatedJobs", 0, "template", "spec", "completion"), 3),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0, "relabelings", 0, "source_labels"), ["a"]),
        ("NetworkPolicy", ("spec", "ingress", 1, "ports", 0, "end"), 18415),
    ],
)
def test_a_slip_of_the_pen_is_refused(kind: str, path: tuple[Any, ...], value: Any) -> None:
    manifest = copy.deepcopy(one(overlay("indexed-job" if kind == "Job" else "jobset"), kind))
    *way, last = path
    node: Any = manifest
    for step in way:
        node = node[step]
    node[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(manifest)


ALLOWED_VOLUMES = {
    *(
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    )
}


def trespasses(spec: Manifest) -> Iterator[str]:
    """What the Pod Security Standard "restricted" forbids in a pod."""
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key))
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= ALLOWED_VOLUMES:
            yield f"volume {volume['name']}"
    for each in [*spec["containers"], *spec.get("initContainers", [])]:
        if any(port.get("hostPort") for port in each.get("ports", [])):
            yield "hostPort"
        # What a container does not say, its pod may have said.
        yield from _trespasses({**spec.get("securityContext", {}), **each.get("securityContext", {})})


def _trespasses(context: Manifest) -> Iterator[str]:
    capabilities = context.get("capabilities", {})
    fine = {
        "privileged": not context.get("privileged"),
        "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
        "capabilities": capabilities.get("drop") == ["ALL"] and not capabilities.get("add"),
        "runAsNonRoot": context.get("runAsNonRoot") is True,
        "runAsUser": context.get("runAsUser") != 0,
        "seccompProfile": context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
    }
    yield from (name for name, kept in fine.items() if not kept)


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda folder: folder.name)
def test_pods_are_restricted_and_cannot_write_where_they_need_not(folder: Path) -> None:
    for job in jobs(render(folder)):
        spec = pod_spec(job)
        assert list(trespasses(spec)) == []
        assert spec["automountServiceAccountToken"] is False
        (each,) = spec["containers"]
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
        writable = {mount["mountPath"] for mount in each["volumeMounts"] if not mount.get("readOnly")}
        storage = "/data" if folder.name == "demo" else "/runs"
        assert writable == {storage, "/tmp", "/dev/shm"}
        sources = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in each["volumeMounts"]} == set(sources)
        assert sources["shm"]["emptyDir"]["medium"] == "Memory"


def test_the_check_of_pod_security_knows_a_trespass() -> None:
    spec = copy.deepcopy(pod_spec(one(overlay("indexed-job"), "Job")))
    spec["hostNetwork"] = True
    spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})
    spec["securityContext"] = {}
    spec["containers"][0]["securityContext"] = {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}
    assert set(trespasses(spec)) == {
        "hostNetwork",
        "volume host",
        "allowPrivilegeEscalation",
        "capabilities",
        "runAsNonRoot",
        "seccompProfile",
    }


RDMA = "rdma/hca_shared_devices_a"
NO_RETRY = (exit_codes.CONFIG, exit_codes.INTERNAL, exit_codes.INTERRUPTED)


def test_a_plain_job_goes_by_the_exit_codes() -> None:
    job = one(overlay("indexed-job"), "Job")
    assert {decision(job, code)[0] for code in NO_RETRY} == {"FailJob"}
    assert {decision(job, code)[0] for code in (exit_codes.RESUME, KILLED)} == {"Count"}
    assert {decision(job, code, disrupted=True)[0] for code in (exit_codes.RESUME, KILLED)} == {"Ignore"}
    assert decision(job, exit_codes.CONFIG, disrupted=True)[0] == "FailJob"
    assert job["spec"]["backoffLimit"] >= 20
    assert "backoffLimitPerIndex" not in job["spec"]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize("name", ["jobset", "kueue", "rdma", "cpu"])
def test_a_jobset_goes_by_the_exit_codes(name: str) -> None:
    jobset = one(overlay(name), "JobSet")
    assert {jobset_decision(jobset, code) for code in NO_RETRY} == {"FailJobSet"}
    assert {jobset_decision(jobset, code) for code in (exit_codes.RESUME, KILLED)} == {"RestartJobSet"}
    for code in (exit_codes.RESUME, KILLED):
        assert jobset_decision(jobset, code, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] >= 20


def configuration(manifests: tuple[Manifest, ...], folder: Path) -> Config:
    """The configuration that the pods read."""
    path = folder / "config.yaml"
    path.write_text(one(manifests, "ConfigMap")["data"]["config.yaml"])
    return load_config(path)


@pytest.mark.parametrize("name", OVERLAYS)
def test_pods_fit_the_configuration_they_read(name: str, tmp_path: Path) -> None:
    manifests = overlay(name)
    config = configuration(manifests, tmp_path)
    for job in jobs(manifests):
        spec = pod_spec(job)
        # The job ends by itself, with a checkpoint, before the kubelet's patience does.
        needed = config.faults.grace_s + front._MARGIN_S
        assert spec["terminationGracePeriodSeconds"] > needed
        assert str(config.run.dir).startswith("/runs/")
        assert str(config.data.root).startswith("/data/")
        assert all(str(folder).startswith("/data/") for folder in config.targets.values())
        nodes = int(argument(job, "--nodes="))
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == nodes
        gpus = container(job)["resources"]["limits"].get("nvidia.com/gpu", 1)
        assert config.train.global_batch % (nodes * gpus) == 0
        # A core for every rank and loader worker, as `doctor` asks for.
        cores = float(container(job)["resources"]["requests"]["cpu"])
        assert cores >= gpus * (1 + config.data.workers)
        load_config(
            tmp_path / "config.yaml",
            [each for each in container(job)["args"] if "=" in each[1:] and each[0] != "-"],
        )


def argument(job: Manifest, start: str) -> str:
    """The rest of the argument that starts so."""
    (found,) = [each for each in container(job)["args"] if each.startswith(start)]
    return str(found).removeprefix(start)


@pytest.mark.parametrize(
    ("name", "original"), [("jobset", "configs/gta5_vitb16.yaml"), ("cpu", "configs/demo.yaml")]
)
def test_configurations_are_those_of_the_repository_but_for_paths(
    name: str, original: str, tmp_path: Path
) -> None:
    here = configuration(overlay(name), tmp_path).model_dump()
    there = load_config(REPOSITORY / original).model_dump()
    for tree in (here, there):
        for path in (("run",), ("data", "root"), ("text", "file"), ("targets",), ("monitoring",)):
            *way, last = path
            node = tree
            for step in way:
                node = node[step]
            del node[last]
    assert here == there


def variables(job: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(job)["env"] if "value" in each}


def test_rdma_differs_from_the_default_by_a_device_and_by_what_nccl_is_told() -> None:
    (job,), (default,) = jobs(overlay("rdma")), jobs(overlay("jobset"))
    ours, limits = variables(job), container(job)["resources"]["limits"]
    added = ours.items() - variables(default).items()
    assert added == {("NCCL_NET", "IB"), ("NCCL_SOCKET_IFNAME", "=eth0")}  # IB: never TCP in silence
    assert ours["NCCL_DEBUG"] == "WARN"  # or an end with NCCL's error would not say why
    assert set(limits) - set(container(default)["resources"]["limits"]) == {RDMA}
    bare = copy.deepcopy(job)
    del container(bare)["resources"]["limits"][RDMA]
    container(bare)["env"] = container(default)["env"]
    assert bare == default


@pytest.mark.parametrize(
    ("page", "base"),
    [("jobs/k8s/components/rdma/kustomization.yaml", "rdma"), ("docs/operate/gpus.md", "jobset")],
)
def test_a_patch_that_is_recommended_does_what_it_says(page: str, base: str, tmp_path: Path) -> None:
    """As it is written there: the name of another device plugin, and several GPUs a pod."""
    text = re.sub("^# ?", "", (REPOSITORY / page).read_text(), flags=re.MULTILINE)
    (patch,) = re.findall(r"^( *)patches:\n((?:\1 +.*\n)+)", text, re.MULTILINE)[:1]
    tree = yaml.safe_load("patches:\n" + patch[1])
    tree["resources"] = [os.path.relpath(K8S / "overlays" / base, tmp_path)]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(tree))
    manifests = render(tmp_path)
    check(one(manifests, "JobSet"))
    (job,) = jobs(manifests)
    limits, ports = container(job)["resources"]["limits"], container(job)["ports"]
    if base == "rdma":
        assert "YOURS/NAME" in limits
        assert RDMA not in limits
        return
    gpus, workers = limits["nvidia.com/gpu"], configuration(manifests, tmp_path).data.workers
    assert gpus > 1
    assert float(container(job)["resources"]["requests"]["cpu"]) == gpus * (1 + workers)
    metrics = {each["name"]: each["containerPort"] for each in ports if each["name"] != "ranks"}
    assert metrics == {f"metrics-{rank}": 18400 + rank for rank in range(gpus)}


def admitted(policy: Manifest, labels: dict[str, str], namespace: str, port: int) -> bool:
    """Whether a pod so labelled, in this namespace, may connect to this port of the job's pods."""
    for rule in policy["spec"]["ingress"]:
        ports = rule.get("ports")
        if ports and not any(each["port"] <= port <= each.get("endPort", each["port"]) for each in ports):
            continue
        for peer in rule["from"]:
            where = peer.get("namespaceSelector", {}).get(
                "matchLabels", {"kubernetes.io/metadata.name": "ppar"}
            )
            inside = where["kubernetes.io/metadata.name"] == namespace
            if inside and peer["podSelector"]["matchLabels"].items() <= labels.items():
                return True
    return False


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_prometheus_reaches_the_metrics_and_only_the_job_the_ranks(name: str) -> None:
    manifests = overlay(name)
    policy, monitor = one(manifests, "NetworkPolicy"), one(manifests, "PodMonitor")
    (job,) = jobs(manifests)
    own = job["spec"]["template"]["metadata"]["labels"]
    for selector in (policy["spec"]["podSelector"], monitor["spec"]["selector"]):
        assert selector["matchLabels"].items() <= own.items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (rule,) = [each for each in endpoint["relabelings"] if each.get("action") == "keep"]
    ports = {port["name"]: port["containerPort"] for port in container(job)["ports"]}
    metrics = [number for port, number in ports.items() if re.fullmatch(rule["regex"], port)]
    gpus = container(job)["resources"]["limits"].get("nvidia.com/gpu", 1)
    assert sorted(metrics) == [18400 + rank for rank in range(gpus)]
    prometheus = {"app.kubernetes.io/name": "prometheus"}
    for port in metrics:
        assert admitted(policy, prometheus, "monitoring", port)
        assert not admitted(policy, own, "ppar", port)
        assert not admitted(policy, prometheus, "elsewhere", port)
        assert not admitted(policy, {"app": "stranger"}, "ppar", port)
    for port in (29500, 40000):
        assert admitted(policy, own, "ppar", port)
        assert not admitted(policy, prometheus, "monitoring", port)
    assert container(job)["readinessProbe"]["httpGet"]["port"] in ports
    assert "livenessProbe" not in container(job)


def test_storage_outlives_jobs_and_is_what_pods_claim() -> None:
    claims = {each["metadata"]["name"]: each for each in render(K8S / "storage") if "Claim" in each["kind"]}
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in claims.values())
    for folder in FOLDERS[1:]:
        assert not [each for each in render(folder) if each["kind"] in ("PersistentVolumeClaim", "Namespace")]
        for job in jobs(render(folder)):
            used = [
                each["persistentVolumeClaim"]["claimName"]
                for each in pod_spec(job)["volumes"]
                if "persistentVolumeClaim" in each
            ]
            assert set(used) <= set(claims)
    namespace = one(render(K8S / "storage"), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_pods_of_a_plain_job_get_names_from_its_service() -> None:
    manifests = overlay("indexed-job")
    job, service = one(manifests, "Job"), one(manifests, "Service")
    assert pod_spec(job)["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    labels = job["spec"]["template"]["metadata"]["labels"] | {"batch.kubernetes.io/job-name": "ppar"}
    assert service["spec"]["selector"].items() <= labels.items()
    assert job["spec"]["completionMode"] == "Indexed"


def test_kueue_gets_its_queue_and_the_configuration_cannot_change_under_a_job() -> None:
    labels = one(overlay("kueue"), "JobSet")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"]
    for name in OVERLAYS:
        settings = one(overlay(name), "ConfigMap")
        assert settings["immutable"] is True
        (job,) = jobs(overlay(name))
        (volume,) = [each for each in pod_spec(job)["volumes"] if each["name"] == "config"]
        assert volume["configMap"]["name"] == settings["metadata"]["name"]


def test_the_operator_gives_the_labels_that_rules_and_dashboards_go_by() -> None:
    scrape = yaml.safe_load((REPOSITORY / "jobs" / "prometheus" / "prometheus-k8s.yml").read_text())
    (by_hand,) = scrape["scrape_configs"]
    (endpoint,) = one(overlay("jobset"), "PodMonitor")["spec"]["podMetricsEndpoints"]
    theirs = [{snake(key): value for key, value in each.items()} for each in endpoint["relabelings"]]
    for label in ("run", "rank", "node"):
        rules = [each for each in by_hand["relabel_configs"] if each.get("target_label") == label]
        assert rules
        assert [each for each in theirs if each.get("target_label") == label] == rules


def snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def test_the_page_runs_the_image_that_it_pushes(tmp_path: Path) -> None:
    """The demo's line as it is in the page, with the manifests where kubectl would take them."""
    text = (REPOSITORY / "docs" / "operate" / "kubernetes.md").read_text()
    pushed = re.findall(r"docker push (\S+)", text)
    (line,) = [line for line in text.splitlines() if line.startswith("kubectl kustomize jobs/k8s/demo")]
    (program,) = re.findall(r"sed '([^']+)'", line)
    manifests = yaml.safe_dump_all(render(K8S / "demo"), sort_keys=False)
    changed = subprocess.run(["sed", program], input=manifests, capture_output=True, text=True, check=True)
    (job,) = jobs(list(yaml.safe_load_all(changed.stdout)))
    assert [container(job)["image"]] == pushed


def test_an_overlay_of_a_users_own_sets_image_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 1}\n")
    tree = {
        "resources": [os.path.relpath(K8S / "overlays" / "jobset", tmp_path)],
        "images": [{"name": "ppar-dist", "newName": "registry.example/ppar-dist", "newTag": "0.1"}],
        "configMapGenerator": [
            {"name": "ppar-config", "namespace": "ppar", "behavior": "replace", "files": ["config.yaml"]}
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(tree))
    manifests = render(tmp_path)
    (job,) = jobs(manifests)
    assert container(job)["image"] == "registry.example/ppar-dist:0.1"
    settings = one(manifests, "ConfigMap")
    assert settings["data"] == {"config.yaml": "train: {steps: 1}\n"}
    (volume,) = [each for each in pod_spec(job)["volumes"] if each["name"] == "config"]
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
