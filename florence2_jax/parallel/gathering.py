# SPDX-License-Identifier: Apache-2.0
"""What each process made, brought to all of them: bytes of any length, by the devices' network."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from florence2_jax.parallel import processes


def block_of(number: int, process_index: int, process_count: int) -> range:
    """The share of one process of `number` things: blocks in order, sizes differing by one."""
    start, stop = (number * k // process_count for k in (process_index, process_index + 1))
    return range(start, stop)


def gather(data: bytes, name: str, timeout_s: float) -> list[bytes]:
    """What every process gave, in their order. All call it; they first wait for each other.

    Raises:
        LostHost: if another process does not come in time.
    """
    if jax.process_count() == 1:
        return [data]
    # Hosts are done at different times: they meet where a late one is named, then exchange.
    processes.barrier(name, timeout_s)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(data)], np.int32)))
    row = np.zeros(int(sizes.max()), np.uint8)
    row[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(len(sizes.ravel()), -1)
    return [
        bytes(one[:size].tobytes()) for one, size in zip(rows, sizes.ravel().tolist(), strict=True)
    ]
