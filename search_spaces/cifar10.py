"""CIFAR-10: 60,000 colour photographs of 32x32 pixels, ten kinds of animals and vehicles."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cnn_search.network import BlockConfig, NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.training import Baseline, Configuration, Protocol
from search_spaces import images
from search_spaces.images import VGG_BN, VGG_BN_PROTOCOL

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TEN_EPOCHS = Protocol(epochs=10, weights="last")
WATCHED = "The tutorial watches the test part each epoch, which selects nothing"


def conv_block(filters: int, pooling: str = "max") -> BlockConfig:
    """Return one 3x3 valid convolution and, perhaps, pooling."""
    return BlockConfig(filters, padding="valid", pooling=pooling)  # type: ignore[arg-type]


def plain(blocks: tuple[BlockConfig, ...], dense: int, batch_size: int) -> Configuration:
    """Return a network without normalisation or dropout, trained by Adam without augmentation."""
    return Configuration(
        NetworkConfig(blocks, dense_units=(dense,)), training=TrainingConfig(batch_size=batch_size)
    )


def lenet5_block(filters: int, pooling: str, normalisation: str = "none") -> BlockConfig:
    """Return a 5x5 valid convolution and average pooling."""
    return BlockConfig(
        filters,
        kernel=5,
        padding="valid",
        normalisation=normalisation,  # type: ignore[arg-type]
        pooling=pooling,  # type: ignore[arg-type]
    )


LENET5 = NetworkConfig(
    blocks=(
        lenet5_block(6, "average", "batch"),
        lenet5_block(16, "average"),
        lenet5_block(120, "none"),
    ),
    activation="tanh",
    dense_units=(84,),
    head_dropout=0.2,
)

BASELINES = {
    "vgg_bn": Baseline(
        VGG_BN,
        VGG_BN_PROTOCOL,
        parameters=(552_362, 551_466),
        tutorial="after Chollet's Deep Learning with Python and Machine Learning Mastery",
        published="test accuracy 78.77 %, weights of the last epoch (it stopped after 23); "
        "training .7916, best validation accuracy .8304 at epoch 18",
        test_accuracy=78.77,
        validation="first_tenth",
    ),
    "vgg_bn_as_coded": Baseline(
        replace(VGG_BN, network=replace(VGG_BN.network, head_normalisation="batch")),
        VGG_BN_PROTOCOL,
        parameters=(552_874, 551_722),
        tutorial="the same: its code, where its summary differs",
        validation="first_tenth",
    ),
    "one_conv": Baseline(
        plain((conv_block(10),), dense=100, batch_size=32),
        TEN_EPOCHS,
        parameters=(226_390, 226_390),
        tutorial="one convolution, then three",
        published=f"test accuracy 61.56 %; training .7509. {WATCHED}",
        test_accuracy=61.56,
    ),
    "wide_conv": Baseline(
        plain((conv_block(8), conv_block(512), conv_block(256, "none")), dense=100, batch_size=32),
        TEN_EPOCHS,
        parameters=(1_628_214, 1_628_214),
        tutorial="one convolution, then three",
        published=f"test accuracy 70.45 %; training .8756. {WATCHED}",
        test_accuracy=70.45,
    ),
    "two_conv": Baseline(
        plain((conv_block(32), conv_block(64)), dense=64, batch_size=64),
        TEN_EPOCHS,
        parameters=(167_562, 167_562),
        tutorial="two convolutions, a log that goes on",
        published="test loss 1.5843, no accuracy. Its log goes on training a model that was "
        "already trained, for how long is unknown: not comparable with a fresh run",
    ),
    "lenet5": Baseline(
        Configuration(LENET5, training=TrainingConfig(batch_size=32)),
        TEN_EPOCHS,
        parameters=(62_030, 62_018),
        tutorial="LeNet-5 as a tutorial has it, for 32x32x1; optimiser, batch and epochs are ours",
    ),
}


FAST = images.fast(64, 256, 256, mean=MEAN, deviation=DEVIATION)
SMALL = images.fast(32, 64, 128, mean=MEAN, deviation=DEVIATION)  # a sixth of the FLOPs


def large() -> Configuration:
    """Return what reached 96 % in 37.5 epochs elsewhere, about (Jordan 2024, arXiv:2404.00498)."""
    wide = images.fast(128, 384, 512, mean=MEAN, deviation=DEVIATION)
    plain = [block for block in wide.network.blocks if isinstance(block, BlockConfig)]
    blocks = [replace(block, convolutions=3, residual=True) for block in plain]
    network = replace(wide.network, blocks=tuple(blocks))
    return replace(
        wide,
        network=network,
        augmentation=replace(wide.augmentation, crop=4, cutout=12),
        training=replace(wide.training, learning_rate=0.3),
    )


class Space(images.Space):
    """What may vary for CIFAR-10."""

    baselines: Mapping[str, Baseline] = BASELINES
    recipes: Mapping[str, Configuration] = {"small": SMALL, "fast": FAST}
    filters: Sequence[int] = (6, 8, 10, 16, 32, 64, 120, 128, 256, 512)
    dense_units = (0, 64, 84, 100, 128, 256)
    pixel_mean = MEAN
    pixel_deviation = DEVIATION


class Large(Space):
    """What may vary with a GPU: wider, three convolutions a block, larger batches."""

    recipes: Mapping[str, Configuration] = {**Space.recipes, "large": large()}
    filters = (*Space.filters, 384)
    convolutions = (1, 2, 3)
    cutout = (0, 8, 12)
    batch_size = (64, 128, 256, 512, 1024)
