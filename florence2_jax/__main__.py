# SPDX-License-Identifier: Apache-2.0
"""`python -m florence2_jax` is the `florence2-jax` command."""

import sys

from florence2_jax.cli.main import main

sys.exit(main())
