"""The files of a TF-Serving tree that are not a model's."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.formats.saved_model.tfserving_messages import parse_models_config
from pipeline.repository.manifest import corruption, read_manifest
from pipeline.repository.versions import Version
from pipeline.servers.tfserving import deployment
from tests.unit.repository.bench import publish


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "a b" / "repository.tfserving"
    for model in ("two", "one"):
        (root / model / "3").mkdir(parents=True)
    (root / "notes").mkdir()
    deployment.complete(root)
    return root


def test_models_config_lists_every_model_that_has_a_version(tree: Path) -> None:
    text = (tree / "models.config").read_text()
    assert parse_models_config(text, "x") == {"one": "/models/one", "two": "/models/two"}


def test_a_version_is_the_saved_model_itself(tmp_path: Path) -> None:
    artifact = tmp_path / "model.savedmodel"
    (artifact / "variables").mkdir(parents=True)
    (artifact / "saved_model.pb").write_bytes(b"graph")
    (artifact / "variables" / "variables.index").write_bytes(b"index")
    golden = tmp_path / "golden.npz"
    golden.write_bytes(b"golden")
    version = Version(
        model_name="net", file_name="", artifact=artifact, model_files={}, golden=golden,
        manifest={},
    )  # fmt: skip
    root = tmp_path / "tree"
    entry = publish(root, version)
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()) == [
        "net/1/saved_model.pb",
        "net/1/variables/variables.index",
    ]
    assert entry.created
    assert not publish(root, version).created
    manifest = read_manifest(root, "net", 1)
    assert manifest is not None
    assert corruption(entry.version_dir, manifest) == ""
    (root / "net/1/saved_model.pb").write_bytes(b"other")
    assert "saved_model.pb" in corruption(entry.version_dir, manifest)
    (artifact / "saved_model.pb").write_bytes(b"newer")
    assert publish(root, version).version == 2
