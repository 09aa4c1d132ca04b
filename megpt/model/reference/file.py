"""Reading a reference `.pth` without trusting it: tensors and plain settings come out, nothing in it is ever run.

The files are torch pickles `{"model": tensors, "config": Namespace or AttributeDict, "epoch", "step"}`, and a pickle
can name any function of Python and have it called. torch's weights-only reader has a short list of names that it
obeys and refuses the rest; here the settings' classes, which it would refuse, are replaced by an inert stand-in before
anything is read, so that calling them does nothing. Python's own functions are refused outright: no checkpoint needs
one.
"""

from __future__ import annotations

import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megpt.errors import InputError

# The only names of Python's own library that a reference checkpoint has a reason to hold.
HARMLESS = {"argparse.Namespace", "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath"}
STATE_KEYS = ("model", "state_dict")


class Inert:
    """Stands in for a class of the file: calling it, whatever the arguments, gives an empty mapping and does nothing.

    An OrderedDict, since that is the one mapping whose items and attributes torch's reader lets a pickle fill in.
    """

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> Any:
        return OrderedDict()


@dataclass(frozen=True)
class ReferenceFile:
    """What a reference checkpoint holds.

    `tensors` by the reference's names; `settings` its plain hyper-parameters; `inert` the class names that were not
    loaded.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    inert: tuple[str, ...] = ()
    epoch: int | None = None
    step: int | None = None


def read_reference(path: str | Path) -> ReferenceFile:
    """Read a reference checkpoint; tensors only, whatever the pickle says.

    Raises:
        InputError: no such file, not a torch checkpoint, one that would run code, or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}", next="give the path of a .pth file")
    inert = _unknown_names(path)
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in inert]):
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refused(path, _why(error)) from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds {type(tree).__name__}, not a checkpoint", cause="the layout is another")
    state = next((tree[key] for key in STATE_KEYS if isinstance(tree.get(key), dict)), None)
    if state is None:
        raise InputError(
            f"{path} has no `model`",
            cause=f"it holds {', '.join(sorted(str(key) for key in tree)[:8]) or 'nothing'}",
            next="give a checkpoint that the reference's save_checkpoint wrote",
        )
    tensors = {str(k): v.detach() for k, v in state.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors", cause="its `model` is empty")
    return ReferenceFile(
        path=path,
        tensors=tensors,
        settings=_settings(tree.get("config", tree.get("hyper_parameters"))),
        inert=inert,
        epoch=_integer(tree.get("epoch")),
        step=_integer(tree.get("step", tree.get("global_step"))),
    )


def _unknown_names(path: Path) -> tuple[str, ...]:
    """The names in the pickle that torch's weights-only reader does not know; found without running anything."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError):
        raise InputError(
            f"{path} is not a torch checkpoint",
            cause="it is damaged, or torch older than 1.6 wrote it",
            next="copy it again; an old file of your own can be loaded and saved once more where it was made",
        ) from None
    for name in sorted(names):
        # IMPORT_MAPPING: the Python 2 names under which protocol 2 stores some modules (commands for subprocess).
        if name not in HARMLESS and name.partition(".")[0] in sys.stdlib_module_names | IMPORT_MAPPING.keys():
            raise _refused(path, f"it names {name!r}")
    return tuple(sorted(names))


def _why(error: Exception) -> str:
    """The reader's own reason, without its advice to load the file unsafely."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0] if text else type(error).__name__


def _refused(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is refused: it is not a plain file of tensors",
        cause=f"{why[:300]}; nothing of it was run",
        next="do not load it with anything else; ask its author for a file that holds tensors only",
    )


def _settings(config: Any) -> dict[str, Any]:
    """The numbers, truths and short texts of the stored hyper-parameters."""
    if not isinstance(config, dict):
        return {}
    values = {**vars(config), **config} if isinstance(config, OrderedDict) else config
    plain = {str(k): v for k, v in values.items() if isinstance(v, bool | int | float | str)}
    return {k: v for k, v in plain.items() if not isinstance(v, str) or len(v) < 200}


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None
