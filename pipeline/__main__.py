"""Runs the command line; prints one error; exits with its code."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from pipeline.base.errors import PipelineError
from pipeline.base.printing import printable


def main() -> int:
    """Run the command line and return its exit code; only our own bugs end in a traceback (exit 1)."""
    from pipeline.cli.app import app

    try:
        app()
    except PipelineError as error:
        lines = (printable(line) for line in f"error: {error}".expandtabs().split("\n"))  # it may quote anything
        Console(stderr=True).print(Text("\n".join(lines)), soft_wrap=True)
        return error.exit_code
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
