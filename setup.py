# SPDX-License-Identifier: Apache-2.0
"""Everything about the package is declared in pyproject.toml."""

from setuptools import setup

setup()
