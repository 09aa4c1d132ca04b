"""Import of reference checkpoints: R2GenGPT and MeGPT, shallow, delta and deep.

- visual tokens, report logits and loss equal a straightforward evaluation of the reference's forward to 1e-5, through
  save_pretrained and from_pretrained, with one film and with several
- texts equal those of the reference's own test, which writes `label:None` in MeGPT's, greedy and with beams, from both
  backends; one text without clusters takes that text's place, several are refused
- `global_only` gives one token a study; sampling with several beams is said
- LoRA carried as an adapter and LoRA merged give the same
- batch-norm statistics, which the reference's own files lack, are mean 0 and variance 1, as it evaluates itself
- repaired FEM kernels (1×3, 3×1) are recognised by their shape
- the table names what was used, ignored and missing
- a file that lacks trained weights, or was made for another encoder or language model, is one clear error
- hub names of Microsoft's Swins become timm's names of the same weights
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference_layout import GEOMETRY, IMAGE_SIZE, Reference, adapted, randomised, save_reference
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from megpt.config import ModelConfig
from megpt.errors import InputError
from megpt.generation import Decoding, EngineItem, GenerationEngine, HFBackend
from megpt.model import MeGPTForConditionalGeneration, MeGPTProcessor, PromptBank
from megpt.model.reference.convert import encoder_name, import_reference
from megpt.model.reference.swin import swin_to_timm

VISION = "swin_base_patch4_window7_224"


@pytest.fixture
def films() -> list[torch.Tensor]:
    """Two views of three studies."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) for _ in range(2)]


def coarse_films(count: int, seed: int) -> torch.Tensor:
    """Films that differ in their large structures, which an untrained encoder tells apart better than noise."""
    small = 3 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, IMAGE_SIZE)


def unbiased(made: Reference) -> Reference:
    """Without random biases, which would give all films nearly the same tokens, and so one report."""
    for name, p in made.named_parameters():
        if not name.startswith("llama_model") and (name.endswith("bias") or "norm" in name or ".bn." in name):
            torch.nn.init.constant_(p.data, 0.0 if name.endswith("bias") else 1.0)
    return made


def sharp_llm(llm: Path, folder: Path) -> Path:
    """The language model with ten times the weights, so that it heeds what it is shown."""
    model = LlamaForCausalLM.from_pretrained(llm)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p.data, std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(llm).save_pretrained(folder)
    return folder


def reference(llm: Path, *, megpt: bool, mode: str) -> Reference:
    torch.manual_seed(3)
    made = Reference(llm, megpt=megpt).eval()
    return adapted(made) if mode == "delta" else made


def settings(llm: Path, encoder: Path | str, **more: Any) -> ModelConfig:
    args = {"vision": VISION, "vision_args": GEOMETRY, "vision_weights": str(encoder), "image_size": IMAGE_SIZE}
    return ModelConfig(**{**args, "llm": str(llm), **more})


def base_weights(made: Reference, folder: Path) -> Path:
    """The frozen encoder both sides share, as a file of timm's names."""
    swin = made.visual_encoder
    plain = swin.get_base_model() if hasattr(swin, "get_base_model") else swin
    state = {k.replace(".base_layer", ""): v for k, v in plain.state_dict().items() if "lora_" not in k}
    save_file({k: v.contiguous() for k, v in swin_to_timm(state)[0].items()}, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def round_trip(file: Path, config: ModelConfig, folder: Path, **options: Any) -> MeGPTForConditionalGeneration:
    model, processor, _ = import_reference(file, config, **options)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return MeGPTForConditionalGeneration.from_pretrained(folder)


@torch.no_grad()
def compare(made: Reference, model: Any, views: list[torch.Tensor]) -> None:
    """Tokens, logits and loss of both sides."""
    pixels, mask = torch.stack(views, 1), torch.ones(len(views[0]), len(views), dtype=torch.bool)
    visual = model.encode(pixels, mask)
    expected = made.encode(views)
    assert expected.std() > 0.05
    torch.testing.assert_close(visual.tokens, expected, atol=1e-5, rtol=1e-5)
    report = torch.randint(3, 300, (len(views[0]), 7), generator=torch.Generator().manual_seed(1))
    report[:, -1] = 1
    before, suffixes = model.prompt_ids()
    logits = made.logits(expected, torch.tensor([before]), torch.tensor([suffixes[0]]), report)
    loss = F.cross_entropy(logits.flatten(0, 1), report.flatten())
    penalty = 1e-5 * (made.llama_proj.weight.square().sum() + made.layer_norm.weight.square().sum())
    out = model(pixels, mask, report)
    torch.testing.assert_close(out.cross_entropy, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.loss, loss + penalty, atol=1e-5, rtol=1e-5)
    first = model(pixels, mask).logits
    torch.testing.assert_close(first, logits[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("megpt", [False, True], ids=["r2gengpt", "megpt"])
@pytest.mark.parametrize("mode", ["shallow", "delta", "deep"])
def test_same_outputs(tiny_llm: Path, tmp_path: Path, films: list[torch.Tensor], mode: str, megpt: bool):
    made = reference(tiny_llm, megpt=megpt, mode=mode)
    file = save_reference(made, tmp_path / "x.pth", mode=mode)
    # In mode deep the file has the whole encoder: no other weights are needed.
    encoder = "pretrained" if mode == "deep" else base_weights(made, tmp_path)
    model = round_trip(file, settings(tiny_llm, encoder), tmp_path / "out")
    assert model.config.mode == mode
    assert (model.config.fem, model.config.doconv, model.config.square_kernels) == (megpt, megpt, megpt)
    compare(made, model, films)
    compare(made, model, films[:1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("megpt", "beams", "global_only"), [(False, 1, False), (False, 3, True), (True, 1, True), (True, 3, False)]
)
def test_same_texts(tiny_llm: Path, tmp_path: Path, megpt: bool, beams: int, global_only: bool):
    llm = sharp_llm(tiny_llm, tmp_path / "llm")
    torch.manual_seed(3)
    made = unbiased(Reference(llm, megpt=megpt, global_only=global_only).eval())
    rules = {"min_new_tokens": 4, "max_new_tokens": 24, "repetition_penalty": 1.5}
    rules |= {"length_penalty": 2.0} if beams > 1 else {}
    told = {**rules, "end_sym": "</s>", "beam_size": beams, "length_penalty": 2.0, "do_sample": False, "temperature": 0}
    file = save_reference(made, tmp_path / "x.pth", mode="shallow", **told)
    views = [coarse_films(6, seed) for seed in (1, 2)]
    tokenizer = AutoTokenizer.from_pretrained(llm)
    expected = made.test_texts(views, tokenizer, num_beams=beams, do_sample=False, **rules)
    assert len(set(expected)) >= 4
    model = round_trip(file, settings(llm, base_weights(made, tmp_path)), tmp_path / "out")
    assert model.config.global_only is global_only
    processor = MeGPTProcessor.from_pretrained(tmp_path / "out")
    pixels = torch.stack(views, 1)
    assert processor.batch_decode(model.generate(pixels)) == expected
    visual = model.encode(pixels)
    assert visual.tokens.shape[1] == (1 if global_only else 16)
    items = [EngineItem(str(n), tokens) for n, tokens in enumerate(visual.tokens)]
    decoding = Decoding(num_beams=beams, **{"length_penalty": 1.0, **rules})
    for backend in (GenerationEngine, HFBackend):
        found = {result.key: processor.decode(result.token_ids) for result in backend(model, decoding).run(items)}
        assert [found[item.key] for item in items] == expected


@pytest.mark.parametrize(("beams", "kept", "said"), [(1, True, False), (3, None, True)])
def test_sampling(tiny_llm: Path, tmp_path: Path, beams: int, kept: bool | None, said: bool):
    made = reference(tiny_llm, megpt=False, mode="shallow")
    file = save_reference(made, tmp_path / "x.pth", mode="shallow", beam_size=beams, do_sample=True, temperature=0.5)
    model, _, report = import_reference(file, settings(tiny_llm, base_weights(made, tmp_path)))
    assert model.generation_config.do_sample is kept
    assert model.generation_config.temperature == (0.5 if kept else None)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.render())
    assert ("megpt searches with them" in console.export_text()) is said


def test_fixed_prompt(tiny_llm: Path, tmp_path: Path):
    made = reference(tiny_llm, megpt=True, mode="deep")
    file = save_reference(made, tmp_path / "x.pth", mode="deep")
    config = settings(tiny_llm, "pretrained")  # mode deep needs no other weights, also with a prompt of one's own
    PromptBank.fixed("Describe the lungs.").save(tmp_path / "prompts")
    bank = PromptBank.load(tmp_path / "prompts")
    model = round_trip(file, config, tmp_path / "out", bank=bank)
    assert model.bank.texts == ("Describe the lungs.",) and not model.config.dynamic_prompt
    PromptBank(("Describe the lungs.", "Describe the heart."), torch.randn(2, 32)).save(tmp_path / "prompts")
    (tmp_path / "prompts" / "centroids.safetensors").unlink()
    with pytest.raises(InputError, match="2 prompts, and no clusters to choose one by"):
        PromptBank.load(tmp_path / "prompts")


def test_merged_adapter(tiny_llm: Path, tmp_path: Path, films: list[torch.Tensor]):
    made = reference(tiny_llm, megpt=True, mode="delta")
    file = save_reference(made, tmp_path / "x.pth", mode="delta")
    config = settings(tiny_llm, base_weights(made, tmp_path))
    model = round_trip(file, config, tmp_path / "out", merge_lora=True)
    assert not any(".lora_" in name for name in model.state_dict())
    compare(made, model, films)


def test_without_statistics(tiny_llm: Path, tmp_path: Path, films: list[torch.Tensor]):
    made = reference(tiny_llm, megpt=True, mode="shallow")
    file = save_reference(made, tmp_path / "x.pth", mode="shallow", statistics=False)
    encoder = base_weights(made, tmp_path)
    for module in made.FEM.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
    _, _, report = import_reference(file, settings(tiny_llm, encoder))
    assert sum("running_" in name for name in report.missing) == 2 * 13
    compare(made, round_trip(file, settings(tiny_llm, encoder), tmp_path / "out"), films)


def test_repaired_kernels(tiny_llm: Path, tmp_path: Path, films: list[torch.Tensor]):
    made = reference(tiny_llm, megpt=True, mode="shallow")
    for branch, wide, tall in ((made.FEM.branch1, 1, 2), (made.FEM.branch2, 2, 1)):
        for index, kernel, padding in ((wide, (1, 3), (0, 1)), (tall, (3, 1), (1, 0))):
            old = branch[index].conv
            branch[index].conv = torch.nn.Conv2d(old.in_channels, old.out_channels, kernel, padding=padding, bias=False)
            randomised(branch[index])
    file = save_reference(made, tmp_path / "x.pth", mode="shallow")
    model = round_trip(file, settings(tiny_llm, base_weights(made, tmp_path)), tmp_path / "out")
    assert model.config.square_kernels is False
    compare(made, model, films)


def test_language_model_adapter(tiny_llm: Path, tmp_path: Path, films: list[torch.Tensor]):
    from peft import LoraConfig, get_peft_model

    made = reference(tiny_llm, megpt=False, mode="delta")
    inner = made.llama_model
    get_peft_model(inner, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"]))
    for name, p in inner.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p.data, std=0.2)
    made.eval()
    file = save_reference(made, tmp_path / "x.pth", mode="delta")
    tree = torch.load(file, weights_only=False)
    tree["model"] |= {f"llama_model.base_model.model.{k}": v for k, v in inner.state_dict().items() if "lora_" in k}
    tree["config"].llm_alpha = 6
    torch.save(tree, file)
    model = round_trip(file, settings(tiny_llm, base_weights(made, tmp_path)), tmp_path / "out")
    assert model.config.llm_lora and model.config.lora_rank == 4
    compare(made, model, films)


def test_own_prompts(tiny_llm: Path, tmp_path: Path, films: list[torch.Tensor]):
    made = reference(tiny_llm, megpt=True, mode="shallow")
    file = save_reference(made, tmp_path / "x.pth", mode="shallow")
    bank = PromptBank(("Describe the heart.", "Describe the lungs."), torch.randn(2, 32))
    model = round_trip(file, settings(tiny_llm, base_weights(made, tmp_path)), tmp_path / "out", bank=bank)
    assert model.bank.texts == bank.texts and model.config.dynamic_prompt
    pixels = torch.stack(films, 1)
    torch.testing.assert_close(model.encode(pixels).tokens, made.encode(films), atol=1e-5, rtol=1e-5)


def test_table(tiny_llm: Path, tmp_path: Path):
    made = reference(tiny_llm, megpt=True, mode="delta")
    file = save_reference(made, tmp_path / "x.pth", mode="delta", statistics=False)
    tree = torch.load(file, weights_only=False)
    tree["model"]["llama_model.lm_head.weight"] = torch.zeros(2, 2)
    tree["model"]["classifier.weight"] = torch.zeros(2)
    tree["config"].beam_size = 5
    torch.save(tree, file)
    model, _, report = import_reference(file, settings(tiny_llm, base_weights(made, tmp_path)))
    console = Console(width=160, record=True, quiet=True)
    console.print(report.render())
    assert report.used["llama_proj.weight"] == "projector.linear.weight"
    assert report.used["DOConv2d.W"] == "projector.enhancer.doconv.weight"
    assert set(report.ignored) == {"llama_model.lm_head.weight", "classifier.weight"}
    assert "0: the reference has none" in report.missing["projector.enhancer.doconv.bias"]
    assert model.generation_config.num_beams == 5
    assert report.used.keys() | report.ignored.keys() == tree["model"].keys()


def test_wrong_files(tiny_llm: Path, tmp_path: Path):
    made = reference(tiny_llm, megpt=True, mode="shallow")
    file = save_reference(made, tmp_path / "x.pth", mode="shallow")
    encoder = base_weights(made, tmp_path)
    tree = torch.load(file, weights_only=False)

    def saved(**changes: Any) -> Path:
        state = {k: v for k, v in {**tree["model"], **changes}.items() if v is not None}
        torch.save({**tree, "model": state}, tmp_path / "y.pth")
        return tmp_path / "y.pth"

    config = settings(tiny_llm, encoder)
    with pytest.raises(InputError, match=r"llama_proj\.weight"):
        import_reference(saved(**{"llama_proj.weight": None}), config)
    with pytest.raises(InputError, match=r"shortcut\.0\.conv"):
        import_reference(saved(**{"FEM.shortcut.0.conv.weight": None}), config)
    with pytest.raises(InputError, match=r"layer_norm\.bias"):
        import_reference(saved(**{"layer_norm.bias": torch.zeros(4096)}), config)


@pytest.mark.parametrize(
    ("hub", "timm_name"),
    [
        ("microsoft/swin-base-patch4-window7-224", "swin_base_patch4_window7_224.ms_in1k"),
        ("microsoft/swin-base-patch4-window7-224-in22k", "swin_base_patch4_window7_224.ms_in22k"),
        ("microsoft/swin-tiny-patch4-window7-224", "swin_tiny_patch4_window7_224.ms_in1k"),
        ("/home/someone/swin-base-patch4-window7-224/", "swin_base_patch4_window7_224.ms_in1k"),
        ("/home/someone/encoder", None),
        (None, None),
    ],
)
def test_encoder_names(hub: str | None, timm_name: str | None):
    import timm

    assert encoder_name(hub) == timm_name
    assert timm_name is None or timm.is_model_pretrained(timm_name)
