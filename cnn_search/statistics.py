"""How sure a test score is: intervals with seeds and test images as two sources of noise, the gate.

A configuration is a bool array `correct` of shape (seeds, images): whether each retrained seed is
right on each test image. An interval over the seeds alone holds the images fixed, one over the
images alone forgets that training anew gives another model. Two configurations share the images
(paired) and not the seeds.

The variance of a mean is the sum of components of the crossed layout seeds x images: what varies
between images, and between seeds, less their interaction, which is in both; degrees of freedom are
Satterthwaite's (1946). How often the intervals cover: tests/test_statistics.py. Refused: a crossed
bootstrap, which counts the interaction twice and covers 99 % on 120 images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import gammaincinv, stdtrit  # quantiles; scipy.stats is slow to import

Correct = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval that covers the truth with probability `level`.

    Attributes:
        mean: As measured; not always in the middle of the interval.
        low: None, as `high`, with fewer than two seeds: one cannot say how the next would differ.
        high: The other end.
        level: Between 0 and 1.
        deviation: Sample standard deviation between seeds; of a difference, between differences
            of one seed each. None where `low` is.
        seeds: How many; of a difference, in the smaller arm.
    """

    mean: float
    low: float | None
    high: float | None
    level: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class Gate:
    """Whether a challenger may replace the champion.

    Attributes:
        passed: Whether `bound` is above 0.
        alpha: Probability with which a challenger that is no better may pass.
        difference: Challenger less champion, with its 95 % interval.
        bound: One-sided lower bound of the difference at `alpha`; None with fewer than two seeds.
    """

    passed: bool
    alpha: float
    difference: Estimate
    bound: float | None


def accuracy(correct: Correct, level: float = 0.95) -> Estimate:
    """Return the mean accuracy with an interval for other seeds and other test images.

    Wilson's interval for as many images as, seen once each, would have the variance found: it
    stays within 0 to 1 and does not collapse where all is right. Of two seeds on 10,000 images it
    covers 91 to 95 % instead of 95: take three or more.

    Args:
        correct: bool `(seeds, images)`.
        level: Probability with which the interval covers.

    Raises:
        ValueError: `correct` is not bool, or not of that shape.
    """
    _check(correct)
    seeds, images = correct.shape
    mean = float(correct.mean())
    if seeds < 2:
        return Estimate(mean, None, None, level, None, seeds)
    # half an image above and below the ratio: without an error it is the number there are
    image = (float(correct.mean(axis=0).var()) + 0.5 / images) / images
    variance, freedom = _combine(image, [_arm(correct)], images)
    effective = (mean * (1 - mean) + 0.5 / images) / variance
    shift = float(stdtrit(freedom, (1 + level) / 2)) ** 2 / effective
    middle = (mean + shift / 2) / (1 + shift)
    half = math.sqrt(shift * mean * (1 - mean) + shift**2 / 4) / (1 + shift)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Estimate(mean, low, high, level, _deviation(correct), seeds)


def difference(a: Correct, b: Correct, level: float = 0.95) -> Estimate:
    """Return the accuracy of `a` less that of `b`, with an interval for other seeds and images.

    The images vary as if one at least were judged differently, so that no interval collapses. (The
    pseudo-pairs of Agresti and Min 2005 are for one seed: of 5 seeds, at an accuracy of .96 on 120
    images, they make it cover 98 % and more.)

    Args:
        a: bool `(seeds, images)`.
        b: bool `(seeds, images)`: the same images in the same order; the seeds may be fewer.
        level: Probability with which the interval covers.

    Raises:
        ValueError: They are not bool, not of that shape, or not of as many images.
    """
    mean, image, arms = _compare(a, b)
    seeds = min(len(a), len(b))
    if not arms:
        return Estimate(mean, None, None, level, None, seeds)
    margin = _margin(image, arms, a.shape[1], (1 + level) / 2)
    deviation = math.hypot(_deviation(a), _deviation(b))
    return Estimate(
        mean, max(mean - margin, -1.0), min(mean + margin, 1.0), level, deviation, seeds
    )


def seeds_needed(a: Correct, b: Correct, level: float = 0.95, most: int = 1000) -> int | None:
    """Return how many seeds in each arm would decide a difference, if the estimates hold.

    A guide and no promise: the difference it builds on is itself undecided.

    Returns:
        The fewest that do, above those there are. Where the difference is decided already, the
        seeds of the larger arm, though fewer may have done. None where no number up to `most`
        would, since the test part is too small, and where an arm has one seed.

    Raises:
        ValueError: As `difference`.
    """
    mean, image, arms = _compare(a, b)
    if not arms:
        return None
    images, quantile, present = a.shape[1], (1 + level) / 2, max(len(a), len(b))
    if abs(mean) > _margin(image, arms, images, quantile):
        return present
    # what no number of seeds takes away: the images that one arm truly does better
    lasting = max(image - sum(arm.interaction for arm in arms), 1 / images**2)
    for seeds in range(present + (len(a) == len(b)), most + 1):
        more = [
            _Arm(seeds, *(part * arm.seeds / seeds for part in (arm.between, arm.interaction)))
            for arm in arms
        ]
        image = lasting + sum(arm.interaction for arm in more)
        if abs(mean) > _margin(image, more, images, quantile):
            return seeds
    return None


def seeds_interval(
    values: Sequence[float],
    level: float = 0.95,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return the mean of a number known for each seed only, with a t interval over the seeds.

    Of two seeds that is wide, and is cut at the ends of `within`, which the number cannot pass.

    It holds the images fixed: it says what other seeds would give on these images, and nothing of
    other images. For validation accuracy and cross-entropy.

    Raises:
        ValueError: There is no value.
    """
    if not len(values):
        raise ValueError("expected at least one value; received none")
    mean, seeds = float(np.mean(values)), len(values)
    if seeds < 2:
        return Estimate(mean, None, None, level, None, seeds)
    deviation = float(np.std(values, ddof=1))
    margin = float(stdtrit(seeds - 1, (1 + level) / 2)) * deviation / math.sqrt(seeds)
    low, high = max(mean - margin, within[0]), min(mean + margin, within[1])
    return Estimate(mean, low, high, level, deviation, seeds)


class Gain(NamedTuple):
    """An expected gain, in units of the score, and its interval."""

    mean: float
    low: float
    high: float


def gain_left(scores: Sequence[float], trials: int, more: int, level: float = 0.95) -> Gain:
    """Return by how much the best of `trials` would rise, on average, with `more` like them.

    Scaled spacings of the largest values are independent and exponential where the tail is (Renyi
    1953), which a search that learns beats, and one whose scores are near their limit does not
    reach.

    Args:
        scores: Of the best trials, the larger the better; at least four.
        trials: How many there were, of which these are the best.
        more: How many would follow.
        level: Of the interval.
    """
    top = np.sort(np.asarray(scores, float))[::-1]
    count = max(3, len(top) // 4)
    total = float(np.sum(np.arange(1, count + 1) * (top[:count] - top[1 : count + 1])))
    rise = math.log1p(more / trials)
    low, high = (total / gammaincinv(count, (1 + sign * level) / 2) * rise for sign in (1, -1))
    return Gain(total / count * rise, low, high)


def alpha(challenge: int) -> float:
    """Return the error that the n-th challenge on one test part may make, counted from 1.

    However many there are, together they make at most 0.025.

    Raises:
        ValueError: `challenge` is below 1.
    """
    if challenge < 1:
        raise ValueError(f"expected a challenge of 1 or more; received {challenge}")
    return 0.025 / (challenge * (challenge + 1))


def gate(challenger: Correct, champion: Correct, challenge: int) -> Gate:
    """Return whether a challenger is better than the champion, at the error of this challenge.

    Not proof against a challenger whose seeds are almost all the noise there is, ten times that of
    the champion's: 20 such challenges of 5 seeds may err with 0.08 in sum instead of 0.024.

    Args:
        challenger: bool `(seeds, images)`.
        champion: bool `(seeds, images)`: the same images in the same order.
        challenge: How often this test part was used to challenge, this time included.

    Raises:
        ValueError: As `difference` and `alpha`.
    """
    error, found = alpha(challenge), difference(challenger, champion)
    mean, image, arms = _compare(challenger, champion)
    if not arms:
        return Gate(False, error, found, None)
    # Satterthwaite's degrees of freedom, being estimated, are too many for so small an error
    most = 2 * (found.seeds - 1)
    bound = max(mean - _margin(image, arms, champion.shape[1], 1 - error, most), -1.0)
    return Gate(bound > 0, error, found, bound)


class _Arm(NamedTuple):
    """Variances of the mean of one configuration over `seeds` seeds."""

    seeds: int
    between: float  # of seeds, the interaction included
    interaction: float  # of seed x image


def _arm(correct: Correct) -> _Arm:
    """Return the components of `(seeds, images)`, from the mean squares of the crossed layout."""
    seeds, images = correct.shape
    between = _deviation(correct) ** 2
    right = correct.mean(axis=0)
    within = seeds * float((right * (1 - right)).sum())  # squares about each image's mean
    rest = max(within - images * (seeds - 1) * between, 0.0)  # below 0 by rounding only
    return _Arm(seeds, between / seeds, rest / ((seeds - 1) * (images - 1) * seeds * images))


def _compare(a: Correct, b: Correct) -> tuple[float, float, list[_Arm]]:
    """Return the difference, its variance of images (both interactions included), and the arms.

    There are no arms where one has a single seed.
    """
    _check(a)
    _check(b)
    images = a.shape[1]
    if b.shape[1] != images:
        raise ValueError(f"expected the same images in both; received {images} and {b.shape[1]}")
    image = max(float((a.mean(axis=0) - b.mean(axis=0)).var()) * images, 1.0) / images**2
    arms = [_arm(a), _arm(b)] if min(len(a), len(b)) > 1 else []
    return float(a.mean() - b.mean()), image, arms


def _combine(image: float, arms: Sequence[_Arm], images: int) -> tuple[float, float]:
    """Return the variance of a mean, to which seeds add 0 at least, and its degrees of freedom."""
    variance = image + max(sum(arm.between - arm.interaction for arm in arms), 0.0)
    squares = sum(arm.between**2 / (arm.seeds - 1) for arm in arms)
    return variance, variance**2 / (image**2 / (images - 1) + squares)


def _margin(
    image: float, arms: Sequence[_Arm], images: int, quantile: float, most: float = math.inf
) -> float:
    """Return how far the bound at a quantile of t is, with `most` degrees of freedom at most."""
    variance, freedom = _combine(image, arms, images)
    return float(stdtrit(min(freedom, most), quantile)) * math.sqrt(variance)


def _deviation(correct: Correct) -> float:
    return float(correct.mean(axis=1).std(ddof=1))


def _check(correct: Correct) -> None:
    if correct.dtype != bool or correct.ndim != 2 or len(correct) < 1 or correct.shape[1] < 2:
        raise ValueError(
            "expected a bool array (seeds, images) of at least 1 seed and 2 images; "
            f"received {correct.dtype} {correct.shape}"
        )
