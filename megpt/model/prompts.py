"""The dynamic prompt: image clusters with a text each that a person can read and edit, and the text around it.

torch is imported inside functions: `checkpoint.fingerprint` reads banks without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError, safe_open

from megpt.errors import InputError
from megpt.places.whole import follow_umask

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PROMPTS, CENTROIDS = "prompts.yaml", "centroids.safetensors"
# The reference's frame: `Human: <Img>{visual tokens}</Img> {instruction} \nAssistant:`.
PREFIX, SUFFIX = "Human: <Img>", "</Img> {text} \nAssistant:"
OPENING, CLOSE = SUFFIX[: SUFFIX.index(" \n")], SUFFIX[SUFFIX.index(" \n") :]
"""The suffix in two, between which a study's context stands."""
INSTRUCTION = "Generate a comprehensive and detailed diagnosis report for this chest xray image."
IMAGE_PLACE = "<megpt-image>"
"""Stands for the visual tokens while a chat template is filled in; never tokenised."""
TIE = 1e-5
HEADER = "# One prompt per image cluster. The texts may be edited; the order and number of entries may not.\n"


@dataclass(frozen=True)
class PromptBank:
    """K cluster centres (K, C) float32 and K prompt texts; without centres, one text for every study.

    `encoder` is the fingerprint of the encoder whose features were clustered. `sizes` (training studies in each
    cluster) and `examples` (ids of the studies nearest its centre) describe the clusters to a reader. Of 99 in 100
    training studies the features lie within `reach` of their centre.
    """

    texts: tuple[str, ...]
    centroids: Tensor | None = None
    sizes: tuple[int, ...] = ()
    examples: tuple[tuple[str, ...], ...] = ()
    encoder: str | None = None
    reach: float | None = None

    def __post_init__(self) -> None:
        check_prompts(self.texts, None if self.centroids is None else len(self.centroids))

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def fixed(cls, text: str = INSTRUCTION) -> PromptBank:
        """The bank of `model.dynamic_prompt: false`: one instruction for every study."""
        return cls(texts=(text,))

    def assign(self, features: Tensor) -> Tensor:
        """The cluster of each study: pooled features (B, C) → ids (B,) long. Rows do not influence each other."""
        import torch

        if self.centroids is None:
            return torch.zeros(len(features), dtype=torch.long, device=features.device)
        centres = self.centroids.to(features.device, torch.float64)
        distance = (features.to(torch.float64)[:, None] - centres[None]).square().sum(-1)
        # The last digits of a feature depend on the batch that it was computed in, so clusters that differ only there
        # count as equally near, and the first of them is taken.
        near = distance <= distance.amin(dim=1, keepdim=True) * (1 + TIE)
        return near.to(torch.uint8).argmax(dim=1)

    def novelty(self, features: Tensor, prompt_ids: Tensor) -> Tensor | None:
        """How far studies lie from those of the training split, (B,) float32: above 1 is further than 99 in 100.

        The distance of pooled features (B, C) to the centre of their prompt, in units of `reach`; a film that is no
        chest film stands out. None for a bank without clusters, or one that was fitted before `reach` was kept.
        """
        import torch

        if self.centroids is None or not self.reach:
            return None
        centres = self.centroids.to(features.device, torch.float64)[prompt_ids]
        return ((features.to(torch.float64) - centres).square().sum(-1).sqrt() / self.reach).float()

    def with_texts(self, texts: Sequence[str]) -> PromptBank:
        """The same clusters with other texts."""
        return replace(self, texts=tuple(texts))

    def save(self, folder: str | Path) -> Path:
        """Write prompts.yaml and, if there are clusters, centroids.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        entries: list[dict[str, Any]] = []
        for k, text in enumerate(self.texts):
            entry: dict[str, Any] = {"cluster": k}
            if self.sizes:
                entry["studies"] = int(self.sizes[k])
            if self.examples:
                entry["examples"] = list(self.examples[k])
            entries.append({**entry, "text": text})
        tree = {"encoder": self.encoder, "prompts": entries}
        text = HEADER + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
        (folder / PROMPTS).write_text(text, encoding="utf-8")
        (folder / CENTROIDS).unlink(missing_ok=True)
        if self.centroids is not None:
            import torch
            from safetensors.torch import save_file

            held = {"centroids": self.centroids.float().contiguous().cpu()}
            if self.reach is not None:
                held["reach"] = torch.tensor([self.reach], dtype=torch.float32)
            save_file(held, folder / CENTROIDS)
            follow_umask(folder / CENTROIDS)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> PromptBank:
        """Read what `save` wrote.

        Raises:
            InputError: the folder has no bank, or one that cannot be read.
        """
        from safetensors.torch import load_file

        found = read_prompts(folder := Path(folder))
        held = load_file(folder / CENTROIDS) if (folder / CENTROIDS).exists() else {}
        reach = float(held["reach"]) if "reach" in held else None
        return cls(**found, centroids=held.get("centroids"), reach=reach)


def read_prompts(folder: Path) -> dict[str, Any]:
    """The contents of prompts.yaml, without torch: `texts`, `sizes`, `examples` and `encoder` of its `PromptBank`.

    Raises:
        InputError: the folder has no bank, or one that cannot be read.
    """
    try:
        tree = yaml.safe_load((folder / PROMPTS).read_text(encoding="utf-8"))
        entries = tree["prompts"]
        found = {
            "texts": tuple(entry["text"] for entry in entries),
            "sizes": tuple(entry["studies"] for entry in entries if "studies" in entry),
            "examples": tuple(tuple(map(str, entry["examples"])) for entry in entries if "examples" in entry),
            "encoder": tree.get("encoder"),
        }
        clusters = None
        if (folder / CENTROIDS).exists():
            with safe_open(folder / CENTROIDS, "np") as file:
                clusters = file.get_slice("centroids").get_shape()[0]
    except FileNotFoundError:
        if (folder / "config.json").exists():
            raise _incomplete(folder, PROMPTS) from None
        raise InputError(
            f"no {PROMPTS} in {folder}", next="run `megpt fit-prompts` and set prompts= to its output"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, IndexError, SafetensorError) as error:
        raise InputError(
            f"the prompt bank in {folder} cannot be read",
            cause=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            next=f"each entry of {PROMPTS} needs `text: …`; or run `megpt fit-prompts` again",
        ) from error
    if clusters is None and len(found["texts"]) > 1 and (folder / "config.json").exists():
        # Without clusters the first prompt would be everyone's.
        raise _incomplete(folder, CENTROIDS)
    check_prompts(found["texts"], clusters)
    return found


def _incomplete(folder: Path, name: str) -> InputError:
    return InputError(
        f"no {name} in {folder}",
        cause="a file was not copied, or a download was cut short",
        next="download or copy the whole folder again",
    )


def check_prompts(texts: Sequence[Any], clusters: int | None) -> None:
    """Raise InputError unless every cluster has a text; `clusters` is None for a bank without any, which has one."""
    if not texts or any(not isinstance(t, str) or not t.strip() for t in texts):
        raise InputError("a prompt bank needs a text for every cluster", where=PROMPTS)
    if clusters is None and len(texts) > 1:
        raise InputError(
            f"{len(texts)} prompts, and no clusters to choose one by",
            where=f"{PROMPTS} without {CENTROIDS}",
            cause="the folder was copied without that file",
            next=f"copy {CENTROIDS} too, or leave one prompt, which then every study gets",
        )
    if clusters is not None and clusters != len(texts):
        raise InputError(
            f"{len(texts)} prompts for {clusters} clusters",
            where=f"{PROMPTS} and {CENTROIDS}",
            cause="an entry was added to or removed from prompts.yaml",
            next="restore the entry, or run `megpt fit-prompts` again with another fit_prompts.num_clusters",
        )


def tokenise_bank(
    bank: PromptBank,
    tokenizer: PreTrainedTokenizerBase,
    frame: str = "reference",
    *,
    context: bool = False,
    findings: bool = False,
) -> dict[str, Any]:
    """The `prompts` entry of config.json: the bank's texts, and the token ids before and after the visual tokens.

    Args:
        context: give the two halves of each suffix too, for studies whose context stands between them.
        findings: give the halves, and the words for what a study's films show.

    Raises:
        InputError: the frame is the tokenizer's chat template, and it has none, or one that drops the text.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if frame == "chat_template":
        framed = [chat_frame(tokenizer, text) for text in bank.texts]
        before, start = framed[0][0], []  # a template writes its first token itself
        openings, close = [opening for _, opening, _ in framed], framed[0][2]
    elif frame == "text":
        before, openings, close = "", list(bank.texts), "\n"
    else:
        before, openings, close = PREFIX, [OPENING.format(text=text) for text in bank.texts], CLOSE
    suffixes = [ids(opening + close) for opening in openings]
    tree = {"texts": list(bank.texts), "prefix": start + ids(before), "suffixes": suffixes}
    halves: dict[str, Any] = {"openings": [ids(opening) for opening in openings], "close": ids(close)}
    if findings:
        from megpt.model.findings import tokenised_words

        halves["findings"] = tokenised_words(ids)
    return tree | halves if context or findings else tree


def chat_frame(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str, str]:
    """What a chat template writes before the image of a user's message, up to its text's end, and after that."""
    if not tokenizer.chat_template:
        raise InputError(
            "model.frame=chat_template, and the tokenizer of model.llm has no chat template",
            next="set model.frame=reference or text, or give a chat model",
        )
    messages = [{"role": "user", "content": IMAGE_PLACE + text}]
    written = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    before, image, after = written.partition(IMAGE_PLACE)
    if not image or text not in after:
        raise InputError(
            "model.frame=chat_template: the chat template of model.llm changes the user's message",
            next="set model.frame=reference or text",
        )
    end = after.index(text) + len(text)
    return before, after[:end], after[end:]


def default_text(terms: Sequence[str]) -> str:
    """The instruction, and the terms that distinguish a cluster's training reports."""
    if not terms:
        return INSTRUCTION
    return f"{INSTRUCTION} Terms common in reports of similar images: {', '.join(terms)}."
