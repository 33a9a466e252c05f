"""Mask-aware graphs: the masked bottom of a network as one node that computes only the neurons that masks keep."""

from __future__ import annotations

from .compiler import MaskAware as MaskAware, mask_aware_from_onnx as mask_aware_from_onnx
from .function import is_mask_aware as is_mask_aware, plain_onnx as plain_onnx
