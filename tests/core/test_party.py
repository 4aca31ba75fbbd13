"""Parties: messages that keep their form, and processes that fail in every way they can."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_secure.core.errors import ParameterError, PartyError
from fedjax_secure.core.party import (
    MalformedMessage,
    MessageReader,
    Party,
    Refusal,
    encode_message,
    serve,
)
from fedjax_secure.core.party import messages as party_messages

ROOT = Path(__file__).resolve().parents[2]

CHILD = '''
import os, resource, signal, sys, time
import numpy as np
from fedjax_secure.core.party import Refusal, child, encode_message, serve

def echo(value):
    return value

def sleep(seconds):
    time.sleep(seconds)

def flood(megabytes):
    for _ in range(megabytes):
        sys.stderr.write(("x" * 63 + "\\n") * (1 << 14))
    sys.stderr.flush()
    return "dry"

def chatter():
    print("a stray print")
    os.system("echo and one of a library")
    return "well"

def die(how, last_words=""):
    sys.stderr.write(last_words)
    sys.stderr.flush()
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)

def fail():
    raise ValueError("the secret is 271828")

def refuse():
    raise Refusal("the test", need="a reason", found="none", fix="Give one.")

def garbage():
    os.write(child._channel[1], b"HTTP/1.1 200 OK, or anything else of some length")
    time.sleep(60)

def answer_twice():
    for piece in encode_message({"number": 1, "result": "too early"}):
        os.write(child._channel[1], piece)
    return "the answer"

def surroundings():
    return {"core_file": list(resource.getrlimit(resource.RLIMIT_CORE)),
            "modules": sorted(sys.modules), "path": sys.path}

def unsendable():
    return object()

calls = (echo, sleep, flood, chatter, die, fail, refuse, garbage, answer_twice, surroundings,
         unsendable)
serve({call.__name__: call for call in calls}, about={"purpose": "tests"})
'''


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("party") / "child.py"
    path.write_text(CHILD)
    return path


@pytest.fixture
def party(script):
    with Party(script, name="test party", timeout_seconds=20) as party:
        yield party


def ended(pid: int, within_seconds: float = 10.0) -> bool:
    """Whether a process is gone, or dead and only not yet waited for by its parent."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def whole(message):
    return b"".join(encode_message(message))


def read(data):
    reader = MessageReader(1 << 20)
    reader.feed(data)
    return reader.message()


def same(one, other):
    """Equality that looks into arrays, and takes tuples for lists."""
    if isinstance(one, np.ndarray):
        return (isinstance(other, np.ndarray) and one.shape == other.shape
                and one.dtype.newbyteorder("<") == other.dtype
                and one.astype(other.dtype).tobytes() == other.tobytes())
    if isinstance(one, (list, tuple)):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(
            same(one[key], other[key]) for key in one)
    return type(one) is type(other) and (one == other or one != one)


# -- messages --------------------------------------------------------------------------------------

arrays = hnp.arrays(
    st.one_of(hnp.boolean_dtypes(), hnp.integer_dtypes(endianness="?"),
              hnp.unsigned_integer_dtypes(endianness="?"),
              hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?")),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
leaves = (st.none() | st.booleans() | st.integers(-2**63, 2**64 - 1) | st.floats()
          | st.text(max_size=20) | st.binary(max_size=40) | arrays)
messages = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=12)


@given(messages, st.lists(st.integers(1, 50), min_size=1))
def test_a_message_arrives_as_it_was_sent_in_pieces_of_any_size(message, sizes):
    data, reader, turn = whole(message), MessageReader(1 << 20), 0
    while data:
        assert not reader.complete
        size = sizes[turn % len(sizes)]
        reader.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert reader.complete
    assert same(message, reader.message())


@given(messages, st.data())
def test_a_damaged_message_is_refused_or_read_never_anything_else(message, data):
    content = bytearray(whole(message))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    try:
        read(bytes(content))
    except MalformedMessage:
        pass


@given(messages, st.data())
def test_a_cut_message_is_never_complete(message, data):
    content = whole(message)
    reader = MessageReader(1 << 20)
    reader.feed(content[:data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(MalformedMessage, match="ends too early"):
        reader.message()


def test_a_message_with_more_bytes_is_refused():
    with pytest.raises(MalformedMessage, match="follow"):
        read(whole([1]) + b"x")


def test_a_claim_of_too_many_bytes_is_refused_before_memory_is_taken():
    prefix = party_messages._PREFIX.pack(party_messages._MAGIC, 8, 1 << 62)
    with pytest.raises(MalformedMessage, match="limit"):
        MessageReader().feed(prefix)


@pytest.mark.parametrize("value", [
    object(), {1, 2}, {1: "a key that is no text"}, np.array(["text"]), np.array([object()]),
    np.zeros(2, np.complex64), np.zeros(2, "datetime64[s]"), 2**64, np.float32(1.0)])
def test_what_a_message_cannot_hold_is_refused(value):
    with pytest.raises(ParameterError, match="a message to a party needs"):
        encode_message({"value": value})


def test_endless_nesting_is_refused_and_any_view_of_bytes_is_sent():
    endless: list = []
    endless.append(endless)
    with pytest.raises(ParameterError, match="500 levels of nesting"):
        encode_message(endless)
    with pytest.raises(ParameterError, match="text that UTF-8 can write"):
        encode_message("\ud800")
    reader = MessageReader()
    for piece in encode_message(memoryview(b"abcdef")[::2]):
        reader.feed(piece)
    assert reader.message() == b"ace"


def test_a_message_over_the_limit_is_refused_before_it_is_sent(script):
    with Party(script, name="test party", limit_bytes=1 << 16) as party:
        with pytest.raises(ParameterError, match="at most 65536 bytes"):
            party.call("echo", value=bytes(1 << 16))
        assert party.call("echo", value=bytes(100)) == bytes(100)


def test_arrays_that_arrive_can_be_written_to(party):
    value = party.call("echo", value=np.arange(4, dtype=np.uint32))
    value += 1
    assert value.tolist() == [1, 2, 3, 4]


# -- a party that is well --------------------------------------------------------------------------


def test_a_party_tells_about_itself_and_ends_when_it_is_closed(script):
    with Party(script, name="test party") as party:
        assert party.about["purpose"] == "tests" and "python" in party.about
        assert party.running and str(party.pid) in repr(party)
        pid = party.pid
    assert not party.running and ended(pid)
    with pytest.raises(PartyError, match="got one that was closed"):
        party.call("echo", value=1)
    party.close()


def test_64_megabytes_go_both_ways(party):
    values = np.random.default_rng(0).integers(0, 2**32, 1 << 24, dtype=np.uint32)
    back = party.call("echo", value=[values, b"and some bytes"])
    assert np.array_equal(back[0], values) and back[1] == b"and some bytes"


def test_prints_do_not_disturb_the_messages(party):
    assert party.call("chatter") == "well"


def test_a_flood_on_standard_error_does_not_block(party):
    assert party.call("flood", megabytes=8) == "dry"


def test_the_child_has_no_core_file_no_toolkit_no_working_directory(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Party(script, name="test party", timeout_seconds=20) as party:
        found = party.call("surroundings")
    assert found["core_file"] == [0, 0]
    assert "jax" not in found["modules"] and "fedjax_secure.core.spec" not in found["modules"]
    assert "" not in found["path"] and str(tmp_path) not in found["path"]


def test_calls_from_threads_get_their_own_answers(party):
    wrong = []

    def ask(number):
        for turn in range(20):
            value = np.full(500, 100 * number + turn)
            if not np.array_equal(party.call("echo", value=value), value):
                wrong.append((number, turn))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_refusal_keeps_its_parts_and_the_party(party):
    with pytest.raises(Refusal) as refused:
        party.call("refuse")
    assert (refused.value.need, refused.value.found, refused.value.fix) == (
        "a reason", "none", "Give one.")
    with pytest.raises(Refusal, match="one of the calls"):
        party.call("no_such_call")
    assert party.call("echo", value=1) == 1


def test_a_failing_handler_tells_type_and_line_but_not_its_message(party):
    with pytest.raises(PartyError, match=r"ValueError in child.py line \d+") as failed:
        party.call("fail")
    assert "271828" not in str(failed.value) and failed.value.__cause__ is None
    with pytest.raises(PartyError, match="TypeError"):
        party.call("echo", another=1)
    with pytest.raises(Refusal, match="got object"):
        party.call("unsendable")
    assert party.call("echo", value=1) == 1


# -- a party that fails ----------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "status"), [
    ("SIGKILL", "signal SIGKILL"), ("SIGABRT", "signal SIGABRT"), ("SIGSEGV", "signal SIGSEGV"),
    ("exit", "exit code 3")])
def test_death_in_a_call_names_the_signal_or_exit_code(party, how, status):
    with pytest.raises(PartyError, match=status) as died:
        party.call("die", how=how, last_words="out of luck\nkey " + 11 * "c0ffee")
    assert "call `die` of the test party" in died.value.where
    assert "Start a new party" in died.value.fix
    assert "out of luck" in died.value.found and "key [...]" in died.value.found
    assert "c0ffee" not in str(died.value)
    assert ended(party.pid)
    with pytest.raises(PartyError, match=status):
        party.call("echo", value=1)


def test_death_by_another_hand_in_a_call(party):
    threading.Timer(0.3, os.kill, (party.pid, signal.SIGKILL)).start()
    with pytest.raises(PartyError, match="signal SIGKILL"):
        party.call("sleep", seconds=60)


def test_death_between_calls_is_found_by_the_next_even_if_that_is_large(party):
    os.kill(party.pid, signal.SIGKILL)
    assert ended(party.pid)
    with pytest.raises(PartyError, match="signal SIGKILL"):
        party.call("echo", value=bytes(8 << 20))


def test_a_call_that_takes_too_long_ends_the_party(party):
    start = time.monotonic()
    with pytest.raises(PartyError, match="an answer within 0.4 seconds, got none"):
        party.call("sleep", seconds=60, timeout_seconds=0.4)
    assert time.monotonic() - start < 8
    assert ended(party.pid)
    with pytest.raises(PartyError, match="a running party"):
        party.call("echo", value=1)


def test_a_party_that_reads_nothing_is_given_up_too(party):
    os.kill(party.pid, signal.SIGSTOP)
    with pytest.raises(PartyError, match="an answer within 0.5 seconds"):
        party.call("echo", value=bytes(32 << 20), timeout_seconds=0.5)
    assert ended(party.pid)


def test_garbage_ends_the_party(party):
    with pytest.raises(PartyError, match="well-formed reply, got another one: the first 8 bytes"):
        party.call("garbage")
    assert ended(party.pid) and not party.running


def test_an_answer_to_another_call_is_not_taken(party):
    assert party.call("answer_twice") == "too early"
    with pytest.raises(PartyError, match="does not answer this call"):
        party.call("echo", value="the next question")


def test_an_interrupt_ends_the_party_so_that_no_answer_is_mistaken(party):
    # A shell that starts tests in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt_and_look(party)
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_and_look(party):
    main = threading.main_thread().ident
    threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        party.call("sleep", seconds=60)
    assert ended(party.pid)
    with pytest.raises(PartyError, match="was interrupted"):
        party.call("echo", value=1)


def test_closing_ends_a_call_in_another_thread(party):
    found = []

    def ask():
        try:
            party.call("sleep", seconds=60)
        except PartyError as error:
            found.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.3)
    party.close()
    thread.join(10)
    assert not thread.is_alive() and "SIGKILL" in found[0]


# -- a party that does not start -------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [
    ("import no_such_package_anywhere", "No module named 'no_such_package_anywhere'"),
    ("import sys; sys.exit(4)", "exit code 4"),
    ("x = 1", "exit code 0")])
def test_a_script_that_does_not_serve(tmp_path, text, found):
    script = tmp_path / "broken.py"
    script.write_text(text)
    with pytest.raises(PartyError, match=found) as failed:
        Party(script, name="broken party", start_fix="Mend it so.")
    assert failed.value.fix == "Mend it so." and failed.value.where == "starting the broken party"


def test_a_script_that_takes_too_long_to_serve(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(PartyError, match="within 1 seconds"):
        Party(script, name="slow party", start_timeout_seconds=1)


def test_an_interpreter_that_is_none(script, tmp_path):
    with pytest.raises(PartyError, match="No such file"):
        Party(script, name="test party", interpreter=tmp_path / "python")
    noisy = tmp_path / "noisy"
    noisy.write_text("#!/bin/sh\necho 'this program is something else altogether'\nsleep 60\n")
    noisy.chmod(0o755)
    with pytest.raises(PartyError, match="the first 8 bytes are not a party's"):
        Party(script, name="test party", interpreter=noisy)


def test_serve_outside_a_party_is_refused():
    with pytest.raises(PartyError, match="a process that Party"):
        serve({}, about={})


# -- no party is left behind -----------------------------------------------------------------------


# Imports the file alone, as a party's child does: the whole toolkit takes seconds to import.
ELSEWHERE = f"""
import os, sys, types
for name in ("fedjax_secure", "fedjax_secure.core"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [os.path.join({str(ROOT)!r}, *name.split("."))]
from fedjax_secure.core.errors import PartyError
from fedjax_secure.core.party import Party
party = Party(sys.argv[1], name="test party")
print(party.pid, flush=True)
"""


def start_elsewhere(script, rest):
    """A Python of its own that starts a party, prints its id and goes on as the rest says."""
    process = subprocess.Popen([sys.executable, "-c", ELSEWHERE + rest, str(script)], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process.stdout as output:
        return process, int(output.readline())


@pytest.mark.parametrize("rest", ["import time; time.sleep(60)", "party.call('sleep', seconds=60)"])
def test_a_party_ends_when_its_parent_is_killed_even_in_a_call(script, rest):
    process, pid = start_elsewhere(script, rest)
    time.sleep(0.3)
    assert not ended(pid, 0.1)
    process.kill()
    process.wait()
    assert ended(pid)


def test_a_party_ends_with_the_interpreter(script):
    process, pid = start_elsewhere(script, "")
    assert process.wait(30) == 0
    assert ended(pid)


def test_a_party_that_nobody_holds_ends(script):
    party = Party(script, name="test party")
    pid = party.pid
    del party
    gc.collect()
    assert ended(pid)


def test_a_fork_of_the_parent_cannot_use_the_party_nor_end_it(script):
    process, pid = start_elsewhere(script, textwrap.dedent("""
        child = os.fork()
        if child == 0:
            try:
                party.call("echo", value=1)
            except PartyError as error:
                sys.exit(42 if "a fork of it" in str(error) else 1)
            sys.exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        assert party.call("echo", value=1) == 1
        sys.exit(43)
    """))
    assert process.wait(30) == 43
    assert ended(pid)
