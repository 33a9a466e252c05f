"""The digest by which a damaged safetensors file of ours is recognised: of all its tensors and of the JSON object in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

DIGEST_KEY = "content_digest"


def content_digest(values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of metadata and tensors (contiguous, on the CPU).

    Hashed are the metadata as JSON (keys sorted, no spaces, ASCII; without `content_digest` itself; tuples count as lists) and a zero byte,
    then for every tensor in the order of the names: name, a zero byte, dtype, a zero byte, the shape as decimal numbers with commas between
    them, a zero byte, and the bytes in C order.
    """
    known = {name: value for name, value in json.loads(json.dumps(values)).items() if name != DIGEST_KEY}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype, shape = str(tensor.dtype).removeprefix("torch."), ",".join(str(extent) for extent in tensor.shape)
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_mismatch(values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return what is wrong with the digest that the metadata carry; None where it is that of the content."""
    expected, got = values.get(DIGEST_KEY), content_digest(values, tensors)
    return None if got == expected else f"its weights and metadata have the digest {got}, expected {expected!r} (`{DIGEST_KEY}`)"
