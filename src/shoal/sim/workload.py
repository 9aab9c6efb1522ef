"""Graphs to compute, and what their values must be."""

from __future__ import annotations

from hashlib import blake2b
from random import Random


def graph(shape: str, size: int, rng: Random, prefix: str) -> dict[str, list[str]]:
    """Return keys with their inputs, inputs first."""
    keys = [f"{prefix}-{number}" for number in range(size)]
    if shape == "map":
        return {key: [] for key in keys}
    if shape == "chains":
        count = rng.randint(1, 4)
        return {key: [keys[n - count]] if n >= count else [] for n, key in enumerate(keys)}
    if shape == "tree":
        half = (size + 1) // 2
        found: dict[str, list[str]] = {key: [] for key in keys[:half]}
        for n in range(half, 2 * half - 1):
            found[f"{prefix}-{n}"] = [f"{prefix}-{2 * (n - half)}", f"{prefix}-{2 * (n - half) + 1}"]
        return found
    if shape == "fan":
        return {key: [keys[0]] if n else [] for n, key in enumerate(keys)}
    if shape == "shuffle":
        width = max(2, int((size / 2) ** 0.5))
        inputs = keys[:width]
        found = {key: [] for key in inputs}
        found |= {f"{prefix}-split-{n}": [inputs[n]] for n in range(width)}
        found |= {f"{prefix}-join-{n}": [f"{prefix}-split-{m}" for m in range(width)] for n in range(width)}
        return found
    return {key: [keys[m] for m in rng.sample(range(n), min(n, rng.randint(0, 3)))] for n, key in enumerate(keys)}


def value_of(key: str, inputs: list[bytes], payload: bytes = b"") -> bytes:
    """What the task ``key`` with the arguments ``payload`` computes from the values of its inputs."""
    digest = blake2b(key.encode() + payload, digest_size=8)
    for value in inputs:
        digest.update(value)
    return digest.digest()
