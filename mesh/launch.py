"""`weft launch`: start the daemon in the background and wait until it serves, or be the daemon (`--foreground`).

The two halves talk over a pipe. The daemon's half writes one line, `ready` or the reason why not; a daemon that dies
without a word closes it. So nobody polls, and a failed launch shows its reason in the terminal where it was typed. The
secret travels in the environment: command lines are visible to every user of the host.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh import client, config, directories
from mesh.errors import UserError
from mesh.usage import Parsed

if TYPE_CHECKING:
    import subprocess

    from mesh.config import LaunchConfig

READY = "ready"

LAUNCH_TIMEOUT_S = 60.0
"""A daemon that has not come up by then is ended again; adopting a kernel full of entries takes a few seconds."""
PROGRESS_AFTER_S = 3.0
END_TIMEOUT_S = 5.0

_READY_BYTES_MAX = 4096
_LOG_TAIL_BYTES = 8192


def launch(parsed: Parsed) -> int:
    """The verb. Returns when the daemon serves; with `--foreground` when it has ended."""
    _need_root()
    background = not parsed.has("--foreground")
    if background:
        launch_config = config.load(parsed, os.environ, background=True)
        _refuse_second()
        return _start(parsed, launch_config)
    ready = _ready_pipe(parsed.value("--ready-fd"))
    try:
        launch_config = config.load(parsed, os.environ, background=parsed.has("--ready-fd"))
        _refuse_second()
        return _serve(launch_config, ready)
    except UserError as error:
        ready(str(error))
        raise


def _need_root() -> None:
    if os.geteuid() != 0:
        raise UserError("launch needs root, it makes network devices; try `sudo weft launch`")


def _refuse_second() -> None:
    path = directories.socket_path(directories.run_dir())
    try:
        client.connect(path).close()
    except client.DaemonDown:
        return  # nobody there, or only the socket that a killed daemon left behind
    except client.DaemonSilent:
        pass
    pid = directories.read_pid(directories.run_dir())
    raise UserError(
        f"the daemon is already running{f' (pid {pid})' if pid else ''} and serves {path}; "
        "add peers with `weft connect PEER`, or end it first with `weft stop`"
    )


# The background half: the process that was typed.


def _start(parsed: Parsed, launch_config: LaunchConfig) -> int:
    import subprocess

    directories.private_directory(launch_config.run_dir)
    directories.private_directory(launch_config.state_dir)
    log = directories.log_path(launch_config.state_dir)
    log_descriptor = _open_log(log)
    log_start = os.fstat(log_descriptor).st_size
    ready_read, ready_write = os.pipe()
    try:
        daemon = subprocess.Popen(
            [
                *(sys.executable, "-m", "mesh", "launch", "--foreground", f"--ready-fd={ready_write}"),
                *config.daemon_flags(parsed),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log_descriptor,
            stderr=log_descriptor,
            cwd="/",
            env=_daemon_environment(launch_config),
            pass_fds=(ready_write,),
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"cannot start {sys.executable} ({error.strerror}); is the machine out of memory?") from None
    finally:
        os.close(ready_write)
        os.close(log_descriptor)
    try:
        answer = _wait_ready(ready_read, log)
    except BaseException:
        _end(daemon, patience_s=0.0)
        raise
    finally:
        os.close(ready_read)
    if answer == READY:
        print(f"weft serves as pid {daemon.pid}; log: {log}")
        return 0
    status = _end(daemon, patience_s=END_TIMEOUT_S)
    if answer:
        raise UserError(answer)
    last = _last_line(log, log_start)
    raise UserError(f"the daemon ended while starting (status {status}); its last words: {last}; log: {log}")


def _open_log(log: str) -> int:
    try:
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"cannot write the log {log} ({error.strerror}); free space or check the directory") from None


def _daemon_environment(launch_config: LaunchConfig) -> dict[str, str]:
    """Our own environment with every relative path made absolute, because the daemon works in `/`."""
    environment = dict(os.environ)
    environment["WEFT_RUN_DIR"] = launch_config.run_dir
    environment["WEFT_STATE_DIR"] = launch_config.state_dir
    environment["WEFT_DOCKER_SOCKET"] = launch_config.docker_socket
    environment.pop("WEFT_PASSWORD", None)
    if launch_config.passwords:
        environment["WEFT_PASSWORD"] = "\n".join(launch_config.passwords)
    search = [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.basename(source) not in ("site-packages", "dist-packages"):
        search.insert(0, source)  # run from a source tree, which only the current directory made importable
    environment.pop("PYTHONPATH", None)
    if search:
        environment["PYTHONPATH"] = os.pathsep.join(search)
    return environment


def _wait_ready(descriptor: int, log: str) -> str:
    """What the daemon says: `ready`, an error line, or nothing where it died first."""
    import select
    import time

    deadline = time.monotonic() + LAUNCH_TIMEOUT_S
    patience_s = PROGRESS_AFTER_S
    answer = b""
    while len(answer) < _READY_BYTES_MAX:
        readable, _, _ = select.select([descriptor], [], [], min(patience_s, max(0.0, deadline - time.monotonic())))
        if readable:
            chunk = os.read(descriptor, _READY_BYTES_MAX)
            answer += chunk
            if not chunk or b"\n" in chunk:
                break
        elif time.monotonic() >= deadline:
            raise UserError(f"the daemon did not come up within {LAUNCH_TIMEOUT_S:.0f} s and was ended; see {log}")
        else:
            print(f"weft: still starting; log: {log}", file=sys.stderr)
            patience_s = LAUNCH_TIMEOUT_S
    return answer.decode(errors="replace").partition("\n")[0]


def _end(daemon: subprocess.Popen[bytes], patience_s: float) -> int:
    """See a daemon that did not come up to its end. It is our own child, so its pid is still its own."""
    import subprocess

    for timeout_s, urge in ((patience_s, daemon.terminate), (END_TIMEOUT_S, daemon.kill)):
        try:
            return daemon.wait(timeout_s)
        except subprocess.TimeoutExpired:
            urge()
    return daemon.wait()


def _last_line(log: str, start: int) -> str:
    """The last line of the log that this launch wrote."""
    try:
        with open(log, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            lines = file.read(_LOG_TAIL_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return "(none)"
    words = [line.strip() for line in lines if line.strip()]
    return words[-1] if words else "(none)"


# The foreground half: the daemon itself.


def _ready_pipe(text: str | None) -> Callable[[str | None], None]:
    """How the daemon says that it serves (None) or why it does not. Without a pipe nobody listens."""
    if text is None:
        return lambda _: None
    try:
        descriptor = int(text)
        os.set_inheritable(descriptor, False)  # what the daemon starts must not keep the launcher waiting
    except (ValueError, OSError):
        raise UserError("--ready-fd is for the daemon's own use") from None
    waiting = [descriptor]

    def ready(error: str | None) -> None:
        while waiting:
            line = READY if error is None else " ".join(error.split())[: _READY_BYTES_MAX // 4]
            pipe = waiting.pop()
            try:
                os.write(pipe, line.encode(errors="replace") + b"\n")
            except OSError:
                pass  # whoever launched us has gone: Ctrl-C, or a closed terminal
            os.close(pipe)

    return ready


def _serve(launch_config: LaunchConfig, ready: Callable[[str | None], None]) -> int:
    from mesh import logs

    directories.private_directory(launch_config.state_dir)
    try:
        logs.configure(launch_config.log_level, launch_config.log_file)
    except OSError as error:
        raise UserError(f"cannot write the log {launch_config.log_file} ({error.strerror}); free some space") from None
    log = logs.EventLog("launch")
    try:
        from mesh import serve

        return serve.run(launch_config, ready)
    except UserError as error:
        log.error("launch-failed", error=error)
        raise
    except Exception as error:
        # The outermost shell: the traceback is for the log, the one line for whoever typed `launch`.
        log.exception("daemon-crashed", error=error)
        raise UserError(f"the daemon crashed ({type(error).__name__}: {error}); its log has the details") from None
