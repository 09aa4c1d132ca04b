"""All jobs in a row on an archive of films and reports: from the archive to a checkpoint and an honest score.

    megpt run --config iu_xray_smollm2 source=data/iu_xray output=runs/iu_xray

OUT/{studies,pretrained,llm,prompts,checkpoint,predictions,evaluation}, each the output of a job (`ray_jobs.flow`), as
far as the config needs it: `run.encoder` and `run.language_model` say where the weights to start from are.
"""

from __future__ import annotations

from pathlib import Path

from megpt.errors import InputError
from ray_jobs.flow import FIT_PROMPTS, PREPARE, TRAIN_TO_SCORE, Flow, Stage
from ray_jobs.language_model import LanguageModel
from ray_jobs.prepare import Prepare
from ray_jobs.pretrained import Pretrained

PRETRAINED = Stage("pretrained", "pretrained", Pretrained)
LANGUAGE_MODEL = Stage("language-model", "llm", LanguageModel)


class WholeRun(Flow):
    name = "run"
    reads = (*Flow.reads, "source", "run")
    needs = ("source",)

    def open(self) -> None:
        super().open()
        if self.config.run.encoder == "packaged" and self.config.model.vision != "tf_efficientnet_lite0":
            raise InputError(
                f"run.encoder = packaged, but model.vision = {self.config.model.vision!r}",
                cause="the packaged encoder is tf_efficientnet_lite0",
                next="set model.vision=tf_efficientnet_lite0, or run.encoder=named",
            )
        # What reads no stage's output is looked at before any stage begins.
        for stage in self.stages():
            if stage.job in (Prepare, Pretrained):
                stage.job(self.config_of(stage)).open()

    def stages(self) -> tuple[Stage, ...]:
        run, model = self.config.run, self.config.model
        wanted = {
            PREPARE: True,
            PRETRAINED: "packaged" in (run.encoder, run.language_model),
            LANGUAGE_MODEL: run.language_model == "fitted",
            FIT_PROMPTS: model.dynamic_prompt,
        }
        return (*(stage for stage, needed in wanted.items() if needed), *TRAIN_TO_SCORE)

    def paths(self, root: Path) -> dict[str, str]:
        llm = {"packaged": root / "pretrained" / "llm", "fitted": root / "llm"}
        vision = {"packaged": root / "pretrained" / "tf_efficientnet_lite0.safetensors"}
        found = {
            "model.llm": llm.get(self.config.run.language_model),
            "model.vision_weights": vision.get(self.config.run.encoder),
        }
        return {key: str(path) for key, path in found.items() if path}
