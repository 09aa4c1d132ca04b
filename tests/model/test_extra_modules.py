"""`model.extra_modules`: feature modules from other packages.

- A module from outside the package, known by an entry point, follows DOConv; it is trained, saved, loaded back, counted
  by `--dry-run` and named in the card; FEM and DOConv get the same weights as without it.
- One that is registered in `MODULES` works alike.
- An unknown name lists the choices; a repeated one, the token domain, a package that does not import, and a module that
  changes the shape are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY, MakeModel, films, labels_for
from torch import nn

from megpt.config import load_config
from megpt.errors import InputError
from megpt.model import MeGPTForConditionalGeneration, fingerprint
from megpt.model.cost.estimate import estimate
from megpt.model.projector import MODULES

SOURCE = """
from torch import nn

class Squeeze(nn.Module):
    def __init__(self, channels, config):
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)
        self.images = config.image_size

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()

def flat(channels, config):
    return nn.Flatten()
"""


@pytest.fixture
def squeeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package beside megpt: one module, and the metadata by which Python finds its entry points."""
    site = tmp_path / "site"
    metadata = site / "megpt_squeeze-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "megpt_squeeze.py").write_text(SOURCE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: megpt-squeeze\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[megpt.modules]\nsqueeze = megpt_squeeze:Squeeze\nflat = megpt_squeeze:flat\ngone = megpt_nowhere:Gone\n"
        "forward = megpt_squeeze:Squeeze\n"
    )
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("megpt_squeeze", None)


def test_a_module_from_another_package(make_model: MakeModel, squeeze: Path, tmp_path: Path, tiny_llm: Path) -> None:
    plain, processor = make_model("vit")
    model, _ = make_model("vit", extra_modules=["squeeze"])
    again, _ = make_model("vit", extra_modules=["squeeze"])
    enhancer = model.projector.enhancer
    assert list(dict(enhancer.named_children())) == ["fem", "doconv", "squeeze"]
    assert enhancer.squeeze.gate.in_channels == model.vision.channels and enhancer.squeeze.images == 64
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for name, tensor in plain.projector.enhancer.state_dict().items():
        assert torch.equal(tensor, enhancer.state_dict()[name]), name

    x = torch.randn(2, model.vision.channels, 4, 4)
    assert torch.equal(enhancer(x), enhancer.squeeze(enhancer.doconv(enhancer.fem(x))))

    batch = processor(images=[films(2), films(1, seed=5)], return_tensors="pt")
    labels = labels_for(processor, ["The heart is normal.", "Clear lungs."])
    before = enhancer.squeeze.gate.weight.clone()
    model.train()(**batch, labels=labels).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    assert enhancer.squeeze.gate.weight.requires_grad and not torch.equal(enhancer.squeeze.gate.weight, before)

    folder = tmp_path / "checkpoint"
    model.eval().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["extra_modules"] == ["squeeze"]
    assert "| feature modules | fem, doconv, squeeze; domain: spatial | yes |" in (folder / "README.md").read_text()
    plain.save_pretrained(tmp_path / "plain")
    assert fingerprint(folder) != fingerprint(tmp_path / "plain")
    loaded = MeGPTForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(loaded(**batch, labels=labels).loss, model(**batch, labels=labels).loss)
    model.export(tmp_path / "exported")
    exported = MeGPTForConditionalGeneration.from_pretrained(tmp_path / "exported")
    assert [type(part) for part in exported.projector.enhancer.children()][1:] == [nn.Conv2d, type(enhancer.squeeze)]
    torch.testing.assert_close(exported.encode(**batch).tokens, loaded.encode(**batch).tokens, atol=1e-5, rtol=1e-5)


def test_its_cost_is_counted(squeeze: Path, tiny_llm: Path) -> None:
    overrides = [f"model.{key}={json.dumps(value)}" for key, value in TINY["vit"].items()]
    overrides += [f"model.llm={tiny_llm}", "model.vision_weights=none"]
    found = {}
    for extra in ("[]", "[squeeze]"):
        rows = estimate(load_config(None, [*overrides, f"model.extra_modules={extra}"])).parts
        found[extra] = {part.name: part for part in rows}
    assert list(found["[squeeze]"]).index("squeeze") == list(found["[squeeze]"]).index("DOConv") + 1
    part = found["[squeeze]"].pop("squeeze")
    assert part.parameters == part.trained == 64 * 64 + 64
    assert (part.cost.forward, part.cost.backward) == (2 * 64 * 64, 4 * 64 * 64)
    assert found["[squeeze]"] == found["[]"]


def test_a_registered_module(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "shift", lambda channels, config: nn.BatchNorm2d(channels))
    model, _ = make_model("vit", fem=False, doconv=False, extra_modules=["shift"])
    assert [type(part) for part in model.projector.enhancer.children()] == [nn.BatchNorm2d]


def refused(match: str) -> Any:
    return pytest.raises(InputError, match=match)


def test_bad_names(make_model: MakeModel, squeeze: Path) -> None:
    with refused(r"there is no module 'squeezer'(.|\n)*group megpt\.modules\n  next:  did you mean squeeze\?"):
        make_model("vit", extra_modules=["squeezer"])
    with refused(r"no module 'blur'(.|\n)*known names: flat, gone, squeeze"):
        make_model("vit", extra_modules=["blur"])
    with refused("no module 'forward'"):
        make_model("vit", extra_modules=["forward"])
    with refused(r"'gone' cannot be imported\n  where: megpt_nowhere:Gone\n  cause: ModuleNotFoundError"):
        make_model("vit", extra_modules=["gone"])
    for extra in (["squeeze", "squeeze"], ["fem"], ["doconv"]):
        with refused(rf"adds '{extra[0]}' a second time"):
            make_model("vit", extra_modules=extra)
    with refused(r"next:  set model\.fem_domain=spatial, or model\.extra_modules=\[\]"):
        make_model("vit", extra_modules=["squeeze"], fem_domain="token")
    model, processor = make_model("vit", extra_modules=["flat"])
    with refused(r"the module 'flat' turned a feature map of \(1, 64, 4, 4\) into \(1, 1024\)"):
        model.encode(**processor(images=[films(1)], return_tensors="pt"))


def test_no_package_provides_one(make_model: MakeModel) -> None:
    with refused("next:  install the package that provides it on every machine"):
        make_model("vit", extra_modules=["squeeze"])
