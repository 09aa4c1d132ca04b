"""The model card: README.md of a checkpoint folder."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from megpt.errors import InputError
from megpt.model.configuration import MeGPTConfig
from megpt.model.projector import feature_modules
from megpt.output import write_aside

README = "README.md"
UNNAMED = "unnamed chest X-ray studies"
CARD = """---
license: other
license_name: see-below
pipeline_tag: image-text-to-text
library_name: megpt
tags: [radiology, chest-x-ray, report-generation, research-only]
---

# MeGPT checkpoint

Drafts reports for chest X-rays. **For research only. Not a medical device; not for clinical decisions.**

| part | what | trained |
| --- | --- | --- |
| vision encoder | `{vision}` at {image_size} px, weights: {vision_weights} | {vision_trained} |
| feature modules | {modules}; domain: {fem_domain} | yes |
| projector | linear and LayerNorm, L2 {l2:g} | yes |
| prompts | {prompts} (`prompts.yaml`, may be edited) | fitted once |
| language model | `{llm}` ({llm_type}) | {llm_trained} |

{held}

## Use

```python
import megpt.hf
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER)
processor = AutoProcessor.from_pretrained(FOLDER)
ids = model.generate(**processor(images=[["film.dcm"]]))  # decodes as in validation, see generation_config.json
processor.batch_decode(ids)
```

`pipeline("image-text-to-text", model=FOLDER)("film.dcm")` does the same.

## Intended use and limits

Research on report generation: comparing methods, drafting text that a radiologist checks in full. Not for diagnosis,
triage or any decision about a patient. Reports may be fluent and wrong; findings that the training reports rarely
mention are rarely mentioned.

## Licence and data agreement

The code is Apache-2.0. The weights are bound by the licences of the encoder and language model above and by the terms
of the films and reports that they were trained on. Weights trained on MIMIC-CXR fall under PhysioNet's credentialed
data use agreement and may be shared only under it; IU X-Ray (Open-i) is CC BY-NC-ND 4.0.

## Scores

{scores}
"""


def write_card(folder: Path, config: MeGPTConfig, scores: Mapping[str, float] | None) -> None:
    """Write README.md; scores of an earlier card are not kept."""
    frozen = config.frozen or {}
    if config.complete:
        held = "This folder holds all weights."
    elif frozen:
        lines = [f"- {part}: `{e['source']}`, fingerprint `{e['fingerprint']}`" for part, e in frozen.items()]
        held = "Weights that this folder does not hold, checked on load:\n\n" + "\n".join(lines)
    else:
        held = ""
    table = "Not measured yet."
    if scores:
        table = "| score | value |\n| --- | --- |\n" + "\n".join(f"| {k} | {v:.4f} |" for k, v in scores.items())
    text = CARD.format(
        vision=config.vision,
        image_size=config.image_size,
        vision_weights="a file" if config.vision_weights.endswith(".safetensors") else config.vision_weights,
        vision_trained={"shallow": "no", "delta": f"LoRA, rank {config.lora_rank}", "deep": "yes"}[config.mode],
        modules=", ".join(feature_modules(config)) or "none",
        fem_domain=config.fem_domain,
        l2=config.l2,
        prompts=f"{len((config.prompts or {}).get('texts', [0]))}",
        llm=config.llm,
        llm_type=getattr(config.text_config, "model_type", ""),
        llm_trained=f"LoRA, rank {config.lora_rank}" if config.llm_lora else "no",
        held=held,
        scores=table,
    )
    (folder / README).write_text(text, encoding="utf-8")


def add_scores(folder: str | Path, metrics: Mapping[str, Any], *, dataset: str | None = None) -> None:
    """Write the figures of an evaluation into a checkpoint's model card: a table, and model-index metadata for the hub.

    Figures on the same data are replaced, those on other data kept. Each score stands with its interval and the best
    baseline, as nothing else says whether the model has looked at the film. The checkpoint's fingerprint stays.

    Args:
        metrics: what `evaluate` wrote to metrics.json.
        dataset: the name of the data; `unnamed chest X-ray studies` by default.

    Raises:
        InputError: the folder has no model card, one that cannot be read, or `metrics` holds no scores.
    """
    path, name = Path(folder) / README, dataset or UNNAMED
    scores = {key: value for key, value in (metrics.get("scores") or {}).items() if _is_number(value)}
    if not scores:
        raise InputError(f"no scores for the model card {path}", cause="the evaluation has scored no study")
    try:
        card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=False)
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"the model card {path} cannot be read",
            cause=type(error).__name__,
            next="restore its first lines, the YAML between two lines of ---, or save the checkpoint again",
        ) from error
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    kept = [result for result in card.data.eval_results or [] if result.dataset_name != name]
    card.data.eval_results = kept + [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=slug,
            dataset_name=name,
            metric_type=key.lower(),
            metric_name=key,
            metric_value=round(float(value), 4),
        )
        for key, value in scores.items()
    ]
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.text = _with_section(card.text, name, _table(scores, metrics))
    with write_aside(path) as temporary:
        temporary.write_text(str(card), encoding="utf-8")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _table(scores: Mapping[str, float], metrics: Mapping[str, Any]) -> str:
    intervals, baselines = metrics.get("intervals") or {}, metrics.get("baselines") or {}
    patients = f" of {metrics['n_patients']} patients" if metrics.get("n_patients") else ""
    lines = [
        f"{metrics.get('n', '?')} studies{patients}; reports cleaned by `{metrics.get('cleaner', '?')}`; "
        "95 % intervals. A model that does not beat the baselines has not looked at the image.",
        "",
        "| score | value | interval | best baseline |",
        "| --- | --- | --- | --- |",
    ]
    for key, value in scores.items():
        interval = intervals.get(key)
        between = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval and all(map(_is_number, interval)) else ""
        rivals = [(own[key], which) for which, own in baselines.items() if own and _is_number(own.get(key))]
        best = "{:.4f} ({})".format(*max(rivals)) if rivals else ""
        lines.append(f"| {key} | {value:.4f} | {between} | {best} |")
    if metrics.get("signature"):
        lines += ["", f"`{metrics['signature']}`"]
    return "\n".join(lines)


def _with_section(text: str, name: str, table: str) -> str:
    """A card's text with `### name` under `## Scores` replaced, or added after the others there."""
    before, _, after = text.partition("\n## Scores\n")
    scores, rest = re.match(r"(.*?)((?:\n## .*)?)\Z", after, re.DOTALL).groups()  # pyrefly: ignore[missing-attribute]
    sections = [s for s in re.split(r"(?m)^(?=### )", scores) if s.startswith("### ")]
    kept = [s.strip() for s in sections if s.splitlines()[0] != f"### {name}"]
    return f"{before.rstrip()}\n\n## Scores\n\n" + "\n\n".join([*kept, f"### {name}\n\n{table}"]) + f"\n{rest}"


def keep_scores(origin: Path, folder: Path) -> None:
    """Copy the scores of one model card to that of another folder with the same weights."""
    with contextlib.suppress(OSError, ValueError, TypeError, yaml.YAMLError):  # a card that was written by hand
        old = ModelCard((origin / README).read_text(encoding="utf-8"))
        new = ModelCard((folder / README).read_text(encoding="utf-8"))
        if not old.data.eval_results:
            return
        new.data.eval_results, new.data.model_name = old.data.eval_results, old.data.model_name
        head, _, _ = new.text.partition("\n## Scores\n")
        _, mark, scores = old.text.partition("\n## Scores\n")
        new.text = head + mark + scores
        with write_aside(folder / README) as temporary:
            temporary.write_text(str(new), encoding="utf-8")
