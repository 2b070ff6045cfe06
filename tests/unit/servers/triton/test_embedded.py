"""How the server is launched, embedded and in a container, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import pytest

from pipeline.base import command
from pipeline.base.errors import ConfigError, MissingError, StageError
from pipeline.machine import environment as probing
from pipeline.servers.process import Ports
from pipeline.servers.triton import container
from pipeline.servers.triton import embedded as triton
from tests.models import make_models as make

OPTIONS = {"start_timeout_s": 1.0}


def test_the_server_is_given_no_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    home = tmp_path / "site-packages" / "pytriton" / "tritonserver"
    environment = triton._environment(home, tmp_path / "lib")
    assert environment["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:{tmp_path}/site-packages/nvidia_pytriton.libs"
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/tensorrt/lib:/driver")
    with_own = triton._environment(home, tmp_path / "lib")["LD_LIBRARY_PATH"]
    assert with_own == f"{environment['LD_LIBRARY_PATH']}:/opt/tensorrt/lib:/driver"
    assert environment["PATH"].split(":")[0] == os.path.dirname(sys.executable)  # noqa: PTH120
    assert environment["LANG"] == "C.UTF-8"
    assert "hush" not in environment.values()


@pytest.mark.parametrize(
    ("gap", "name"), [("tritonserver", "Triton server"), ("stub", "Python stub"), ("libpython", "libpython")]
)
def test_what_is_not_installed_is_said_with_its_remedy_before_anything_is_written(monkeypatch, tmp_path, gap, name):
    bare = dataclasses.replace(probing.probe(tmp_path), **{gap: None})
    monkeypatch.setattr(probing, "probe", lambda work_dir: bare)
    with (
        pytest.raises(MissingError, match="cannot run the embedded Triton") as caught,
        triton.embedded(tmp_path, ["m"], log_path=tmp_path / "log", **OPTIONS),
    ):
        pass
    assert caught.value.found.startswith(f"{name}: ")
    assert "; " in caught.value.found
    assert not (tmp_path / "log").exists()


def test_no_models_is_refused(tmp_path):
    for launch in (
        triton.embedded(tmp_path, [], log_path=tmp_path / "log", **OPTIONS),
        container.launch(tmp_path, [], release="24.10", log_path=tmp_path / "log", **OPTIONS),
    ):
        with pytest.raises(ConfigError, match="no model to serve"), launch:
            pass


def test_docker_command(tmp_path):
    make.add_scale(tmp_path, "a")
    make.add_scale(tmp_path, "b", extra="instance_group { kind: KIND_GPU gpus: [0] }")
    ports = Ports(http=1, grpc=2, metrics=3)
    argv = container.docker_run(tmp_path, ["a"], release="24.10", name="me", ports=ports)
    assert argv == [
        "docker", "run", "--rm", "--name=me", "--user=triton-server", "--shm-size=1g", "--ulimit=memlock=-1",
        "--ulimit=stack=67108864", "--publish=127.0.0.1:1:8000", "--publish=127.0.0.1:2:8001",
        "--publish=127.0.0.1:3:8002", f"--volume={tmp_path}:/models:ro", "nvcr.io/nvidia/tritonserver:24.10-py3",
        "tritonserver", "--model-repository=/models",
    ]  # fmt: skip
    argv = container.docker_run(tmp_path, ["a", "b"], release="24.10", name="me", ports=ports)
    assert "--gpus=all" in argv


def test_docker_command_for_plans_that_later_versions_load(tmp_path):
    for name, options in (("old", {}), ("new", {"version_compatible": True})):
        make.add_scale(tmp_path, name)
        (tmp_path / name / "1" / "model.plan.json").write_text(json.dumps({"options": options}))
    flag = "--backend-config=tensorrt,version-compatible=true"
    for names, expected in ((["old"], False), (["new"], True), (["old", "new"], True)):
        argv = container.docker_run(tmp_path, names, release="24.10", name="me", ports=Ports())
        assert (argv[-1] == flag) is expected
    (tmp_path / "new" / "1" / "model.plan.json").write_text("[]")
    assert flag not in container.docker_run(tmp_path, ["new"], release="24.10", name="me", ports=Ports())


def test_docker_command_for_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no model absent"):
        container.docker_run(tmp_path, ["absent"], release="24.10", name="me", ports=Ports())


def test_an_image_that_cannot_be_fetched_is_missing(monkeypatch, tmp_path):
    make.add_scale(tmp_path, "a")
    calls = []

    def run(argv, *, timeout_s):
        calls.append(argv[1])
        if argv[1] != "version":
            raise StageError("docker exited with 1", found="manifest unknown")
        return "28.2.2"

    monkeypatch.setattr(command, "run", run)
    launch = container.launch(tmp_path, ["a"], release="24.10", log_path=tmp_path / "log", **OPTIONS)
    with pytest.raises(MissingError, match=r"cannot get the image .*:24\.10-py3") as caught, launch:
        pass
    assert calls == ["version", "image", "pull"]
    assert caught.value.found == "manifest unknown"
