"""Reports for studies, in one process: the batch engine, the reference backend, and the table they fill."""

from megpt.generation.decoding import Decoding, EngineItem, EngineResult
from megpt.generation.engine import GenerationEngine
from megpt.generation.hf import HFBackend
from megpt.generation.writer import Prediction, ReportWriter

__all__ = [
    "Decoding",
    "EngineItem",
    "EngineResult",
    "GenerationEngine",
    "HFBackend",
    "Prediction",
    "ReportWriter",
]
