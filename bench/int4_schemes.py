"""Ways to make 4-bit weights, to compare with the one that conversion uses.

Each takes float64 weights [n, rows, out], of which the rows share a scale by column, and gives the
numbers that the 4-bit weights stand for. Run as a program it compares them on normally distributed
weights, which trained ones are near to, and records the table in docs/quantization.md.
"""

import pathlib
from collections.abc import Callable

import numpy as np

from bench import markdown
from model.checkpoint.quantize_int4 import _best

_NORMAL_FLOAT = np.array(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ]
)
"""NF4's levels (QLoRA, 2023): quantiles of a normal distribution; a product looks each one up."""


def nearest(weights: np.ndarray) -> np.ndarray:
    """Rounds to the nearest of 15 levels, the largest weight being 7."""
    scale = np.abs(weights).max(1, keepdims=True) / 7
    return np.rint(weights / np.where(scale, scale, 1)) * scale


def chosen(weights: np.ndarray) -> np.ndarray:
    """What conversion does: 16 levels, a signed scale of five bits, by least squared error."""
    pairs = (_best(group.astype(np.float32)) for group in weights)
    return np.stack([values * np.float64(scale) for values, scale in pairs])


def with_zero_point(weights: np.ndarray) -> np.ndarray:
    """16 levels from a zero point of each group's own, both ends by least squared error."""
    low, high = weights.min(1, keepdims=True), weights.max(1, keepdims=True)
    best, least = np.zeros_like(weights), np.full(low.shape, np.inf)
    for a in np.linspace(0.7, 1, 7):
        for b in np.linspace(0.7, 1, 7):
            scale = np.maximum((high * a - low * b) / 15, 1e-30)
            zero = np.rint(-low * b / scale)
            tried = (np.clip(np.rint(weights / scale) + zero, 0, 15) - zero) * scale
            error = np.square(tried - weights).sum(1, keepdims=True)
            best, least = np.where(error < least, tried, best), np.minimum(error, least)
    return best


def normal_float(weights: np.ndarray) -> np.ndarray:
    """NF4: each weight relative to the largest, as the nearest of 16 uneven levels."""
    scale = np.abs(weights).max(1, keepdims=True)
    relative = weights / np.where(scale, scale, 1)
    middles = (_NORMAL_FLOAT[1:] + _NORMAL_FLOAT[:-1]) / 2
    return _NORMAL_FLOAT[np.searchsorted(middles, relative)] * scale


SCHEMES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "round to nearest": (nearest, 16),
    "signed scale of least error": (chosen, 16),
    "the same with a zero point": (with_zero_point, 20),
    "NF4": (normal_float, 16),
}
"""By name: the function, and the bits that a group's scale and zero point take."""

GROUPS = (32, 64, 128)
"""Rows that share a scale, to compare."""


def main() -> None:
    """Prints and records the error of each scheme and group size."""
    weights = np.random.default_rng(0).normal(size=(6144, 256))
    rows = []
    for name, (scheme, bits) in SCHEMES.items():
        for size in GROUPS:
            grouped = weights.reshape(-1, size, weights.shape[1])
            lost = np.square(scheme(grouped) - grouped).sum() / np.square(grouped).sum()
            rows.append([name, size, f"{4 + bits / size:.2f}", f"{np.sqrt(lost):.2%}"])
    table = markdown.table(["4-bit weights", "rows a scale", "bits a weight", "error"], rows)
    print(table)
    document = pathlib.Path(__file__).parents[1] / "docs" / "quantization.md"
    markdown.replace(document, "int4 schemes", table)


if __name__ == "__main__":
    main()
