"""What `model.llm` names: a folder, a hub id or a GGUF file, and whether a language model can be taken from it.

A model of images and text is taken for its decoder: MeGPT has an encoder of its own, and LoRA in a tower that sees no
film would train nothing.

The classes of transformers, which import torch, are imported after a first look, so that a mistyped name costs no time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megpt.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BITSANDBYTES = "bitsandbytes"


def located(name: str) -> tuple[str, dict[str, Any]]:
    """The folder or hub id in `name`, and further keywords for transformers.

    `org/name@revision` names a revision, and `folder/file.gguf` a file.
    """
    if is_gguf(name):
        return str(Path(name).parent), {"gguf_file": Path(name).name}
    repository, at, revision = name.partition("@")
    return (repository, {"revision": revision}) if at and revision and not Path(name).exists() else (name, {})


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file, which transformers dequantises as it loads it."""
    return name.endswith(".gguf") and Path(name).is_file()


@contextlib.contextmanager
def as_input_error(name: str) -> Iterator[None]:
    """Turn the errors of transformers for a model that it cannot load into one InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        path = Path(name)
        known = [str(p) for p in path.parent.glob("*/") if (p / "config.json").exists()] if path.parent.exists() else []
        known += cached_models()
        raise InputError(
            f"model.llm = {name!r} cannot be loaded",
            cause=f"no such folder, and no such model in the local cache or on the hub ({type(error).__name__})"
            if not path.exists()
            else f"the {'folder' if path.is_dir() else 'file'} is not a complete Hugging Face causal language model "
            f"({type(error).__name__})",
            next=(did_you_mean(name, known) if known else "give the folder of a Hugging Face causal language model")
            + ("" if path.exists() else _download_hint(name)),
        ) from error


def _download_hint(name: str) -> str:
    repository, options = located(name)
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        return ""
    revision = f" --revision {options['revision']}" if options else ""
    return f"; for a model of the hub, run `hf download {repository}{revision}` where there is a network"


def cached_models() -> list[str]:
    """Hub ids in this machine's Hugging Face cache."""
    from huggingface_hub import scan_cache_dir

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except Exception:  # no cache folder, or one with an unknown layout: nothing to suggest
        return []


def language_config(name: str) -> PreTrainedConfig:
    """The config of the causal language model in `name`, or of the decoder inside a model of images and text.

    Raises:
        InputError: it cannot be found, needs a library that megpt does not use, or holds no decoder of its own.
    """
    if is_gguf(name) and find_spec("gguf") is None:
        raise InputError(
            f"model.llm = {name!r} is a GGUF file", cause="reading one needs the package gguf", next="pip install gguf"
        )
    look_at(name)
    from transformers import AutoConfig

    place, options = located(name)
    with as_input_error(name):
        config: PreTrainedConfig = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if not is_gguf(name) and method in (BITSANDBYTES, "bitsandbytes_4bit", "bitsandbytes_8bit"):
        raise InputError(
            f"model.llm = {name!r} is quantised with {BITSANDBYTES}, which megpt does not support",
            where="config.json: quantization_config",
            next="give the model that was quantised: its folder, or the hub id that the model card names",
        )
    return decoder_config(config, name)


def look_at(name: str) -> None:
    """Raise InputError for a name where there is no model, as `language_config` would, without torch."""
    place, options = located(name)
    if not Path(place).is_file() and not is_gguf(name):
        from transformers.utils import CONFIG_NAME, cached_file

        with as_input_error(name):
            if cached_file(place, CONFIG_NAME, **options) is None:  # of a folder, where this file may be missing
                raise ValueError(CONFIG_NAME)


def decoder_config(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """A language model's config itself, or that of the decoder inside a model of images and text."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config(decoder=True)
    if text is config or type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return text
    raise InputError(
        f"model.llm = {name!r} is a {config.model_type} model, and no language model can be taken from it",
        cause=f"transformers has no causal language model for its {text.model_type}",
        next="give a causal language model; to write reports with the whole model, `megpt generate checkpoint=…`",
    )


def safe_config(name: str) -> PreTrainedConfig:
    """`language_config` of a folder whose weights are safetensors.

    Raises:
        InputError: as for `language_config`, or there are weights as pickles only.
    """
    look_at(name)
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")) and (pickles := sorted(folder.glob("*.bin"))):
        raise InputError(
            f"model.llm = {name!r} holds its weights as pickles only",
            where=pickles[0].name,
            cause="a pickle can run any code; megpt reads safetensors",
            next=f'convert a folder that you trust: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{name}').save_pretrained('{name}-safetensors')\", then copy its tokenizer files",
        )
    return language_config(name)


def check_vocabulary(tokenizer: Any, config: PreTrainedConfig, name: str) -> None:
    """Raise InputError if a tokenizer has more tokens than the language model's embedding has rows."""
    file, used = Path(name) / "tokenizer.json", {tokenizer.bos_token, tokenizer.eos_token}
    if file.is_file():
        tree = json.loads(file.read_text(encoding="utf-8"))
        words = tree["model"]["vocab"]
        tokens = 1 + max([len(words) - 1, *(added["id"] for added in tree.get("added_tokens") or ())])
    else:
        # Some classes of tokenizers add special tokens as they are loaded, which no text holds.
        idle = set(tokenizer.all_special_tokens) - used
        tokens = 1 + max(number for word, number in tokenizer.get_vocab().items() if word not in idle)
    if tokens > config.vocab_size and not is_gguf(name):  # to whose tokenizer transformers adds its own
        raise InputError(
            f"the tokenizer of model.llm = {name!r} has {tokens} tokens, and its embedding {config.vocab_size} rows",
            cause="tokens were added without rows for them; a prompt or report that holds one could not be embedded",
            next="load the model, call `model.resize_token_embeddings(len(tokenizer))` and save it; or remove the "
            "added tokens from the tokenizer's files",
        )


def weight_files(name: str) -> list[Path]:
    """The safetensors files of a folder or a cached hub model, or the GGUF file itself."""
    if is_gguf(name):
        return [Path(name)]
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    place, options = located(name)
    with as_input_error(name):
        index = cached_file(place, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **options)
        if index is None:
            return [Path(str(cached_file(place, SAFE_WEIGHTS_NAME, **options)))]
        shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
        return [Path(str(cached_file(place, shard, **options))) for shard in shards]


def revision_of(name: str) -> str | None:
    """The commit of a hub model in this machine's cache; None for a folder or a file."""
    from transformers.utils import cached_file
    from transformers.utils.hub import extract_commit_hash

    place, options = located(name)
    if Path(place).is_dir():
        return None
    with as_input_error(name):
        return extract_commit_hash(str(cached_file(place, "config.json", **options)), None)
