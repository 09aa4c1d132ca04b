"""Any image-text model of the hub writes reports: LLaVA, Qwen2-VL, Gemma 3 and PaliGemma, with random weights.

- its reports are those of transformers by the model's own processor and chat template, one study at a time
- several films are several images; the order of studies and their company change no text
- the prompt is a template with the study's fields; one that no study has is refused
- sampled reports depend on the seed and the study
- a study without readable films, or on which the model fails, is an error by itself
- decoding is what the config sets, then the folder's, then plain greedy; the folder's sampling is not taken
- code of a repository, pickles, a model that writes no text, a processor that is missing: refused before any weights
- the fingerprint follows weights, processor and decoding, and not the model card
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import FAMILIES, hub_model
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from megpt.config import Config, GenerateConfig
from megpt.errors import InputError
from megpt.films.decode import UnreadableFilm
from megpt.generation.image_text import ImageTextWriter, check_template, load_processor
from megpt.model import fingerprint
from megpt.model.checkpoint.decoding import completed
from megpt.study import Study

RULES = GenerateConfig(
    **{"num_beams": 2, "min_new_tokens": 2, "max_new_tokens": 8, "repetition_penalty": 1.0, "length_penalty": 1.0},
    **{"slots": 2, "prompt": "Report of {study_id}, please."},
)


@pytest.fixture(scope="module")
def folders(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: hub_model(kind, tmp_path_factory.mktemp(kind), tiny_llm) for kind in FAMILIES}


def studies(count: int = 5) -> list[tuple[Study, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        films = [Image.fromarray(rng.integers(0, 255, (60, 50 + 10 * n), dtype=np.uint8)) for _ in range(1 + n % 2)]
        made.append((Study(f"s{n}"), films))
    return made


def written(folder: Path, rules: GenerateConfig, items: list[tuple[Study, Any]], seed: int = 0) -> dict[str, Any]:
    found = list(ImageTextWriter(str(folder), rules, seed).write(iter(items)))
    assert len(found) == len(items)
    return {p.study.study_id: (p.report, p.num_tokens, p.finish_reason, p.error) for p in found}


@pytest.mark.parametrize("kind", FAMILIES)
def test_reports_are_those_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    items = studies()
    found = written(folders[kind], RULES, items)
    assert written(folders[kind], RULES, items[::-1]) == found
    assert len({tuple(value) for value in found.values()}) > 1
    processor: Any = AutoProcessor.from_pretrained(folders[kind])
    model: Any = AutoModelForImageTextToText.from_pretrained(folders[kind]).eval()
    for study, films in items:
        prompt = f"Report of {study.study_id}, please."
        images = [film.convert("RGB") for film in films]
        if kind == "paligemma":
            inputs = processor(text=[prompt], images=[images], return_tensors="pt")
        else:
            content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                **{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"},
            )
        assert len(inputs["pixel_values"]) >= len(films)
        ids = model.generate(**inputs, num_beams=2, min_new_tokens=2, max_new_tokens=8)[
            0, inputs["input_ids"].shape[1] :
        ]
        report, tokens, finish, error = found[study.study_id]
        plain = ids.tolist()
        plain = plain[: plain.index(1) + 1] if 1 in plain else plain
        assert (report, tokens, error) == (processor.decode(plain, skip_special_tokens=True).strip(), len(plain), None)
        assert finish == ("stop" if plain[-1] == 1 else "length")


def test_the_prompt_is_a_template(folders: dict[str, Path]) -> None:
    writer = ImageTextWriter(str(folders["llava"]), RULES.model_copy(update={"prompt": "{findings}: {{x}} {split}"}), 0)
    assert writer.prompt(Study("a", findings="Clear lungs")) == "Clear lungs: {x} test"
    assert writer.prompt(Study("a")) == "not given: {x} test"
    assert writer.text(Study("a"), 2) == "<s>user: <image><image>not given: {x} testassistant: "
    with pytest.raises(InputError, match=r"prompt: no study has \{age\}"):
        check_template("A patient of {age}.")
    with pytest.raises(InputError, match=r"prompt is not a template"):
        check_template("A patient of {age.")


def test_sampling_depends_on_seed_and_study(folders: dict[str, Path]) -> None:
    rules = RULES.model_copy(update={"num_beams": 1, "do_sample": True, "temperature": 2.0})
    items = studies()
    found = written(folders["llava"], rules, items)
    assert written(folders["llava"], rules, items[3:])["s3"] == found["s3"]
    assert written(folders["llava"], rules, items, seed=1) != found


def test_a_study_that_fails_is_alone(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    items = [*studies(), (Study("dark"), UnreadableFilm("film missing"))]
    expected = written(folders["llava"], RULES, items[:5])
    plain = ImageTextWriter.text

    def text(self: Any, study: Study, films: int) -> str:
        return plain(self, study, films + (study.study_id == "s2"))  # one image too few for its places

    monkeypatch.setattr(ImageTextWriter, "text", text)
    found = written(folders["llava"], RULES, items)
    assert found.pop("dark") == (None, 0, "error", "film missing")
    broken = found.pop("s2")
    assert broken[0] is None and broken[3].startswith("the model failed (")
    assert found == {key: value for key, value in expected.items() if key != "s2"}


def test_decoding_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.1, "repetition_penalty": 1.05, "eos_token_id": 1})
    )
    rules, origins = completed(GenerateConfig(num_beams=2), tmp_path, own=False)
    assert (rules.num_beams, rules.repetition_penalty, rules.min_new_tokens, rules.do_sample) == (2, 1.05, 0, False)
    assert (origins["num_beams"], origins["repetition_penalty"]) == ("config", "checkpoint")
    assert origins["min_new_tokens"] == origins["length_penalty"] == origins["do_sample"] == "default"


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["llava"], tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_refused_before_any_weights(copied: Path) -> None:
    load_processor(copied)
    for file, cause in (
        ("processor_config.json", "a file of its processor or tokenizer is missing or damaged"),
        ("model.safetensors", "it holds no *.safetensors, and megpt reads no pickles"),
    ):
        (copied / file).rename(copied / "away")
        with pytest.raises(InputError, match="no reports can be written with") as raised:
            load_processor(copied)
        assert str(raised.value.cause).startswith(cause)
        (copied / "away").rename(copied / file)
    edit(copied / "config.json", model_type="own_model", auto_map={"AutoConfig": "code.Config"})
    (copied / "code.py").write_text("raise SystemExit('code of the repository ran')")
    with pytest.raises(InputError, match="no reports can be written with"):
        load_processor(copied)
    AutoConfig.for_model("bert").save_pretrained(copied)
    with pytest.raises(InputError) as raised:
        load_processor(copied)
    assert raised.value.cause == "a bert model does not write text about images"


def test_the_fingerprint(copied: Path) -> None:
    first = fingerprint(copied)
    (copied / "README.md").write_text("Another card.")
    assert fingerprint(copied) == first
    edit(copied / "generation_config.json", repetition_penalty=1.5)
    second = fingerprint(copied)
    edit(copied / "processor_config.json", patch_size=4)
    third = fingerprint(copied)
    model: Any = AutoModelForImageTextToText.from_pretrained(copied)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(copied)
    assert len({first, second, third, fingerprint(copied)}) == 4


def test_settings_that_do_not_apply(copied: Path, tiny_checkpoint: Path) -> None:
    from ray_jobs.generate.checkpoint import decoding

    of = {"checkpoint": str(copied)}
    assert decoding(Config().overridden(of), None)[0].backend == "hf"
    with pytest.raises(InputError, match="llm is set, and the checkpoint is no MeGPT checkpoint"):
        decoding(Config().overridden(of), "somewhere")
    with pytest.raises(InputError, match="prompt is set, and this is a MeGPT checkpoint"):
        decoding(Config().overridden({"checkpoint": str(tiny_checkpoint), "generate.prompt": "Report."}), None)
