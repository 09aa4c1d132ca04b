"""All jobs in a row on drawn films, on any laptop: from an archive to reports and an honest score.

    megpt demo --config configs/phantom.yaml output=runs/demo

OUT/{archive,studies,llm,prompts,checkpoint,predictions,evaluation}, each the output of a job (`ray_jobs.flow`).
"""

from __future__ import annotations

from pathlib import Path

from ray_jobs.demo.draw import Draw
from ray_jobs.flow import FIT_PROMPTS, PREPARE, TRAIN_TO_SCORE, Flow, Stage
from ray_jobs.language_model import LanguageModel

STAGES = (
    Stage("draw", "archive", Draw),
    PREPARE,
    Stage("language model", "llm", LanguageModel),
    FIT_PROMPTS,
    *TRAIN_TO_SCORE,
)


class Demo(Flow):
    name = "demo"
    reads = (*Flow.reads, "phantom")
    dataset = "drawn phantom films"

    def stages(self) -> tuple[Stage, ...]:
        return STAGES

    def paths(self, root: Path) -> dict[str, str]:
        return {"source": str(root / "archive"), "model.llm": str(root / "llm")}
