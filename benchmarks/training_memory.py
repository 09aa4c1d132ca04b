"""Does a training worker grow with its steps? One `train_loop` in bf16 and mode deep, on two cores, 2,000 steps.

    python benchmarks/training_memory.py --out benchmarks/results/training_memory-DATE.json

Reports have ever other lengths, as real ones have, so that the matrix products of a step have ever other shapes. Read
at every log row is RssAnon of /proc: resident memory without the pages of mapped files. The figure is the slope of a
straight line through the rows after the warm-up, in MiB a step.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import record, save
from untrained import SIZES, write_checkpoint

from megpt.config import Config
from megpt.data.studies import write_studies
from megpt.study import Study, View
from megpt.training.loop import Hooks, make_parts, train_loop

WARM_UP = 400
MOST = 0.05


def studies(count: int, side: int) -> list[Study]:
    """Films of noise, one or two a study, and reports of 1 to 90 words."""
    rng = np.random.default_rng(0)
    made = []
    for n in range(count):
        views = []
        for v in range(1 + n % 2):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (side, side), dtype=np.uint8)).save(buffer, "JPEG")
            views.append(View(f"{n}-{v}", data=buffer.getvalue()))
        words = " ".join(f"word{w}" for w in rng.integers(0, 60, 1 + int(rng.integers(90))))
        made.append(Study(f"{n:05}", f"p{n}", tuple(views), report=words, split="train"))
    return made


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--studies", type=int, default=1_000)
    parser.add_argument("--size", choices=SIZES, default="4m", help="of the language model")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parameters = write_checkpoint(folder / "untrained", options.size, image_size=32)
        write_studies(folder / "studies", "train", studies(options.studies, 40), 0)
        config = Config().overridden(
            {
                "output": str(folder / "out"),
                "studies": str(folder / "studies"),
                "model.vision": "test_vit",
                "model.vision_weights": "none",
                "model.image_size": 32,
                "model.llm": str(folder / "untrained" / "language_model"),
                "model.dynamic_prompt": False,
                "model.mode": "deep",
                "train.precision": options.precision,
                "train.max_steps": options.steps,
                "train.global_batch_size": 2,
                "train.max_report_tokens": 300,
                "train.log_every": 20,
                "train.save_every": 500,
                "train.loggers": [],
            }
        )
        hooks = Hooks(row=lambda row: found.update({int(row["step"]): resident_mib()}))
        train_loop(config, lambda: make_parts(config), output=folder / "out", hooks=hooks)
    late = {step: size for step, size in found.items() if step > WARM_UP}
    slope = float(np.polyfit(list(late), list(late.values()), 1)[0])
    result: dict[str, Any] = record("training_memory.py", "torch", "deepspeed", "transformers") | {
        "parameters": parameters,
        "mib_per_step": round(slope, 4),
        "after_steps": WARM_UP,
        "mib": {step: round(size) for step, size in found.items() if step % 100 == 0 or step == min(found)},
        "target": f"below {MOST} MiB a step after {WARM_UP} steps",
    }
    save(result, options.out)
    return int(slope > MOST)


if __name__ == "__main__":
    sys.exit(main())
