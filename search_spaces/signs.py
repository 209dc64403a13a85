"""SIGNS: 1,200 colour photographs of 64x64 pixels, hands that show 0 to 5."""

from collections.abc import Mapping

from cnn_search.augmentation import AugmentationConfig
from cnn_search.network import BlockConfig, NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.training import Baseline, Configuration, Protocol
from search_spaces import images


def sign_block(filters: int, padding: str) -> BlockConfig:
    """Return a 7x7 convolution, batch normalisation before the activation, and max pooling."""
    return BlockConfig(
        filters,
        kernel=7,
        padding=padding,  # type: ignore[arg-type]
        normalisation="batch",
        normalisation_place="before",
        pooling="max",
    )


BASELINES = {
    # the tutorial pads by 3 pixels before a valid 7x7 convolution: a "same" one, a layer fewer
    "conv7": Baseline(
        Configuration(
            NetworkConfig(blocks=(sign_block(32, "same"), sign_block(64, "valid"))),
            AugmentationConfig(),
            TrainingConfig(batch_size=64),
        ),
        Protocol(epochs=25, weights="last"),
        parameters=(170_438, 170_246),
        tutorial="hands that show 0 to 5",
        published="test accuracy 97.5 % (117 of 120), loss .0908; training 1.0000 from epoch 10. "
        "Our copy of the images was decoded from JPEG, and stands in another order",
        test_accuracy=97.5,
    ),
}


class Space(images.Space):
    """What may vary for SIGNS."""

    baselines: Mapping[str, Baseline] = BASELINES
    filters = (8, 16, 32, 64, 128)
    kernel = (3, 5, 7)
    dense_units = (0, 64, 128)
    flip = (False, True)
    averaging = (0.0, 0.9)  # an epoch has a few dozen steps only
    cutout = (0, 16)
    batch_size = (16, 32, 64)
