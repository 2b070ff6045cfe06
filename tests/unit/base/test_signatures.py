"""Signatures as JSON values, and their labels."""

from __future__ import annotations

import json

import pytest

from pipeline.base import signatures
from pipeline.base.errors import StageError
from pipeline.base.values import Signature, TensorSpec
from pipeline.images.preprocessing import Preprocessing

HOW = Preprocessing(
    formats=("png",), color="rgb", resize=(8, 8), crop=None, interpolation="bilinear", scale=255.0, mean=(0.0,),
    std=(1.0,), max_pixels=100, dtype="float32", layout="NCHW",
)  # fmt: skip
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 3, 8, 8), layout="NCHW"),),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=("N", 2), labels=("a", "b")),
        TensorSpec(name="z", dtype="float32", shape=("N", 2)),
    ),
    batch="N",
    image=HOW,
)


@pytest.mark.parametrize("signature", [SIGNATURE, signatures.tensors(SIGNATURE)])
def test_a_signature_survives_json(signature: Signature) -> None:
    assert signatures.from_json(json.loads(json.dumps(signatures.to_json(signature)))) == signature


def test_files_depend_on_neither_labels_nor_images() -> None:
    bare = signatures.tensors(SIGNATURE)
    assert (bare.inputs, bare.image, [spec.labels for spec in bare.outputs]) == (SIGNATURE.inputs, None, [(), ()])
    assert signatures.unlabelled(SIGNATURE).image == HOW


def test_labels_are_held_against_the_scores() -> None:
    places = {"y": "m.yaml:1:1", "z": "m.yaml:2:2"}
    signatures.check_labels(signatures.labelled(SIGNATURE, {"z"}, ("no", "yes")), places)
    with pytest.raises(StageError, match="output z has 2 scores and 3 labels") as caught:
        signatures.check_labels(signatures.labelled(SIGNATURE, {"z"}, ("a", "b", "c")), places)
    assert caught.value.where == "m.yaml:2:2"
