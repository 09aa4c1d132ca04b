"""The text around the visual tokens, and its token ids."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from megpt.model.prompts import PromptBank

# The reference's frame: `Human: <Img>{visual tokens}</Img> {instruction} \nAssistant:`.
PREFIX, SUFFIX = "Human: <Img>", "</Img> {text} \nAssistant:"


def tokenise_bank(bank: PromptBank, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The `prompts` entry of config.json: the bank's texts and their ids before and behind the visual tokens."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    suffixes = [tokenizer(SUFFIX.format(text=text), add_special_tokens=False)["input_ids"] for text in bank.texts]
    return {
        "texts": list(bank.texts),
        "prefix": start + list(tokenizer(PREFIX, add_special_tokens=False)["input_ids"]),
        "suffixes": [list(ids) for ids in suffixes],
    }
