"""Publishes a prepared candidate in a process that a test may kill: two members and the ensemble over them.

Run as ``python -m tests.integration.publisher``: each line of its standard input is a folder; for each it makes a child
that stops itself, prints the child's number, lets it publish the second build there once it is continued, and prints
how it ended.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.repository import candidate as candidates
from pipeline.repository import publish as publishing
from pipeline.repository.versions import Version
from tests.unit.repository.bench import Bench

NAMES = ("a", "b", "m")


def versions(folder: Path, number: int) -> list[Version]:
    """Of the first build, or the second: other weights for ``a``, another configuration for ``b``, other gates."""
    bench = Bench(folder)
    made = (
        bench.version(f"weights {number}", name="a", **{"labels.txt": b"x\n"}),
        bench.version("weights", f"max_batch_size: {number}\n", name="b", **{"warmup/x": b"\0"}),
        bench.ensemble({"a": number, "b": 1}),
    )
    return [replace(version, manifest={"schema": 1, "gates": number}) for version in made]


def build(folder: Path, number: int) -> None:
    """Emit and publish."""
    publish(folder, versions(folder, number))


def publish(folder: Path, made: Sequence[Version]) -> None:
    """Emit what was made into a candidate, and publish it."""
    with candidates.opened(folder / "repo", NAMES, run_id=f"build-{os.getpid()}") as candidate:
        for version in made:
            candidate.add(version, retain=1)
        for name in NAMES:
            publishing.put(candidate, name, proof="served")
        for name in NAMES:
            publishing.narrow(candidate, name)


def main() -> None:
    warm = Path(sys.argv[1])
    for number in (1, 2):
        build(warm, number)  # all that is imported on the way is imported now
    print("ready", flush=True)
    for line in sys.stdin:
        folder = Path(line.strip())
        made = versions(folder, 2)
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                publish(folder, made)
            except PipelineError as error:
                print(f"told {error.what}", file=sys.stderr, flush=True)
                os._exit(3)
            except OSError as error:
                print(f"UNTOLD {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
