# SPDX-License-Identifier: Apache-2.0
"""What a device can compute at most, for model FLOPs utilisation (MFU)."""

from collections.abc import Sequence
from typing import Any

PEAK_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,  # A chip is two devices.
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOPs per second of one JAX device, by its `device_kind`.

Sources: Google's pages on each TPU (docs.cloud.google.com/tpu/docs), NVIDIA's data sheets."""

_DEVICES_PER_CHIP = {"TPU v2": 2, "TPU v3": 2, "TPU7x": 2}


def peak_flops(devices: Sequence[Any]) -> float | None:
    """FLOPs per second of all these devices together; None if their kind is not in the table."""
    peak = PEAK_BF16_FLOPS.get(devices[0].device_kind)
    return None if peak is None else peak * len(devices)


def num_chips(devices: Sequence[Any]) -> int:
    """Chips that these devices are."""
    return max(1, len(devices) // _DEVICES_PER_CHIP.get(devices[0].device_kind, 1))
