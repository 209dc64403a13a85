"""digits: 1,797 grey images of 8x8 pixels. The space that every machine can search, offline."""

import dataclasses
from collections.abc import Mapping

from cnn_search.augmentation import AugmentationConfig
from cnn_search.training import Baseline, Configuration
from search_spaces import images

MEAN, DEVIATION = (0.305,), (0.376,)

BASELINES = {
    # a mirrored digit is another sign, so no flip
    "vgg_bn": Baseline(
        dataclasses.replace(images.VGG_BN, augmentation=AugmentationConfig(shift=0.2, zoom=0.2)),
        images.VGG_BN_PROTOCOL,
        parameters=(306_026, 305_130),
        tutorial="no tutorial uses digits: vgg_bn's network, at 8x8x1",
        validation="first_tenth",
    ),
}


class Space(images.Space):
    """What may vary for digits."""

    baselines: Mapping[str, Baseline] = BASELINES
    recipes: Mapping[str, Configuration] = {
        "fast": images.fast_for_few(
            64, 128, mean=MEAN, deviation=DEVIATION, batch_size=64, whitening=True
        )
    }
    filters = (8, 16, 32, 64, 128)
    depth = (1, 2, 3)  # three times pooled, 8 pixels are 1
    kernel = (3,)
    stride = (1,)
    pool_size = (2,)
    flip = (False,)
    views = (1,)
    crop = (0, 1)
    batch_size = (16, 32, 64)
    averaging = (0.0, 0.9)  # an epoch has a few dozen steps only
    cutout = (0, 2)
    pixel_mean = MEAN
    pixel_deviation = DEVIATION
