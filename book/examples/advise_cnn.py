"""A convolutional network of one's own on the digits; README, "Advice for your model"."""

import torch
from torch import nn

import batchlab as bl

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
)  # fmt: skip
data = bl.data.digits(images=True).train  # (x, y): (1437, 1, 8, 8), (1437,)
loss = nn.functional.cross_entropy
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
batch_size = 32
