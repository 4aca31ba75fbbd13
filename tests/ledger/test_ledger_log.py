"""The Merkle tree, the signed checkpoint and the file of the log."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger.account import Account
from fedjax_secure.ledger.log import (
    MAGIC,
    Checkpoint,
    DamagedEntry,
    LogFile,
    MerkleTree,
    checkpoint_path,
    open_note,
    read_checkpoint,
    scan,
    write_checkpoint,
)

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ledger.json").read_text())
ACCOUNT = Account.from_secret(bytes(31) + b"\x09")
ENTRIES = [(bytes([i]) * 32, b"transaction" * (i + 1)) for i in range(5)]


def test_merkle_vectors():
    vectors, tree = VECTORS["merkle_tree"], MerkleTree()
    assert tree.root().hex() == vectors["empty"]
    for leaf, root in zip(vectors["leaves"], vectors["roots"], strict=True):
        tree.append(bytes.fromhex(leaf))
        assert tree.root().hex() == root


def recursive_root(leaves):
    """The definition in RFC 9162, section 2.1.1, word for word."""
    from hashlib import sha256

    if len(leaves) < 2:
        return sha256(b"\x00" + leaves[0]).digest() if leaves else sha256().digest()
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return sha256(b"\x01" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])).digest()


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_the_tree_is_that_of_the_definition(leaves):
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    assert tree.root() == recursive_root(leaves) and tree.size == len(leaves)


def note_vector():
    v = VECTORS["signed_note"]
    note = f"{v['text']}\n\u2014 {v['name']} {v['signature']}\n"
    return note.encode(), v["name"], base64.b64decode(v["verifier_key"])[1:], v["text"]


def test_signed_note_vector():
    note, name, key, text = note_vector()
    assert open_note(note, name, key) == text
    other = note[:-1] + b"\n\xe2\x80\x94 witness.example AAAAAAAA\n"
    assert open_note(other, name, key) == text  # a signature by an unknown key is ignored


def test_every_byte_of_a_note_counts():
    note, name, key, text = note_vector()
    for position in range(len(note)):
        for mask in (1, 0x20, 0xFF):
            changed = bytearray(note)
            changed[position] ^= mask
            with pytest.raises(ValueError):
                open_note(bytes(changed), name, key)
    with pytest.raises(ValueError, match="not signed"):
        open_note(note, name, ACCOUNT.checkpoint_public_key)


def test_a_checkpoint_comes_back(tmp_path):
    path, head = tmp_path / "ledger", Checkpoint(7, bytes(range(32)))
    write_checkpoint(path, ACCOUNT, "some/log", head)
    note = checkpoint_path(path).read_bytes()
    assert note.decode().splitlines()[:2] == ["some/log", "7"]
    assert read_checkpoint(note, "some/log", ACCOUNT.checkpoint_public_key) == head
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.checkpoint"]
    with pytest.raises(ValueError):
        read_checkpoint(note, "other/log", ACCOUNT.checkpoint_public_key)


def written(path):
    log = LogFile(path)
    for entry in ENTRIES:
        log.append(*entry)
    log.sync()
    log.close()
    return path.read_bytes()


def read(data):
    return [(entry.events_digest, entry.raw) for entry in scan(data)]


def test_a_log_comes_back(tmp_path):
    data = written(tmp_path / "ledger")
    assert read(data) == ENTRIES
    log = LogFile(tmp_path / "ledger")
    assert [(e.events_digest, e.raw) for e in log.entries] == ENTRIES
    assert log.root == list(scan(data))[-1].root and log.size == 5
    log.close()
    log.close()


def test_an_append_that_was_cut_anywhere_is_dropped(tmp_path):
    path = tmp_path / "ledger"
    data = written(path)
    ends = [len(MAGIC)] + [entry.end for entry in scan(data)]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        log = LogFile(path)
        whole = sum(end <= cut for end in ends[1:])
        assert log.size == whole
        notice = log.drop_torn_tail()
        torn = cut >= len(MAGIC) and cut not in ends
        assert (notice is not None) == torn
        assert notice is None or f"incomplete entry {whole}" in notice
        log.append(*ENTRIES[0])
        log.close()
        assert read(path.read_bytes()) == ENTRIES[:whole] + ENTRIES[:1]


def test_any_other_damage_is_refused_and_the_file_is_left_alone(tmp_path):
    path = tmp_path / "ledger"
    data = written(path)
    ends = [entry.end for entry in scan(data)]
    for position in range(len(MAGIC), len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        bad = sum(end <= position for end in ends)
        with pytest.raises(LedgerError, match=f"bad entry {bad}:"):
            LogFile(path)
        assert path.read_bytes() == changed
    for junk in (b"junk", b"x" * 100, MAGIC[:-1] + b"!", MAGIC[:-2] + b"2\n" + data[len(MAGIC) :]):
        path.write_bytes(junk)
        with pytest.raises(LedgerError, match="bad entry 0"):
            LogFile(path)
    for swapped in (data + bytes(8), data + data[ends[0] :], data[: ends[1]] + data[ends[2] :]):
        path.write_bytes(swapped)
        with pytest.raises(LedgerError, match="bad entry"):
            LogFile(path)


def test_scan_says_whether_an_entry_is_torn(tmp_path):
    data = written(tmp_path / "ledger")
    with pytest.raises(DamagedEntry) as caught:
        read(data[:-1])
    assert caught.value.torn and caught.value.index == 4


def test_there_is_one_writer(tmp_path):
    log = LogFile(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="only writer"):
        LogFile(tmp_path / "ledger")
    log.close()
    LogFile(tmp_path / "ledger").close()


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="can write"):
        LogFile(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="can write"):
        LogFile(tmp_path / "file" / "ledger")


def test_an_entry_that_is_too_long_is_refused(tmp_path):
    log = LogFile(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="at most 65536 bytes"):
        log.append(bytes(32), bytes(1 << 16))
    assert log.size == 0
    log.close()


def test_a_full_disk_leaves_whole_entries(tmp_path, monkeypatch):
    log, write = LogFile(tmp_path / "ledger"), os.write
    log.append(*ENTRIES[0])
    budget = iter([20])

    def full(file, data):
        for allowed in budget:
            return write(file, bytes(data[:allowed]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedjax_secure.ledger.log.os.write", full)
    with pytest.raises(OSError, match="No space"):
        log.append(*ENTRIES[1])
    monkeypatch.undo()
    log.close()
    assert read((tmp_path / "ledger").read_bytes()) == ENTRIES[:1]
