"""``make bench``: every figure is a ratio of two things measured in one run.

It prints the tables of docs/benchmarks.md, docs/protocols.md and docs/libtorch.md.

python -m tests.bench [commands|cold|served|protocols|precision|engines|libtorch]...
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.bench import cold, commands, engines, libtorch, precision, protocols, served

PARTS = {
    "commands": commands.measure,
    "cold": cold.measure,
    "served": served.measure,
    "protocols": protocols.measure,
    "precision": precision.measure,
    "engines": engines.measure,
    "libtorch": libtorch.measure,
}


def main(names: list[str]) -> None:
    """Run the named parts, or all, and print a Markdown table for each."""
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"no such part: {', '.join(unknown)}; usage: python -m tests.bench [{'|'.join(PARTS)}]...")
    for name in names or PARTS:
        with tempfile.TemporaryDirectory(prefix="bench.") as folder:
            print(PARTS[name](Path(folder)), end="\n\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
