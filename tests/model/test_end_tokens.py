"""Reports end at the tokenizer's end token, which is learnt, and at those that the language model names.

- Qwen's base models and chat fine-tunes name other end tokens in generation_config.json than in the tokenizer: a model
  ends its reports at either, in both backends and `model.generate`, and its checkpoint names both
- a checkpoint that names the language model's end token alone still ends at the tokenizer's
- an end token that the tokenizer does not count as special is not in the report's text
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, films
from transformers import AutoTokenizer

from megpt.config import GenerateConfig, ModelConfig
from megpt.generation.writer import ReportWriter
from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor, build_model
from megpt.study import Study

RULES: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "min_new_tokens": 0, "max_new_tokens": 12}


def built(llm: Path) -> tuple[Any, Any]:
    config = ModelConfig(**TINY["vit"], vision_weights="none", llm=str(llm), dynamic_prompt=False)
    return build_model(config, bank=None, seed=0)


@pytest.mark.parametrize("which", ["tokenizer", "language model"])
def test_either_end_token_ends_a_report(tiny_llm: Path, tmp_path: Path, which: str) -> None:
    llm = shutil.copytree(tiny_llm, tmp_path / "llm")
    model, processor = built(llm)
    film = films(1, seed=3)
    written = model.eval().generate(**processor(images=[film]), **RULES)[0].tolist()
    place = next(n for n, token in enumerate(written) if n > 2 and token not in written[:n])
    end = written[place]  # what the untrained model writes there ends its reports from now on
    if which == "tokenizer":
        tokenizer = AutoTokenizer.from_pretrained(llm)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        tokenizer.save_pretrained(llm)
        both = [end, 1]
    else:
        (llm / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 7]}))
        both = [1, end, 7]
    model, processor = built(llm)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    named = tmp_path / "checkpoint" / "generation_config.json"
    assert json.loads(named.read_text())["eos_token_id"] == both
    if which == "tokenizer":
        named.write_text(json.dumps({**json.loads(named.read_text()), "eos_token_id": 1}))
    loaded = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "checkpoint")
    assert loaded.generation_config.eos_token_id == both
    assert loaded.generate(**processor(images=[film]), **RULES)[0].tolist() == written[: place + 1]
    text = processor.tokenizer.decode(written[:place]).strip()
    for backend in ("engine", "hf"):
        writer = ReportWriter(tmp_path / "checkpoint", GenerateConfig(backend=backend, **RULES), 0)
        (report,) = writer.write([(Study("s"), film)])
        assert (report.report, report.finish_reason, report.num_tokens) == (text, "stop", place + 1)
    assert MeGPTProcessor.from_pretrained(tmp_path / "checkpoint").encode_report("Clear.")[-1] == both[0]
