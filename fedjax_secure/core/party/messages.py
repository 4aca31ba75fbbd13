"""The framed messages that parties exchange over pipes.

A message is ``magic, header length, body length`` (20 bytes), a msgpack header, and the raw
little-endian bytes of its arrays and byte strings. Nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from ..errors import ParameterError

MAX_MESSAGE_BYTES = 1 << 30

_MAGIC = b"FSparty1"
_PREFIX = struct.Struct("<8sIQ")
_MAX_HEADER_BYTES = 16 << 20
_ALIGNMENT = 16
_ARRAY, _BYTES = 1, 2
_DTYPES = frozenset("|b1 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8".split())


class MalformedMessage(ValueError):
    """Bytes that are not a message; says what is wrong with them, never what they hold."""


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
        fedjax_secure.core.party.messages.MalformedMessage: the first 8 bytes are not a party's
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
