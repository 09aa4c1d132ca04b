"""A second loss of training: which observations a report calls present, told from the visual tokens alone.

Most sentences of a report can be written without the film, so the token cross-entropy teaches the encoder little. Here
each of the 14 observations counts alike. The head helps training only: checkpoints do not hold it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megpt.model.vision import VisualFeatures
from megpt.study import CHEXPERT


class LabelHead(nn.Linear):
    """The mean of a study's visual tokens (B, N, H) → its observations (B, 14) → their weighted cross-entropy.

    Args:
        hidden: H of the language model. scale: the weight of this loss beside that of the text.
    """

    def __init__(self, hidden: int, *, scale: float, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(hidden, len(CHEXPERT))
        self.scale = scale

    def forward(self, visual: VisualFeatures, present: Tensor, studies: float) -> Tensor:  # pyrefly: ignore[bad-override]
        """The loss, a scalar.

        Args:
            present: (B, 14) 1 or 0; a row of NaN is a study without labels and adds nothing.
            studies: divides the sum: the studies of the whole optimizer step.
        """
        mask = visual.token_mask[:, :, None]
        pooled = (visual.tokens * mask).sum(1) / mask.sum(1)
        known = ~present.isnan()
        losses = F.binary_cross_entropy_with_logits(
            super().forward(pooled).float(), present.nan_to_num(0), weight=known.float(), reduction="sum"
        )
        return self.scale * losses / (present.shape[1] * studies)
