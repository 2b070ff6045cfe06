"""What is known of Triton's backends: names, files, types and parameters, each written once.

Read by lint, by what writes configurations, and by the stand-in backends: they run where this package cannot be
imported and get a copy of this file, so it imports nothing but the standard library.

Sources, at r24.10 of github.com/triton-inference-server, with the parameters that later releases added: core
(src/constants.h; AutoCompleteBackendFields in src/model_config_utils.cc, whose order BACKENDS has), onnxruntime_backend
(src/onnxruntime.cc), pytorch_backend (src/libtorch.cc, src/libtorch_utils.cc, src/model.py), tensorflow_backend
(src/tensorflow.cc), tensorrt_backend (src/tensorrt_utils.cc) and python_backend (README.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass

NUMPY_TYPES: Mapping[str, str] = {
    "TYPE_BOOL": "bool", "TYPE_UINT8": "uint8", "TYPE_UINT16": "uint16", "TYPE_UINT32": "uint32",
    "TYPE_UINT64": "uint64", "TYPE_INT8": "int8", "TYPE_INT16": "int16", "TYPE_INT32": "int32",
    "TYPE_INT64": "int64", "TYPE_FP16": "float16", "TYPE_FP32": "float32", "TYPE_FP64": "float64",
    "TYPE_STRING": "object",
}  # fmt: skip
"""ModelConfig's data types, by numpy's names for what arrays hold of them; numpy has nothing for TYPE_BF16."""

FALSE_TRUE: Mapping[str, str] = {
    "int32_false_true": "TYPE_INT32",
    "fp32_false_true": "TYPE_FP32",
    "bool_false_true": "TYPE_BOOL",
}
"""The fields of a sequence control that say what no and yes are, and the data type of each."""

_LIBTORCH_TYPES = tuple(kind for kind in NUMPY_TYPES if kind not in ("TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"))
_TENSORRT_TYPES = tuple(f"TYPE_{name}" for name in ("FP32", "FP16", "BF16", "INT8", "UINT8", "INT32", "INT64", "BOOL"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One backend.

    Attributes:
        name: under `backend` in the configuration.
        files: by platform, what a version holds where the configuration names no file: the one of the first platform
            where no platform is given. The platform is empty for a backend that has none.
        kind: the instance kind that a model gets where nobody says one.
        inferred: whether Triton's core finds it by platform or file where none is given.
        types: the data types it takes.
        threads: those of its parameters that count threads: within an operator, and between operators.
        others: its other parameters.
    """

    name: str
    files: Mapping[str, str]
    kind: str = "KIND_CPU"
    inferred: bool = True
    types: tuple[str, ...] = tuple(NUMPY_TYPES)
    threads: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def platform(self) -> str:
        """The platform it goes by where there are several."""
        return next(iter(self.files))

    @property
    def file_name(self) -> str:
        """What a version of that platform holds."""
        return self.files[self.platform]

    @property
    def parameters(self) -> tuple[str, ...]:
        """All its parameters; any other is accepted by Triton and does nothing."""
        return (*self.threads, *self.others)


_BACKENDS = (
    Backend(
        name="tensorflow",
        files={"tensorflow_savedmodel": "model.savedmodel", "tensorflow_graphdef": "model.graphdef"},
        threads=("TF_NUM_INTRA_THREADS", "TF_NUM_INTER_THREADS"),
        others=(
            "TF_USE_PER_SESSION_THREADS", "TF_GRAPH_TAG", "TF_SIGNATURE_DEF", "TF_INIT_OPS_FILE",
            "MAX_SESSION_SHARE_COUNT",
        ),
    ),
    Backend(name="tensorrt", files={"tensorrt_plan": "model.plan"}, kind="KIND_GPU", types=_TENSORRT_TYPES),
    Backend(
        name="onnxruntime",
        files={"onnxruntime_onnx": "model.onnx"},
        threads=("intra_op_thread_count", "inter_op_thread_count"),
        others=(
            "execution_mode", "enable_mem_arena", "enable_mem_pattern", "memory.enable_memory_arena_shrinkage",
            "session.use_device_allocator_for_initializers",  # since 25.03, or 25.02
            "cudnn_conv_algo_search", "gpu_mem_limit",
            "arena_extend_strategy", "do_copy_in_default_stream",
        ),
    ),
    Backend(name="openvino", files={"": "model.xml"}),
    Backend(
        name="pytorch",
        files={"pytorch_libtorch": "model.pt", "torch_aoti": "model.pt2"},
        types=_LIBTORCH_TYPES,
        threads=("INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"),
        others=(
            "DISABLE_OPTIMIZED_EXECUTION", "INFERENCE_MODE", "DISABLE_CUDNN", "ENABLE_WEIGHT_SHARING",
            "ENABLE_CACHE_CLEANING", "ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER",
            "NUM_THREADS", "NUM_INTEROP_THREADS", "TORCH_COMPILE_OPTIONAL_PARAMETERS",
        ),
    ),
    Backend(name="python", files={"": "model.py"}, others=("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")),
    # This project's own. No container has a backend for TensorRT-RTX, and tensorrt cannot load its engines.
    Backend(
        name="tensorrt_rtx", files={"": "model.engine"}, kind="KIND_GPU", inferred=False, types=_TENSORRT_TYPES
    ),
)  # fmt: skip
BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in _BACKENDS}
"""By name; the core looks for files in this order."""

ENGINE_BACKENDS = ("tensorrt", "tensorrt_rtx")
NOT_FOR_ENGINES = ("KIND_CPU", "KIND_MODEL")
"""Instance kinds that the tensorrt backend refuses: an engine runs on a GPU."""

CORE_PARAMETERS = ("TRITON_BATCH_STRATEGY_PATH", "EXECUTION_ENV_PATH")
"""Parameters that the core reads, whatever the backend."""

EXECUTION_MODES = {0: "ORT_SEQUENTIAL", 1: "ORT_PARALLEL"}
"""Values of the onnxruntime backend's `execution_mode`, by ONNX Runtime's names."""

GRAPH_LEVELS = {-1: "ORT_ENABLE_BASIC", 0: "ORT_ENABLE_ALL", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}
"""Values of `optimization.graph.level` for the onnxruntime backend, which do not rise with the number."""

ACCELERATORS = {"gpu_execution_accelerator": ("tensorrt", "cuda"), "cpu_execution_accelerator": ("openvino",)}
"""The execution accelerators of the onnxruntime backend; it refuses any other."""

PRECISION_MODES = {"FP32": "", "FP16": "trt_fp16_enable", "INT8": "trt_int8_enable"}
"""Values of the tensorrt accelerator's `precision_mode`, and the option each sets; BF16 joins them in 26.02."""

TENSORRT_OPTIONS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
    **{
        name: name
        for name in (
            "trt_max_partition_iterations", "trt_min_subgraph_size", "trt_dla_enable", "trt_dla_core",
            "trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_dump_subgraphs",
            "trt_force_sequential_engine_build", "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback",
            "trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache", "trt_detailed_build_log",
            "trt_build_heuristics_enable", "trt_sparsity_enable", "trt_builder_optimization_level",
            "trt_auxiliary_streams", "trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes",
            "trt_profile_max_shapes", "trt_profile_opt_shapes", "trt_cuda_graph_enable", "trt_dump_ep_context_model",
            "trt_ep_context_file_path", "trt_ep_context_embed_mode",
        )
    },
}  # fmt: skip
"""The tensorrt accelerator's other parameters, and ONNX Runtime's names for them; the backend refuses any other."""
