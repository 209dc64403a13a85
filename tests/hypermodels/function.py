"""What a user has who tunes a function: a small CNN with its own rescaling, and logits."""

import keras
import keras_tuner
from keras import layers


def build(hp):
    inputs = keras.Input(shape=(8, 8, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    kind = hp.Choice("kind", ["plain", "separable"])
    convolution = layers.Conv2D if kind == "plain" else layers.SeparableConv2D
    x = convolution(hp.Int("filters", 8, 64, sampling="log"), 3, activation="relu")(x)
    pooling = hp.Choice("pooling", ["max", "average"])
    x = (layers.GlobalMaxPooling2D if pooling == "max" else layers.GlobalAveragePooling2D)()(x)
    model = keras.Model(inputs, layers.Dense(10)(x))
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def build_nothing(hp):
    return hp.Int("units", 1, 3)


def build_for_others(hp):
    model = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)])
    model.compile(loss="categorical_crossentropy", metrics=["accuracy"])
    return model


def build_without_accuracy(hp):
    model = keras.Sequential([layers.Flatten(), layers.Dense(hp.Choice("units", [10]))])
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


class Deaf(keras_tuner.HyperModel):
    def build(self, hp):
        return build(hp)

    def fit(self, hp, model, x, y, **kwargs):
        return model.fit(x, y, verbose=0)


NUMBER = 3
