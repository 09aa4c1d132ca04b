"""`import megpt.hf` makes the Auto classes of transformers know MeGPT.

    import megpt.hf
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(FOLDER)
    pipe = pipeline("image-text-to-text", model=FOLDER)

`import megpt` alone does not: every Ray worker imports it, and the Auto classes take seconds to import.
"""

# Each of these registers its own class where the class is defined.
from megpt.model.configuration import MeGPTConfig
from megpt.model.modeling import MeGPTForConditionalGeneration
from megpt.model.pipeline import ReportPipeline
from megpt.model.processing import MeGPTImageProcessor, MeGPTProcessor

__all__ = ["MeGPTConfig", "MeGPTForConditionalGeneration", "MeGPTImageProcessor", "MeGPTProcessor", "ReportPipeline"]
