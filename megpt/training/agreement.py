"""What has to be the same everywhere before a step is taken: the list of samples.

A step's samples are numbers in that list. Each node makes its own from the films it sees, so a node with another view
of the archive, or an archive that has changed between two starts, would train on other studies without a word.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from megpt.errors import InputError
from megpt.training.samples import Samples


def require_same_on_every_worker(samples: Samples) -> None:
    """A collective.

    Raises:
        InputError: on every worker, when one of them has other samples.
    """
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
    """Compare with what a checkpoint's `meta` says; one from before samples were noted is taken as it is.

    Raises:
        InputError: the checkpoint's steps were taken on other samples.
    """
    if meta.get("samples", samples.fingerprint) != samples.fingerprint:
        raise InputError(
            f"the studies to train on are not those of the {meta['step']} steps that are done",
            where=f"{meta['num_samples']} then, {len(samples)} now",
            cause="films have left the archive since, or come back",
            next="make the archive what it was and run the same command again, or set another output=PATH",
        )
