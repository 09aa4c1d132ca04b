"""The whole model.

- Hierarchical, plain-transformer and convolutional encoders, at several sizes, under Llama, GPT-2 and Qwen2 language
  models of any width: a finite loss, a gradient for everything that is trained and for nothing else, reports.
- A study's tokens, prompt and report are the same alone and in a batch of 32, whatever views the others have; it
  does not matter where padding views stand; more views give more tokens with `concat`, as many with `mean`.
- Films pass through the vision encoder's evaluation mode while training: batch statistics and dropout stay.
- Visual tokens carry the prompt of their own study; without the dynamic prompt there is one instruction.
- Evaluation and training agree; activation checkpointing changes no gradient and keeps less; a frozen encoder takes
  films in parts on a CPU, for the same maps.
- Bad input: an unknown encoder or language model (the nearest names), a size the encoder does not take, prompts of
  another encoder or none, zero views, NaN pixels, films of another size, a prompt or report beyond the context, an even
  kernel, weights that cannot be had or do not fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import MakeModel, films, labels_for
from torch import nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from megpt.errors import InputError
from megpt.model import PromptBank, build_model
from megpt.model.vision import CPU_PIXELS

TEXTS = ["The heart is normal in size.", "There is a small right pleural effusion. No pneumothorax is seen."]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": 1, "do_sample": False}


@pytest.fixture(scope="module")
def other_llms(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A GPT-2 (learned positions, tied embeddings) and a Qwen2, with the tokenizer of `tiny_llm`."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=2, n_positions=256, **ids))
    qwen2 = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=40,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            **ids,
        )
    )
    folders = {}
    for name, model in (("gpt2", gpt2), ("qwen2", qwen2)):
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vit", {"mode": "delta", "llm": "gpt2"}),
        ("vit", {"fem_domain": "token", "views": "concat"}),
        ("swin", {"mode": "delta", "llm": "qwen2"}),
        ("swin", {"image_size": 96, "fem_norm": "batch"}),
        ("convnext", {"mode": "deep", "views": "concat"}),
        ("resnet", {"mode": "deep", "image_size": 48, "llm": "gpt2"}),
        ("resnet", {"fem": False}),
        ("vit", {"doconv": False, "dynamic_prompt": False}),
        ("vit", {"fem": False, "doconv": False, "llm_lora": True}),
        ("vit", {"vision": "pvt_v2_b0", "mode": "delta"}),
        ("vit", {"vision": "test_efficientnet", "mode": "deep"}),
    ],
    ids=str,
)
def test_encoders_and_language_models(
    make_model: MakeModel, other_llms: dict[str, str], kind: str, settings: dict[str, Any]
) -> None:
    if settings.get("llm"):
        settings = {**settings, "llm": other_llms[settings["llm"]]}
    model, processor = make_model(kind, **settings)
    batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 2, 3, processor.image_size, processor.image_size)
    assert batch["pixel_values"].dtype == torch.float32 and batch["view_mask"].tolist() == [[True, True], [True, False]]
    out = model.train()(**batch, labels=labels_for(processor, TEXTS))
    assert torch.isfinite(out.loss)
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    ids = model.eval().generate(**batch, **GREEDY)
    assert ids.shape == (2, 8)
    assert all(isinstance(text, str) for text in processor.batch_decode(ids))


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
@pytest.mark.parametrize("views", ["mean", "concat"])
def test_a_study_does_not_depend_on_its_batch(make_model: MakeModel, kind: str, views: str) -> None:
    model, processor = make_model(kind, views=views)
    nn.init.normal_(model.projector.enhancer.doconv.d_diff, std=0.1)
    model.eval()
    studies = [films(1 + n % 3, seed=n) for n in range(32)]
    batch = processor(images=studies, return_tensors="pt")
    together = model.encode(**batch)
    assert len(set(together.prompt_id.tolist())) > 1
    reports = processor.batch_decode(model.generate(**batch, **GREEDY))
    for n in (0, 1, 7, 31):  # of these 1 lies exactly between two prompts' centres
        one = processor(images=[studies[n]], return_tensors="pt")
        alone = model.encode(**one)
        assert alone.prompt_id[0] == together.prompt_id[n]
        assert int(alone.token_mask.sum()) == int(together.token_mask[n].sum())
        count = int(alone.token_mask.sum())
        assert torch.allclose(alone.tokens[0, :count], together.tokens[n, :count], atol=1e-5)
        assert processor.batch_decode(model.generate(**one, **GREEDY)) == [reports[n]]
    assert len(set(reports)) > 1


def test_views(make_model: MakeModel) -> None:
    mean, processor = make_model("vit", views="mean")
    concat, _ = make_model("vit", views="concat")
    batch = processor(images=[films(3), films(1, seed=5)], return_tensors="pt")
    assert mean.encode(**batch).tokens.shape[1] == 16
    in_sequence = concat.encode(**batch)
    assert in_sequence.tokens.shape[1] == 48 and in_sequence.token_mask.sum(1).tolist() == [48, 16]
    # The mean of three equal films is the film; a hole between views is not a view.
    film = films(1)[0]
    once, thrice = (mean.encode(**processor(images=[[film] * n], return_tensors="pt")) for n in (1, 3))
    assert torch.allclose(once.tokens, thrice.tokens, atol=1e-5)
    pixels, mask = batch["pixel_values"][:1], torch.tensor([[True, False, True]])
    packed = pixels[:, [0, 2]]
    for model in (mean, concat):
        holes, whole = model.encode(pixels, mask), model.encode(packed, mask[:, [0, 2]])
        count = int(whole.token_mask.sum())
        assert torch.allclose(holes.tokens[:, :count], whole.tokens, atol=1e-6)


def test_prompts_are_those_of_each_study(make_model: MakeModel) -> None:
    model, processor = make_model("vit")
    batch = processor(images=[[film] for film in films(3, seed=1)], return_tensors="pt")
    visual = model.encode(**batch)
    assert visual.prompt_id.tolist() == [0, 1, 2]
    embeds, mask = model.assemble(visual)
    prefix, suffixes = model.prompt_ids()
    table = model.get_input_embeddings().weight
    for row, k in enumerate(visual.prompt_id.tolist()):
        length = len(prefix) + 16 + len(suffixes[k])
        assert mask[row].tolist() == [0] * (mask.shape[1] - length) + [1] * length
        wanted = torch.cat((table[prefix], visual.tokens[row], table[suffixes[k]]))
        assert torch.equal(embeds[row, -length:], wanted)
    text = processor.tokenizer.decode(suffixes[1])
    assert text == "</Img> Describe the lungs and the pleura. \nAssistant:"
    assert processor.tokenizer.decode(prefix) == "<s>Human: <Img>"
    fixed, _ = make_model("vit", dynamic_prompt=False)
    assert len(fixed.prompt_ids()[1]) == 1 and fixed.encode(**batch).prompt_id.tolist() == [0, 0, 0]


def test_training_mode_leaves_frozen_parts_alone(make_model: MakeModel) -> None:
    for mode in ("shallow", "deep"):
        model, processor = make_model("resnet", mode=mode)
        batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
        state = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
        labels = labels_for(processor, TEXTS)
        trained = model.train()(**batch, labels=labels).loss.item()
        assert state and all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
        assert model.eval()(**batch, labels=labels).loss.item() == pytest.approx(trained, rel=1e-6)


@pytest.mark.parametrize("mode", ["shallow", "deep"])
def test_activation_checkpointing_changes_no_gradient(
    make_model: MakeModel, other_llms: dict[str, str], mode: str
) -> None:
    grads, kept = [], [0, 0]

    def count(saved: torch.Tensor) -> torch.Tensor:
        kept[on] += saved.nbytes
        return saved

    for on in (False, True):
        model, processor = make_model("vit", mode=mode, llm=other_llms["gpt2"])
        if on:
            model.gradient_checkpointing_enable()
        batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
        with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
            loss = model.train()(**batch, labels=labels_for(processor, TEXTS)).loss
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.allclose(g, grads[1][n], atol=1e-6) for n, g in grads[0].items())
    assert kept[1] < 0.7 * kept[0]


def test_a_frozen_encoder_takes_films_in_parts(make_model: MakeModel) -> None:
    model, _ = make_model("swin")
    vision = model.train().vision
    at_once: list[int] = []
    vision.trunk.patch_embed.register_forward_pre_hook(lambda _, inputs: at_once.append(len(inputs[0])))
    most = CPU_PIXELS // vision.image_size**2
    pixels = torch.randn(most + 3, 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        parts = vision(pixels)
    assert at_once == [most, 3]
    whole = vision(pixels)
    assert at_once[2:] == [most + 3]
    torch.testing.assert_close(parts, whole)


def refused(match: str) -> Any:
    return pytest.raises(InputError, match=match)


def test_unknown_names(make_model: MakeModel, tiny_llm: Path) -> None:
    with refused(r"model\.vision = 'swin_bse_patch4_window7_224'(.|\n)*swin_base_patch4_window7_224"):
        make_model("vit", vision="swin_bse_patch4_window7_224")
    with refused(rf"model\.llm(.|\n)*{tiny_llm}"):
        make_model("vit", llm=str(tiny_llm)[:-1] + "X")
    with refused(r"model\.vision = 'coat_tiny'(.|\n)*grid"):
        make_model("vit", vision="coat_tiny", image_size=224)
    with refused(r"image_size"):
        make_model("vit", image_size=50)
    with refused(r"doconv_kernel = 2"):
        make_model("vit", doconv_kernel=2)


def test_widths_that_do_not_fit(make_model: MakeModel, other_llms: dict[str, str]) -> None:
    with refused(r"model\.fem_domain = token(.|\n)*model\.fem_domain=spatial"):
        make_model("vit", llm=other_llms["qwen2"], fem_domain="token")


def test_prompts_of_another_encoder(make_model: MakeModel, tiny_llm: Path) -> None:
    from megpt.config import ModelConfig

    model, _ = make_model("vit")
    config = ModelConfig(vision="test_vit", vision_weights="none", image_size=64, llm=str(tiny_llm))
    with refused("fitted with another vision encoder"):
        build_model(config, bank=model.bank, seed=7)
    with refused("no fitted prompts"):
        build_model(config, bank=None, seed=0)
    long = model.bank.with_texts(["word " * 600, *model.bank.texts[1:]])
    with refused("context of 512"):
        build_model(config, bank=long, seed=0)


def test_bad_films(make_model: MakeModel) -> None:
    model, processor = make_model("vit")
    batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
    pixels, mask = batch["pixel_values"], batch["view_mask"]
    with refused("no view"):
        model.encode(pixels, torch.tensor([[True, True], [False, False]]))
    with refused("NaN"):
        model.encode(pixels.clone().index_fill_(3, torch.tensor([3]), float("nan")), mask)
    with refused(r"\(3, 64, 64\)"):
        model.encode(pixels[..., :32, :32], mask)
    with refused(r"images\[1\] holds no film"):
        processor(images=[films(1), []])
    with refused(r"images\[0\]\[0\] holds NaN"):
        processor(images=[[torch.full((8, 8), float("nan")).numpy()]])
    with refused("context of 512"):
        model.generate(pixels, mask, max_new_tokens=500)
    with refused("context of 512"):
        model(pixels, mask, labels=torch.ones(2, 500, dtype=torch.long))


def test_encoder_weights(make_model: MakeModel, tmp_path: Path) -> None:
    model, _ = make_model("vit")
    save_file(model.vision.trunk.state_dict(), tmp_path / "vit.safetensors")
    other, _ = make_model("vit", seed=3, vision_weights=str(tmp_path / "vit.safetensors"))
    assert all(torch.equal(v, other.vision.state_dict()[k]) for k, v in model.vision.state_dict().items())
    assert other.config.frozen["vision"]["source"] == str(tmp_path / "vit.safetensors")
    trained, _ = make_model("vit", mode="deep", seed=4)
    trained.save_pretrained(tmp_path / "checkpoint")  # its encoder, frozen in another run
    again, _ = make_model("vit", vision_weights=str(tmp_path / "checkpoint" / "model.safetensors"))
    assert all(torch.equal(v, again.vision.state_dict()[k]) for k, v in trained.vision.state_dict().items())
    with refused("does not fit"):
        make_model("convnext", vision_weights=str(tmp_path / "vit.safetensors"))
    with refused(r"vision_weights = 'nowhere\.pt'"):
        make_model("vit", vision_weights="nowhere.pt")
    with refused(r"pretrained weights(.|\n)*vision_weights=FILE"):
        make_model("vit", vision_weights="pretrained")


def test_fixed_bank_keeps_an_edited_text(tiny_llm: Path) -> None:
    from megpt.config import ModelConfig

    config = ModelConfig(
        vision="test_vit", vision_weights="none", image_size=64, llm=str(tiny_llm), dynamic_prompt=False
    )
    model, _ = build_model(config, bank=PromptBank.fixed("label:3"), seed=0)
    assert model.bank.texts == ("label:3",)
