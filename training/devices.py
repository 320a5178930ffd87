"""Where training computes: the device, and whether it has bfloat16 in its instructions."""

from __future__ import annotations

from typing import Literal

import torch

from training.errors import DeviceError

DeviceName = Literal["auto", "cpu", "cuda"]
DEVICE_NAMES: tuple[DeviceName, ...] = ("auto", "cpu", "cuda")


def choose(name: DeviceName, index: int = 0) -> torch.device:
    """The device of that name; `auto` is the GPU of that index where there is one, else the CPU."""
    there = torch.cuda.is_available() and index < torch.cuda.device_count()
    if name == "cuda" and not there:
        raise DeviceError(
            f"--device: 'cuda' is not to be had here: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs "
            f"and wants number {index}; use --device auto or cpu"
        )
    return torch.device("cuda", index) if there and name != "cpu" else torch.device("cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; a CPU that emulates it is several times slower than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
