# SPDX-License-Identifier: Apache-2.0
"""TPU generations, and the slices of them that exist.

Figures are those of one JAX device, which is a chip, except that a tpu7x chip is two devices.
Sources: Google's pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" at docs.cloud.google.com/tpu/docs
for memory, peak, ICI and DCN; what is not from there is marked.
"""

import dataclasses
import difflib
import math
import re

from florence2_jax.typing import UserError

_GIB = 1 << 30
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # Below 4x4x4; then multiples of 4.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPU; bytes, FLOPs and rates are per device."""

    name: str
    hbm_bytes: int
    """What the compiler lets a program use, read from its out-of-memory messages (libtpu 0.0.52);
    the chip has a little more."""
    hbm_bytes_per_s: float
    bf16_flops: float
    mxu_side: int
    clock_hz: float
    ici_bytes_per_s: float  # What a chip can send at once, over all its links.
    dcn_bytes_per_s: float
    chips_per_host: int  # Of the virtual machines that multi-host slices are made of.
    cores_per_host: int  # Virtual CPUs of such a machine; Google's pages on machine types.
    max_chips: int  # Of one slice.
    num_axes: int
    devices_per_chip: int = 1
    chip_config: str = ""  # What libtpu must be told to see both cores as one device.

    @property
    def devices_per_host(self) -> int:
        """JAX devices that one host feeds."""
        return self.chips_per_host * self.devices_per_chip

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of its slices, by number of chips."""
        if self.num_axes == 2:
            return _FLAT
        sides = range(4, self.max_chips // 16 + 1, 4)
        cubes = [
            (a, b, c)
            for a in sides
            if a**3 <= self.max_chips
            for b in sides
            if a <= b and a * b * b <= self.max_chips
            for c in sides
            if b <= c and a * b * c <= self.max_chips
        ]
        return (*_CUBES, *sorted(cubes, key=lambda shape: (math.prod(shape), shape[::-1])))


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            hbm_bytes=round(30.75 * _GIB),
            hbm_bytes_per_s=1.2e12,
            bf16_flops=275e12,
            mxu_side=128,
            clock_hz=1.05e9,  # TPU v4 paper (arXiv:2304.01433), Table 4.
            ici_bytes_per_s=300e9,  # Same: 6 links of 50 GB/s.
            dcn_bytes_per_s=6.25e9,  # Uncertain: not on Google's page, taken to be as v5p's.
            chips_per_host=4,
            cores_per_host=240,
            max_chips=4096,
            num_axes=3,
            chip_config="megacore",
        ),
        Chip(
            name="v5e",
            hbm_bytes=round(15.75 * _GIB),
            hbm_bytes_per_s=819e9,
            bf16_flops=197e12,
            mxu_side=128,
            clock_hz=1.5e9,  # Peak / (4 MXUs of 128 x 128 x 2).
            ici_bytes_per_s=200e9,
            dcn_bytes_per_s=3.125e9,  # 6.4 Tb/s for a pod of 256.
            chips_per_host=4,
            cores_per_host=112,
            max_chips=256,
            num_axes=2,
        ),
        Chip(
            name="v5p",
            hbm_bytes=round(95.73 * _GIB),
            hbm_bytes_per_s=2.765e12,
            bf16_flops=459e12,
            mxu_side=128,
            clock_hz=1.75e9,  # Peak / (8 MXUs of 128 x 128 x 2).
            ici_bytes_per_s=600e9,
            dcn_bytes_per_s=6.25e9,
            chips_per_host=4,
            cores_per_host=208,
            max_chips=6144,
            num_axes=3,
        ),
        Chip(
            name="v6e",
            hbm_bytes=round(31.24 * _GIB),
            hbm_bytes_per_s=1.638e12,
            bf16_flops=918e12,
            mxu_side=256,
            clock_hz=1.75e9,  # Peak / (4 MXUs of 256 x 256 x 2); the pages say 2 or 4 of them.
            ici_bytes_per_s=400e9,
            dcn_bytes_per_s=12.5e9,
            chips_per_host=4,
            cores_per_host=180,
            max_chips=256,
            num_axes=2,
        ),
        Chip(
            name="tpu7x",
            hbm_bytes=round(94.74 * _GIB),
            hbm_bytes_per_s=7.38e12 / 2,
            bf16_flops=2307e12 / 2,
            mxu_side=256,
            clock_hz=2.2e9,  # Uncertain: from the peak, if a device has 4 MXUs of 256 x 256.
            ici_bytes_per_s=600e9 / 2,
            dcn_bytes_per_s=12.5e9 / 2,
            chips_per_host=4,
            cores_per_host=224,
            max_chips=9216,
            num_axes=3,
            devices_per_chip=2,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one shape; several of them are joined by DCN."""

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @classmethod
    def parse(cls, name: str, num_slices: int = 1) -> "Topology":
        """`"v5e:16x16"` and the number of such slices.

        Raises:
            UserError: for a name that is none, with the nearest ones that are.
        """
        if num_slices < 1:
            raise UserError(f"--slices: {num_slices} must be at least 1")
        generation, _, sides = name.lower().partition(":")
        chip = CHIPS.get(generation)
        shape = tuple(map(int, sides.split("x"))) if re.fullmatch(r"\d+(x\d+)*", sides) else ()
        if chip is None or shape not in chip.shapes:
            raise UserError(
                f"--topology {name}: there is no such slice; did you mean "
                f"{' or '.join(nearest_names(name))}? Generations are {', '.join(CHIPS)}"
            )
        return cls(chip, shape, num_slices)

    @property
    def name(self) -> str:
        """As `parse` and libtpu read it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.num_slices

    @property
    def num_devices(self) -> int:
        """JAX devices of all slices."""
        return self.num_chips * self.chip.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """Machines of all slices."""
        return max(1, math.prod(self.shape) // self.chip.chips_per_host) * self.num_slices

    def __str__(self) -> str:
        return self.name if self.num_slices == 1 else f"{self.num_slices} x {self.name}"


_ALIASES = {
    "v5": "v5p",
    "v5lite": "v5e",
    "v5litepod": "v5e",
    "v6": "v6e",
    "trillium": "v6e",
    "v7": "tpu7x",
    "v7x": "tpu7x",
    "ironwood": "tpu7x",
}


def nearest_names(name: str, number: int = 3) -> list[str]:
    """Names of slices that somebody who typed `name` may have meant.

    Of the generation that is nearest by its name: the shape in another order, then those closest in
    number of chips, compact ones first.
    """
    word, *sides = re.split(r"[:=-]", name.lower(), maxsplit=1)
    near = difflib.get_close_matches(word, [*_ALIASES, *CHIPS], n=1, cutoff=0.3)
    generation = near[0] if near else "v5e"
    chip = CHIPS[_ALIASES.get(generation, generation)]
    asked = tuple(int(side) for side in re.findall(r"\d+", "".join(sides)))
    wanted = math.log2(math.prod(asked) or 1) if asked else 4

    def distance(shape: tuple[int, ...]) -> tuple[bool, float, int]:
        return sorted(shape) != sorted(asked), abs(math.log2(math.prod(shape)) - wanted), max(shape)

    return [Topology(chip, shape).name for shape in sorted(chip.shapes, key=distance)[:number]]
