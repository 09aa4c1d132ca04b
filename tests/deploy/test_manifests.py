"""The cluster files, held to Ray's own schema, to KubeRay's fields, and to what megpt needs of them.

- cluster.yaml and deploy/cluster-gcp.yaml pass Ray's own preparation and validation, and a broken copy does not.
- The head is on demand and offers no CPUs; GPU workers go from 0 to N; spot and on-demand workers are both there.
- Every shell command parses; every option of `ray start`, and of Ray's commands in the documents, exists in this Ray.
- Nodes install from constraints.txt with its uv; the token is carried as a file and named nowhere.
- Token authentication is on wherever Ray is started; the dashboard is not opened to the world.
- The KubeRay manifests hold only fields that KubeRay has, with the right types; volumes and mounts agree; the Ray
  version is the one of constraints.txt; a wrong field is found.
- The commands of the RayJob, README.md and docs/cluster.md are commands that megpt accepts, with absolute paths where
  they are submitted.
- No file holds a secret or an address of a machine.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from megpt import __version__
from megpt.config import load_config
from ray_jobs.__main__ import JOBS, parser

ROOT = Path(__file__).resolve().parents[2]
AUTOSCALED = ["cluster.yaml", "deploy/cluster-gcp.yaml"]
KUBERAY = ["deploy/raycluster.yaml", "deploy/rayjob.yaml"]
DOCUMENTS = ["README.md", "docs/cluster.md"]
OLDEST_DRIVER = {"12": 525, "13": 580}
"""The oldest NVIDIA driver of each CUDA version's minor releases (CUDA release notes, table 2)."""
COMMANDS = ["initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"]


def load(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(tree, dict)
    return tree


def pinned(package: str) -> str:
    return re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]


# --- ray up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUTOSCALED)
def test_ray_accepts_the_file(name: str) -> None:
    prepared = prepare_config(load(name))
    validate_config(prepared)
    for kind, node in prepared["available_node_types"].items():
        assert node["min_workers"] == 0, kind


@pytest.mark.parametrize("name", AUTOSCALED)
@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree.update(idle_timeout="10"),
        lambda tree: tree.update(head_node_type="nobody"),
        lambda tree: tree["available_node_types"]["cpu"].pop("node_config"),
        lambda tree: tree["available_node_types"]["cpu"].update(spot=True),
        lambda tree: tree.update(setup_commands="make"),
    ],
)
def test_ray_refuses_a_broken_copy(name: str, damage: Any) -> None:
    tree = copy.deepcopy(load(name))
    damage(tree)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError, TypeError)):
        validate_config(prepare_config(tree))


def is_spot(node: dict[str, Any]) -> bool:
    config = node["node_config"]
    scheduling = config.get("scheduling") or [{}]
    return (
        config.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        or scheduling[0].get("provisioningModel") == "SPOT"
    )


@pytest.mark.parametrize("name", AUTOSCALED)
def test_the_head_is_on_demand_and_workers_scale(name: str) -> None:
    tree = load(name)
    nodes = tree["available_node_types"]
    head = nodes.pop(tree["head_node_type"])
    assert not is_spot(head) and head["resources"] == {"CPU": 0}
    assert any(is_spot(node) and node["max_workers"] > 0 for node in nodes.values())
    assert sum(node["max_workers"] for node in nodes.values()) <= tree["max_workers"]
    assert 0 < tree["idle_timeout_minutes"] <= 30
    if name == "cluster.yaml":
        assert not is_spot(nodes["gpu_on_demand"])
        assert len({node["node_config"]["ImageId"] for node in [head, *nodes.values()]}) == 1


@pytest.mark.parametrize("name", AUTOSCALED)
def test_commands_parse_and_install_what_is_pinned(name: str) -> None:
    tree = load(name)
    for command in (c for group in COMMANDS for c in tree[group]):
        assert subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True).returncode == 0, command
    setup = "\n".join(tree["setup_commands"])
    assert (
        re.search(r"--constraint constraints(-aws)?\.txt", setup)
        and "--requirements pyproject.toml --extra all" in setup
    )
    read = re.search(r"\$\((sed [^)]*)\)", setup)
    assert read
    script = read[1].replace("~/megpt/constraints.txt", str(ROOT / "constraints.txt"))
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip() == pinned("uv")
    for remote, local in tree["file_mounts"].items():
        assert remote.startswith("/home/ubuntu/")
        assert local.startswith("~") or (ROOT / local).is_file()


@pytest.mark.parametrize("name", AUTOSCALED)
def test_the_token_is_carried_as_a_file_and_always_asked_for(name: str) -> None:
    tree = load(name)
    assert tree["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for group in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in tree[group]:
            assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in tree["head_start_ray_commands"][-1]
    assert f"spot_watch.py {tree['provider']['type']} " in tree["worker_start_ray_commands"][-1]


@pytest.mark.parametrize("name", AUTOSCALED)
def test_nodes_are_fit_for_patient_data(name: str) -> None:
    tree = load(name)
    assert tree["provider"]["use_internal_ips"] is True and "bastion" in tree["auth"]["ssh_proxy_command"]
    for kind, node in tree["available_node_types"].items():
        config, head = node["node_config"], kind == tree["head_node_type"]
        if name == "cluster.yaml":
            assert config["MetadataOptions"]["HttpTokens"] == "required"
            assert all(disk["Ebs"]["Encrypted"] is True for disk in config["BlockDeviceMappings"])
            assert config["SubnetIds"] and config["SecurityGroupIds"]
            assert config["IamInstanceProfile"] == {"Name": "megpt-head" if head else "megpt-worker"}
        else:
            assert not any("accessConfigs" in interface for interface in config["networkInterfaces"])
            (account,) = config["serviceAccounts"]
            assert account["email"].startswith("megpt-head@" if head else "megpt-worker@")
            family = config["disks"][0]["initializeParams"]["sourceImage"]
            assert int(family.rpartition("nvidia-")[2]) >= OLDEST_DRIVER[torch.version.cuda.split(".")[0]]


def test_the_heads_policy_names_one_cluster_and_no_more() -> None:
    policy = json.loads((ROOT / "deploy" / "aws-iam-head.json").read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        reads = all(action.startswith("ec2:Describe") for action in actions)
        assert reads or statement["Resource"] != "*"
        if "ec2:TerminateInstances" in actions:
            assert statement["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": "megpt"}
    assert load("cluster.yaml")["cluster_name"] == "megpt"


def test_the_network_policy_meets_the_pods() -> None:
    policy = load("deploy/networkpolicy.yaml")["spec"]
    assert policy["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "megpt"}}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert {"podSelector": policy["podSelector"]} in [peer for rule in policy["ingress"] for peer in rule["from"]]


# --- KubeRay --------------------------------------------------------------------------------------------------------

TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^[0-9.]+(m|Ki|Mi|Gi|Ti)?$"}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def items(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


# The fields of ray.io/v1 and of a pod that these manifests may use: a subset of what KubeRay 1.5.1 and newer accept.
AMOUNTS = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES = fields(("requests", "limits"), requests=AMOUNTS, limits=AMOUNTS)
CONFINED = fields(
    ("runAsNonRoot", "allowPrivilegeEscalation", "capabilities"),
    runAsNonRoot={"const": True},
    runAsUser={"type": "integer", "minimum": 1},
    readOnlyRootFilesystem={"const": True},
    allowPrivilegeEscalation={"const": False},
    capabilities=fields(("drop",), drop={"const": ["ALL"]}),
    seccompProfile=fields(("type",), type={"const": "RuntimeDefault"}),
)
CONTAINER = fields(
    ("name", "image", "resources", "volumeMounts", "securityContext"),
    securityContext=CONFINED,
    name=TEXT,
    image=TEXT,
    env=items(fields(("name", "value"), name=TEXT, value=TEXT)),
    lifecycle=fields(("preStop",), preStop=fields(("exec",), exec=fields(("command",), command=items(TEXT)))),
    ports=items(fields(("containerPort", "name"), containerPort=COUNT, name={"type": "string", "maxLength": 15})),
    resources=RESOURCES,
    volumeMounts=items(fields(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
VOLUME = fields(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=fields(("claimName",), claimName=TEXT),
    emptyDir=fields(medium={"enum": ["Memory"]}),
)
POD = fields(
    ("metadata", "spec"),
    metadata=fields(("labels",), labels={"const": {"app.kubernetes.io/name": "megpt"}}),
    spec=fields(
        ("containers", "volumes"),
        securityContext=fields(fsGroup=COUNT),
        automountServiceAccountToken=FLAG,
        restartPolicy={"const": "Never"},
        containers={**items(CONTAINER), "minItems": 1},
        volumes=items(VOLUME),
        tolerations=items(fields(("key", "operator"), key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)),
        terminationGracePeriodSeconds=COUNT,
    ),
)
START = {"type": "object", "additionalProperties": TEXT}
GROUP = fields(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=START,
    template=POD,
)
CLUSTER = fields(
    ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=fields(("mode",), mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources=RESOURCES,
        securityContext=CONFINED,
    ),
    headGroupSpec=fields(("rayStartParams", "template"), rayStartParams=START, template=POD),
    workerGroupSpecs={**items(GROUP), "minItems": 1},
)
JOB = fields(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    submitterConfig=fields(backoffLimit=COUNT),
    submitterPodTemplate=POD,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
MANIFESTS = {
    kind: fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=fields(name=TEXT, generateName=TEXT),
        spec=spec,
    )
    for kind, spec in (("RayCluster", CLUSTER), ("RayJob", JOB))
}


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["spec"].get("rayClusterSpec", manifest["spec"]))


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_has_these_fields(name: str) -> None:
    manifest = load(name)
    jsonschema.validate(manifest, MANIFESTS[manifest["kind"]])
    broken = copy.deepcopy(manifest)
    cluster_of(broken)["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, MANIFESTS[manifest["kind"]])


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_are_what_megpt_needs(name: str) -> None:
    cluster = cluster_of(load(name))
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    images = set()
    for spec in (pod["template"]["spec"] for pod in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            images.add(container["image"])
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["readOnlyRootFilesystem"]
            written = {"/shared", "/dev/shm", "/tmp", "/home/megpt"}
            assert written == {mount["mountPath"] for mount in container["volumeMounts"]}
    (image,) = images
    assert image.rpartition(":")[2] == __version__
    (gpu,) = cluster["workerGroupSpecs"]
    worker, (container,) = gpu["template"]["spec"], gpu["template"]["spec"]["containers"]
    grace = {"name": "GRACE_S", "value": str(worker["terminationGracePeriodSeconds"])}
    assert grace in container["env"] and container["lifecycle"]
    assert gpu["minReplicas"] <= gpu["maxReplicas"]
    assert "nvidia.com/gpu" in gpu["template"]["spec"]["containers"][0]["resources"]["limits"]


# --- the commands that people read ----------------------------------------------------------------------------------


def shell_lines(name: str) -> list[str]:
    """Every command of a document's bash blocks, continued lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def megpt_commands() -> list[tuple[str, list[str]]]:
    found = [(name, line) for name in DOCUMENTS for line in shell_lines(name)]
    found.append(("deploy/rayjob.yaml", load("deploy/rayjob.yaml")["spec"]["entrypoint"]))
    commands = []
    for name, line in found:
        words = shlex.split(line, comments=True)
        for start in (["python", "-m", "ray_jobs"], ["megpt"]):
            for i in range(len(words)):
                if words[i : i + len(start)] == start and (i == 0 or words[i - 1] == "--"):
                    commands.append((name, ["submitted"] * (i > 0) + words[i + len(start) :]))
    return commands


@pytest.mark.parametrize(("name", "words"), megpt_commands(), ids=lambda v: " ".join(v)[:60])
def test_printed_commands_are_accepted(name: str, words: list[str]) -> None:
    submitted = words[0] == "submitted" or name.startswith("deploy/")
    job, *rest = words[1:] if words[0] == "submitted" else words
    assert job in JOBS
    if job == "status":  # it reads no config
        assert parser().parse_args([job, *rest]).folder.startswith("/shared/")
        return
    at = rest.index("--config") if "--config" in rest else len(rest)
    config = next(iter(rest[at + 1 :]), None)
    del rest[at : at + 2]
    overrides = [word for word in rest if "=" in word]
    assert not [w for w in rest if w not in (*overrides, "--dry-run", "--print-config") and "." not in w]
    loaded = load_config(config, overrides)
    if submitted:
        assert loaded.output and loaded.output.startswith("/shared/")


def test_there_are_commands_to_check() -> None:
    assert {words[words[0] == "submitted"] for _, words in megpt_commands()} >= {"prepare", "train", "generate"}


def ray_commands() -> list[str]:
    lines = [line for name in DOCUMENTS for line in shell_lines(name)]
    lines += [c for name in AUTOSCALED for group in COMMANDS[2:] for c in load(name)[group]]
    commands = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|>"):
                if words[:1] == ["ray"]:
                    commands.append(shlex.join(words))
                words = []
            else:
                words.append(word)
    return commands


@pytest.mark.parametrize("command", sorted(set(ray_commands())), ids=lambda c: c[:60])
def test_options_of_ray_exist(command: str) -> None:
    words = shlex.split(command.split(" -- ")[0], comments=True)[1:]
    found: Any = ray_cli
    while words and hasattr(found, "commands"):
        name = words.pop(0)
        assert name in found.commands, f"ray has no command {name}"
        found = found.commands[name]
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("name", [*AUTOSCALED, *KUBERAY, *DOCUMENTS])
def test_no_secrets_and_no_machines(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|[0-9a-f]{32,}|hf_[A-Za-z0-9]{20,}", text)
    assert set(re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", text)) <= {"127.0.0.1", "0.0.0.0"}
    assert not re.search(r"auth_token\s*[:=]\s*['\"]?[A-Za-z0-9+/]{16,}", text)
