"""Digest of a safetensors file's tensors and JSON metadata, which reveals damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

DIGEST_KEY = "content_digest"


def content_digest(values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    r"""Return the SHA-256 (64 hexadecimal digits) of metadata and tensors (contiguous, on the CPU).

    The input of the hash is the metadata as JSON (keys sorted, no spaces, ASCII, without `content_digest` itself, tuples as lists) and
    `\0`, then for each tensor in order of the names: name, `\0`, dtype, `\0`, the shape as decimal numbers separated by commas, `\0`, and
    the bytes in C order.
    """
    hashed = {name: value for name, value in json.loads(json.dumps(values)).items() if name != DIGEST_KEY}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":")).encode() + b"\0")
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype, shape = str(tensor.dtype).removeprefix("torch."), ",".join(str(extent) for extent in tensor.shape)
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_mismatch(values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Describe how the content differs from the digest in the metadata, or return None if it matches."""
    expected, got = values.get(DIGEST_KEY), content_digest(values, tensors)
    return None if got == expected else f"its weights and metadata have the digest {got}, expected {expected!r} (`{DIGEST_KEY}`)"
