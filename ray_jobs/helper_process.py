"""A helper of `ray_jobs.helpers`: requests on standard input, replies on standard output, all pickled.

    python -m ray_jobs.helper_process

The first request is the function, each later one its (arguments, keywords); a reply is (True, result) or
(False, error). The process ends when its input does, also in the middle of a part: then the command has ended, and
nobody waits for the result.
"""

from __future__ import annotations

import os
import pickle
import threading
from queue import SimpleQueue
from typing import Any, BinaryIO


def main() -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Libraries print to standard output too, where only replies may go, and programs that they start read the input.
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    function = pickle.load(requests)
    _reply(replies, (True, None))
    waiting: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, waiting), daemon=True).start()
    while True:
        arguments, keywords = waiting.get()
        try:
            answer = True, function(*arguments, **keywords)
        except Exception as error:
            answer = False, _sendable(error)
        _reply(replies, answer)


def _read(requests: BinaryIO, waiting: SimpleQueue[Any]) -> None:
    while True:
        try:
            waiting.put(pickle.load(requests))
        except EOFError:
            os._exit(0)


def _reply(replies: BinaryIO, answer: tuple[bool, Any]) -> None:
    pickle.dump(answer, replies, pickle.HIGHEST_PROTOCOL)
    replies.flush()


def _sendable(error: Exception) -> Exception:
    """The error, or its kind alone where it does not survive the way: its text may quote a report."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(type(error).__name__)
    return error


if __name__ == "__main__":
    main()
