"""Rules between images and the model: what makes them into its input, and its scores into labels."""

from __future__ import annotations

from pipeline.base.errors import ConfigError
from pipeline.config.document import Key
from pipeline.config.subject import Found, Subject
from pipeline.data import images


def preprocess(subject: Subject) -> Found:
    """`preprocess` and `postprocess` fit the model's input and outputs."""
    section, postprocess = subject.config.preprocess, subject.config.postprocess
    key: Key = ("preprocess",)
    try:
        if section is not None:
            images.of_section(section, subject.signature)
        key = ("postprocess",)
        if postprocess is not None:
            images.postprocessing(postprocess, subject.signature)
    except ConfigError as error:
        yield key, "; ".join(text for text in (error.what, error.found, error.hint) if text)


def said_twice(subject: Subject) -> Found:
    """A data set leaves to `preprocess` what that says."""
    if subject.config.preprocess is None:
        return
    for key, data in subject.data_sets:
        for name in ("image_size", "channels", "mean", "std"):
            if name in data.model_fields_set:
                yield (*key, name), "not to be set beside `preprocess`, which says how images become the input"


def channels(subject: Subject) -> Found:
    """A data set's channels, mean and std fit the image input."""
    image = next((spec for spec in subject.config.inputs.values() if spec.layout and len(spec.shape) == 4), None)
    has = image.shape[1 if image.layout == "NCHW" else 3] if image else None
    for key, data in subject.data_sets:
        if data.arrays is not None or data.callable is not None:
            continue
        if data.channels is not None and isinstance(has, int) and data.channels != has:
            yield (*key, "channels"), f"expected {has}, as the model's image input has; found {data.channels}"
        channels = data.channels if data.channels is not None else has
        for name, values in (("mean", data.mean), ("std", data.std)):
            if isinstance(channels, int) and len(values) not in (1, channels):
                expected = "one value" if channels == 1 else f"1 or {channels} values"
                yield (*key, name), f"expected {expected}; found {len(values)}"
