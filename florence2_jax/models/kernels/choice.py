# SPDX-License-Identifier: Apache-2.0
"""Which formulation of an attention runs: the one place that decides, by platform and by size.

`"reference"` is the equation, head by head. `"tiled"` lets heads of few channels share tiles of 128
lanes, as wide as a vector register and the matrix unit of a TPU. Both give the same results.
"""

from florence2_jax.parallel.per_device import target_platform
from florence2_jax.typing import UserError

LANES = 128
TOKENS = 16  # Rows of a bfloat16 register.
MAX_WINDOW_TOKENS = 256  # The kernel holds all logits of some heads in VMEM.
MIN_QUERIES = 16  # Of attention between tokens: below, as in decoding, the reference.
MAX_KEYS = 2048  # The kernel holds the logits of 256 queries in VMEM.

METHODS = ("auto", "reference", "tiled")
FASTEST = {"tpu": "tiled"}  # Elsewhere the reference.


def is_tiled(method: str, *, dim: int, num_heads: int, window_tokens: int | None = None) -> bool:
    """Whether to run the tiled formulation of window attention, or of channel attention.

    Args:
        method: of `METHODS`.
        dim: channels of the attention.
        num_heads: heads, or groups of channels.
        window_tokens: tokens of a window; None for channel attention, which takes any number.

    Raises:
        UserError: on an unknown method, or if `"tiled"` was asked for and the sizes do not allow
            it; `"auto"` then takes the reference.
    """
    if method not in METHODS:
        raise UserError(f"attention: no method {method!r}; choose one of {', '.join(METHODS)}")
    fits = _fills_tiles(dim, num_heads)
    if window_tokens is not None:
        fits = fits and window_tokens % TOKENS == 0 and window_tokens <= MAX_WINDOW_TOKENS
    if method == "tiled" and not fits:
        raise UserError(
            f"attention: {num_heads} heads of {dim // num_heads} channels"
            + (f" and windows of {window_tokens} tokens" if window_tokens else "")
            + f" cannot be tiled (channels in tiles of {LANES}; tokens of a window in multiples of"
            f' {TOKENS}, at most {MAX_WINDOW_TOKENS}); choose "auto" or "reference"'
        )
    return fits and _chosen(method) == "tiled"


def is_token_tiled(
    method: str, *, dim: int, num_heads: int, num_queries: int, num_keys: int
) -> bool:
    """Whether attention between tokens runs by the kernel: where the sizes allow it."""
    fits = _fills_tiles(dim, num_heads) and num_queries >= MIN_QUERIES and num_keys <= MAX_KEYS
    return fits and _chosen(method) == "tiled"


def _fills_tiles(dim: int, num_heads: int) -> bool:
    return dim % LANES == 0 and LANES % (dim // num_heads) == 0


def _chosen(method: str) -> str:
    return FASTEST.get(target_platform(), "reference") if method == "auto" else method
