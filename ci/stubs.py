"""Type-checks the code that calls TensorRT against the real Python interface of each flavour of TensorRT.

None of NVIDIA's wheels holds type stubs, and their licence does not let us commit generated ones. So they are made
here from the bindings wheels (1.3 MB each), whose classes carry their signatures. To import these, the real libraries
(GBs) are not needed, only shared objects of the same names that export nine functions. The stubs lie in .venv/stubs/,
one folder per flavour, under the package name `tensorrt`.

    ci/stubs                     all files of pipeline/ that import tensorrt, against every flavour that they serve
    ci/stubs FLAVOUR FILE...     these files, against this flavour

Exit status: 0 clean, 1 type errors, 2 wrong arguments or nothing to check, 3 something is missing on this machine.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".venv" / "stubs"
SETTINGS = {
    "typeCheckingMode": "standard",
    "stubPath": ".",
    "extraPaths": [str(ROOT)],
    "reportMissingModuleSource": "none",  # stubs without a package behind them are the point
}


class Flavour(NamedTuple):
    """One Python interface of TensorRT: where it comes from and what it serves."""

    wheel: str
    module: str
    libraries: str  # those of NVIDIA that the binding module is linked with
    other: str  # the file of pipeline/ that is written for another flavour


FLAVOURS = {
    # The oldest that the extra `tensorrt` takes: that of Triton 24.08, the first whose TensorRT target.py knows.
    "tensorrt-10.3": Flavour(
        wheel="tensorrt-cu12-bindings==10.3.0",
        module="tensorrt_bindings",
        libraries="libnvinfer.so.10 libnvinfer_plugin.so.10 libnvonnxparser.so.10",
        other="pipeline/formats/tensorrt/rtx.py",
    ),
    "tensorrt-10": Flavour(
        wheel="tensorrt-cu12-bindings==10.16.1.11",
        module="tensorrt_bindings",
        libraries="libnvinfer.so.10 libnvinfer_plugin.so.10 libnvonnxparser.so.10",
        other="pipeline/formats/tensorrt/rtx.py",
    ),
    # The cu13 wheel of this version gives the same stubs, byte for byte (measured with pybind11-stubgen 3.0.0).
    "tensorrt-11": Flavour(
        wheel="tensorrt-cu12-bindings==11.4.0.106",
        module="tensorrt_bindings",
        libraries="libnvinfer.so.11 libnvinfer_plugin.so.11 libnvonnxparser.so.11",
        other="pipeline/formats/tensorrt/rtx.py",
    ),
    "tensorrt-rtx": Flavour(
        wheel="tensorrt-rtx-cu12-bindings==1.7.1.116",
        module="tensorrt_rtx_bindings",
        libraries="libtensorrt_rtx.so.1 libtensorrt_onnxparser_rtx.so.1",
        other="pipeline/formats/tensorrt/classic.py",
    ),
}

# What the three binding modules want from NVIDIA's libraries, read from their symbol tables.
FUNCTIONS = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
    createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion
    getPluginRegistry initLibNvInferPlugins"""


def _stop(status: int, text: str) -> NoReturn:
    print(f"ci/stubs: {text}", file=sys.stderr)
    sys.exit(status)


def _call(purpose: str, *command: object, **environment: str) -> None:
    argv = [str(part) for part in command]
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        _stop(3, f"cannot {purpose} (exit status {done.returncode}):\n{(done.stdout + done.stderr)[-2000:].strip()}")


def dummy_libraries(folder: Path, names: list[str]) -> None:
    """Makes shared objects that let a binding module load; none of their functions is ever called."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        _stop(3, "a C compiler is needed to make type stubs of TensorRT: sudo apt-get install -y gcc")
    folder.mkdir()
    source, library = folder / "dummy.c", folder / "dummy.so"
    source.write_text("".join(f"void {function}(void) {{}}\n" for function in FUNCTIONS.split()), encoding="utf-8")
    # -nostdlib: the compiler is enough then, without libc6-dev
    _call("compile a C file", compiler, "-shared", "-fPIC", "-nostdlib", source, "-o", library)
    for name in names:
        (folder / name).symlink_to(library)


def repaired(stub: str) -> str:
    """Returns a stub as the binding module means it.

    pybind11-stubgen 3.0.0 takes C++ names from docstrings (it would write `...`, which is not checked: the result of
    OnnxParser.get_error, for one), an argument's name and a default's place that are no Python, and, before Python
    3.12, no sign of the buffer protocol. The repairs can go when it prints none of these.
    """
    python_names = {"IParserError": "ParserError", "IBuilder": "Builder"}
    stub = re.sub(r"\bnv(?:infer1|onnxparser)::(?:v_1_0::)?(\w+)", lambda m: python_names.get(m[1], m[1]), stub)
    stub = re.sub(r"\bdetail::accessor<[\w:]+>", "typing.Any", stub)
    stub = re.sub(r"= <\w+\.\w+: \d+>", "= ...", stub)  # a default that is an enum
    stub = re.sub(r"\bin: ", "in_: ", stub)
    stub = re.sub(r"\bchannel_axis: (int|typing\.SupportsInt)\)", r"channel_axis: \1 = ...)", stub)
    if "def __buffer__" not in stub:
        buffer = "    def __buffer__(self, flags: int, /) -> memoryview: ...\n"
        stub = stub.replace("class IHostMemory:\n", f"class IHostMemory:\n{buffer}")
    ast.parse(stub)  # a SyntaxError: another release that needs another repair
    return stub


def make(name: str) -> Path:
    """Returns the folder with the stubs of a flavour and the checker's settings, made now if not there yet."""
    flavour = FLAVOURS[name]
    recipe = f"{Path(__file__).read_text(encoding='utf-8')} {version('pybind11-stubgen')} {sys.version}"
    target = CACHE / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    print(f"ci/stubs: making type stubs of {flavour.wheel}", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=CACHE) as scratch:
        wheel, libraries, made = (Path(scratch, part) for part in ("wheel", "libraries", "stubs"))
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:")
        _call(f"fetch {flavour.wheel} with pip", *pip, "--target", wheel, flavour.wheel)
        dummy_libraries(libraries, flavour.libraries.split())
        stubgen = (sys.executable, "-m", "pybind11_stubgen", "--print-invalid-expressions-as-is", "--output-dir", made)
        path = os.pathsep.join(filter(None, (str(wheel), os.environ.get("PYTHONPATH"))))
        _call("make type stubs", *stubgen, flavour.module, PYTHONPATH=path, LD_LIBRARY_PATH=str(libraries))
        for stub in made.rglob("*.pyi"):
            stub.write_text(repaired(stub.read_text(encoding="utf-8")), encoding="utf-8")
        package = f"from {flavour.module} import *\nfrom {flavour.module} import __version__ as __version__\n"
        (made / "tensorrt").mkdir()
        (made / "tensorrt" / "__init__.pyi").write_text(package, encoding="utf-8")
        (made / "pyrightconfig.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        try:
            made.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was faster
                raise
    return target


def check(name: str, files: list[str]) -> bool:
    """Prints the errors that the type checker finds in files; true when there are none."""
    project = make(name) / "pyrightconfig.json"
    print(f"ci/stubs: {' '.join(files)} against {FLAVOURS[name].wheel}", flush=True)
    checker = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--project", str(project)]
    return subprocess.run([*checker, *files], cwd=ROOT, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    """Checks what the command line names, or everything."""
    if arguments:
        name, *files = arguments
        if name not in FLAVOURS or not files:
            _stop(2, f"usage: ci/stubs [{'|'.join(FLAVOURS)} FILE...]")
        return 0 if check(name, files) else 1
    importing = re.compile(r"^\s*(?:import|from) tensorrt\b", re.MULTILINE)
    sources = sorted((ROOT / "pipeline").rglob("*.py"))
    found = [str(file.relative_to(ROOT)) for file in sources if importing.search(file.read_text(encoding="utf-8"))]
    if not found:
        _stop(2, "no file of pipeline/ imports tensorrt: nothing to check")
    clean = [check(name, [file for file in found if file != flavour.other]) for name, flavour in FLAVOURS.items()]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
