"""A reference .pth → checkpoint/: weights of R2GenGPT and of the MeGPT reference.

    megpt import-checkpoint checkpoint_epoch14.pth --config configs/iu_xray_delta.yaml output=runs/imported

What is in the file is never run; only tensors are taken from it. Mode, FEM, DOConv and LoRA follow from the file, so
that the model computes what the reference did; `prompts=FOLDER` gives it fitted prompts in place of the fixed
instruction, `import_checkpoint.merge_lora=true` adds the encoder's LoRA to its weights. Needs no cluster.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console

from megpt.config import Config
from megpt.errors import InputError
from megpt.output import claim
from megpt.progress import log


def run(config: Config, file: str, *, dry_run: bool = False) -> int:
    """Import one file, and print what of it was used; returns the exit code.

    Raises:
        InputError: the file is refused or no reference checkpoint, or does not fit `model.vision` and `model.llm`.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}", next="megpt import-checkpoint FILE.pth output=FOLDER")
    if not dry_run:
        config.require("output")
    from megpt.model.prompts import PromptBank
    from megpt.model.reference.convert import import_reference

    bank = PromptBank.load(config.prompts) if config.prompts else None
    merge = config.import_checkpoint.merge_lora
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    model, processor, report = import_reference(path, config.model, bank=bank, seed=config.seed, merge_lora=merge)
    Console().print(report.render())
    if dry_run:
        log("import-checkpoint: it fits; nothing was written")
        return 0
    identity = {
        "file": digest,
        "model": config.model.model_dump(mode="json"),
        "merge_lora": merge,
        "prompts": list(bank.texts) if bank else None,
    }
    with claim(config.output, job="import-checkpoint", identity=identity, config=config) as output:
        if output.done:
            log(f"import-checkpoint: {output.path} is finished, nothing to do")
            return 0
        model.save_pretrained(output.path)
        processor.save_pretrained(output.path)
        output.finish(used=len(report.used), ignored=len(report.ignored), missing=len(report.missing))
    log(f"import-checkpoint: {path} → {output.path}; next: megpt generate checkpoint={output.path} source=… output=…")
    return 0
