"""Programs that end in order: the exception of a signal arrives, wherever the interpreter happens to be."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from mesh.namespaces import LabError, ends_in_order, uninterrupted, wait_until


@pytest.mark.parametrize(
    ("signum", "expected"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_a_signal_ends_the_program_through_finally(signum: signal.Signals, expected: type[BaseException]) -> None:
    """And the handlers are what they were before."""
    before = signal.getsignal(signum)
    cleaned = False
    with pytest.raises(expected), ends_in_order():
        try:
            os.kill(os.getpid(), signum)
            time.sleep(5)
        finally:
            cleaned = True
    assert cleaned
    assert signal.getsignal(signum) == before


class _Swallows:
    """What a signal meets in a destructor: an exception raised there goes nowhere."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_swallowed_is_raised_again() -> None:
    """Else a program would go on as if nobody had asked it to end."""
    with pytest.raises(SystemExit) as ended, ends_in_order():
        _Swallows()
        time.sleep(5)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("threads", [0, 1])
def test_cleaning_up_is_not_interrupted(threads: int) -> None:
    """A signal that comes meanwhile is seen afterwards, also where another thread takes it from the kernel."""
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait) for _ in range(threads)]
    for other in others:
        other.start()
    finished = False
    try:
        with pytest.raises(SystemExit), ends_in_order():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
                finished = True
            time.sleep(5)
    finally:
        stop.set()
        for other in others:
            other.join()
    assert finished


def test_children_of_a_clean_up_are_not_interrupted_either() -> None:
    """Ctrl-C reaches the whole group; the `ip` that is removing things must not die of it."""
    with uninterrupted():
        child = subprocess.Popen(["sleep", "0.3"])
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=5) == 0


def test_waiting_in_vain_says_for_what() -> None:
    """One line with the time and the thing."""
    with pytest.raises(LabError, match=r"waited 0\.05 s in vain until it rained"):
        wait_until(lambda: False, 0.05, "it rained")
