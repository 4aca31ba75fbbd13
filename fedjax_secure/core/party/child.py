"""The child side of a party: answers calls until the parent closes the pipe or dies."""

from __future__ import annotations

import os
import platform
import queue
import runpy
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ..errors import ParameterError, PartyError, SecureFederationError
from .messages import MessageReader, encode_message

_channel: tuple[int, int] | None = None


class Refusal(SecureFederationError, ValueError):
    """A party that is well, and refuses the call. It can be called again."""


def run_script(script: str) -> None:
    """Run a party's script in this process, with the pipes out of reach of stray prints.

    Whatever the script or a library prints to standard output goes to standard error. No core
    file is written, since it might hold a key.
    """
    import resource

    global _channel
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _channel = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


def serve(handlers: Mapping[str, Callable[..., Any]], *, about: Mapping[str, Any]) -> NoReturn:
    """Answer calls until the parent closes the pipe or dies; the last line of a party's script.

    Args:
        handlers: what can be called, by name. A handler takes keyword arguments, returns what a
            message can hold, and raises :class:`Refusal` for a call that it will not answer. Of
            any other exception the parent learns the type and the line, not the message, which
            might hold a secret. For the same reason a handler must print nothing secret.
        about: what the parent finds in :attr:`Party.about`, for example versions.
    """
    if _channel is None:
        raise PartyError("serve", need="a process that Party(...) started", found="another one",
                         fix="Start this script with fedjax_secure.core.party.Party.")
    requests, replies = _channel
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests, arrived), daemon=True).start()
    number = 0
    reply: Any = {"about": {"python": platform.python_version(), **about}}
    while True:
        try:
            pieces = encode_message({"number": number, **reply})
        except ParameterError as error:
            reply = {"refusal": [error.where, error.need, error.found, error.fix]}
            pieces = encode_message({"number": number, **reply})
        for piece in pieces:
            while piece.nbytes:
                piece = piece[os.write(replies, piece):]
        del reply, pieces
        request = arrived.get()
        number = request["number"]
        reply = _answer(handlers, request)
        del request


def _read_requests(requests: int, arrived: queue.SimpleQueue[Any]) -> None:
    """Read requests in a thread of its own, so that the parent's death ends a call too."""
    try:
        while True:
            reader = MessageReader()
            while not reader.complete:
                count = os.readv(requests, [reader.space()])
                if not count:
                    os._exit(0)
                reader.filled(count)
            arrived.put(reader.message())
    except BaseException as error:
        print(f"a party's request could not be read: {type(error).__name__}", file=sys.stderr,
              flush=True)
        os._exit(os.EX_PROTOCOL)


def _answer(handlers: Mapping[str, Callable[..., Any]], request: Any) -> dict[str, Any]:
    try:
        handler = handlers.get(request["method"])
        if handler is None:
            raise Refusal("a party", need=f"one of the calls {sorted(handlers)}",
                          found=repr(request["method"]), fix="Call one of these.")
        return {"result": handler(**request["arguments"])}
    except Refusal as error:
        return {"refusal": [error.where, error.need, error.found, error.fix]}
    except Exception as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = "an unknown place"
        if trace is not None:
            file = os.path.basename(trace.tb_frame.f_code.co_filename)
            place = f"{file} line {trace.tb_lineno}"
        return {"failure": f"{type(error).__name__} in {place}"}
