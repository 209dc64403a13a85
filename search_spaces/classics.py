"""The classics: LeNet-5, AlexNet, VGG16 and GoogLeNet side by side, on any images.

Which of them, and how it is trained, may vary; the networks are as their papers have them, but for
a softmax over the classes at hand and what is smaller for small images (see `scaled`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cnn_search.augmentation import AugmentationConfig
from cnn_search.network import BlockConfig, InceptionConfig, NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.training import Baseline, Configuration, Protocol
from search_spaces import images
from search_spaces.cifar10 import LENET5

LARGE, MIDDLE = 128, 64  # pixels a side


def overlapping(filters: int, **others: Any) -> BlockConfig:
    """Return a convolution, then max pooling of 3x3 windows that overlap."""
    return BlockConfig(filters, pooling="max", pool_size=3, pool_stride=2, **others)


def vgg16_block(filters: int, convolutions: int) -> BlockConfig:
    """Return 3x3 convolutions, then max pooling."""
    return BlockConfig(filters, convolutions, pooling="max")


# Krizhevsky et al. 2012; without its local response normalisation, which has no weights
ALEXNET = NetworkConfig(
    blocks=(
        overlapping(96, kernel=11, stride=4, padding="valid"),
        overlapping(256, kernel=5, groups=2),
        BlockConfig(384),
        BlockConfig(384, groups=2),
        overlapping(256, groups=2),
    ),
    initialiser="he_normal",
    dense_units=(4096, 4096),
    head_dropout=0.5,
)
# Simonyan and Zisserman 2015, arXiv:1409.1556, configuration D
VGG16 = NetworkConfig(
    blocks=(
        vgg16_block(64, 2),
        vgg16_block(128, 2),
        vgg16_block(256, 3),
        vgg16_block(512, 3),
        vgg16_block(512, 3),
    ),
    initialiser="he_normal",
    dense_units=(4096, 4096),
    head_dropout=0.5,
)
# Szegedy et al. 2015, arXiv:1409.4842; without the heads beside the last one
GOOGLENET = NetworkConfig(
    blocks=(
        overlapping(64, kernel=7, stride=2, pool_padding="same"),
        BlockConfig(64, kernel=1),
        overlapping(192, pool_padding="same"),
        InceptionConfig(64, (96, 128), (16, 32), 32),
        InceptionConfig(128, (128, 192), (32, 96), 64, pooling="max"),
        InceptionConfig(192, (96, 208), (16, 48), 64),
        InceptionConfig(160, (112, 224), (24, 64), 64),
        InceptionConfig(128, (128, 256), (24, 64), 64),
        InceptionConfig(112, (144, 288), (32, 64), 64),
        InceptionConfig(256, (160, 320), (32, 128), 128, pooling="max"),
        InceptionConfig(256, (160, 320), (32, 128), 128),
        InceptionConfig(384, (192, 384), (48, 128), 128),
    ),
    initialiser="he_normal",
    head="average",
    head_dropout=0.4,
)
NETWORKS = {
    "lenet5": replace(LENET5, pad_to=32),
    "alexnet": ALEXNET,
    "vgg16": VGG16,
    "googlenet": GOOGLENET,
}
TRAINING = TrainingConfig(optimiser="sgd", learning_rate=0.01, momentum=0.9, batch_size=64)


def scaled(network: NetworkConfig, side: int) -> NetworkConfig:
    """Return a network for images of `side` pixels: its first block shrinks small ones less.

    Below 128 pixels the first convolution has no stride, and 5x5 pixels at most; below 64 it is not
    pooled either. What does not fit still is left out from the end, as in every network.
    """
    first = network.blocks[0]
    if side >= LARGE or network.pad_to or not isinstance(first, BlockConfig):
        return network
    first = replace(first, kernel=min(first.kernel, 5), stride=1, padding="same")
    if side < MIDDLE:
        first = replace(first, pooling="none")
    return replace(network, blocks=(first, *network.blocks[1:]))


class Space(images.Space):
    """What may vary: which classic, and how it is trained."""

    recipes: Mapping[str, Configuration] = {}

    def __init__(self, input_shape: tuple[int, int, int], *arguments: Any, **options: Any) -> None:
        super().__init__(input_shape, *arguments, **options)
        self.networks = {
            n: scaled(network, min(input_shape[:2])) for n, network in NETWORKS.items()
        }
        self.baselines: Mapping[str, Baseline] = {
            name: Baseline(
                Configuration(network, AugmentationConfig(), TRAINING),
                Protocol(epochs=10, weights="last"),
                parameters=None,
                tutorial="a tutorial describes it; how it is trained is ours",
            )
            for name, network in self.networks.items()
        }

    def flatten(self, configuration: Configuration) -> dict[str, Any]:
        """Return the fields of a configuration by the names of the hyperparameters."""
        values = images.flatten(replace(configuration, network=NETWORKS["lenet5"]))
        names = [n for n, network in self.networks.items() if network == configuration.network]
        return {**values, "architecture": names[0]}

    def _network(self, hp: Any, choose: Any, usual: Mapping[str, Any]) -> NetworkConfig:
        return self.networks[choose("architecture", tuple(self.networks))]
