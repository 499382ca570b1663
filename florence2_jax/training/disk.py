# SPDX-License-Identifier: Apache-2.0
"""A disk that refuses a checkpoint is one line for its user."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from florence2_jax.typing import UserError

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "Make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Make it writable"),
}


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns a refused write into a UserError. TensorStore tells the errno only in its text."""
    try:
        yield
    except Exception as error:
        told = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(told[1]) if told else getattr(error, "errno", None)
        if code not in _REMEDIES:
            raise
        raise UserError(
            f"{directory}: a checkpoint could not be written to its end ({os.strerror(code)}); "
            f"older ones are whole. {_REMEDIES[code]} and run the same command again"
        ) from error
