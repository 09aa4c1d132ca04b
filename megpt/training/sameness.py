"""All workers of a run, and all its starts, train on the same samples: two checks that refuse anything else."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from megpt.errors import InputError
from megpt.training.samples import Samples


def require_same_on_every_worker(samples: Samples) -> None:
    """A collective.

    Raises:
        InputError: on every worker, when one of them has other samples.
    """
    import torch.distributed as dist  # here, since the command that starts a run does without torch

    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, (samples.fingerprint, socket.gethostname(), len(samples)))
    if len({fingerprint for fingerprint, _, _ in seen}) > 1:
        counts = dict.fromkeys(f"{studies} on {host}" for _, host, studies in seen)
        raise InputError(
            "the workers do not have the same studies to train on",
            where=", ".join(list(counts)[:4]),
            cause="a node does not see all films of the archive: it is not mounted there, or is another copy",
            next="mount the same archive on every node and run the same command again",
        )


def require_same_as_before(samples: Samples, meta: Mapping[str, Any]) -> None:
    """Compare with the `meta` of a checkpoint; one without a fingerprint of its samples is accepted.

    Raises:
        InputError: the checkpoint's steps were taken on other samples.
    """
    if meta.get("samples", samples.fingerprint) != samples.fingerprint:
        raise InputError(
            f"the studies to train on are not those of the {meta['step']} steps already done",
            where=f"{meta['num_samples']} then, {len(samples)} now",
            cause="films have been removed from the archive since, or added to it",
            next="restore the archive and run the same command again, or set another output=PATH",
        )
