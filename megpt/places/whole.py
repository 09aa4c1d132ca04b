"""Files that appear whole or not at all: by a rename on this machine, by one put at an address.

with write_aside(folder / "x.json") as temporary: temporary.write_text(...)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from megpt.errors import InputError, MegptError
from megpt.places import is_address, place, stores
from megpt.places.addresses import screen

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def write_aside(path: str | Path, *, aside: Path | None = None, new: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, or in the folder `aside`, that takes its name only when the block ends well.

    `aside` is for tables: some readers refuse a folder that holds anything but Parquet files. It has to be on the same
    file system.

    Safe against a kill at any moment: the data is synced before the rename, the rename before the folder, so a
    reader meets the old file, the new file, or none, never half of one. A full disk raises MegptError.

    An address has no renames: the temporary file is on this machine, and is put in one piece when the block ends well.

    Args:
        new: leave an object that is there already, for files that every writer writes alike.
    """
    path = place(path)
    if is_address(path):
        with _put_after(path, new=new) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = aside or path.parent
    beside.mkdir(parents=True, exist_ok=True)
    temporary = beside / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        yield temporary
        follow_umask(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    except Exception as error:
        # Libraries have errors of their own for a full disk (safetensors, torch).
        if is_full(error):
            raise storage_error(error, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def follow_umask(path: Path) -> None:
    """Give a file, or all weights in a folder, the mode that the user's umask gives to other files.

    safetensors writes by way of a private temporary file, so that nobody else could read the weights.
    """
    mode = 0o666 & ~_umask()
    for file in sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]:
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def _umask() -> int:
    with contextlib.suppress(OSError):  # without a change, which other threads would meet
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def private_folder(name: str) -> Path:
    """A folder of this user alone on this machine's temporary disk; the same one for the same name.

    Raises:
        MegptError: somebody else has made a folder in its place, or may write into it.
    """
    root = Path(tempfile.gettempdir()) / f"megpt-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    about = root.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise MegptError(
            f"{root} belongs to somebody else",
            cause="what is kept there between two processes would not be private",
            next="remove it, or set TMPDIR=FOLDER to a folder of your own",
        )
    if stat.S_IMODE(about.st_mode) & 0o077:
        root.chmod(0o700)
    return root / name


@contextlib.contextmanager
def _put_after(path: Path, *, new: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="megpt-") as scratch:
        temporary = Path(scratch) / path.name
        try:
            yield temporary
        except OSError as error:
            raise storage_error(error, temporary) from error
        try:
            stores.put(str(path), temporary, new=new)
        except FileExistsError:
            return
        except OSError as error:
            raise storage_error(error, path) from error


is_staged: ContextVar[bool] = ContextVar("is_staged", default=False)
"""Whether files are being written here to be put at an address, where paths relative to them would mean nothing."""


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder for an output's files: itself, or one of this machine whose files are put at the address at the end."""
    if not is_address(output):
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="megpt-") as scratch:
        token = is_staged.set(True)
        try:
            yield Path(scratch)
        finally:
            is_staged.reset(token)
        put_tree(Path(scratch), output)


def put_tree(folder: Path, output: Path) -> None:
    """Put all files of a folder of this machine below an address, each whole."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = output / path.relative_to(folder).as_posix()
        try:
            # a log that grows while it is read would not have the length that was announced
            small = path.stat().st_size < stores.PUT_PART
            stores.put(str(target), path.read_bytes() if small else path)
        except OSError as error:
            raise storage_error(error, target) from error


def write_text(path: str | Path, text: str) -> None:
    """A text file, whole or absent."""
    with write_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, tree: Any) -> None:
    """A JSON file for people and programs, whole or absent."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable; what a store has answered is."""
    if is_address(folder):
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the largest file size is reached."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "No space left on device" in str(error)


def storage_error(error: BaseException, path: str | Path) -> MegptError:
    """An error while writing, as the screen a user can act on."""
    if (shown := screen(error)) is not None:
        return shown
    if is_full(error):
        free = shutil.disk_usage(next(p for p in Path(path).absolute().parents if p.exists())).free
        return MegptError(
            f"no space left to write {path}",
            where=f"{free / 2**20:.0f} MiB free there",
            cause="the disk or the quota is full; what was finished before is kept",
            next="free space and run the same command again: it resumes",
        )
    reason = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        return InputError(f"{path} cannot be written", cause=reason, next="choose another output=PATH")
    return MegptError(f"writing {path} failed", cause=type(error).__name__ + (f": {reason}" if reason else ""))


def remove_tree(folder: Path) -> None:
    """Delete a folder and all in it, as far as that is possible."""
    if not is_address(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError, MegptError):
        stores.delete(*(found.address for found in stores.everything(str(folder))))
