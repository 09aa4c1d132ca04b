"""Small studies and a config that trains in milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_runs import small_config

from megpt.config import Config


@pytest.fixture
def settings(small_studies: Path, tiny_llm: Path) -> Callable[..., Config]:
    """`settings(output, train__lr=…)`; see small_runs.small_config."""
    return partial(small_config, studies=small_studies, llm=tiny_llm)
