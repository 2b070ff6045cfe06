"""The text of models.config, and the messages in pools of their own."""

from __future__ import annotations

import pytest

from pipeline.base.errors import ConfigError
from pipeline.formats.saved_model import tfserving_messages


def test_models_config_is_what_tf_serving_documents() -> None:
    text = tfserving_messages.models_config(["digits", "resnet"], "/models")
    assert text == (
        'model_config_list {\n  config {\n    name: "digits"\n    base_path: "/models/digits"\n'
        '    model_platform: "tensorflow"\n  }\n  config {\n    name: "resnet"\n'
        '    base_path: "/models/resnet"\n    model_platform: "tensorflow"\n  }\n}\n'
    )
    assert tfserving_messages.parse_models_config(text, "x") == {"digits": "/models/digits", "resnet": "/models/resnet"}


def test_names_are_escaped() -> None:
    name = 'a"b\\c\n'
    text = tfserving_messages.models_config([name], "/m")
    assert tfserving_messages.parse_models_config(text, "x") == {name: f"/m/{name}"}


def test_a_tree_without_models() -> None:
    assert tfserving_messages.models_config([], "/models") == ""


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ('model_config_list {\n  config { nam: "x" }\n}', "c:2:12", 'has no field named "nam"'),
        ("model_config_list {", "c:1", ""),
    ],
)
def test_other_texts_are_refused_where_they_are_wrong(text: str, where: str, found: str) -> None:
    with pytest.raises(ConfigError, match="not a ModelServerConfig") as caught:
        tfserving_messages.parse_models_config(text, "c")
    assert caught.value.where.startswith(where)
    assert found in caught.value.found
