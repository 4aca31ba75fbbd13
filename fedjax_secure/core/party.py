"""Parties in processes of their own, and the framed messages they exchange over pipes.

A party may need another interpreter (OpenFHE's wheels load on few Pythons), or must not share
memory with the notebook (a secret key). :class:`Party` starts a script in a process, calls its
handlers by name, and turns its death, a time limit or a malformed message into a clear error.
The script calls :func:`serve`.

This file runs on both sides. In the child it is imported without the rest of the toolkit, so it
may import nothing but the standard library, numpy, msgpack and ``errors``, and it must run on
Python 3.10.

A message is ``magic, header length, body length`` (20 bytes), a msgpack header, and the raw
little-endian bytes of its arrays and byte strings. Nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import collections
import contextlib
import os
import platform
import queue
import re
import runpy
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgpack
import numpy as np

from .errors import ParameterError, PartyError, SecureFederationError

MAX_MESSAGE_BYTES = 1 << 30

_MAGIC = b"FSparty1"
_PREFIX = struct.Struct("<8sIQ")
_MAX_HEADER_BYTES = 16 << 20
_ALIGNMENT = 16
_ARRAY, _BYTES = 1, 2
_DTYPES = frozenset("|b1 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8".split())
_STDERR_BYTES = 16 << 10


class Refusal(SecureFederationError, ValueError):
    """A party that is well, and refuses the call. It can be called again."""


class MalformedMessage(ValueError):
    """Bytes that are not a message; says what is wrong with them, never what they hold."""


# -- messages --------------------------------------------------------------------------------------


def encode_message(message: Any, limit_bytes: int = MAX_MESSAGE_BYTES) -> list[memoryview]:
    """A message as the pieces of bytes to send, without a copy of its arrays.

    Args:
        message: None, bool, int (64-bit), float, str, bytes, numeric numpy arrays, and lists,
            tuples and dicts (with str keys) of these.
        limit_bytes: the most bytes a message may have.

    Raises:
        ParameterError: a value of another type, or a message that is too large.

    Example:
        >>> reader = MessageReader()
        >>> for piece in encode_message({"rows": np.arange(3, dtype=np.int64)}):
        ...     reader.feed(piece)
        >>> reader.message()
        {'rows': array([0, 1, 2])}
    """
    buffers: list[memoryview] = []
    try:
        tree = _flatten(message, buffers)
    except RecursionError:
        raise ParameterError("a message to a party", need="at most 500 levels of nesting",
                             found="many more, or a list that holds itself",
                             fix="Flatten it, or send arrays.") from None
    try:
        header: bytes = msgpack.Packer().pack([[buffer.nbytes for buffer in buffers], tree])
    except (OverflowError, ValueError) as error:
        raise ParameterError("a message to a party", need="integers of at most 64 bits, text that "
                             "UTF-8 can write and at most 500 levels of nesting",
                             found="something else", fix="Send it as bytes.") from error
    pieces = [memoryview(header)]
    body = 0
    for buffer in buffers:
        padding = -buffer.nbytes % _ALIGNMENT
        pieces += [buffer, memoryview(bytes(padding))]
        body += buffer.nbytes + padding
    if len(header) > _MAX_HEADER_BYTES or len(header) + body > limit_bytes:
        raise ParameterError(
            "a message to a party", need=f"at most {limit_bytes} bytes, {_MAX_HEADER_BYTES} of "
            "them outside arrays and bytes", found=f"{len(header) + body} bytes",
            fix="Send it in several calls.")
    prefix = memoryview(_PREFIX.pack(_MAGIC, len(header), body))
    return [piece for piece in (prefix, *pieces) if piece.nbytes]


def _flatten(value: Any, buffers: list[memoryview]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        view = memoryview(value)
        buffers.append((view if view.c_contiguous else memoryview(bytes(view))).cast("B"))
        return msgpack.ExtType(_BYTES, msgpack.packb(len(buffers) - 1))
    if isinstance(value, np.ndarray) and value.dtype.newbyteorder("<").str in _DTYPES:
        array = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
        buffers.append(array.reshape(-1).view(np.uint8).data)
        reference = msgpack.packb([len(buffers) - 1, array.dtype.str, list(value.shape)])
        return msgpack.ExtType(_ARRAY, reference)
    if isinstance(value, (list, tuple)):
        return [_flatten(item, buffers) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _flatten(item, buffers) for key, item in value.items()}
    raise ParameterError(
        "a message to a party", found=type(value).__name__,
        need="None, bool, int, float, str, bytes, numeric numpy arrays, lists, and dicts with str "
        "keys", fix="Convert the value first, for example with numpy.asarray.")


class MessageReader:
    """Reads one message from bytes that arrive in pieces of any size.

    Example:
        >>> reader = MessageReader()
        >>> reader.feed(b"GET / HTTP/1.1 and so on")
        Traceback (most recent call last):
        fedjax_secure.core.party.MalformedMessage: the first 8 bytes are not a party's
    """

    def __init__(self, limit_bytes: int = MAX_MESSAGE_BYTES):
        self._limit = limit_bytes
        self._part = "prefix"
        self._buffer, self._filled = bytearray(_PREFIX.size), 0
        self._header, self._body_bytes = b"", 0

    @property
    def complete(self) -> bool:
        """Whether the whole message has arrived."""
        return self._part == "done"

    def space(self) -> memoryview:
        """Where the next bytes go; empty once the message is complete."""
        return memoryview(self._buffer)[self._filled:] if not self.complete else memoryview(b"")

    def filled(self, num_bytes: int) -> None:
        """Say how many bytes were written into :meth:`space`."""
        self._filled += num_bytes
        while not self.complete and self._filled == len(self._buffer):
            self._next_part()

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes; more than the message has are malformed."""
        data = memoryview(data)
        while data.nbytes:
            space = self.space()
            if not space.nbytes:
                raise MalformedMessage("bytes follow the end of the message")
            count = min(space.nbytes, data.nbytes)
            space[:count] = data[:count]
            self.filled(count)
            data = data[count:]

    def _next_part(self) -> None:
        if self._part == "prefix":
            magic, header_bytes, self._body_bytes = _PREFIX.unpack(self._buffer)
            if magic != _MAGIC:
                raise MalformedMessage("the first 8 bytes are not a party's")
            if header_bytes > _MAX_HEADER_BYTES or header_bytes + self._body_bytes > self._limit:
                raise MalformedMessage(f"it claims {header_bytes + self._body_bytes} bytes, the "
                                       f"limit is {self._limit}")
            self._part, self._buffer = "header", bytearray(header_bytes)
        elif self._part == "header":
            self._header = bytes(self._buffer)
            self._part, self._buffer = "body", bytearray(self._body_bytes)
        else:
            self._part = "done"
            return
        self._filled = 0

    def message(self) -> Any:
        """The message. Arrays are writable and share the memory that was read into.

        Raises:
            MalformedMessage: the header is not one, or does not fit the body.
        """
        if not self.complete:
            raise MalformedMessage("it ends too early")
        body = self._buffer
        offsets: list[tuple[int, int]] = []

        def slice_of(index: Any) -> tuple[int, int]:
            if type(index) is not int or not 0 <= index < len(offsets):
                raise MalformedMessage("it refers to bytes that it does not hold")
            return offsets[index]

        def reference(code: int, data: bytes) -> Any:
            if code == _BYTES:
                start, stop = slice_of(msgpack.unpackb(data))
                return bytes(memoryview(body)[start:stop])
            if code != _ARRAY:
                raise MalformedMessage("it holds a value of an unknown type")
            index, dtype, shape = msgpack.unpackb(data)
            start, stop = slice_of(index)
            if dtype not in _DTYPES or not all(type(n) is int and n >= 0 for n in shape):
                raise MalformedMessage("it holds an array of an unknown type")
            size = np.dtype(dtype).itemsize
            for count in shape:
                size *= count
            if size != stop - start:
                raise MalformedMessage("an array's shape does not fit its bytes")
            return np.ndarray(tuple(shape), dtype, buffer=body, offset=start)

        try:
            # The sizes come first, so that they are known when the tree's references are read.
            unpacker = msgpack.Unpacker(ext_hook=reference, max_buffer_size=_MAX_HEADER_BYTES,
                                        strict_map_key=True)
            unpacker.feed(self._header)
            if unpacker.read_array_header() != 2:
                raise MalformedMessage("its header does not have two parts")
            position = 0
            for num_bytes in unpacker.unpack():
                if type(num_bytes) is not int or num_bytes < 0:
                    raise MalformedMessage("it holds a size that is none")
                offsets.append((position, position + num_bytes))
                position += num_bytes + -num_bytes % _ALIGNMENT
            if position != len(body):
                raise MalformedMessage("its sizes do not add up to its body")
            tree = unpacker.unpack()
            if unpacker.tell() != len(self._header):
                raise MalformedMessage("bytes follow its header")
        except MalformedMessage:
            raise
        except Exception as error:
            raise MalformedMessage("its header cannot be read") from error
        return tree


# -- the child -------------------------------------------------------------------------------------

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

_channel: tuple[int, int] | None = None


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


# -- the parent ------------------------------------------------------------------------------------


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
        toolkit = str(Path(__file__).resolve().parent.parent)
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
