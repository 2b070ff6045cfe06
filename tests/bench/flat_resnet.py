"""resnet.yaml's work as a flat script of bare library calls: the yardstick of cold.py. Writes into the folder given."""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pipeline.data import torchvision_compat

warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
torchvision = torchvision_compat.load()

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images / 16).float()[:, None]
images = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear").repeat(1, 3, 1, 1)
train_x, test_x, train_y, test_y = train_test_split(
    images, torch.from_numpy(digits.target), test_size=0.2, stratify=digits.target, random_state=0
)
model = torchvision.models.resnet18(num_classes=10)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
steps = -(-len(train_x) // 32)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs=5, steps_per_epoch=steps)
for _ in range(5):
    model.train()
    for rows in torch.randperm(len(train_x)).split(32):
        loss = torch.nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
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

batch = torch.export.Dim("N")
torch.onnx.export(
    model, (golden[:2],), folder / "raw.onnx", dynamo=True, dynamic_shapes=({0: batch},), input_names=["image"],
    output_names=["logits"], opset_version=20, external_data=False, verbose=False,
)  # fmt: skip
slim = onnxslim.slim(onnx.load(folder / "raw.onnx"))
onnx.checker.check_model(slim, full_check=True)
onnx.save(slim, folder / "model.onnx")
traced = torch.jit.trace(model, golden[:2])
traced.save(folder / "model.pt")

session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
loaded = torch.jit.load(folder / "model.pt")
for size in (1, 16, 32):
    for start in range(0, len(golden), size):
        part = golden[start : start + size]
        expected = reference[start : start + size]
        with torch.inference_mode():
            assert np.allclose(loaded(part).numpy(), expected, rtol=1e-3, atol=1e-4)
        assert np.allclose(session.run(None, {"image": part.numpy()})[0], expected, rtol=1e-3, atol=1e-4)
print(f"accuracy {accuracy:.4f}")
