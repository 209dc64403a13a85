"""Any image data set: what may vary if nothing else is said, and the parts that all spaces share.

A space declares its hyperparameters in `configure(hp)`, which is pure: it builds no model. Every
hyperparameter is named as the field that it sets; those of a block end in its number. The first
baseline gives the defaults, so that a sweep's trial 0 is the book's model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np
import numpy.typing as npt

from cnn_search.augmentation import AugmentationConfig, Batches
from cnn_search.errors import DefinitionError
from cnn_search.network import (
    BlockConfig,
    NetworkConfig,
    averaged,
    build_network,
    fitting_blocks,
    whiten,
)
from cnn_search.optimisation import TrainingConfig, compile_model, targets_of
from cnn_search.training import Baseline, Configuration, Protocol, as_json

PER_BLOCK = ("filters", "padding", "normalisation", "pooling", "dropout")
SHARED = (
    "convolutions",
    "kernel",
    "normalisation_place",
    "pool_size",
    "pooling_place",
    "residual",
)
OF_NETWORK = (
    "activation",
    "initialiser",
    "use_bias",
    "whitening",
    "identity",
    "normalisation_momentum",
    "normalisation_scale",
    "head",
    "head_normalisation",
    "head_dropout",
    "logit_scale",
    "views",
)


def vgg_block(filters: int, dropout: float) -> BlockConfig:
    """Return two 3x3 convolutions with batch normalisation, max pooling and dropout (Chollet)."""
    return BlockConfig(
        filters, convolutions=2, normalisation="batch", pooling="max", dropout=dropout
    )


VGG_BN = Configuration(
    NetworkConfig(
        blocks=(vgg_block(32, 0.2), vgg_block(64, 0.3), vgg_block(128, 0.4)),
        initialiser="he_uniform",
        dense_units=(128,),
        head_dropout=0.5,
    ),
    AugmentationConfig(shift=0.2, zoom=0.2, flip=True),
    TrainingConfig(),
)
VGG_BN_PROTOCOL = Protocol(epochs=50, patience=5, weights="last")

BASELINES = {
    "vgg_bn": Baseline(
        VGG_BN,
        VGG_BN_PROTOCOL,
        parameters=None,
        tutorial="the CIFAR-10 model of cifar10/vgg_bn, at this data set's size",
        validation="first_tenth",
    )
}


def fast(*filters: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Configuration:
    """Return what learns to tell photographs apart in few epochs (Jordan 2024, arXiv:2404.00498).

    There with filters 64, 256, 256 and ten epochs of CIFAR-10.

    Args:
        filters: Of each block.
        mean: Of the pixels, in 0..1, by channel.
        deviation: Their standard deviation.
    """
    blocks = [
        BlockConfig(
            count,
            convolutions=2,
            normalisation="batch",
            normalisation_place="before",
            pooling="max",
            pooling_place="inside",
        )
        for count in filters
    ]
    return Configuration(
        NetworkConfig(
            tuple(blocks),
            activation="gelu",
            use_bias=False,
            whitening=True,
            identity=True,
            normalisation_momentum=0.6,
            normalisation_scale=False,
            head="max",
            logit_scale=0.1,
            views=6,
            pixel_mean=mean,
            pixel_deviation=deviation,
        ),
        AugmentationConfig(flip=True, flip_alternates=True, crop=2, fill="reflect"),
        TrainingConfig(
            optimiser="sgd",
            learning_rate=0.375,
            momentum=0.85,
            schedule="triangular",
            weight_decay=0.01,
            bias_rate=64.0,
            label_smoothing=0.2,
            averaging=0.95,
            lookahead=5,
            batch_size=256,
        ),
    )


def fast_for_few(
    *filters: int,
    mean: tuple[float, ...] = (0.5,),
    deviation: tuple[float, ...] = (0.25,),
    batch_size: int = 32,
    whitening: bool = False,
) -> Configuration:
    """Return `fast` for about a thousand images that are no mirror images of one another.

    Each is turned, scaled and shifted a little; batches are small, and the rate is as the batch is.
    Chosen by five folds of the training part of digits and of SIGNS (docs/results.md).

    Args:
        filters: Of each block.
        mean: Of the pixels, in 0..1, by channel.
        deviation: Their standard deviation.
        batch_size: Images a step.
        whitening: Begin with the whitening convolution.
    """
    known = fast(*filters, mean=mean, deviation=deviation)
    return Configuration(
        dataclasses.replace(known.network, whitening=whitening, views=1),
        AugmentationConfig(shift=0.1, zoom=0.1, rotation=10.0, fill="reflect"),
        dataclasses.replace(
            known.training,
            learning_rate=0.1 * batch_size / 64,
            label_smoothing=0.1,
            averaging=0.9,
            batch_size=batch_size,
        ),
    )


class Space(keras_tuner.HyperModel):
    """What may vary; a data set's own space changes the choices below and the baselines.

    Args:
        input_shape: (height, width, channels) of the images.
        classes: How many there are.
        train_images: How many are trained on; a schedule counts its steps by it.
        protocol: Epochs, early stopping and weights kept: set by the sweep, not searched.
        metrics: Objectives beside accuracy and loss to compile: "val_balanced_accuracy",
            "val_macro_f1".
        class_weights: float32 `(classes,)`, or None.
        seed: Of shuffling and augmentation, at least 1.
    """

    baselines: Mapping[str, Baseline] = BASELINES
    # known to be good, so tried before the search
    recipes: Mapping[str, Configuration] = {"fast": fast_for_few(16, 32, 64, 128)}

    depth: Sequence[int] = (1, 2, 3, 4)
    filters: Sequence[int] = (8, 16, 32, 64, 128, 256)
    convolutions: Sequence[int] = (1, 2)
    kernel: Sequence[int] = (3, 5)
    stride: Sequence[int] = (1, 2)
    dropout: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4)
    pool_size: Sequence[int] = (2, 3)
    activation: Sequence[str] = ("relu", "tanh", "gelu", "elu")
    initialiser: Sequence[str] = ("glorot_uniform", "he_uniform", "he_normal")
    dense_units: Sequence[int] = (0, 64, 128, 256)
    head_dropout: Sequence[float] = (0.0, 0.2, 0.5)
    learning_rate: tuple[float, float] = (3e-4, 1e-2)  # of adam and rmsprop
    shift: Sequence[float] = (0.0, 0.1, 0.2)
    zoom: Sequence[float] = (0.0, 0.1, 0.2)
    flip: Sequence[bool] = (True, False)
    rotation: Sequence[float] = (0.0, 10.0, 20.0)
    crop: Sequence[int] = (0, 2, 4)
    cutout: Sequence[int] = (0, 8)
    batch_size: Sequence[int] = (32, 64, 128, 256)
    averaging: Sequence[float] = (0.0, 0.9, 0.95, 0.99)  # .99: over about a hundred steps
    lookahead: Sequence[int] = (0, 5)
    normalisation_momentum: Sequence[float] = (0.6, 0.9, 0.99)
    views: Sequence[int] = (1, 2, 6)
    pixel_mean: tuple[float, ...] = (0.5,)
    pixel_deviation: tuple[float, ...] = (0.25,)

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        classes: int,
        train_images: int,
        protocol: Protocol,
        *,
        metrics: Sequence[str] = (),
        class_weights: npt.NDArray[np.float32] | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.input_shape, self.classes, self.train_images = input_shape, classes, train_images
        self.protocol, self.metrics, self.class_weights = protocol, list(metrics), class_weights
        self.seed = seed

    def configure(self, hp: Any) -> Configuration:
        """Declare every hyperparameter on `hp` and return the configuration of its values."""
        usual = self.flatten(next(iter(self.baselines.values())).configuration)

        def choose(name: str, values: Sequence[Any]) -> Any:
            if values and usual[name] not in values:
                raise DefinitionError(
                    f"search_space: {name}: expected {usual[name]!r} among its values, as the "
                    f"first baseline has it; received {list(values)}. Add it, and leave it out of "
                    f"the search by [space] {name} = {json.dumps(list(values))}."
                )
            if len(values) == 1:
                return hp.Fixed(name, values[0])
            if isinstance(values[0], bool):  # Choice would turn them into 0 and 1
                return hp.Boolean(name, default=usual[name])
            return hp.Choice(name, list(values), default=usual[name])

        return Configuration(
            self._network(hp, choose, usual),
            self._augmentation(hp, choose),
            self._training(hp, choose, usual),
        )

    def _network(self, hp: Any, choose: Any, usual: Mapping[str, Any]) -> NetworkConfig:
        depth = choose("depth", self.depth)
        whitening = choose("whitening", (False, True))
        shared = {
            "convolutions": choose("convolutions", self.convolutions),
            "kernel": choose("kernel", self.kernel),
            "pool_size": choose("pool_size", self.pool_size),
            "pooling_place": choose("pooling_place", ("end", "inside")),
            "normalisation_place": choose("normalisation_place", ("after", "before")),
            "residual": choose("residual", (False, True)),
        }
        blocks = []
        for i in range(1, max(self.depth) + 1):
            with hp.conditional_scope("depth", [d for d in self.depth if d >= i]):
                block = {
                    "filters": choose(f"filters_{i}", self.filters),
                    "padding": choose(f"padding_{i}", ("same", "valid")),
                    "normalisation": choose(f"normalisation_{i}", ("none", "batch")),
                    "pooling": choose(f"pooling_{i}", ("none", "max", "average")),
                    "dropout": choose(f"dropout_{i}", self.dropout),
                }
            if i <= depth:
                # a residual block keeps the size of its map: one with valid padding has no shortcut
                residual = shared["residual"] and block["padding"] == "same"
                blocks.append(BlockConfig(**{**shared, **block, "residual": residual}))
        # a step in the first convolution only: one in every block leaves nothing of small images
        blocks[0] = dataclasses.replace(blocks[0], stride=choose("stride_1", self.stride))
        # a first block that does not fit keeps the size of its map, and pools nothing of 4 pixels
        mends: list[dict[str, Any]] = [
            {},
            {"padding": "same"},
            {"padding": "same", "pooling": "none"},
        ]
        for mended in mends:
            blocks[0] = dataclasses.replace(blocks[0], **mended)
            with contextlib.suppress(DefinitionError):
                fitting_blocks(
                    NetworkConfig(tuple(blocks[:1]), whitening=whitening), self.input_shape
                )
                break
        head = choose("head", ("flatten", "average", "max"))
        dense_units = choose("dense_units", self.dense_units)
        with hp.conditional_scope(
            "dense_units", [units for units in self.dense_units if units] or [1]
        ):
            head_normalisation = choose("head_normalisation", ("none", "batch"))
        pixels: dict[str, Any] = {}
        if choose("standardise", (False, True)):
            pixels = {"pixel_mean": self.pixel_mean, "pixel_deviation": self.pixel_deviation}
        return NetworkConfig(
            blocks=tuple(blocks),
            activation=choose("activation", self.activation),
            initialiser=choose("initialiser", self.initialiser),
            use_bias=choose("use_bias", (True, False)),
            whitening=whitening,
            identity=choose("identity", (False, True)),
            normalisation_momentum=choose("normalisation_momentum", self.normalisation_momentum),
            normalisation_scale=choose("normalisation_scale", (True, False)),
            head=head,
            dense_units=(dense_units,) if dense_units else (),
            head_normalisation=head_normalisation or "none",
            head_dropout=choose("head_dropout", self.head_dropout),
            logit_scale=choose("logit_scale", (1.0, 0.3, 0.1)),
            views=choose("views", self.views),
            **pixels,
        )

    def _augmentation(self, hp: Any, choose: Any) -> AugmentationConfig:
        flip = choose("flip", self.flip)
        with hp.conditional_scope("flip", [True]):
            alternates = choose("flip_alternates", (False, True) if True in self.flip else (False,))
        return AugmentationConfig(
            shift=choose("shift", self.shift),
            zoom=choose("zoom", self.zoom),
            flip=flip,
            flip_alternates=alternates or False,
            rotation=choose("rotation", self.rotation),
            crop=choose("crop", self.crop),
            cutout=choose("cutout", self.cutout),
            fill=choose("fill", ("nearest", "reflect", "constant")),
        )

    def _training(self, hp: Any, choose: Any, usual: Mapping[str, Any]) -> TrainingConfig:
        # what a grid leaves at its default is the first baseline's, as far as it has it
        rates = {"adam": 1e-3, "sgd": 1e-1}
        rates["sgd" if usual["optimiser"] == "sgd" else "adam"] = usual["learning_rate"]
        optimiser = choose("optimiser", ("adam", "sgd", "rmsprop"))
        with hp.conditional_scope("optimiser", ["adam", "rmsprop"]):
            rate = hp.Float(
                "learning_rate", *self.learning_rate, sampling="log", default=rates["adam"]
            )
        with hp.conditional_scope("optimiser", ["sgd"]):  # KerasTuner's grid needs unique names
            sgd_rate = hp.Float(
                "sgd_learning_rate", 1e-2, 0.5, sampling="log", default=rates["sgd"]
            )
            momentum = choose("momentum", (0.0, 0.8, 0.85, 0.9, 0.95))
        schedule = choose("schedule", ("constant", "cosine", "one_cycle", "triangular"))
        with hp.conditional_scope("schedule", ["cosine"]):
            warmup = choose("warmup", (0.0, 0.05, 0.1, 0.2))
        averaging = choose("averaging", self.averaging)
        with hp.conditional_scope("averaging", [s for s in self.averaging if s] or [1.0]):
            lookahead = choose("lookahead", self.lookahead)
        return TrainingConfig(
            optimiser=optimiser,
            learning_rate=sgd_rate if optimiser == "sgd" else rate,
            schedule=schedule,
            warmup=warmup or 0.0,
            momentum=momentum if optimiser == "sgd" else 0.9,
            weight_decay=choose("weight_decay", (0.0, 1e-4, 5e-4, 5e-3, 1e-2)),
            label_smoothing=choose("label_smoothing", (0.0, 0.1, 0.2)),
            bias_rate=choose("bias_rate", (1.0, 8.0, 64.0)),
            averaging=averaging,
            lookahead=lookahead or 0,
            batch_size=choose("batch_size", self.batch_size),
        )

    def hyperparameters(self, values: Mapping[str, Any] | None = None) -> Any:
        """Return declared `keras_tuner.HyperParameters`, with `values` where they are given."""
        hp = keras_tuner.HyperParameters()
        hp.values = dict(values or {})
        self.configure(hp)
        return hp

    def build(self, hp: Any) -> Any:
        """Build and compile the model of `hp`."""
        configuration = self.configure(hp)
        training = configuration.training
        model = build_network(configuration.network, self.input_shape, self.classes, self.seed)
        steps = -(-self.train_images // training.batch_size) * self.protocol.epochs
        compile_model(model, training, steps=steps, classes=self.classes, metrics=self.metrics)
        return model

    def fit(
        self,
        hp: Any,
        model: Any,
        x: npt.NDArray[np.uint8],
        y: npt.NDArray[np.int64],
        *,
        validation_data: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]] | None = None,
        callbacks: Sequence[Any] = (),
        **options: Any,
    ) -> Any:
        """Train `model` on uint8 images and integer labels as `hp` says; return Keras's history."""
        configuration = self.configure(hp)
        training = configuration.training
        labels = np.asarray(y).reshape(-1)
        batches = Batches(
            x,
            targets_of(labels, training, self.classes),
            configuration.augmentation,
            batch_size=training.batch_size,
            seed=self.seed,
            weights=None if self.class_weights is None else self.class_weights[labels],
        )
        if validation_data is not None:
            options["validation_data"] = self._sharp(training, validation_data)
        if not options.get("initial_epoch"):
            whiten(model, x)
        options.setdefault("epochs", self.protocol.epochs)
        # TensorFlow traces the first step twice if variables are made in it
        model.optimizer.build(model.trainable_variables)
        start = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: batches.start(epoch))
        # Keras would shuffle the batches too, by a random state that a resumed trial has not
        options |= {"callbacks": [start, *callbacks], "shuffle": False}
        return model.fit(batches.fed(), **options)

    def fetch(self, hp: Any, points: Sequence[Mapping[str, Any]]) -> None:
        """Have at hand what networks need that is not made here: nothing.

        Args:
            hp: What a sweep may choose from.
            points: What it tries besides.
        """

    def evaluate(
        self,
        hp: Any,
        model: Any,
        validation_data: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]],
        validation_batch_size: int,
    ) -> dict[str, float]:
        """Return a finished model's metrics by name, as `fit` has them: "val_accuracy", …."""
        training = self.configure(hp).training
        compile_model(model, training, steps=1, classes=self.classes, metrics=self.metrics)
        images, sharp = self._sharp(training, validation_data)
        found = model.evaluate(
            images, sharp, batch_size=validation_batch_size, return_dict=True, verbose=0
        )
        return {f"val_{name}": float(value) for name, value in found.items()}

    def finished(self, hp: Any) -> Any:
        """Return the model to keep, without trained weights: uint8 images to probabilities."""
        network = self.configure(hp).network
        return averaged(
            build_network(network, self.input_shape, self.classes, self.seed), network.views
        )

    def views_of(self, hp: Any) -> int:
        """Return over how many views of an image the finished model averages."""
        return self.configure(hp).network.views

    def step_of(self, hp: Any) -> tuple[int, bool]:
        """Return how many images a training step has, and whether they are moved."""
        configuration = self.configure(hp)
        return configuration.training.batch_size, configuration.augmentation.moves

    def _sharp(self, training: TrainingConfig, data: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return images and targets as the loss wants them, never smoothed."""
        labels = np.asarray(data[1]).reshape(-1)
        return data[0], targets_of(labels, training, self.classes, smooth=False)

    def patience(self, hp: Any) -> int:
        """Return the epochs without progress after which training ends; 0 for never."""
        constant = self.configure(hp).training.schedule == "constant"
        return self.protocol.patience if constant else 0

    def blocks_dropped(self, hp: Any) -> int:
        """Return how many blocks do not fit the images, and are left out from the end."""
        network = self.configure(hp).network
        return len(network.blocks) - len(fitting_blocks(network, self.input_shape))

    def describe(self, hp: Any) -> dict[str, Any]:
        """Return the configuration and the protocol, ready for JSON."""
        return {"configuration": as_json(self.configure(hp)), "protocol": as_json(self.protocol)}

    def baseline_values(self, name: str) -> dict[str, Any]:
        """Return the hyperparameter values of a baseline: the point of this space that it is.

        Raises:
            DefinitionError: no such baseline, or it is not a point of the space.
        """
        if name not in self.baselines:
            raise DefinitionError(
                f"baselines: expected some of {', '.join(self.baselines)}; received {name!r}."
            )
        return self._point(f"baseline {name!r}", self.baselines[name].configuration)

    def recipe_values(self) -> dict[str, dict[str, Any]]:
        """Return the hyperparameter values of each recipe, by its name.

        One of the space that this one is derived from is left out if it is not a point of this one.

        Raises:
            DefinitionError: one of its own is not.
        """
        points = {}
        for name, recipe in self.recipes.items():
            try:
                points[name] = self._point(f"recipe {name!r}", recipe)
            except DefinitionError:
                if "recipes" in vars(type(self)):
                    raise
        return points

    def flatten(self, configuration: Configuration) -> dict[str, Any]:
        """Return the fields of a configuration by the names of the hyperparameters."""
        return flatten(configuration, max(self.depth))

    def _point(self, name: str, configuration: Configuration) -> dict[str, Any]:
        hp = self.hyperparameters(self.flatten(configuration))
        values = {entry.name: hp.values[entry.name] for entry in hp.space if hp.is_active(entry)}
        if self.configure(self.hyperparameters(values)) != configuration:
            raise DefinitionError(f"space: {name} is not one of its points.")
        return values


def flatten(configuration: Configuration, depth: int = 4) -> dict[str, Any]:
    """Return the fields of a configuration by the names that hyperparameters have.

    Blocks beyond the last one, up to `depth`, are named as the last one is.
    """
    network = configuration.network
    blocks = network.blocks
    values: dict[str, Any] = {"depth": len(blocks)}
    for i in range(1, max(depth, len(blocks)) + 1):
        block = blocks[min(i, len(blocks)) - 1]
        values |= {f"{name}_{i}": getattr(block, name) for name in PER_BLOCK}
    values |= {name: getattr(blocks[0], name) for name in SHARED}
    values["stride_1"] = getattr(blocks[0], "stride", 1)
    values |= dataclasses.asdict(configuration.augmentation)
    values |= dataclasses.asdict(configuration.training)
    values["sgd_learning_rate"] = configuration.training.learning_rate
    values |= {name: getattr(network, name) for name in OF_NETWORK}
    values["dense_units"] = network.dense_units[0] if network.dense_units else 0
    values["standardise"] = network.pixel_mean != (0.0,)
    return values
