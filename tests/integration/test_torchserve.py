"""TorchServe for real: built, served, proven, broken, stopped. Needs Java 17."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.base.errors import MissingError, SmokeError
from pipeline.base.values import GoldenSamples, Sample, Signature, SmokeResult, TensorSpec, Tolerance
from pipeline.servers.process import free_ports
from pipeline.servers.torchserve import api as torchserve_api
from pipeline.servers.torchserve import checks
from pipeline.servers.torchserve import server as torchserve
from pipeline.servers.torchserve import store as torchserve_store
from pipeline.servers.torchserve.checks import TorchServeExpectation
from pipeline.servers.torchserve.server import TorchServed, TorchServePorts, launched
from tests.integration.conftest import ROOT, Built, pipeline, run

CONFIG = """\
name: tiny
source: {model: {callable: "net.py:Net"}}
inputs: {x: {shape: [N, 3]}, shift: {shape: [N, 3]}}
outputs: {sum: {shape: [N, 3], labels: [a, b, c]}, difference: {shape: [N, 3]}}
samples: {from: {arrays: samples.npz}, count: 24}
variants: {ts: {format: torchscript}}
torchserve: {batch_size: 4, max_batch_delay_ms: 5}
"""
NET = """\
import torch


class Net(torch.nn.Module):
    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + shift, x - shift
"""
SPECS = {name: TensorSpec(name=name, dtype="float32", shape=("N", 3)) for name in ("x", "shift", "sum", "difference")}
SIGNATURE = Signature(inputs=(SPECS["x"], SPECS["shift"]), outputs=(SPECS["sum"], SPECS["difference"]), batch="N")
PORTS = ("inference_address", "management_address", "metrics_address", "grpc_inference_port", "grpc_management_port")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model of one line, built and proven once, from a working directory that must stay as it was."""
    folder = tmp_path_factory.mktemp("torchserve")
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "net.py").write_text(NET)
    values = np.random.default_rng(0).normal(size=(2, 24, 3)).astype(np.float32)
    np.savez(folder / "samples.npz", x=values[0], shift=values[1])
    (folder / "cwd").mkdir()
    return run(folder / "tiny.yaml", folder, cwd=folder / "cwd", env={"PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def served(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServed]:
    """The built store on a server of this process's own, whose first choice of ports was taken by somebody else."""
    taken = free_ports("127.0.0.1", [0] * 5)
    choices = iter([taken])
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torchserve, "free_ports", lambda host, asked: next(choices, None) or free_ports(host, asked))
        holder = stack.enter_context(socket.socket())
        holder.bind(("127.0.0.1", taken[3]))  # that of gRPC, which is bound last
        holder.listen()
        log = tmp_path_factory.mktemp("served") / "server.log"
        yield stack.enter_context(launched(version(built), ["tiny"], log_path=log, start_timeout_s=120))


def version(built: Built) -> Path:
    return built.folder / "repository.torchserve" / "tiny" / "1"


def row(built: Built) -> dict[str, Any]:
    return built.variant("tiny.torchserve")


def golden(count: int = 4) -> GoldenSamples:
    samples = []
    for number in range(count):
        x, shift = np.full((1, 3), number, np.float32), np.array([[1, 2, 3]], np.float32)
        samples.append(Sample(inputs={"x": x, "shift": shift}, outputs={"sum": x + shift, "difference": x - shift}))
    return GoldenSamples(samples=tuple(samples), batched=True, sha256="")


def expectation(served: TorchServed, **changes: Any) -> TorchServeExpectation:
    expected = TorchServeExpectation(
        model="tiny",
        signature=SIGNATURE,
        golden=golden(),
        batch_size=4,
        max_batch_delay_ms=5,
        workers=1,
        tolerance=Tolerance(max_abs=1e-5, max_rel=0, min_cosine=0.99, min_top1=0.9),
        scores=None,
        alive=served.check_alive,
    )
    return replace(expected, **changes)


def smoke(served: TorchServed, **changes: Any) -> dict[tuple[str, str], str]:
    """The failed checks and what they say."""
    result: SmokeResult = checks.run(
        served.server,
        served.management_url,
        expectation(served, **changes),
        request_timeout_s=20,
        progress=lambda *_: None,
    )
    return {(check.name, check.protocol): check.detail for check in result.checks if check.outcome == "failed"}


def of_torchserve(place: str) -> list[psutil.Process]:
    """Frontends and workers whose command line or working directory has ``place`` in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join([*process.cmdline(), process.cwd()])
            if place in line and ("ModelServer" in line or "model_service_worker" in line):
                found.append(process)
    return found


def gone(place: str, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while of_torchserve(place) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not of_torchserve(place)


def test_a_build_proves_the_archive_on_the_real_server(built: Built) -> None:
    assert built.exit_code == 0, built.output
    assert (row(built)["format"], row(built)["server"], row(built)["version"]) == ("mar", "torchserve", 1)
    passed = {(check["name"], check["protocol"]): check["detail"] for check in row(built)["smoke"]["checks"]}
    assert row(built)["smoke"]["outcome"] == "passed"
    for name in ("predictions", "kserve v2"):
        for protocol in ("http", "grpc"):
            assert passed[name, protocol].startswith("24 samples, 16 at once")
    assert passed["batching", "http"].startswith(("up to 2", "up to 3", "up to 4"))
    assert passed["killed worker", "http"].startswith("answering again ")
    assert 0 < row(built)["measurement"]["p50_ms"] <= row(built)["measurement"]["p99_ms"]
    assert row(built)["measurement"]["throughput_per_s"] > 0
    assert (
        row(built)["sha256"] == hashlib.sha256((version(built) / "model_store" / "tiny.mar").read_bytes()).hexdigest()
    )


def test_it_leaves_nothing_running_and_nothing_in_the_working_directory(built: Built) -> None:
    assert list((built.folder / "cwd").iterdir()) == []
    assert of_torchserve(str(built.folder)) == []
    (log,) = built.work_dir.glob("runs/*/tiny.torchserve.server.log")
    place = next(word for word in log.read_text().split() if word.startswith("-Djava.io.tmpdir=")).split("=")[1]
    assert not Path(place).exists()
    assert of_torchserve(place) == []


def test_the_archive_holds_the_judged_module_and_its_labels(built: Built) -> None:
    assert {path.name for path in version(built).rglob("*")} == {"model_store", "tiny.mar", "config.properties"}
    with zipfile.ZipFile(version(built) / "model_store" / "tiny.mar") as archive:
        assert archive.read("model.pt") == (built.repository / "tiny_ts" / "1" / "model.pt").read_bytes()
        assert json.loads(archive.read("index_to_name.json")) == {"0": "a", "1": "b", "2": "c"}
        assert archive.read("preprocessing.py") == (ROOT / "pipeline" / "images" / "preprocessing.py").read_bytes()


def test_an_archive_made_again_elsewhere_is_the_same_to_the_byte(built: Built, tmp_path: Path) -> None:
    again = built.again("--no-serve", env={"PYTHONPATH": str(ROOT)})
    assert again.exit_code == 0, again.output
    assert (row(again)["version"], row(again)["cached"]) == (1, True)
    (tmp_path / "cwd").mkdir()
    umask = os.umask(0o077)
    try:
        arguments = ("--no-serve", "--work-dir", str(tmp_path / "w[1],a"))
        environment = {"PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
        other = run(built.config, tmp_path, arguments, cwd=tmp_path / "cwd", env=environment)
    finally:
        os.umask(umask)
    assert other.exit_code == 0, other.output
    assert row(other)["sha256"] == row(built)["sha256"]


@pytest.mark.parametrize("name", ["w[1]", "w,a", "w*?", "-w b"])
def test_the_work_folder_s_name_does_not_reach_the_archive(tmp_path: Path, name: str) -> None:
    made = []
    for folder in (tmp_path / "plain", tmp_path / name):
        folder.mkdir()
        (folder / "model.pt").write_bytes(b"a module")
        path = torchserve_store.archive(
            folder, name="tiny", module=folder / "model.pt", config="{}\n", labels=("a", "b")
        )
        made.append(path.read_bytes())
    assert made[0] == made[1]
    with zipfile.ZipFile(path) as archive:
        assert set(archive.namelist()) == {
            "MAR-INF/MANIFEST.json", "index_to_name.json", "model-config.yaml", "model.pt", "postprocessing.py",
            "preprocessing.py", "torchserve_handler.py",
        }  # fmt: skip


def test_the_operator_s_command_serves_the_emitted_folder(built: Built, tmp_path: Path) -> None:
    """The command in config.properties, as it stands there but for the ports."""
    folder = tmp_path / "copy"
    shutil.copytree(version(built), folder)
    text = (folder / "config.properties").read_text()
    command = next(line for line in text.splitlines() if line.startswith("#   torchserve --start")).split()[1:]
    ports = free_ports("127.0.0.1", [0] * 5)
    for key, port in zip(PORTS, ports, strict=True):
        line = next(line for line in text.splitlines() if line.startswith(key))
        text = text.replace(
            line, f"{line.rsplit(':' if 'address' in key else '=', 1)[0]}{':' if 'address' in key else '='}{port}"
        )
    (folder / "config.properties").write_text(text)
    child = subprocess.Popen(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(tmp_path), "TEMP": str(tmp_path), "PYTHONPATH": ""},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{ports[0]}/predictions/tiny", b'{"x": [[1, 2, 3]], "shift": [[1, 1, 1]]}',
            {"Content-Type": "application/json"},
        )  # fmt: skip
        assert answered(request, 90) == {"sum": [[2.0, 3.0, 4.0]], "difference": [[0.0, 1.0, 2.0]]}
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(timeout=30)
    assert gone(str(folder))


def answered(request: urllib.request.Request, timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def test_a_port_lost_to_another_process_is_replaced(served: TorchServed) -> None:
    assert served.server.log_path.read_text().count("org.pytorch.serve.ModelServer --python") == 2
    assert torchserve_api.describe(served.management_url, "tiny", timeout_s=10).ready


def test_wrong_answers_and_another_registration_are_told_and_nothing_else(served: TorchServed) -> None:
    first, *others = golden().samples
    wrong = replace(first, outputs={**first.outputs, "sum": first.outputs["sum"] + np.float32(0.5)})
    failed = smoke(served, golden=replace(golden(), samples=(*others, wrong)), batch_size=7)
    assert "batch_size=4" in failed.pop(("registration", "http"))
    for name in ("predictions", "kserve v2"):
        for protocol in ("http", "grpc"):
            assert "sum[0, 0]: expected 1.5, got 1" in failed.pop((name, protocol))
    assert failed.keys() == {("wrong requests", "http"), ("batching", "http")}  # their bursts hold the wrong one too


def test_a_named_port_that_is_taken_is_refused_with_its_holder(
    built: Built, served: TorchServed, tmp_path: Path
) -> None:
    port = int(served.server.http_url.rsplit(":", 1)[1])
    launch = launched(
        version(built), ["tiny"], log_path=tmp_path / "log", ports=TorchServePorts(inference=port), start_timeout_s=5
    )
    with pytest.raises(MissingError, match=f"port {port}") as caught, launch:
        pass
    assert "java" in caught.value.found


def test_a_server_that_dies_under_the_checks_is_told_at_once(served: TorchServed) -> None:
    """The last test of this server."""
    os.kill(served.server.pid, signal.SIGKILL)
    while not _ended(served):
        time.sleep(0.05)
    failed = smoke(served)
    assert ("predictions", "http") in failed
    assert all("ended with status -9" in detail for detail in failed.values())


def _ended(served: TorchServed) -> bool:
    try:
        served.check_alive()
    except SmokeError:
        return True
    return False


def test_archives_are_only_taken_from_the_model_store(built: Built, tmp_path: Path) -> None:
    """Also where the management API takes models, which is off in the emitted settings."""
    folder = tmp_path / "store"
    shutil.copytree(version(built), folder)
    with (folder / "config.properties").open("a") as settings:
        settings.write("enable_model_api=true\n")
    outside = tmp_path / "outside.mar"
    shutil.copyfile(folder / "model_store" / "tiny.mar", outside)
    shutil.copyfile(outside, folder / "model_store" / "inside.mar")
    with launched(folder, ["tiny"], log_path=tmp_path / "log", start_timeout_s=120) as served:
        answers = {
            url: registered(served, url) for url in (f"file://{outside}", "http://127.0.0.1:9/x.mar", "inside.mar")
        }
    *refused, taken = answers.values()
    assert all("does not match any allowed URL" in text for text in refused), answers
    assert "registered" in taken


def registered(served: TorchServed, url: str) -> str:
    """What a server says that is asked to take an archive."""
    query = urllib.parse.urlencode({"url": url, "model_name": f"m{len(url)}"})
    try:
        with urllib.request.urlopen(f"{served.management_url}/models?{query}", b"", timeout=60) as answer:
            return str(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def test_a_handler_that_crashes_at_import_is_told_with_its_own_traceback(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(version(built), folder)
    path = folder / "model_store" / "tiny.mar"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["torchserve_handler.py"] = b"import no_such_module\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    launch = launched(folder, ["tiny"], log_path=tmp_path / "log", start_timeout_s=120)
    with pytest.raises(SmokeError) as caught, launch:
        pass
    assert caught.value.what == "torchserve[tiny]: its worker died while it started"
    assert "ModuleNotFoundError: No module named 'no_such_module'" in caught.value.found
    assert "torchserve_handler.py, line 1" in caught.value.found


def test_without_java_the_build_fails_for_the_archive_s_row_alone(built: Built, tmp_path: Path) -> None:
    done = built.copy(tmp_path / "copy").again(
        command="smoke", env={"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent), "JAVA_HOME": ""}
    )
    assert done.exit_code == 3, done.output
    assert "Java: none; apt-get install openjdk-17-jre-headless" in row(done)["error"]
    assert done.variant("tiny_ts")["smoke"]["outcome"] == "passed"
    told = pipeline("plan", built.config, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/nowhere"}).stdout
    assert "tiny.torchserve: Java: none" in told


def test_a_killed_build_leaves_no_server(built: Built, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pipeline.servers.torchserve.server import launched\n"
        f"with launched(Path({str(version(built))!r}), ['tiny'], log_path=Path({str(tmp_path / 'log')!r}),"
        " start_timeout_s=120) as served:\n print('ready', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        log = (tmp_path / "log").read_text()
        place = next(word for word in log.split() if word.startswith("-Djava.io.tmpdir=")).split("=")[1]
        assert len(of_torchserve(place)) == 2  # the frontend and its worker
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert gone(place)
    shutil.rmtree(place, ignore_errors=True)
