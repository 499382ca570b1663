# SPDX-License-Identifier: Apache-2.0
"""The attention cores of the image encoder, one reference each and what is faster where."""
