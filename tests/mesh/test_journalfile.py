"""The file of a journal, cut or damaged anywhere: it holds a beginning of what was written, or is refused as it is."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.journalfile import HEADER_BYTES
from mesh.store import StoreError
from tests.mesh.journals import BATCHES, NAME, PREFIXES, held, write


def test_cut_anywhere_it_holds_a_beginning_and_goes_on_from_there(tmp_path: Path) -> None:
    whole = write(tmp_path, BATCHES)
    seen = []
    for length in range(len(whole) + 1):
        (tmp_path / NAME).write_bytes(whole[:length])
        found = held(tmp_path)
        assert found in PREFIXES
        seen.append(PREFIXES.index(found))
        write(tmp_path, [{b"after": b"all"}])
        assert held(tmp_path) == {**found, b"after": b"all"}
    assert seen == sorted(seen)
    assert set(seen) == set(range(len(PREFIXES)))


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 5000, b"weft" * 100, b"\xff" * 11, "marker", "once more"])
def test_a_tail_that_is_no_record_is_cut_off(tmp_path: Path, tail: bytes | str) -> None:
    """`once more`: a good record in another place than where it was written, such as a file system could bring back."""
    whole = write(tmp_path, BATCHES)
    extra = {"marker": whole[12:16], "once more": whole[HEADER_BYTES:]}[tail] if isinstance(tail, str) else tail
    (tmp_path / NAME).write_bytes(whole + extra)
    assert held(tmp_path) == PREFIXES[-1]
    assert (tmp_path / NAME).read_bytes() == whole


def test_a_changed_byte_is_never_a_wrong_value(tmp_path: Path) -> None:
    """Before the last record it is always refused."""
    whole = write(tmp_path, BATCHES)
    last = len(write_prefix(whole, tmp_path, 3))
    for place in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            (tmp_path / NAME).write_bytes(damaged)
            if place < last:
                with pytest.raises(StoreError) as caught:
                    held(tmp_path)
                text = str(caught.value)
                assert str(tmp_path / NAME) in text and "left as it is" in text and "`weft reset`" in text
                assert (tmp_path / NAME).read_bytes() == damaged
            else:
                assert held(tmp_path) == PREFIXES[3]


def write_prefix(whole: bytes, directory: Path, count: int) -> bytes:
    """The first `count` records of `whole`."""
    for length in range(HEADER_BYTES, len(whole)):
        (directory / NAME).write_bytes(whole[:length])
        if held(directory) == PREFIXES[count]:
            return whole[:length]
    raise AssertionError(count)


def test_damage_is_found_before_the_last_record_whatever_its_length(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path, BATCHES))
    whole[HEADER_BYTES : HEADER_BYTES + 20] = os.urandom(20)
    (tmp_path / NAME).write_bytes(whole)
    with pytest.raises(StoreError, match=f"damaged at byte {HEADER_BYTES}, before its last record"):
        held(tmp_path)
    assert (tmp_path / NAME).read_bytes() == whole


def test_a_value_that_is_a_journal_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", BATCHES)
    whole = write(tmp_path, [{b"copy": other}])
    assert held(tmp_path) == {b"copy": other}
    (tmp_path / NAME).write_bytes(whole[:-1])
    assert held(tmp_path) == {}


@pytest.mark.parametrize("content", [b"x", b"weftjrnX", b"{}" * 50, b"\0" * 100, b"weftjrnl\0\0\0\0" + b"\0" * 12])
def test_what_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(StoreError, match=r"cannot use .*ipam\.journal"):
        held(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_journal_of_a_newer_weft_is_named_as_that(tmp_path: Path) -> None:
    whole = write(tmp_path, BATCHES)
    newer = whole[:11] + b"\x02" + whole[12:]
    (tmp_path / NAME).write_bytes(newer)
    with pytest.raises(StoreError, match=r"newer Weft \(format 2, this one reads 1\)"):
        held(tmp_path)
    assert (tmp_path / NAME).read_bytes() == newer


@given(st.binary(max_size=200), st.integers(0, 150))
def test_no_bytes_confuse_the_reader(noise: bytes, place: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        whole = write(Path(directory), BATCHES)
        (Path(directory) / NAME).write_bytes(whole[:place] + noise)
        with contextlib.suppress(StoreError):
            assert held(Path(directory)) in PREFIXES
