"""The journal: killed or without room at any point, what it holds is a beginning of what was handed in."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import journalfile
from mesh.journal import GROUP_BYTES, Journal
from mesh.journalfile import JournalFile, encode
from mesh.store import StoreError
from tests.mesh.failing_disk import Crash, FaultyOs, failing
from tests.mesh.journals import BATCHES, NAME, PREFIXES, Changes, after, held, write

ROOT = Path(__file__).resolve().parents[2]


def run(directory: Path, use: Callable[[Journal], Awaitable[None]]) -> None:
    async def main() -> None:
        journal = Journal.open(str(directory), "ipam")
        try:
            await use(journal)
        finally:
            await journal.close()

    asyncio.run(main())


# What is there


def test_what_was_committed_is_found_by_the_next_daemon(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        assert journal.contents == {}
        for changes in BATCHES:
            await journal.commit(changes)

    run(tmp_path, use)
    assert held(tmp_path) == PREFIXES[-1]
    assert os.listdir(tmp_path) == [NAME]


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write(tmp_path, BATCHES)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


def test_an_empty_file_is_an_empty_map_and_can_be_used(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"")
    write(tmp_path, BATCHES)
    assert held(tmp_path) == PREFIXES[-1]


def test_a_pending_file_is_removed(tmp_path: Path) -> None:
    whole = write(tmp_path, BATCHES)
    (tmp_path / "ipam.journal.new").write_bytes(whole[:-5])
    assert held(tmp_path) == PREFIXES[-1]
    assert os.listdir(tmp_path) == [NAME]


@pytest.mark.parametrize("name", [NAME, "ipam.journal.new"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / name).symlink_to("precious")
    if name == NAME:
        with pytest.raises(StoreError, match="symbolic links"):
            write(tmp_path, BATCHES)
    else:
        write(tmp_path, BATCHES)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / NAME)
    with pytest.raises(StoreError, match=r"cannot use .*ipam\.journal"):
        held(tmp_path)


# A failing disk


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written anew soon, in several records."""
    monkeypatch.setattr(journalfile, "COMPACT_BYTES_MIN", 2000)
    monkeypatch.setattr(journalfile, "RECORD_BYTES", 300)
    monkeypatch.setattr(journalfile, "ENTRIES_AT_ONCE", 2)


MANY: list[Changes] = [{b"%d" % (number % 7): b"%d" % number * 40, b"last": b"%d" % number} for number in range(60)]
ALL_PREFIXES = [after(MANY[:count]) for count in range(len(MANY) + 1)]


def work(directory: Path, on_refusal: Callable[[StoreError], None]) -> Iterator[int]:
    """Everything of MANY, with a file written anew now and then; yields how many are acknowledged."""
    file = JournalFile(str(directory), "ipam")
    try:
        for number, changes in enumerate(MANY, start=1):
            try:
                file.append(encode(changes))
            except StoreError as error:
                on_refusal(error)
                return
            yield number
            if file.is_wasteful:
                file.compact()
    finally:
        file.close()


@pytest.mark.usefixtures("small")
def test_a_crash_at_any_step_loses_nothing_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the process, of the machine (what was not synced is gone then), or of one and later of the other."""
    failed = set()
    for fail_at in range(1, 1000):
        directory = tmp_path / str(fail_at)
        directory.mkdir()
        faulty = FaultyOs(fail_at, Crash())
        acknowledged = 0
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", faulty)
            with contextlib.suppress(Crash):
                for number in work(directory, pytest.fail):
                    acknowledged = number
        legal = ALL_PREFIXES[acknowledged : acknowledged + 2]
        assert held(faulty.after_power_cut(tmp_path / f"{fail_at}-cut")) in legal
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", next_run := faulty.next_run())
            found = held(directory)
            assert held(next_run.after_power_cut(tmp_path / f"{fail_at}-idle")) == found
            write(directory, [{b"next": b"run"}])
        assert found in legal
        assert os.listdir(directory) == [NAME]
        assert held(next_run.after_power_cut(tmp_path / f"{fail_at}-again")) == {**found, b"next": b"run"}
        if faulty.failed is None:
            break
        failed.add(faulty.failed)
    assert failed == {"open", "pwrite", "fsync", "rename", "unlink"}
    assert faulty.calls.count("rename") > 2


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failure_at_any_step_is_refused_whole_or_not_noticed(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and file agree: what was acknowledged is there, what was refused is not."""
    for fail_at in range(1, 1000):
        directory = tmp_path / str(fail_at)
        directory.mkdir()
        faulty = FaultyOs(fail_at, OSError(number, os.strerror(number)))
        refusals: list[StoreError] = []
        acknowledged = 0
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", faulty)
            try:
                for count in work(directory, refusals.append):
                    acknowledged = count
            except StoreError as error:
                refusals.append(error)
                assert acknowledged == 0
        assert len(refusals) <= 1
        assert all(os.strerror(number) in str(each) and NAME in str(each) for each in refusals)
        assert acknowledged == len(MANY) or refusals
        assert held(directory) == ALL_PREFIXES[acknowledged]
        if faulty.failed is None:
            return
    raise AssertionError("the work never came to its end")


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_after_a_disk_that_was_full_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    async def use(journal: Journal) -> None:
        await journal.commit({b"a": b"1"})
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC, fail_at))
            with pytest.raises(StoreError, match=r"No space left on device\).*free some space"):
                await journal.commit({b"a": b"2" * 5000, b"b": b"2"})
        assert journal.broken is None
        assert held_copy(tmp_path) == {b"a": b"1"}
        await journal.commit({b"c": b"3"})

    run(tmp_path, use)
    assert held(tmp_path) == {b"a": b"1", b"c": b"3"}


def held_copy(directory: Path) -> dict[bytes, bytes]:
    """What is there while somebody else has it open."""
    with tempfile.TemporaryDirectory() as copy:
        (Path(copy) / NAME).write_bytes((directory / NAME).read_bytes())
        return held(Path(copy))


@pytest.mark.parametrize("only", ["fsync", "ftruncate"])
def test_what_the_disk_holds_is_unknown_after_a_failed_sync_or_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    """Then nothing more is taken until a restart, which finds all that was acknowledged."""

    async def use(journal: Journal) -> None:
        await journal.commit({b"a": b"1"})
        faulty = failing(only, errno.EIO)
        if only == "ftruncate":
            full = failing("pwrite", errno.ENOSPC)
            monkeypatch.setattr(faulty, "pwrite", full.pwrite, raising=False)
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", faulty)
            with pytest.raises(StoreError, match=r"any more \(Input/output error\)"):
                await journal.commit({b"a": b"2"})
        for changes in ({b"a": b"3"}, {}):
            with pytest.raises(StoreError, match="start the daemon again"):
                await journal.commit(changes)
        assert journal.broken is not None

    run(tmp_path, use)
    assert held(tmp_path) == {b"a": b"1"}


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(tmp_path)], check=True)
    try:
        kept: dict[bytes, bytes] = {}

        async def use(journal: Journal) -> None:
            with pytest.raises(StoreError, match=re.escape("(No space left on device)")):
                for number in range(100):
                    await journal.commit({b"%d" % number: b"x" * 3000})
                    kept[b"%d" % number] = b"x" * 3000
            assert journal.broken is None
            await journal.commit({b"small": b"1"})

        run(tmp_path, use)
        assert 10 < len(kept) < 30
        assert held(tmp_path) == {**kept, b"small": b"1"}
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# Groups


def test_what_comes_together_goes_out_together_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    async def one(journal: Journal, number: int) -> None:
        await journal.commit({b"key": b"%d" % number, b"%d" % number: b""})
        told.append(number)

    async def use(journal: Journal) -> None:
        counted = FaultyOs(0, Crash())
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", counted)
            await asyncio.gather(*[one(journal, number) for number in range(200)])
        assert counted.calls.count("fsync") == 1

    run(tmp_path, use)
    assert told == list(range(200))
    found = held(tmp_path)
    assert found[b"key"] == b"199" and len(found) == 201


def test_a_group_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(journal: Journal) -> None:
        counted = FaultyOs(0, Crash())
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", counted)
            await asyncio.gather(*[journal.commit({b"%d" % n: bytes(GROUP_BYTES // 3)}) for n in range(4)])
            await journal.commit({b"large": bytes(3 * GROUP_BYTES)})
        assert counted.calls.count("fsync") == 3

    run(tmp_path, use)
    assert len(held(tmp_path)) == 5


def test_what_is_handed_in_may_be_changed_afterwards(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        changes: dict[bytes, bytes | None] = {b"a": b"1"}
        done = journal.hand_in(changes)
        changes[b"a"] = b"2"
        await done

    run(tmp_path, use)
    assert held(tmp_path) == {b"a": b"1"}


def test_a_refusal_refuses_all_that_was_handed_in_the_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever undoes its change as it is refused comes back to what is on disk."""
    memory = {b"key": b"first"}

    async def one(journal: Journal, value: bytes) -> None:
        before, memory[b"key"] = memory[b"key"], value
        try:
            await journal.commit({b"key": value, value: bytes(GROUP_BYTES // 4)})
        except StoreError:
            memory[b"key"] = before

    async def use(journal: Journal) -> None:
        await journal.commit(memory)
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC))
            await asyncio.gather(*[one(journal, b"%d" % number) for number in range(9)])

    run(tmp_path, use)
    assert memory == {b"key": b"first"} == held(tmp_path)


def test_who_is_cancelled_loses_nothing(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        for turns in range(6):
            tasks = [asyncio.ensure_future(journal.commit({b"%d-%d" % (turns, n): b"1"})) for n in range(5)]
            for _ in range(turns + 1):
                await asyncio.sleep(0)
            for task in tasks[1:4]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(tmp_path, use)
    assert held(tmp_path) == {b"%d-%d" % (turns, n): b"1" for turns in range(6) for n in range(5)}


def test_a_cancelled_waiter_of_a_refused_group_troubles_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(journal: Journal) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC))
            first, second = journal.hand_in({b"a": b"1"}), journal.hand_in({b"b": b"1"})
            first.cancel()
            with pytest.raises(StoreError):
                await second
        await journal.commit({b"c": b"1"})

    run(tmp_path, use)
    assert held(tmp_path) == {b"c": b"1"}


def test_closing_writes_what_was_handed_in_and_takes_nothing_more(tmp_path: Path) -> None:
    async def use(journal: Journal) -> None:
        for number in range(20):
            journal.hand_in({b"%d" % number: b"1"})
        await journal.close()
        with pytest.raises(StoreError, match="closed"):
            await journal.commit({b"late": b"1"})

    run(tmp_path, use)
    assert held(tmp_path) == {b"%d" % number: b"1" for number in range(20)}


KILLED = """
import asyncio, sys
from mesh import journalfile
from mesh.journal import Journal

journalfile.COMPACT_BYTES_MIN = 2000

async def count(journal, task):
    number = 0
    while True:
        number += 1
        await journal.commit({b"%d" % task: b"%d" % number, b"twin%d" % task: b"%d" % number})
        print(task, number, flush=True)

async def main():
    journal = Journal.open(sys.argv[1], "ipam")
    await asyncio.gather(*[count(journal, task) for task in range(20)])

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 500, 3000])
def test_killed_without_warning_it_has_all_that_it_said_it_had(tmp_path: Path, lines: int) -> None:
    acknowledged = dict.fromkeys(range(20), 0)
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = list(islice(process.stdout, lines))
        process.kill()
        told += process.stdout
    for line in told:
        if line.endswith(b"\n"):
            task, number = map(int, line.split())
            acknowledged[task] = number
    found = held(tmp_path)
    for task, number in acknowledged.items():
        assert number <= int(found.get(b"%d" % task, b"0")) <= number + 1
        assert found.get(b"%d" % task) == found.get(b"twin%d" % task)


# Written anew


@pytest.mark.usefixtures("small")
def test_a_file_stays_small_however_often_a_key_changes(tmp_path: Path) -> None:
    sizes = []

    async def use(journal: Journal) -> None:
        for number in range(500):
            await journal.commit({b"%d" % (number % 5): b"x" * 50})
            sizes.append((tmp_path / NAME).stat().st_size)

    run(tmp_path, use)
    assert max(sizes) < 2500
    assert sum(after < before for before, after in pairwise(sizes)) > 5
    assert held(tmp_path) == {b"%d" % number: b"x" * 50 for number in range(5)}


@pytest.mark.usefixtures("small")
def test_where_there_is_no_room_to_write_anew_the_old_file_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = JournalFile(str(tmp_path), "ipam")
    number = 0
    while not file.is_wasteful:
        number += 1
        file.append(encode({b"key": b"%d" % number * 20}))
    with monkeypatch.context() as patch:
        patch.setattr(journalfile, "os", failing("pwrite", errno.ENOSPC))
        file.compact()
    assert file.broken is None and not file.is_wasteful
    assert os.listdir(tmp_path) == [NAME]
    file.append(encode({b"more": b"1"}))
    file.close()
    assert held(tmp_path) == {b"key": b"%d" % number * 20, b"more": b"1"}


KEYS = st.sampled_from([b"", b"a", b"b", b"cc", b"\0" * 8])
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=60), max_size=4)


@settings(max_examples=60)
@given(st.lists(st.lists(st.lists(CHANGES, max_size=4), max_size=4), max_size=4))
def test_it_is_a_dict_that_survives(runs: list[list[list[dict[bytes, bytes | None]]]]) -> None:
    """Restarts, in each some groups, in each some batches at once."""
    model: dict[bytes, bytes] = {}
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journalfile, "COMPACT_BYTES_MIN", 300)
        for groups in runs:

            async def use(journal: Journal, groups: list[list[dict[bytes, bytes | None]]] = groups) -> None:
                assert journal.contents == model
                for group in groups:
                    for changes in group:
                        for key, value in changes.items():
                            model.pop(key, None)
                            if value is not None:
                                model[key] = value
                    await asyncio.gather(*[journal.commit(changes) for changes in group])

            run(Path(directory), use)
        assert held(Path(directory)) == model
