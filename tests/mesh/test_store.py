"""Durable state: whatever fails at whatever moment, the old or the new document is there, and lies are refused."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import store as store_module
from mesh.directories import DirectoryError
from mesh.store import Store, StoreError

OLD: dict[str, Any] = {"key": "00ff", "epoch": 1}
NEW: dict[str, Any] = {"key": "00ff", "epoch": 2, "filler": "x" * 10_000}


def test_what_was_written_is_read_by_the_next_daemon(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        assert store.read("identity") is None
        store.write("identity", OLD)
        store.write("identity", NEW)
        store.write("targets", {"peers": []})
    with Store(str(tmp_path)) as store:
        assert store.read("identity") == NEW
        assert store.read("targets") == {"peers": []}


def test_documents_are_for_their_owner_only(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        with Store(str(tmp_path / "state")) as store:
            store.write("identity", OLD)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "identity.weft").stat().st_mode) == 0o600


def test_two_daemons_cannot_share_a_state_directory(tmp_path: Path) -> None:
    with Store(str(tmp_path)), pytest.raises(DirectoryError, match=r"state directory .* is in use by another"):
        Store(str(tmp_path))
    Store(str(tmp_path)).close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=16,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_every_json_value_survives(payload: dict[str, Any]) -> None:
    assert store_module._decode(store_module._encode(payload), "x") == payload


class Crash(BaseException):
    """The machine stopped here."""


class FaultyOs:
    """`os`, in which the n-th operation of the store fails. After a crash nothing works any more."""

    WATCHED = ("open", "write", "fsync", "close", "rename", "unlink")

    def __init__(self, fail_at: int, failure: BaseException) -> None:
        self.calls: list[str] = []
        self.failed: str | None = None
        self._fail_at = fail_at
        self._failure = failure

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._watched(name, real) if name in self.WATCHED else real

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **more: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) == self._fail_at:
                self.failed = name
                if name == "close" or isinstance(self._failure, Crash):
                    self._tidy(name, arguments)
                raise self._failure
            if self.failed and isinstance(self._failure, Crash):
                self._tidy(name, arguments)
                raise self._failure
            if name == "write":  # a disk may take less than it was given
                return real(arguments[0], arguments[1][:1000])
            return real(*arguments, **more)

        return operation

    @staticmethod
    def _tidy(name: str, arguments: tuple[Any, ...]) -> None:
        """The process is not really gone: give its descriptor back."""
        if name == "close":
            os.close(arguments[0])


def every_fault(kind: Callable[[], BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fail a write at its first operation, its second, and so on, until none is left; say which ones failed."""
    failed: list[str] = []
    for fail_at in range(1, 100):
        directory = tmp_path / str(fail_at)
        with Store(str(directory)) as store:
            store.write("identity", OLD)
            faulty = FaultyOs(fail_at, kind())
            with monkeypatch.context() as patch:
                patch.setattr(store_module, "os", faulty)
                try:
                    store.write("identity", NEW)
                except StoreError as error:
                    assert "\n" not in str(error)
                    assert "identity.weft" in str(error)
                    assert "free some space" in str(error)
                except Crash:
                    pass
                else:
                    assert faulty.failed is None
        with Store(str(directory)) as store:
            assert store.read("identity") in (OLD, NEW)
            store.write("identity", NEW)  # whatever was left behind is not in the way
            assert store.read("identity") == NEW
        assert os.listdir(directory) == ["identity.weft"]
        if faulty.failed is None:
            return failed
        failed.append(faulty.failed)
    raise AssertionError("a write never came to its end")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failing_disk_leaves_the_old_or_the_new_document(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = every_fault(lambda: OSError(number, os.strerror(number)), tmp_path, monkeypatch)
    assert failed == ["open", *["write"] * 11, "fsync", "close", "rename", "fsync"]


def test_a_crash_at_any_step_leaves_the_old_or_the_new_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(every_fault(Crash, tmp_path, monkeypatch)) == 16


def test_a_document_reaches_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = FaultyOs(0, Crash())
    with Store(str(tmp_path)) as store, monkeypatch.context() as patch:
        patch.setattr(store_module, "os", faulty)
        store.write("identity", OLD)
    assert faulty.calls[:6] == ["open", "write", "fsync", "close", "rename", "fsync"]


@pytest.mark.root
def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path: Path) -> None:
    """/dev/full for a file: the pending document is a link to nowhere that has room."""
    with Store(str(tmp_path)) as store:
        store.write("identity", OLD)
        os.mknod(tmp_path / "identity.weft.new", stat.S_IFCHR | 0o600, os.makedev(1, 7))
        with pytest.raises(StoreError, match=re.escape("(No space left on device)")):
            store.write("identity", NEW)
        assert store.read("identity") == OLD


def test_a_pending_document_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "identity.weft.new").symlink_to("precious")
    with Store(str(tmp_path)) as store, pytest.raises(StoreError):
        store.write("identity", NEW)
    assert (tmp_path / "precious").read_text() == "precious"


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(store_module._encode(OLD)), **fields}).encode()


WHOLE = store_module._encode(OLD)
CORRUPT = {
    "empty": b"",
    "zeros": b"\0" * len(WHOLE),
    "cut": WHOLE[:-10],
    "cut-in-half": WHOLE[: len(WHOLE) // 2],
    "twice": WHOLE + WHOLE,
    "one-bit": WHOLE.replace(b'"epoch": 1', b'"epoch": 3'),
    "key-renamed": WHOLE.replace(b"epoch", b"epocH"),
    "not-utf8": WHOLE.replace(b"00ff", b"00\xff\xff"),
    "not-json": b"identity",
    "a-list": b"[]",
    "null": b"null",
    "no-format": b'{"payload": {}}',
    "format-is-text": changed(format="1"),
    "format-is-true": changed(format=True),
    "format-is-zero": changed(format=0),
    "format-is-negative": changed(format=-1),
    "payload-is-a-list": changed(payload=[]),
    "payload-is-missing": b'{"format": 1, "sha256": ""}',
    "checksum-is-missing": json.dumps({"format": 1, "payload": OLD}).encode(),
    "checksum-is-a-number": changed(sha256=7),
    "not-a-number": b'{"format": 1, "payload": {"x": NaN}}',
    "deep": b"[" * 100_000,
    "half-a-character": b'{"format": 1, "sha256": "x", "payload": {"x": "\\ud800"}}',
    "huge-number": b'{"format": 1, "payload": {"x": ' + b"9" * 10_000 + b"}}",
    "too-large": b" " * store_module.DOCUMENT_BYTES_MAX + b"{}",
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT.keys())
def test_a_corrupt_document_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.weft").write_bytes(content)
    with Store(str(tmp_path)) as store, pytest.raises(StoreError) as caught:
        store.read("identity")
    text = str(caught.value)
    assert str(tmp_path / "identity.weft") in text
    assert "left as it is" in text
    assert "`weft reset`, which gives this host a new identity" in text
    assert "\n" not in text
    assert (tmp_path / "identity.weft").read_bytes() == content


def test_a_document_of_a_newer_weft_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "identity.weft").write_bytes(changed(format=2))
    with Store(str(tmp_path)) as store, pytest.raises(StoreError, match=r"newer Weft \(format 2"):
        store.read("identity")


def test_a_document_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "identity.weft").mkdir()
    with Store(str(tmp_path)) as store, pytest.raises(StoreError, match="Is a directory"):
        store.read("identity")


def test_a_document_somebody_indented_in_another_way_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "identity.weft").write_text(json.dumps(json.loads(WHOLE), indent=8, sort_keys=True))
    with Store(str(tmp_path)) as store:
        assert store.read("identity") == OLD
