"""A small convolutional network for 28x28 grey digits."""

import torch
from torch import nn
from torch.nn import functional


class ConvNet(nn.Module):
    """Two convolutions and two linear layers; takes [N, 1, 28, 28], gives log-probabilities [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.cn1 = nn.Conv2d(1, 16, 3, 1)
        self.cn2 = nn.Conv2d(16, 32, 3, 1)
        self.dp1 = nn.Dropout(0.10)
        self.dp2 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(4608, 64)  # 12 x 12 x 32
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the ten digits."""
        x = functional.relu(self.cn1(image))
        x = functional.relu(self.cn2(x))
        x = self.dp1(functional.max_pool2d(x, 2))
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return functional.log_softmax(self.fc2(self.dp2(x)), dim=1)
