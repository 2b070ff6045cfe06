"""One thin function per command; no logic."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline import __version__
from pipeline.base.files import LOCAL_PATH

app = typer.Typer(
    name="pipeline",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a trained model and one YAML file to a proven, versioned model repository for Triton.\n\n"
    "Exit codes: 0 all that was asked exists and passed, 1 a bug of this tool, 2 configuration, 3 this machine lacks "
    "something, 4 a stage failed or a gate refused, 5 the served answers are not the model's.",
)
cache = typer.Typer(no_args_is_help=True, help="The step store: list, collect, clear.")
app.add_typer(cache, name="cache")


def _path(text: str | Path) -> Path:
    if not re.match(LOCAL_PATH, str(text)):
        raise typer.BadParameter(f"'{text}' is a URL; expected a path on this machine")
    return Path(text)


# What several commands take; every path is one on this machine.
_option = partial(typer.Option, parser=_path)
_argument = partial(typer.Argument, parser=_path)
Configs = Annotated[list[Path], _argument(metavar="CONFIG...", help="YAML files, or directories of them.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key: --set variants.onnx.opset=17.")
]
_REPOSITORY_HELP = "Repository root (default: the YAML's, or model_repository/)."
Repository = Annotated[Path | None, _option("--repository", metavar="DIR", help=_REPOSITORY_HELP)]
_REPORT_HELP = "Also write the report there, and as a page beside it (.html)."
Report = Annotated[Path | None, _option("--report", metavar="FILE.json", help=_REPORT_HELP)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Model name on the server.")]
Url = Annotated[str, typer.Option(metavar="HOST:PORT", help="HTTP endpoint.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
WorkDir = Annotated[Path, _option("--work-dir", metavar="DIR", help="Step store, logs and reports.")]
Variants = Annotated[list[str] | None, typer.Option("--variant", metavar="KEY", help="Only this variant; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
WORK_DIR = Path(".pipeline")


class Wire(StrEnum):
    """How requests travel."""

    HTTP = "http"
    GRPC = "grpc"
    SHM = "shm"


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"model-repository-pipeline {__version__}")
        raise typer.Exit()


@app.command()
def build(
    configs: Configs,
    repository: Repository = None,
    work_dir: WorkDir = WORK_DIR,
    report: Report = None,
    overrides: Overrides = None,
    variants: Variants = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Prove the result on a real server.")] = True,
) -> None:
    """Build, judge, emit and prove the models of one or more configurations."""
    from pipeline.cli import commands

    options = _build_options(repository, work_dir, variants, serve)
    raise typer.Exit(commands.build(configs, overrides or (), options, report))


@app.command()
def plan(
    configs: Configs,
    as_json: AsJson = False,
    repository: Repository = None,
    work_dir: WorkDir = WORK_DIR,
    overrides: Overrides = None,
    variants: Variants = None,
) -> None:
    """Show what a build would do: every resolved option, the steps, which are cached, what this machine lacks."""
    from pipeline.cli import commands

    commands.plan(configs, overrides or (), _build_options(repository, work_dir, variants, serve=True), as_json=as_json)


@app.command()
def serve(
    repositories: Annotated[
        list[Path], _argument(metavar="REPOSITORY...", help="Repository roots, served by one server.")
    ],
    http_port: Port = 8000,
    grpc_port: Port = 8001,
    metrics_port: Port = 8002,
    host: Annotated[str, typer.Option(help="Address to bind; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    models: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model; repeatable.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Ask every model for an inference at intervals; reload those that fail.")
    ] = False,
    watch_interval_s: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds between two rounds.")] = 10.0,
    work_dir: WorkDir = WORK_DIR,
) -> None:
    """Serve repositories with the embedded Triton until interrupted."""
    from pipeline.cli import serving

    ports = (http_port, grpc_port, metrics_port)
    serving.serve(repositories, models or (), ports, host, work_dir, watch_interval_s if watch else None)


@app.command()
def smoke(
    subject: Annotated[Path, _argument(metavar="REPOSITORY|CONFIG", help="A repository, or a YAML file.")],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="Only these models of the repository.")
    ] = None,
    url: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="HTTP endpoint of a running server.")] = None,
    grpc_url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Its gRPC endpoint (default: the same host, port 8001).")
    ] = None,
    repository: Repository = None,
    work_dir: WorkDir = WORK_DIR,
    report: Report = None,
    overrides: Overrides = None,
    variants: Variants = None,
) -> None:
    """Prove that a server answers what the model answers: a running one, or one started here on the repository.

    A repository is proven by its own manifests and golden samples; with a YAML, by what that says now.
    """
    from pipeline.cli import commands

    if subject.is_dir():
        if overrides or variants or repository:
            raise typer.BadParameter("--set, --variant and --repository go with a YAML, not with a repository")
        raise typer.Exit(commands.smoke_repository(subject, models or (), work_dir, url, grpc_url, report))
    if models:
        raise typer.BadParameter("MODEL goes with a repository; with a YAML it is --variant KEY")
    options = _build_options(repository, work_dir, variants, serve=True)
    raise typer.Exit(commands.smoke(subject, overrides or (), options, url, grpc_url, report))


@app.command()
def predict(
    name: Name,
    file: Annotated[Path, _option("--input", metavar="FILE", help="An image, .npy, or .npz (one array per input).")],
    url: Url = "127.0.0.1:8000",
    top: Annotated[int, typer.Option(min=1, help="How many classes to print.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Send one input to a running server and print labels and probabilities."""
    from pipeline.cli import commands

    commands.predict(name, file, url, top, as_json=as_json)


@app.command()
def load(
    name: Name,
    requests: Annotated[int, typer.Option(min=1, help="How many requests in all.")] = 500,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Most requests in flight at a time.")] = 32,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="RPS", help="Send so many per second, whatever the server does (open loop)."),
    ] = None,
    protocol: Annotated[Wire, typer.Option(help="shm: gRPC with the tensors in shared memory.")] = Wire.HTTP,
    images: Annotated[
        list[Path] | None, _option("--image", metavar="FILE", help="An image to send; repeatable.")
    ] = None,
    arrays: Annotated[
        list[Path] | None, _option("--input", metavar="FILE.npz", help="Arrays to send, each row an input; repeatable.")
    ] = None,
    url: Url = "127.0.0.1:8000",
    grpc_url: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="gRPC endpoint (default: the same host, port 8001).")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, metavar="S", help="Longest wait for one answer.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Load a running server, account for every request, and check that each gets its own answer; exit 5 if not."""
    from pipeline.cli import commands, serving
    from pipeline.load.run import Order

    server = commands.server_at(url, grpc_url)
    order = Order(
        model=name,
        requests=requests,
        concurrency=concurrency,
        rate=rate,
        protocol=protocol.value,
        url=server.http_url if protocol is Wire.HTTP else server.grpc_url,
        images=images or (),
        arrays=arrays or (),
        timeout_s=timeout_s,
    )
    raise typer.Exit(serving.load(order, as_json=as_json))


@app.command()
def lint(
    repository: Annotated[Path, _argument(metavar="REPOSITORY", help="Any Triton model repository.")],
    as_json: AsJson = False,
    target: Annotated[str, typer.Option(metavar="YY.MM", help="Triton release it shall run on.")] = "24.10",
) -> None:
    """Check a repository offline against Triton's rules; exit 4 when there are errors."""
    from pipeline.cli import commands

    raise typer.Exit(commands.lint(repository, target, as_json=as_json))


@app.command("import-mar")
def import_mar(
    archive: Annotated[Path, _argument(metavar="FILE.mar", help="A TorchServe archive: .mar or .tar.gz.")],
    out: Annotated[
        Path | None, _option(metavar="DIR", help="A folder to make (default: ./NAME, the model's name).")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME:DTYPE:SHAPE", help="image:float32:N,3,224,224; repeatable."),
    ] = None,
    outputs: Annotated[
        list[str] | None, typer.Option("--output", metavar="NAME:DTYPE:SHAPE", help="The same; repeatable.")
    ] = None,
    samples: Annotated[
        Path | None, _option(metavar="PATH", help="Real inputs: a folder of images, an .npz or .npy.")
    ] = None,
) -> None:
    """Make a YAML and its files from a TorchServe archive, and say what could not be carried; runs nothing of it."""
    from pipeline.cli import commands

    commands.import_mar(archive, out, inputs or (), outputs or (), samples)


@app.command()
def metadata(
    folder: Annotated[Path, _argument(metavar="FOLDER", help="A model of a TF-Serving tree, or a SavedModel.")],
) -> None:
    """Print what TF-Serving tells of a SavedModel: the JSON of /v1/models/NAME/metadata."""
    from pipeline.cli import commands

    commands.metadata(folder)


@app.command()
def schema(
    report: Annotated[bool, typer.Option("--report", help="The schema of report.json instead.")] = False,
) -> None:
    """Print the JSON Schema of the configuration."""
    if report:
        from pipeline.report.schema import json_schema
    else:
        from pipeline.config.load import json_schema
    Console(soft_wrap=True).print_json(json.dumps(json_schema()))


@app.command()
def doctor(work_dir: WorkDir = WORK_DIR) -> None:
    """Check this machine, with the fix for each gap; exit 3 when something needed is missing."""
    from pipeline.cli import commands

    raise typer.Exit(commands.doctor(work_dir))


@cache.command("ls")
def cache_ls(work_dir: WorkDir = WORK_DIR) -> None:
    """List the entries, most recently used first."""
    from pipeline.cli import commands

    commands.cache_ls(work_dir)


@cache.command("gc")
def cache_gc(
    work_dir: WorkDir = WORK_DIR,
    unused_days: Annotated[float, typer.Option(min=0, help="Delete what was not used for this long.")] = 30.0,
) -> None:
    """Delete entries, logs and leftovers that were not used lately."""
    from pipeline.cli import commands

    commands.cache_gc(work_dir, unused_days)


@cache.command("clear")
def cache_clear(work_dir: WorkDir = WORK_DIR) -> None:
    """Delete the whole step store; repositories are left alone."""
    from pipeline.cli import commands

    commands.cache_clear(work_dir)


def _build_options(repository: Path | None, work_dir: Path, variants: list[str] | None, serve: bool) -> Any:
    from pipeline.build.loop import Options

    return Options(repository=repository, work_dir=work_dir.absolute(), variants=tuple(variants or ()), serve=serve)
