"""What leaves this machine with a submitted job.

- Ray's own packaging, on this checkout with secrets and data planted all over it, takes what git tracks of the code,
  the configs and deploy/, and nothing else
- a person's own config beside the shipped ones goes with the job
"""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).resolve().parents[2]

SECRETS = (
    *[".env", ".netrc", "id_rsa", "id_ed25519.pub", "kubeconfig", ".ray/auth_token", ".aws/credentials", "server.pem"],
    *["patients.xlsx", "scan.DCM", "IM000001", "film.PNG", "data/a.jpeg", "data/annotation.json", "reports.csv"],
    *["model.safetensors", "llama.pth", "runs/demo/metrics.json", "db.sqlite", "notes.txt", "export.tar.gz"],
)
FOLDERS = (".", "megpt", "megpt/data", "megpt/configs", "megpt/deepspeed", "ray_jobs", "ray_jobs/train", "deploy")


def uploaded(folder: Path) -> set[str]:
    package = folder.parent / "package.zip"
    create_package(str(folder), package, include_gitignore=True, include_parent_dir=False, excludes=[])
    with zipfile.ZipFile(package) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return {name for name in listed.stdout.split() if (ROOT / name).exists()}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in tracked():
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "work" / name, follow_symlinks=False)
    return tmp_path / "work"


def test_only_code_goes(checkout: Path) -> None:
    for folder in FOLDERS:
        for name in SECRETS:
            (checkout / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / folder / name).write_bytes(b"secret")
    code = {name for name in tracked() if name.startswith(("megpt/", "megpt_pacs/", "ray_jobs/", "deploy/"))}
    linked = {name.replace("megpt/configs/", "configs/") for name in code if name.startswith("megpt/configs/")}
    linked |= {name.replace("megpt/deepspeed/", "deepspeed_configs/") for name in code if "deepspeed/" in name}
    found = uploaded(checkout)
    assert not found - code - linked - {"pyproject.toml", "constraints.txt"}
    assert not code - found, "a new folder or kind of file: .rayignore must admit it"
    assert {"configs/phantom.yaml", "deepspeed_configs/zero2.json", "pyproject.toml"} <= found


def test_a_config_of_ones_own_goes(checkout: Path) -> None:
    (checkout / "configs" / "mine.yaml").write_text("extends: phantom\n")
    assert {"configs/mine.yaml", "megpt/configs/mine.yaml"} <= uploaded(checkout)
