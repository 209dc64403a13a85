"""Transfer: a network that was trained on ImageNet, and a head for the images at hand.

Which of them, how much of it is trained further, at which size it sees the images, and its head may
vary. Weights come from Keras's cache; a space of one's own may name files of them:

    class Space(transfer.Space):
        weights = {"vgg16": "vgg16.weights.h5"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cnn_search import backbones
from cnn_search.augmentation import AugmentationConfig
from cnn_search.network import NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.training import Baseline, Configuration, Protocol
from search_spaces import images


class Space(images.Space):
    """What may vary: backbone, fine-tuning, size of the images, head, and how it is trained."""

    recipes: Mapping[str, Configuration] = {}
    backbone: Sequence[str] = tuple(backbones.KNOWN)
    weights: Mapping[str, str] = {}  # files, by backbone; Keras's own for the others
    fine_tuned: Sequence[int] = (0, 3, 9)  # the last three convolutions are VGG16's block5
    resize_to: Sequence[int] = (64, 96, 128, 160, 224)
    learning_rate = (1e-5, 1e-2)
    views = (1, 2)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.baselines: Mapping[str, Baseline] = {
            name: Baseline(
                Configuration(
                    NetworkConfig(
                        blocks=(),
                        backbone=name,
                        backbone_weights=self._weights_of(name),
                        resize_to=self.resize_to[0],
                        head="average",
                    ),
                    AugmentationConfig(),
                    TrainingConfig(),
                ),
                Protocol(epochs=10, weights="last"),
                parameters=None,
                tutorial="a tutorial names a photograph with VGG16; with a new head it is ours",
            )
            for name in self.backbone
        }

    def _weights_of(self, name: str) -> str:
        return self.weights.get(name, backbones.IMAGENET)

    def fetch(self, hp: Any, points: Sequence[Mapping[str, Any]]) -> None:
        """Have the weights at hand of all backbones that a sweep may come to.

        Raises:
            ModelError: some are not here, and cannot be downloaded.
        """
        choices = [set(entry.values) for entry in hp.space if entry.name == "backbone"]
        for name in sorted(set.union(*choices, {point["backbone"] for point in points})):
            side = self.resize_to[0]
            shape = (side, side) if side else self.input_shape[:2]
            backbones.build(name, self._weights_of(name), (*shape, 3))

    def flatten(self, configuration: Configuration) -> dict[str, Any]:
        """Return the fields of a configuration by the names of the hyperparameters."""
        network = configuration.network
        plain = replace(network, blocks=images.VGG_BN.network.blocks)
        own = {name: getattr(network, name) for name in ("backbone", "fine_tuned", "resize_to")}
        return {**images.flatten(replace(configuration, network=plain)), **own}

    def _network(self, hp: Any, choose: Any, usual: Mapping[str, Any]) -> NetworkConfig:
        backbone = choose("backbone", self.backbone)
        dense_units = choose("dense_units", self.dense_units)
        return NetworkConfig(
            blocks=(),
            backbone=backbone,
            backbone_weights=self._weights_of(backbone),
            fine_tuned=choose("fine_tuned", self.fine_tuned),
            resize_to=choose("resize_to", self.resize_to),
            head=choose("head", ("average", "max", "flatten")),
            dense_units=(dense_units,) if dense_units else (),
            head_dropout=choose("head_dropout", self.head_dropout),
            views=choose("views", self.views),
        )
