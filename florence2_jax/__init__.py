# SPDX-License-Identifier: Apache-2.0
"""Florence-2 in JAX: pretrain, fine-tune, evaluate, run and convert."""

from florence2_jax.version import __version__

__all__ = ["__version__"]
