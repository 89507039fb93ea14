"""Networks of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.entry import Architecture, everywhere, numbers
from tests.architectures.layers import _pair
from tests.architectures.small import Tiny

_IMAGES = numbers(1, 4, 4, classes=2)


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)
    )


class ResNet(nn.Module):
    """A stem, a residual block with batch norm, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(inplace=True)
        self.norm1, self.norm2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.block, self.head = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.stem(x)))
        x = self.relu(x + self.norm2(self.block(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class UNet(nn.Module):
    """Down, up, and a skip past both; a logit for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.tanh(self.enter(x))
        deep = torch.tanh(self.up(torch.tanh(self.down(skip))))
        out: Tensor = self.leave(torch.cat([skip, deep], 1))
        return out


class DenseBlock(nn.Module):
    """Each layer sees the outputs of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Conv2d(1 + t, 1, 3, padding=1) for t in range(3)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for layer in self.layers:
            seen.append(torch.tanh(layer(torch.cat(seen, 1))))
        out: Tensor = self.head(torch.cat(seen, 1).mean((2, 3)))
        return out


def masks(n: int, seed: int) -> tuple[Any, Any]:
    """A class for each pixel, some of which do not count."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 4, 4, generator=drawn, dtype=torch.float64)
    z = torch.randint(2, (n, 4, 4), generator=drawn)
    z[:, 0, : 1 + seed % 2] = 255
    z[0, 1] = 255
    return x, z


def _run_in(net: nn.Module) -> nn.Module:
    """The same network, its large layers frozen, so that each door takes a second; signals do not vanish in eval."""
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(4, 3, 8, 8))
    for norm in norms:
        norm.momentum = 0.1
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.numel() < 1000)
    return net


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return _run_in(resnet18(num_classes=2))


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    net = mobilenet_v3_small(num_classes=2)
    net.classifier[2] = nn.Identity()  # dropout
    return _run_in(net)


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(8, 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=2)
    nn.init.normal_(net.heads.head.weight)  # which begins at zero
    return net  # type: ignore[no-any-return]


_HARD = everywhere(r"hardsigmoid has no second derivative.*relu6", "emsa", "maml")
_PIXELS = nn.CrossEntropyLoss(ignore_index=255)
_PHOTOS = numbers(3, 8, 8, classes=2)

VISION = [
    Architecture("chain of convolutions", chain, _IMAGES),
    Architecture("convolutions in a module", Tiny, numbers(1, 6, 6, classes=3)),
    *_pair("ResNet", ResNet, _IMAGES),
    Architecture("U-Net, segmentation with ignore_index", UNet, masks, _PIXELS),
    Architecture("DenseNet block", DenseBlock, _IMAGES),
    *_pair("torchvision resnet18, fine-tuned", resnet18, _PHOTOS, slow=True, lr=1e-3),
    *_pair("torchvision mobilenet_v3_small, fine-tuned", mobilenet, _PHOTOS, refused=_HARD, slow=True, lr=1e-3),
    Architecture("torchvision VisionTransformer", vit, numbers(3, 8, 8, classes=2)),
]
