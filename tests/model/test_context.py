"""What is known of a study before its films are read stands in its prompt: `model.context`.

- sections in the configured order, each cut to `context_tokens`; empty ones, and marks of de-identification, are left
  out; a text that spells a special token adds none; what is missing or cut is counted, without a word of the text
- a study without context has the ordinary prompt; with it, both backends and `model.generate` write the same report,
  alone and in a batch, before and after the checkpoint is saved, and another one than without
- the loss of a batch is that of its studies; a model made without context refuses it
- training reads the sections of the table and says how many studies have none
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_studies, small_config
from tiny_models import MakeModel, films, labels_for

from megpt.config import GenerateConfig
from megpt.data.studies import write_studies
from megpt.errors import InputError
from megpt.generation.writer import ReportWriter
from megpt.model import MeGPTForConditionalGeneration
from megpt.model.context import Context, tidied
from megpt.study import Study
from megpt.training.loop import make_parts, train_loop

SECTIONS = ("indication", "prior_report")
RULES: dict[str, Any] = {"repetition_penalty": 1.5, "min_new_tokens": 3, "max_new_tokens": 12}
STUDIES = [
    Study("0", indication="Chest pain and cough", prior_report="Small effusion."),
    Study("1", comparison="None."),
    Study("2", indication="XXXX.", prior_report="Pacemaker in place, the leads are unchanged since then."),
    Study("3", indication="Fever"),
]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("XXXX-year-old male with  chest\npain.", "year-old male with chest pain."),
        ("___ year old woman with ___, cough", "year old woman with, cough"),
        ("XXXX.", ""),
        (" . ", ""),
        (None, ""),
        ("None.", "None."),
    ],
)
def test_marks_of_de_identification(text: str | None, kept: str) -> None:
    assert tidied(text) == kept


def test_sections(make_model: MakeModel) -> None:
    model, processor = make_model("vit", context=SECTIONS, context_tokens=30, dynamic_prompt=False)
    context = Context.of(model.config, processor.tokenizer)
    decoded = [processor.tokenizer.decode(context.ids(study)) for study in STUDIES]
    assert decoded[1] == "" and decoded[3] == " Indication: Fever"
    assert decoded[0].startswith(" Indication: ") and " Prior report:" in decoded[0]
    assert len(context.ids(STUDIES[2])) == 30 and all(len(context.ids(study)) <= 60 for study in STUDIES)
    assert 1 not in context.ids(Study("4", indication="Pain</s> and <pad>"))
    told = context.told()
    assert told.startswith("context (indication, prior_report): 2 of 10 studies have none; in ")
    assert context.counts["cut"] >= 3 and "cut to 30 tokens" in told and "Fever" not in told
    assert Context((), 12, processor.tokenizer).told() == ""


@pytest.mark.parametrize("beams", [1, 3])
def test_alone_and_in_a_batch(make_model: MakeModel, tmp_path: Path, beams: int) -> None:
    model, processor = make_model("vit", context=SECTIONS, context_tokens=12)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MeGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert list(loaded.config.context) == list(SECTIONS) and loaded.config.context_tokens == 12
    pictures, rules = films(4, seed=3), {**RULES, "num_beams": beams}
    context = Context.of(loaded.config, processor.tokenizer)

    def written(which: list[int], *, known: bool = True) -> list[str]:
        ids = context.batch([STUDIES[n] for n in which]) if known else None
        inputs = processor(images=[pictures[n] for n in which])
        return processor.batch_decode(loaded.generate(**inputs, context_ids=ids, **rules))

    together, without = written([0, 1, 2, 3]), written([0, 1, 2, 3], known=False)
    assert [written([n])[0] for n in range(4)] == together
    assert together[1] == without[1] and together[0] != without[0]
    for backend in ("engine", "hf"):
        for slots in (1, 3):
            writer = ReportWriter(tmp_path, GenerateConfig(backend=backend, slots=slots, **rules), 0)
            pairs = [(study, [picture]) for study, picture in zip(STUDIES, pictures, strict=True)]
            reports = {p.study.study_id: p.report for p in writer.write(pairs)}
            assert [reports[str(n)] for n in range(4)] == together
            assert writer.context.counts["studies"] == 4 and writer.context.counts["without"] == 1


def test_loss(make_model: MakeModel) -> None:
    model, processor = make_model("vit", context=SECTIONS)
    pictures, labels = films(4, seed=3), labels_for(processor, ["Clear lungs."] * 4)
    ids = Context.of(model.config, processor.tokenizer).batch(STUDIES)
    model.eval()
    together = model(**processor(images=pictures), labels=labels, context_ids=ids).cross_entropy
    alone = [
        model(**processor(images=[pictures[n]]), labels=labels[n : n + 1], context_ids=ids[n : n + 1]).cross_entropy
        for n in range(4)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean())
    plain, _ = make_model("vit")
    with pytest.raises(InputError, match=r"made without model\.context"):
        plain(**processor(images=pictures), labels=labels, context_ids=ids)


def test_training(tiny_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = [replace(study, indication="Fever" if n % 2 else None) for n, study in enumerate(make_studies(6))]
    write_studies(tmp_path / "studies", "train", studies, 0)
    changes = {"model__context": ["indication"], "train__max_steps": 2, "train__global_batch_size": 3}
    config = small_config(tmp_path / "out", studies=tmp_path / "studies", llm=tiny_llm, **changes)
    assert train_loop(config, lambda: make_parts(config), output=tmp_path / "out")["studies"] == 6
    told = capsys.readouterr().err
    assert "context (indication): 3 of 6 studies have none" in told and "Fever" not in told
    assert list(MeGPTForConditionalGeneration.from_pretrained(tmp_path / "out").config.context) == ["indication"]
