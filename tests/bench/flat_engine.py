"""A TensorRT engine by the bare bindings: the yardstick of engines.py.

python flat_engine.py MODULE ONNX PLAN INPUT MAX_BATCH [SM...], for an input of MAX_BATCH x 3 x 224 x 224 at most.
"""

import importlib
import sys
from pathlib import Path

module, onnx, plan, name, max_batch, *capabilities = sys.argv[1:]
trt = importlib.import_module(module)
log = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if not parser.parse_from_file(onnx):
    sys.exit(str(parser.get_error(0)))
config = builder.create_builder_config()
if hasattr(trt.BuilderFlag, "TF32"):  # as the pipeline does: fp32 is fp32
    config.clear_flag(trt.BuilderFlag.TF32)
profile = builder.create_optimization_profile()
profile.set_shape(name, *((batch, 3, 224, 224) for batch in (1, int(max_batch), int(max_batch))))
config.add_optimization_profile(profile)
if capabilities:  # TensorRT-RTX only
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), index)
built = builder.build_serialized_network(network, config)
if built is None:
    sys.exit("no engine")
Path(plan).write_bytes(memoryview(built))
