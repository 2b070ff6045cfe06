"""Child processes: echoed, logged, and dead when their parent is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.base.errors import MissingError, StageError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that has started this process goes (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def start(
    argv: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a child whose output goes to ``log_path``, in its own session, dying with this process.

    The command line is the log's first line; the environment is never logged (it may hold secrets). The child has this
    process's open files only where they are named in ``pass_fds``.

    Raises:
        MissingError: the program does not exist or may not be run.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        log.write(f"$ {shlex.join(argv)}\n".encode())
        log.flush()
        try:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
                preexec_fn=die_with_parent,  # only calls prctl
            )
        except (FileNotFoundError, PermissionError) as error:
            raise _absent(argv, error, log=str(log_path)) from error


def run(argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None) -> str:
    """Run a short command and return its standard output.

    Raises:
        MissingError: no such program.
        StageError: it exited non-zero or took longer than ``timeout_s``.
    """
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
            stdin=subprocess.DEVNULL,
            env=None if env is None else dict(env),
        )
    except (FileNotFoundError, PermissionError) as error:
        raise _absent(argv, error) from error
    except subprocess.TimeoutExpired as error:
        raise StageError(f"{argv[0]} did not end within {timeout_s:.0f} s", found=shlex.join(argv)) from error
    except subprocess.CalledProcessError as error:
        what = f"{argv[0]} exited with {error.returncode}"
        raise StageError(what, found=(error.stderr or error.stdout)[-2000:], hint=shlex.join(argv)) from error
    return done.stdout


def _absent(argv: Sequence[str], error: OSError, *, log: str = "") -> MissingError:
    return MissingError(f"cannot run {argv[0]}", found=str(error), hint="python -m pipeline doctor", log=log)


def stop(child: subprocess.Popen[bytes], *, grace_s: float) -> int:
    """End a child: SIGTERM, ``grace_s`` seconds to drain, then SIGKILL to its whole session; its exit status."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # the session's leftovers too
    return child.wait()
