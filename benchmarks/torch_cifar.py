"""Train a ResNet for CIFAR-10 in plain torch: what a user of another library brings.

Run: .peers/bin/python benchmarks/torch_cifar.py DATA MODEL.pth [--depth 20]
     [--epochs 12] [--seed 0]

DATA has train/ and test/ with a folder of images for each class. The network is that of
He et al. 2015, section 4.2, with parameter-free shortcuts; training is SGD with one
cycle of the learning rate, shifts by 4 pixels and flips. The file is the state dict
alone. `benchmarks/int8.py MODEL.pth DATA --variant resnet20` reads it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

# Of the training split.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, RATE, DECAY, PAD = 128, 0.2, 5e-4, 4


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - before

    def forward(self, inputs: Any) -> Any:
        """Return the activations."""
        found = functional.relu(self.bn1(self.conv1(inputs)))
        found = self.bn2(self.conv2(found))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        # Option A: new channels are zero, on both sides as in published checkpoints.
        sides = (self.added // 2, self.added - self.added // 2)
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, *sides))
        return functional.relu(found + shortcut)


class ResNet(nn.Module):
    """6n + 2 layers."""

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        before = 16
        for stage, width in enumerate((16, 32, 64), 1):
            blocks = []
            for place in range((depth - 2) // 6):
                stride = 2 if place == 0 and stage > 1 else 1
                blocks.append(Block(before, width, stride))
                before = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, classes)

    def forward(self, inputs: Any) -> Any:
        """Return the logits."""
        found = functional.relu(self.bn1(self.conv1(inputs)))
        found = self.layer3(self.layer2(self.layer1(found)))
        return self.fc(found.mean((2, 3)))


def read(folder: Path) -> tuple[Any, Any]:
    """Read the images of a split: uint8 `(n, 3, 32, 32)` and their targets."""
    images, targets = [], []
    for target, label in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for file in sorted(label.iterdir()):
            images.append(np.asarray(Image.open(file).convert("RGB")))
            targets.append(target)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor(targets)


def normalized(pixels: Any) -> Any:
    """Return pixels as the model takes them."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return ((pixels / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def varied(pixels: Any) -> Any:
    """Shift a batch, each image on its own, and flip half of it."""
    count, _, side, _ = pixels.shape
    padded = functional.pad(pixels, (PAD,) * 4)
    tops, lefts = torch.randint(0, 2 * PAD + 1, (2, count, 1))
    columns = lefts + torch.arange(side)
    flipped = torch.rand(count, 1) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns)
    rows = (tops + torch.arange(side))[:, None, :, None]
    images = torch.arange(count)[:, None, None, None]
    channels = torch.arange(3)[None, :, None, None]
    return padded[images, channels, rows, columns[:, None, None, :]]


def accuracy(model: nn.Module, pixels: Any, targets: Any) -> float:
    """Return the share of images whose top-1 is right."""
    model.eval()
    with torch.no_grad():
        found = [model(normalized(part)).argmax(1) for part in pixels.split(500)]
    model.train()
    return float((torch.cat(found) == targets).float().mean())


def main() -> None:
    """Train and write the state dict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    pixels, targets = read(given.data / "train")
    model = ResNet(given.depth, int(targets.max()) + 1)
    model = model.to(memory_format=torch.channels_last)
    steps = len(pixels) // BATCH
    optimizer = torch.optim.SGD(
        model.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=given.epochs * steps
    )
    begun = time.monotonic()
    for epoch in range(given.epochs):
        order = torch.randperm(len(pixels))
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            inputs = normalized(varied(pixels[chosen]))
            loss = functional.cross_entropy(model(inputs), targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.monotonic() - begun
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    print(f"test accuracy {accuracy(model, *read(given.data / 'test')):.2%}")
    torch.save(model.state_dict(), given.file)


if __name__ == "__main__":
    main()
