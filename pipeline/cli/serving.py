"""The commands at a running server's side: `serve`, with its watcher, and `load`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from pipeline.base.errors import MissingError, StageError
from pipeline.base.values import RunningServer, Tensors
from pipeline.cli.commands import interruptible
from pipeline.machine import doctor, environment
from pipeline.report.fitting import Words
from pipeline.report.terminal import Terminal

if TYPE_CHECKING:
    from pipeline.load.run import Order


def serve(
    repositories: Sequence[Path],
    models: Sequence[str],
    ports: tuple[int, int, int],
    host: str,
    work_dir: Path,
    watch_interval_s: float | None,
) -> None:
    """Serve until SIGINT or SIGTERM; print the URLs and a working curl line; watch the models if so asked."""
    from pipeline.servers.triton import embedded as triton

    console = Console()
    names = list(models) or _runnable(repositories, console)
    log_path = work_dir.absolute() / "runs" / f"serve-{time.strftime('%Y%m%dT%H%M%S')}" / "server.log"
    stopping = threading.Event()
    with Terminal(console).stage("server") as stage, contextlib.ExitStack() as stack, interruptible():
        running = stack.enter_context(
            triton.embedded(
                repositories[0],
                names,
                beside=repositories[1:],
                log_path=log_path,
                http_port=ports[0],
                grpc_port=ports[1],
                metrics_port=ports[2],
                host=host,
                start_timeout_s=300.0,
            )
        )
        stage.result = f"{len(names)} models ready"
        keep = stack.pop_all()
    server = running.server
    with keep:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        console.print(
            f"  HTTP     {server.http_url}\n  gRPC     {server.grpc_url}\n  metrics  {server.metrics_url}",
            highlight=False,
        )
        console.print(Words(Text(f"  models   {', '.join(names)}"), indent=11), soft_wrap=True)
        console.print(f"  log      {server.log_path}\n", highlight=False, soft_wrap=True)
        for name in triton.ensembles_of(repositories, names) or names[:1]:
            print(f"  {triton.curl_line(triton.home(repositories, name), name, server.http_url)}\n", flush=True)
        console.print("  Ctrl-C stops it", highlight=False)
        with _watched(repositories, server, watch_interval_s, console) as check:
            while not stopping.wait(timeout=1.0):
                running.check_alive()
                check()


@contextlib.contextmanager
def _watched(
    repositories: Sequence[Path], server: RunningServer, interval_s: float | None, console: Console
) -> Iterator[Callable[[], None]]:
    """Watch the models of a server, if there is an interval; gives what raises a bug of the watcher's."""
    if interval_s is None:
        yield lambda: None
        return
    from pipeline.servers.triton import embedded as triton
    from pipeline.servers.triton.watch import Watch

    def tell(text: str) -> None:
        with contextlib.suppress(OSError):  # where it is printed to may be full too
            console.print(f"  {escape(text)}", highlight=False, soft_wrap=True)

    directory = server.log_path.parent
    watch = Watch(
        http_url=server.http_url,
        repositories=repositories,
        known=lambda model, version: _golden_inputs(triton.home(repositories, model), model, version),
        interval_s=interval_s,
        directory=directory,
        tell=tell,
    )
    try:
        with watch.running():
            tell(f"watching every {interval_s:g} s: {directory / 'watch.json'}")
            yield watch.check
    finally:
        tell(watch.summary())


def _golden_inputs(repository: Path, model: str, version: int) -> Tensors | None:
    """Inputs of the first golden sample that a version was judged by; None for one that this tool did not write."""
    import numpy as np

    from pipeline.data import samples
    from pipeline.repository.manifest import golden_path, read_manifest

    manifest = read_manifest(repository, model, version)
    if manifest is None or "golden_sha256" not in manifest:
        return None
    try:
        sample = samples.read(golden_path(repository, manifest)).samples[0]
    except StageError:  # lost or damaged: the watcher asks with zeros, and its status says so
        return None
    if "ensemble" not in manifest:
        return sample.inputs
    part = manifest["ensemble"]
    if model == part["steps"][-1]:
        return {part["scores"]: sample.outputs[part["scores"]]}
    return {"image": np.array([[sample.image]], np.object_)} if sample.image else None


def _runnable(repositories: Sequence[Path], console: Console) -> list[str]:
    """The models of the repositories, without the engines where these cannot run; they are told."""
    from pipeline.servers.triton import embedded as triton

    names = triton.models_of(*repositories)
    found = environment.probe(Path.cwd())
    want = "a GPU" if found.gpu is None else "" if found.cuda_bindings else f"cuda-bindings ({doctor.GPU_EXTRA_FIX})"
    engines = triton.engines_of(repositories, names) if want else ()
    if engines:
        line = f"  not served, for want of {want}: {', '.join(engines)}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    if len(engines) == len(names):
        raise MissingError("server: every model there is an engine", found=doctor.lacks_to_run_engines(found))
    return [name for name in names if name not in engines]


def load(order: Order, *, as_json: bool) -> int:
    """Load a running server; return the exit code."""
    from pipeline.load import report, run

    with interruptible(), Terminal(Console(stderr=True)).stage(f"load[{order.model}]") as stage:
        result = run.run(order, stage.progress)
        if result.interrupted:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what it was is told whole
        stage.result = f"{len(result.outcomes)} requests sent"
    if as_json:
        print(json.dumps(report.to_json(result)))
    else:
        report.show(Console(), result)
    if result.interrupted:
        # Requests that are never answered keep their threads inside the client library (tritonclient 2.51 with gevent),
        # and the interpreter's end may wait for those: seen once to hang for good.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(report.exit_code(result))
    return report.exit_code(result)
