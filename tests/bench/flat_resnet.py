"""resnet.yaml's work as a flat script of bare library calls: the yardstick of cold.py.

python flat_resnet.py FOLDER [onnx|torchscript|onnx_fp16|onnx_int8|trt_fp16|trt_int8]...
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers import float16
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pipeline.data import torchvision_compat

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
wanted = sys.argv[2:] or ["onnx", "torchscript", "onnx_fp16", "onnx_int8", "trt_fp16", "trt_int8"]
folder.mkdir(parents=True, exist_ok=True)
torchvision = torchvision_compat.load()

torch.manual_seed(6)
digits = load_digits()
images = torch.from_numpy(digits.images / 16).float()[:, None]
images = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear").repeat(1, 3, 1, 1)
train_x, test_x, train_y, test_y = train_test_split(
    images, torch.from_numpy(digits.target), test_size=0.2, stratify=digits.target, random_state=6
)
model = torchvision.models.resnet18(num_classes=10, zero_init_residual=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4, fused=True)
steps = -(-len(train_x) // 32)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs=5, steps_per_epoch=steps)
for _ in range(5):
    model.train()
    for rows in torch.randperm(len(train_x)).split(32):
        padded = torch.nn.functional.pad(train_x[rows], (2, 2, 2, 2), mode="replicate")
        places = torch.randint(0, 5, (len(rows), 2)).tolist()
        shifted = torch.stack([image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, places, strict=True)])
        loss = torch.nn.functional.cross_entropy(model(shifted), train_y[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(test_x).argmax(1) == test_y).float().mean().item()
torch.save(model.state_dict(), folder / "weights.pt")

golden = test_x[:256]
with torch.inference_mode():
    reference = torch.cat([model(image[None]) for image in golden]).numpy()

# every variant is run on all golden samples, at three batch sizes, before the next is made


def check(run, exact):
    hits = 0
    for size in (1, 16, 32):
        for start in range(0, len(golden), size):
            got, expected = run(golden[start : start + size]), reference[start : start + size]
            assert not exact or np.allclose(got, expected, rtol=1e-3, atol=1e-4)
            hits += int((got.argmax(1) == expected.argmax(1)).sum())
    assert hits >= 0.97 * 3 * len(golden)


def check_onnx(name, exact=False):
    session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
    check(lambda part: session.run(None, {"image": part.numpy()})[0], exact)


class Rows(CalibrationDataReader):
    def __init__(self):
        self.rows = iter(train_x[:128])

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"image": row[None].numpy()}


def quantize(name, **options):
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(folder / "model.onnx", prepared)
        quantize_static(
            prepared, folder / name, Rows(), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, **options,
        )  # fmt: skip


def engine(name):
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(folder / f"{name}.onnx")), parser.get_error(0)
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 32, 32), (32, 3, 32, 32), (32, 3, 32, 32))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(CAPABILITIES)
    for index, capability in enumerate(CAPABILITIES):
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), index)
    (folder / f"{name}.engine").write_bytes(memoryview(builder.build_serialized_network(network, config)))


if {"onnx", "onnx_fp16", "onnx_int8", "trt_fp16", "trt_int8"} & set(wanted):
    batch = torch.export.Dim("N")
    torch.onnx.export(
        model, (golden[:2],), folder / "raw.onnx", dynamo=True, dynamic_shapes=({0: batch},), input_names=["image"],
        output_names=["logits"], opset_version=20, external_data=False, verbose=False,
    )  # fmt: skip
    slim = onnxslim.slim(onnx.load(folder / "raw.onnx"))
    onnx.checker.check_model(slim, full_check=True)
    onnx.save(slim, folder / "model.onnx")
    check_onnx("model.onnx", exact=True)
if "torchscript" in wanted:
    torch.jit.trace(model, golden[:2]).save(folder / "model.pt")
    loaded = torch.jit.load(folder / "model.pt")
    with torch.inference_mode():
        check(lambda part: loaded(part).numpy(), exact=True)
if "onnx_fp16" in wanted:
    half = float16.convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=True)
    onnx.save(half, folder / "onnx_fp16.onnx")
    check_onnx("onnx_fp16.onnx")
if "onnx_int8" in wanted:
    quantize("onnx_int8.onnx", activation_type=QuantType.QUInt8)
    check_onnx("onnx_int8.onnx")
if {"trt_fp16", "trt_int8"} & set(wanted):
    import tensorrt_rtx_bindings as trt

    CAPABILITIES = ("SM80", "SM86", "SM89", "SM120", "SM121")  # all that engines are portable to
if "trt_fp16" in wanted:
    half = float16.convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=True)
    onnx.save(half, folder / "trt_fp16.onnx")
    check_onnx("trt_fp16.onnx")
    engine("trt_fp16")
if "trt_int8" in wanted:
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize("trt_int8.onnx", activation_type=QuantType.QInt8, extra_options=symmetric)
    check_onnx("trt_int8.onnx")
    engine("trt_int8")
print(f"accuracy {accuracy:.4f}")
