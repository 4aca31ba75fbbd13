"""The parent side of a party: starts its process, calls it, and sees to its end."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, NoReturn

from ..errors import PartyError
from .child import Refusal
from .messages import MAX_MESSAGE_BYTES, MalformedMessage, MessageReader, encode_message

_STDERR_BYTES = 16 << 10

# Runs before anything else in the child. The bare packages let `fedjax_secure.core.party` be
# imported without running the toolkit's own __init__ files (which need jax). An empty entry of
# sys.path is the working directory, from which nothing may be imported.
_BOOTSTRAP = """
import sys, types
sys.path[:] = [entry for entry in sys.path if entry]
toolkit, script = sys.argv[1:3]
for name, folder in (("fedjax_secure", toolkit), ("fedjax_secure.core", toolkit + "/core")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from fedjax_secure.core.party import run_script
run_script(script)
"""


class Party:
    """A process that serves calls; a context manager.

    Why: another interpreter, memory of its own for a secret, and a crash that costs one party
    and not the notebook.

    Guarantees:
        A call returns the handler's result or raises. After a time limit, an interrupt or a
        malformed reply the process is killed, so that no later call can get an earlier call's
        answer. The process ends when the party is closed or garbage-collected, when this
        interpreter exits, and when this process dies in whatever way (its pipe then closes).
        Messages of errors hold the process's exit code or signal and the last lines it wrote to
        standard error, in which long runs of letters and digits are left out.

    Args:
        script: a Python file that ends with a call of :func:`serve`.
        name: what messages call the party.
        interpreter: the Python that runs it; it needs numpy and msgpack.
        timeout_seconds: the time limit of a call that does not state its own.
        start_timeout_seconds: how long the script may take until it serves.
        limit_bytes: the most bytes a message may have, either way.
        start_fix: one sentence that says what to do if the party does not start.

    Attributes:
        about: what the script told about itself, ``{"python": "3.10.13", ...}``.

    Raises:
        PartyError: the party does not start, or not in time.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        ...     _ = script.write(
        ...         "from fedjax_secure.core.party import serve\\n"
        ...         "serve({'double': lambda values: 2 * values}, about={})\\n")
        ...     script.flush()
        ...     with Party(script.name, name="doubling party") as party:
        ...         party.call("double", values=np.arange(3, dtype=np.int64))
        array([0, 2, 4])
    """

    def __init__(
        self,
        script: str | os.PathLike[str],
        *,
        name: str,
        interpreter: str | os.PathLike[str] = sys.executable,
        timeout_seconds: float = 60.0,
        start_timeout_seconds: float = 60.0,
        limit_bytes: int = MAX_MESSAGE_BYTES,
        start_fix: str = "Check the interpreter and that numpy and msgpack are installed there.",
    ):
        self.name, self._timeout_seconds, self._limit = name, timeout_seconds, limit_bytes
        self._lock, self._ended, self._number = threading.Lock(), "", 0
        toolkit = str(Path(__file__).resolve().parent.parent.parent)
        command = [os.fspath(interpreter), "-E", "-c", _BOOTSTRAP, toolkit,
                   str(Path(script).resolve())]
        try:
            # A session of its own: an interrupt of the notebook does not reach the party.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                bufsize=0, start_new_session=True)
        except OSError as error:
            raise PartyError(f"starting the {name}", need="an interpreter that can be run",
                             found=f"{os.fspath(interpreter)} ({error.strerror})",
                             fix=start_fix) from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stderr = _Tail(self._process.stderr)
        self._end = weakref.finalize(self, _end_process, self._process, self._stderr, os.getpid())
        for stream in (self._process.stdin, self._process.stdout):
            os.set_blocking(stream.fileno(), False)
            _enlarge_pipe(stream.fileno())
        reply = self._exchange(None, start_timeout_seconds, f"starting the {name}", start_fix)
        if not isinstance(reply.get("about"), dict):
            self._fail(f"starting the {name}", "a party that introduces itself",
                       "a reply without an introduction", start_fix)
        self.about: dict[str, Any] = reply["about"]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the party can be called."""
        return not self._ended and self._process.poll() is None

    def call(self, method: str, /, *, timeout_seconds: float | None = None,
             **arguments: Any) -> Any:
        """Call a handler of the party and wait for its result.

        Calls from several threads are answered one after another; the time limit of each counts
        from when it is sent.

        Args:
            method: the handler's name.
            timeout_seconds: the time limit; the party's own where it is None.
            **arguments: what a message can hold, see :func:`encode_message`.

        Returns:
            What the handler returned; tuples have become lists.

        Raises:
            Refusal: the party refuses the call; it can be called again.
            PartyError: the party died, did not answer in time, answered nonsense, or its handler
                raised another exception. Only in the last case can it be called again.
            ParameterError: an argument that a message cannot hold.
        """
        where = f"call `{method}` of the {self.name}"
        fix = "Start a new party and repeat the call; nothing of this process was lost."
        request = {"method": method, "arguments": arguments}
        limit = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        if os.getpid() != self._end_owner():
            raise PartyError(where, need="the process that started the party",
                             found="a fork of it", fix="Start a party in each process.")
        with self._lock:
            if self._ended:
                raise PartyError(where, need="a running party", found=self._ended, fix=fix)
            reply = self._exchange(request, limit, where, fix)
        if "result" in reply:
            return reply["result"]
        refusal, failure = reply.get("refusal"), reply.get("failure")
        if isinstance(refusal, list) and [type(part) for part in refusal] == [str] * 4:
            raise Refusal(refusal[0], need=refusal[1], found=refusal[2], fix=refusal[3])
        if isinstance(failure, str):
            raise PartyError(where, need="a handler that returns", found=failure,
                             fix="Report this with the party's versions: " + str(self.about) + ".")
        with self._lock:
            self._fail(where, "a result, a refusal or a failure", "another reply", fix)

    def close(self) -> None:
        """End the process: at once where a call is under way, else when it has seen the end."""
        if not self._lock.acquire(blocking=False):
            self._process.kill()
            self._lock.acquire()
        try:
            self._end()
            self._ended = self._ended or "one that was closed"
        finally:
            self._lock.release()

    def __enter__(self) -> Party:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Party(name={self.name!r}, pid={self.pid}, running={self.running})"

    def _end_owner(self) -> int:
        details = self._end.peek()
        return details[2][2] if details else os.getpid()

    def _exchange(self, request: dict[str, Any] | None, seconds: float, where: str,
                  fix: str) -> dict[str, Any]:
        """Send a request, if any, and read one reply; ends the party unless all goes well."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin and stdout
        outgoing: collections.deque[memoryview] = collections.deque()
        if request is not None:
            outgoing += encode_message({"number": self._number + 1, **request}, self._limit)
            self._number += 1
        reader, deadline = MessageReader(self._limit), time.monotonic() + seconds
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(stdout, selectors.EVENT_READ)
                if outgoing:
                    ready.register(stdin, selectors.EVENT_WRITE)
                while not reader.complete:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        self._fail(where, f"an answer within {seconds:g} seconds", "none",
                                   "Allow more time, or look for what holds the party up.")
                    for key, _ in ready.select(remaining):
                        if key.fileobj is stdin and not _send(stdin.fileno(), outgoing):
                            ready.unregister(stdin)
                        elif key.fileobj is stdout and not _receive(stdout.fileno(), reader):
                            self._fail(where, "a party that stays alive until it answers",
                                       "its end", fix)
            reply = reader.message()
            if outgoing or not isinstance(reply, dict) or reply.get("number") != self._number:
                raise MalformedMessage("it does not answer this call")
        except MalformedMessage as error:
            self._fail(where, "a well-formed reply", f"another one: {error}", fix)
        except PartyError:
            raise
        except BaseException:
            # An interrupt, most likely: the reply to this call must never meet the next one.
            self._process.kill()
            self._end()
            self._ended = "one whose call was interrupted"
            raise
        return reply

    def _fail(self, where: str, need: str, found: str, fix: str) -> NoReturn:
        """End the process and raise, with its exit status and the last it said."""
        if found == "its end":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
        code = self._process.poll()
        status = _status(code)
        self._process.kill()
        self._end()
        said = self._stderr.text()
        self._ended = f"one that had ended before ({status if code is not None else need})"
        if code is not None:
            found = f"{status}" if found == "its end" else f"{found}, and {status}"
        if said:
            found += f"; it had written: {said}"
        raise PartyError(where, need=need, found=found, fix=fix) from None


def _send(pipe: int, outgoing: collections.deque[memoryview]) -> bool:
    """Write what the pipe takes; False when all is sent or nobody reads any more."""
    while outgoing:
        try:
            count = os.write(pipe, outgoing[0])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # the end of the other pipe tells what happened
        if count == outgoing[0].nbytes:
            outgoing.popleft()
        else:
            outgoing[0] = outgoing[0][count:]
    return False


def _receive(pipe: int, reader: MessageReader) -> bool:
    """Read what is there; False at the end of the pipe."""
    while not reader.complete:
        try:
            count = os.readv(pipe, [reader.space()])
        except BlockingIOError:
            return True
        if not count:
            return False
        reader.filled(count)
    return True


def _enlarge_pipe(pipe: int) -> None:
    """A megabyte instead of 64 KiB, where Linux allows it: fewer wake-ups for large arrays."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


def _status(code: int | None) -> str:
    if code is None:
        return "still running"
    if code >= 0:
        return f"its end with exit code {code}"
    try:
        return f"its end by signal {signal.Signals(-code).name}"
    except ValueError:
        return f"its end by signal {-code}"


class _Tail:
    """The last bytes of a stream, read by a thread so that the writer never blocks."""

    def __init__(self, stream: Any):
        self._stream, self._bytes = stream, bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._stream:
            while data := os.read(self._stream.fileno(), 1 << 16):
                self._bytes += data
                del self._bytes[:-_STDERR_BYTES]

    def finish(self) -> None:
        """Wait for the rest, once the writer has ended; the thread closes the stream."""
        self._thread.join(1.0)

    def text(self) -> str:
        """The last lines, printable, with whatever looks like key material left out."""
        text = bytes(self._bytes).decode("utf-8", "replace")
        text = re.sub(r"[A-Za-z0-9+=_-]{40,}", "[...]", text)
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-12:])[-1500:]


def _end_process(process: subprocess.Popen[bytes], stderr: _Tail, owner: int) -> None:
    """Close the pipe, which ends a party that is well; kill it where that takes a second."""
    if os.getpid() != owner:
        return
    assert process.stdin and process.stdout
    process.stdin.close()
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    stderr.finish()
