"""Lint rules on directories and files: version directories, links, modes, the file a backend opens."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.base.model_config import served_versions
from pipeline.base.triton_facts import BACKENDS
from pipeline.lint.model import (
    AOTI_FILE,
    AOTI_SINCE,
    CONFIG_NAME,
    INT64_MAX,
    RTX_BACKEND,
    SKIPPED_DIRECTORIES,
    TENSORFLOW_FILES,
    Findings,
    Model,
    Rule,
    below,
    children,
    is_regular,
    printable,
    version_number,
)
from pipeline.machine.target import CONTAINER_BACKENDS, LAST_WITH_TENSORFLOW


def version_names(model: Model) -> Findings:
    """Directory names that Triton reads differently from a person (core, VersionsToLoad)."""
    for item in children(model.path):
        if item.name in SKIPPED_DIRECTORIES or not item.is_dir():
            continue
        number, at = version_number(item.name), model.at(item)
        if number is None:
            reason = f"Triton ignores {printable(item.name)!r}: its name is not a plain number."
            fix = "rename it to a plain number without leading zeros, or move it out of the model directory"
            yield at.warning("version-directory-ignored", reason, fix)
        elif abs(number) > INT64_MAX:
            reason = "the version number does not fit in 64 bits, and the whole server aborts when it reads the name."
            yield at.error("version-beyond-int64", reason, "rename it to a plain number such as 1")
        elif number == 0:
            reason = "Triton's documentation says a version named 0 is ignored; the server serves it all the same."
            yield at.warning("version-zero", reason, "rename it to 1 or higher")
        elif item.name != str(number) or number < 0:
            reason = f"Triton reads only the leading digits, so it takes this directory for version {number}."
            fix = "rename it to a plain number, or move it out of the repository"
            yield at.error("version-directory-name", reason, fix)


def version_missing(model: Model) -> Findings:
    """A model, an ensemble too, is served only from numbered directories."""
    if not model.versions:
        reason = "the model has no version directory, so nothing of it is served."
        fix = f"make the directory {model.name}/1 (an empty one for an ensemble) and put the model's file into it"
        yield model.at(model.path).error("version-missing", reason, fix)


def version_empty(model: Model) -> Findings:
    """An empty version fails to load, and its failure stops its sibling versions."""
    for path in model.versions.values():
        if not model.is_ensemble and not children(path):
            reason = "the version directory is empty."
            yield model.at(path).error("version-empty", reason, "put the model's file into it, or remove the directory")


def version_policy(model: Model) -> Findings:
    """The policy must select a version that exists."""
    policy, present = model.config.version_policy, set(model.versions)
    if policy.HasField("latest") and policy.latest.num_versions == 0:
        reason = "version_policy asks for the latest 0 versions."
        fix = "write version_policy { latest { num_versions: 1 } }, or leave it out"
        yield model.error("version-policy-selects-none", reason, fix)
    if not policy.HasField("specific"):
        return
    wanted = set(policy.specific.versions)
    absent, numbers = sorted(wanted - present), ", ".join(str(number) for number in sorted(present)) or "none"
    if not wanted & present:
        reason = f"version_policy asks for versions {sorted(wanted)}, none of which exists (present: {numbers})."
        yield model.error("version-policy-selects-none", reason, "list versions that exist")
    elif absent:
        reason = f"version_policy asks for versions {absent}, which do not exist (present: {numbers})."
        fix = "add those directories, or list only versions that exist"
        yield model.warning("version-policy-absent-version", reason, fix)


def default_filename(model: Model) -> Findings:
    """``default_model_filename`` is one name inside the version directory."""
    name = str(model.config.default_model_filename)
    if name and below(Path("/version"), name) is None:
        reason = f"default_model_filename {printable(name)!r} leads out of the version directory."
        yield model.error("model-filename-escapes", reason, "name a file inside the version directory")
    elif "/" in name:
        reason = (
            f"default_model_filename {printable(name)!r} has a folder in it; backends then take that folder for the "
            "model's."
        )
        fix = "put the file directly into the version directory and give its plain name"
        yield model.warning("model-filename-path", reason, fix)


def model_file(model: Model) -> Findings:
    """Each version holds the file, or the directory, that its backend opens."""
    name = model.filename
    if not name or model.config.cc_model_filenames or model.backend not in BACKENDS:
        return
    for version in model.versions.values():
        path = below(version, name)
        if path is not None and children(version):
            yield from _model_file(model, path)


def _model_file(model: Model, path: Path) -> Findings:
    backend, at = model.backend, model.at(path)
    wants_directory = backend == "tensorflow" and model.config.platform == "tensorflow_savedmodel"
    if not path.exists():
        reason = f"the backend {backend} opens this file, which is not there."
        fix = "put the file there, or name the one you have in default_model_filename"
        yield at.error("model-file-missing", reason, fix)
    elif wants_directory != path.is_dir() and not (backend == "onnxruntime" and path.is_dir()):
        wanted = "a directory" if wants_directory else "a file"
        reason = f"the backend {backend} expects {wanted} of this name."
        yield at.error("model-file-kind", reason, f"replace it by {wanted}")
    elif backend == "onnxruntime" and path.is_dir() and not is_regular(path / "model.onnx"):
        reason = "an ONNX model given as a directory must hold a file named model.onnx."
        yield at.error("model-file-missing", reason, "name the ONNX file in it model.onnx")
    elif backend == "openvino" and path.suffix == ".xml" and not path.with_suffix(".bin").exists():
        reason = "OpenVINO reads the weights from a .bin file beside the .xml, which is not there."
        yield model.at(path.with_suffix(".bin")).error("model-file-missing", reason, "copy the .bin file too")


def cc_filenames(model: Model) -> Findings:
    """``cc_model_filenames``: files exist, keys are compute capabilities, no default hides a gap."""
    names = dict(model.config.cc_model_filenames)
    for key in names:
        if not re.fullmatch(r"[0-9]+\.[0-9]+", key):
            reason = f"cc_model_filenames key {printable(key)!r} is not a compute capability, so it never matches."
            yield model.error("cc-model-filename-key", reason, 'write it as "major.minor", for example "8.9"')
    for version in model.versions.values() if names else ():
        for key, name in names.items():
            path = below(version, name)
            if path is None or not path.exists():
                reason = (
                    f"cc_model_filenames names {printable(name)!r} for compute capability {printable(key)}; it is not "
                    "there."
                )
                fix = "add the file, or remove the entry"
                yield model.at(path or version).error("cc-model-filename-missing", reason, fix)
        default = below(version, model.filename or "model.plan")
        if default is not None and default.exists():
            yield model.at(default).warning(
                "cc-model-filenames-ambiguous",
                "a GPU that cc_model_filenames does not list silently gets this file, whatever GPU it was built for.",
                "rename it after the compute capability it was built for, and list it under that, or remove it",
            )


def aoti_file(model: Model) -> Findings:
    """``model.pt2`` is served by late releases only."""
    if model.target.release >= AOTI_SINCE or (model.config is not None and model.config.default_model_filename):
        return
    for version in model.versions.values():
        if (version / AOTI_FILE).exists() and not any((version / name).exists() for name in ("model.pt", "model.py")):
            reason = f"AOTInductor packages are served from release {AOTI_SINCE} on, not by {model.target.release}."
            fix = "export TorchScript to model.pt, or ONNX to model.onnx"
            yield model.at(version / AOTI_FILE).error("model-pt2-unsupported", reason, fix)


def removed_backend(model: Model) -> Findings:
    """The TensorFlow backend left the images."""
    if model.backend == "tensorflow" and model.target.release > LAST_WITH_TENSORFLOW:
        reason = f"release {model.target.release} has no TensorFlow backend; it was last in {LAST_WITH_TENSORFLOW}."
        fix = f"convert the model to ONNX (tf2onnx), or serve it with release {LAST_WITH_TENSORFLOW} or older"
        yield model.error("backend-removed", reason, fix)
    elif model.backend == "tensorflow" and model.config.platform not in TENSORFLOW_FILES:
        found = [version / name for version in model.versions.values() for name in TENSORFLOW_FILES.values()]
        if not any(path.exists() for path in found):
            reason = "without a platform Triton cannot tell a SavedModel from a GraphDef."
            fix = 'write platform: "tensorflow_savedmodel" or "tensorflow_graphdef"'
            yield model.error("tensorflow-platform-missing", reason, fix)


def backend_not_in_containers(model: Model) -> Findings:
    """A backend that no stock container has must come with the model.

    Core looks for ``libtriton_<backend>.so``, or what ``runtime`` names, in the version's directory, in the model's and
    among the server's backends; for one written in Python only among these (backend_model.cc).
    """
    backend = model.backend
    if not backend or backend in CONTAINER_BACKENDS or model.is_ensemble:
        return
    library = str(model.config.runtime) or f"libtriton_{backend}.so"
    lacking = ", ".join(
        str(number)
        for number, version in model.versions.items()
        if library == "model.py" or not any(_holds(place, library) for place in (version, model.path))
    )
    if lacking:
        fix = f"put {printable(library)} into the model's directory, or a backend of that name among the server's"
        if backend == RTX_BACKEND:
            fix = (
                "keep such models in a repository of their own (a build puts them into <repository>.tensorrt_rtx), for "
                "a server that has this backend, or build with the flavour tensorrt"
            )
        reason = (
            f"release {model.target.release}'s containers have no backend {printable(backend)}, and version {lacking} "
            "brings none along: the model does not load, and a server that loads every model does not start."
        )
        yield model.error("backend-not-in-containers", reason, fix)


def _holds(place: Path, name: str) -> bool:
    path = below(place, name)
    return path is not None and is_regular(path)


def never_proven(model: Model) -> Findings:
    """A served version whose manifest, beside the repository, says that no server was ever asked."""
    for number in served_versions(model.config, model.versions):
        if model.manifest(number).get("proof") == "none":
            reason = "it was published without a proof (build --no-serve): no server's answers were ever compared."
            fix = f"python -m pipeline smoke {model.root}"
            yield model.at(model.versions[number]).warning("version-not-proven", reason, fix)


def config_missing(model: Model) -> Findings:
    """A server that completes nothing by itself needs config.pbtxt."""
    path = model.path / CONFIG_NAME
    if not path.exists() and not path.is_symlink():
        reason = "without config.pbtxt the model loads only where auto-complete is on and its backend can guess."
        fix = "write config.pbtxt with all inputs, outputs and the instance_group"
        yield model.error("config-missing", reason, fix)


ANY_RULES: tuple[Rule, ...] = (config_missing, version_names, version_missing, version_empty, aoti_file)
CONFIGURED_RULES: tuple[Rule, ...] = (
    version_policy, default_filename, model_file, cc_filenames, removed_backend, backend_not_in_containers,
    never_proven,
)  # fmt: skip
