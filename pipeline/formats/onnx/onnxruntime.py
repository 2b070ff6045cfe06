"""ONNX files through ONNX Runtime on the CPU, behind values.Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime

from pipeline.base import runtimes
from pipeline.base.errors import StageError
from pipeline.base.values import Array, Signature, Tensors, described

_ERRORS_ONLY = 3  # ONNX Runtime's severity scale; its warnings about unused initializers would go to stderr
_FILE = "model.onnx"


def session_options(threads: int = 0) -> onnxruntime.SessionOptions:
    """Options of a session that says errors only, of so many threads or as many as this process is to compute with.

    ONNX Runtime does not ask about these; 0 is one per core.
    """
    options = onnxruntime.SessionOptions()
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    options.intra_op_num_threads = threads or (int(first) if first.isdigit() else 0)
    options.log_severity_level = _ERRORS_ONLY
    return options


class OnnxRuntime:
    """An ONNX model opened with the CPU provider.

    Args:
        path: the file, or the directory that holds ``model.onnx`` and its external data.
        signature: names and dtypes to feed and to return.
        threads: threads within one operator; 0 as for ``session_options``.
        float_qdq: QuantizeLinear and DequantizeLinear round as they say, and the operators between them compute in
            float32, so that an int8 graph is judged as its numbers are: 8-bit arithmetic saturates on a CPU without
            VNNI (onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When and why do I need to
            try U8U8?").

    Raises:
        StageError: the file cannot be loaded, or its inputs and outputs are not the signature's.
    """

    def __init__(self, path: Path, signature: Signature, threads: int = 0, *, float_qdq: bool = False) -> None:
        self._signature = signature
        self._outputs = [spec.name for spec in signature.outputs]
        options = session_options(threads)
        if float_qdq:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        file = str(path / _FILE if path.is_dir() else path)
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            hint = "the file is damaged, or needs a newer onnxruntime: export it again"
            raise StageError("onnxruntime: cannot load the model", found=str(error), where=file, hint=hint) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        runtimes.check_names("onnxruntime", "inputs", [item.name for item in inputs], signature.inputs, file)
        runtimes.check_names("onnxruntime", "outputs", [item.name for item in outputs], signature.outputs, file)

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """As ``values.Runtime`` has it."""
        feeds = {spec.name: inputs[spec.name] for spec in self._signature.inputs}
        try:
            results = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise StageError(
                "onnxruntime: the model failed on a sample", found=str(error), hint=f"inputs were {described(feeds)}"
            ) from error
        outputs: dict[str, Array] = dict(zip(self._outputs, results, strict=True))
        runtimes.check_dtypes("onnxruntime", outputs, self._signature)
        return outputs
