"""What users of transformers expect after `import megpt.hf`.

- `pipeline("image-text-to-text")` takes paths, PIL images, DICOM, URLs, studies of several films and chats; every way
  to give a film gives its report, and text alone is refused in one sentence. Other models get transformers' pipeline.
- `processor(images=["film.png"])` and `apply_chat_template`.
- `generate` decodes as generation_config.json says, a study's report does not depend on its batch, and it takes a
  streamer, a GenerationConfig, a compiled model, `device_map="auto"` and bfloat16.
- transformers' Trainer trains it; peft adapters load on top of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_films import dicom_bytes
from PIL import Image
from tiny_models import MakeModel, films, labels_for
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, TextStreamer, pipeline

import megpt.hf
from megpt.config import GenerateConfig
from megpt.errors import InputError
from megpt.generation.writer import ReportWriter
from megpt.model.checkpoint.decoding import carry, completed
from megpt.study import Study

PROMPTED = GenerateConfig(num_beams=3, repetition_penalty=1.7, length_penalty=1.5, min_new_tokens=4, max_new_tokens=9)


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Any:
    return pipeline("image-text-to-text", model=str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """film.png, film.dcm with the same pixels, other.png."""
    path = tmp_path_factory.mktemp("films")
    first, second = films(2, seed=8, size=80)
    first.save(path / "film.png")
    second.save(path / "other.png")
    (path / "film.dcm").write_bytes(dicom_bytes(np.asarray(first)))
    (path / "text.png").write_text("not a film")
    return path


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *arguments: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_every_way_to_give_a_film(pipe: Any, folder: Path, address: str) -> None:
    wanted = pipe(str(folder / "film.png"), max_new_tokens=8)
    assert len(wanted) == 1 and wanted[0].keys() == {"generated_text"} and wanted[0]["generated_text"]
    ways = (folder / "film.png", Image.open(folder / "film.png"), f"{address}/film.png", folder / "film.dcm")
    for film in ways:
        assert pipe(film, max_new_tokens=8) == wanted
    chat = [{"role": "user", "content": [{"type": "image", "path": str(folder / "film.png")}]}]
    for record in (pipe(chat, max_new_tokens=8)[0], pipe(text=chat, max_new_tokens=8)[0]):
        assert record["generated_text"] == [*chat, {"role": "assistant", "content": wanted[0]["generated_text"]}]
    assert pipe(chat, max_new_tokens=8, return_full_text=False)[0]["generated_text"] == wanted[0]["generated_text"]


def test_batches_of_studies(pipe: Any, folder: Path) -> None:
    one, other = str(folder / "film.png"), str(folder / "other.png")
    alone = [pipe([study], max_new_tokens=8)[0] for study in ([one, other], [other])]
    for size in (1, 2):
        assert pipe([[one, other], [other]], max_new_tokens=8, batch_size=size) == alone
    assert pipe([one, other], max_new_tokens=8) == [pipe(one, max_new_tokens=8), pipe(other, max_new_tokens=8)]
    several = pipe(one, max_new_tokens=5, num_beams=2, num_return_sequences=2)
    assert len(several) == 2
    ids = pipe(one, generate_kwargs={"max_new_tokens": 5}, return_tensors=True)[0]["generated_token_ids"]
    assert len(ids) <= 5


def test_calls_that_cannot_be_answered(pipe: Any, folder: Path, address: str, capfd: Any) -> None:
    for call in ({"text": "Describe the film."}, {}, {"text": [{"role": "user", "content": "Describe it."}]}):
        with pytest.raises(InputError, match=r"holds no film\n  cause: MeGPT describes films; it has nothing to say"):
            pipe(**call)
    with pytest.raises(InputError, match="cannot be read: not a JPEG"):
        pipe(folder / "text.png")
    with pytest.raises(InputError, match="cannot be read: missing file"):
        pipe("nowhere.png")
    with pytest.raises(InputError, match=r"cannot be downloaded\n  where: .*/nowhere\n  cause: HTTP status 404"):
        pipe(f"{address}/nowhere?signature=secret")
    with pytest.raises(InputError, match="unknown keyword max_tokens"):
        pipe(folder / "film.png", max_tokens=3)
    pipe(folder / "film.png", text="Describe it.", max_new_tokens=2)
    assert "the text beside the films is not used" in capfd.readouterr().err


def test_the_processor(tiny_checkpoint: Path, folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    path = folder / "film.png"
    wanted = processor(images=[Image.open(path)])
    assert wanted["pixel_values"].shape == (1, 1, 3, 64, 64)
    for images in (["film.png"], "film.png", [["film.png"]]):
        given = [str(folder / images[0])] if images == ["film.png"] else str(path) if images == "film.png" else [[path]]
        assert torch.equal(processor(images=given)["pixel_values"], wanted["pixel_values"])
    image = {"type": "image", "url": str(path)}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": "Look."}]}]
    assert processor.apply_chat_template(chat) == "Human: <Img></Img> Look. \nAssistant:"
    batch = processor.apply_chat_template([chat, chat], tokenize=True, return_dict=True, return_tensors="pt")
    assert batch["pixel_values"].shape[0] == 2 and torch.equal(batch["pixel_values"][:1], wanted["pixel_values"])
    with pytest.raises(InputError, match=r"images\[0\]\[0\] cannot be read: missing file"):
        processor(images=["nowhere.png"])


def test_three_ways_to_the_same_reports(make_model: MakeModel, tmp_path: Path) -> None:
    model, processor = make_model("vit")
    carry(model.generation_config, PROMPTED)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    rules, origins = completed(GenerateConfig(), tmp_path)
    assert rules.model_dump(include=set(origins)) == PROMPTED.model_dump(include=set(origins))
    pictures = films(5, seed=3)
    studies = [(Study(str(n), "p", (), report=None), [picture]) for n, picture in enumerate(pictures)]
    validated = {p.study.study_id: p.report for p in ReportWriter((model, processor), PROMPTED, 0).write(studies)}
    generated = {p.study.study_id: p.report for p in ReportWriter(tmp_path, rules, 0).write(studies)}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = processor(images=[[picture] for picture in pictures])
    assert len(set(loaded.encode(**inputs).prompt_id.tolist())) > 1  # prompts of different lengths
    texts = processor.batch_decode(loaded.generate(**inputs))
    assert texts == [validated[str(n)] for n in range(5)] == [generated[str(n)] for n in range(5)]
    assert len(set(texts)) > 1
    assert pipeline("image-text-to-text", model=str(tmp_path))(pictures[0])[0]["generated_text"] == texts[0]


@pytest.mark.slow
def test_generate_as_in_transformers(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, device_map="auto")
    inputs = processor(images=[films(1, seed=2)]).to(model.device)
    wanted = model.generate(**inputs, max_new_tokens=6, num_beams=1)
    capsys.readouterr()
    model.generate(**inputs, max_new_tokens=6, streamer=TextStreamer(processor.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == processor.batch_decode(wanted)[0]
    settings = GenerationConfig(max_new_tokens=6, num_beams=1, eos_token_id=1, pad_token_id=2)
    assert torch.equal(model.generate(**inputs, generation_config=settings), wanted)
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(compiled.generate(**inputs, max_new_tokens=6), wanted)
    assert torch.allclose(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5)
    half = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.generate(**inputs, max_new_tokens=3).shape[1] <= 3
    with pytest.raises(InputError, match="generate takes films, not input_ids"):
        model.generate(**inputs, input_ids=torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(InputError, match="pixel_values are missing"):
        model.generate()


@pytest.mark.parametrize("beams", [1, 3])
def test_a_report_does_not_depend_on_its_batch(
    make_model: MakeModel, beams: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = make_model("vit")
    model.eval()
    pictures = films(4, seed=3)
    lengths = model.assemble(model.encode(**processor(images=pictures)))[1].sum(1)
    assert len(set(lengths.tolist())) > 1  # so that rows are padded
    rules = {"num_beams": beams, "max_new_tokens": 14}
    repeated = {"repetition_penalty": 0.5}  # below 1, so that it has an effect on short reports
    processed = {**repeated, "min_new_tokens": 6, "no_repeat_ngram_size": 2}
    seen = []
    with caplog.at_level("WARNING"):
        for more in ({}, repeated, processed):
            ways = [{**rules, **more}, {"generation_config": GenerationConfig(**rules, **more, eos_token_id=1)}]
            alone = [processor.batch_decode(model.generate(**processor(images=[p]), **ways[0]))[0] for p in pictures]
            for way in ways:
                assert processor.batch_decode(model.generate(**processor(images=pictures), **way)) == alone
            seen.append(alone)
    assert seen[0] != seen[1] != seen[2]  # the settings have an effect
    assert not [r for r in caplog.records if "deprecated" in r.getMessage()]
    with pytest.raises(InputError, match="does not take min_length"):
        model.generate(**processor(images=pictures), min_length=30)


def test_the_trainer_of_transformers(make_model: MakeModel, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, processor = make_model("vit")
    before = model.projector.linear.weight.detach().clone()
    rows = [{"film": film, "report": "Clear lungs."} for film in films(6)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = processor(images=[[row["film"]] for row in batch])
        return {**inputs, "labels": labels_for(processor, [row["report"] for row in batch])}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to=[],
        save_steps=2,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate, processing_class=processor
    )
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.projector.linear.weight, before)
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(saved.projector.linear.weight, model.projector.linear.weight)


def test_peft_adapters_on_top(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    inputs = processor(images=[films(1, seed=2)])
    base = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    plain = base(**inputs).logits
    tuned = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    wanted = tuned(**inputs).logits
    assert not torch.allclose(wanted, plain)
    tuned.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_checkpoint), tmp_path)
    assert torch.allclose(again(**inputs).logits, wanted, atol=1e-6)
    assert again.generate(**inputs, max_new_tokens=3).shape[1] <= 3
    assert torch.allclose(again.merge_and_unload()(**inputs).logits, wanted, atol=1e-5)


def test_other_models_get_the_pipeline_of_transformers() -> None:
    from transformers.pipelines import SUPPORTED_TASKS
    from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline

    assert SUPPORTED_TASKS["image-text-to-text"]["impl"] is megpt.hf.ReportPipeline
    assert issubclass(megpt.hf.ReportPipeline, ImageTextToTextPipeline)
    other = megpt.hf.ReportPipeline.__new__(megpt.hf.ReportPipeline)
    other.model = type("Other", (), {"config": None})()
    with pytest.raises(ValueError, match="You must at least provide either text or images"):
        other()
