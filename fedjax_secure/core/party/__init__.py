"""Parties in processes of their own, and the framed messages they exchange over pipes.

A party may need another interpreter (OpenFHE's wheels load on few Pythons), or must not share
memory with the notebook (a secret key). :class:`Party` starts a script in a process, calls its
handlers by name, and turns its death, a time limit or a malformed message into a clear error.
The script calls :func:`serve`.

This package runs on both sides. In the child it is imported without the rest of the toolkit, so it
may import nothing but the standard library, numpy, msgpack and ``core.errors``, and it must run on
Python 3.10.
"""

from .child import Refusal, run_script, serve
from .messages import MAX_MESSAGE_BYTES, MalformedMessage, MessageReader, encode_message
from .parent import Party

__all__ = [
    "MAX_MESSAGE_BYTES", "MalformedMessage", "MessageReader", "Party", "Refusal",
    "encode_message", "run_script", "serve",
]
