"""Fashion-MNIST: 70,000 grey images of 28x28 pixels, ten kinds of clothes."""

from collections.abc import Mapping

from cnn_search.augmentation import AugmentationConfig
from cnn_search.network import BlockConfig, NetworkConfig
from cnn_search.optimisation import TrainingConfig
from cnn_search.training import Baseline, Configuration, Protocol
from search_spaces import images

BASELINES = {
    "one_conv": Baseline(
        Configuration(
            NetworkConfig(
                blocks=(BlockConfig(32, pooling="max", dropout=0.25),),
                dense_units=(128,),
                head_dropout=0.25,
            ),
            AugmentationConfig(),
            TrainingConfig(batch_size=128),
        ),
        Protocol(epochs=10, weights="last"),
        parameters=(804_554, 804_554),
        tutorial="one convolution and two dropouts",
        published="test accuracy 91.68 %, loss .2374; training .9312. It names 'valid' padding as "
        "what keeps the size; its summary shows 'same'. Its checkpoint never fires",
        test_accuracy=91.68,
    ),
}


class Space(images.Space):
    """What may vary for Fashion-MNIST."""

    baselines: Mapping[str, Baseline] = BASELINES
    recipes: Mapping[str, Configuration] = {
        "fast": images.fast(32, 64, 128, mean=(0.2860,), deviation=(0.3530,))
    }
    filters = (16, 32, 64, 128, 256)
    kernel = (3, 5)
    dropout = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
    head_dropout = (0.0, 0.2, 0.25, 0.5)
    pixel_mean = (0.2860,)
    pixel_deviation = (0.3530,)
