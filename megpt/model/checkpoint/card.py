"""The model card: README.md of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megpt.model.configuration import MeGPTConfig

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
| enhancement | FEM: {fem}, DOConv: {doconv}, domain: {fem_domain} | yes |
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
ids = model.generate(**processor(images=[[film]], return_tensors="pt"), max_new_tokens=100)
processor.batch_decode(ids)
```

## Intended use and limits

Research on report generation: comparing methods, drafting text that a radiologist checks in full. Not for diagnosis,
triage or any decision about a patient. Reports may be fluent and wrong; findings that the training reports rarely
mention are rarely mentioned.

## Licence and data agreement

The code is Apache-2.0. The weights are bound by the licences of the encoder and language model above and by the terms
of the films and reports they were trained on. Weights trained on MIMIC-CXR fall under PhysioNet's credentialed data use
agreement and may be shared only under it; IU X-Ray (Open-i) is CC BY-NC-ND 4.0.

## Scores

{scores}
"""


def write_card(folder: Path, config: MeGPTConfig, scores: Mapping[str, float] | None) -> None:
    """Write README.md; without `scores`, those of an earlier card are not kept."""
    frozen = config.frozen or {}
    if config.complete:
        held = "This folder holds all weights."
    elif frozen:
        lines = [f"- {part}: `{e['source']}`, fingerprint `{e['fingerprint']}`" for part, e in frozen.items()]
        held = "Weights that this folder refers to and checks on load:\n\n" + "\n".join(lines)
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
        fem=config.fem,
        doconv=config.doconv,
        fem_domain=config.fem_domain,
        l2=config.l2,
        prompts=f"{len((config.prompts or {}).get('texts', [0]))}",
        llm=Path(config.llm).name if Path(config.llm).is_absolute() else config.llm,
        llm_type=getattr(config.text_config, "model_type", ""),
        llm_trained=f"LoRA, rank {config.lora_rank}" if config.llm_lora else "no",
        held=held,
        scores=table,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
