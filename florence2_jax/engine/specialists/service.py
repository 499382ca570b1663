# SPDX-License-Identifier: Apache-2.0
"""What the specialists share that ask a service: its settings, its client, its failures."""

import abc
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from florence2_jax.engine.specialists.base import Annotations, Failure, Outcome
from florence2_jax.engine.specialists.configured import Configured
from florence2_jax.engine.specialists.http_client import (
    GarbageError,
    HttpClient,
    HttpConfig,
    ServiceError,
    Usage,
)
from florence2_jax.records.checks import ImageError, open_image
from florence2_jax.records.schema import Record

_HTTP = tuple(field.name for field in dataclasses.fields(HttpConfig))


@dataclasses.dataclass(kw_only=True, eq=False)
class ServiceSpecialist(Configured, HttpConfig):
    """One whose work a service does; the images of a batch are asked about at the same time.

    Settings:
        url: the address that requests are posted to.
        key_variable: the environment variable with the key, "" for none.
        cache: a folder for answers, "" for none: what was paid for once is not paid for again.
        the others: as of `HttpConfig`.
    """

    url: str
    key_variable: str = ""
    cache: str = ""

    not_in_version = frozenset({"key_variable", "cache", *_HTTP})

    def check(self) -> None:
        HttpConfig.check(self)

    @property
    def usage(self) -> Usage:
        """What was asked for and paid in this process since `load`."""
        return self._client.usage

    def load(self) -> None:
        self._client = HttpClient(
            self.url,
            self,
            key_variable=self.key_variable,
            cache=Path(self.cache) if self.cache else None,
        )

    def annotate(self, records: Sequence[Record]) -> Sequence[Outcome]:
        if len(records) == 1:
            return [self._outcome(records[0])]
        with concurrent.futures.ThreadPoolExecutor(len(records)) as pool:
            return list(pool.map(self._outcome, records))

    def _outcome(self, record: Record) -> Outcome:
        try:
            return self.ask_about(record)
        except GarbageError as error:
            return Failure("garbage answer", str(error))
        except TimeoutError as error:
            return Failure("time-out", str(error))
        except ImageError as error:
            return Failure("unreadable image", str(error))
        except ServiceError as error:
            return Failure("error", str(error))

    @abc.abstractmethod
    def ask_about(self, record: Record) -> Annotations:
        """What the service says about one record. Raises as `HttpClient.ask`."""


def media_type(image: bytes) -> str:
    """`image/png` and so on, by the header. Raises ImageError."""
    kind = open_image(image).format or "JPEG"
    return f"image/{'jpeg' if kind == 'MPO' else kind.lower()}"  # MPO: several JPEGs in a file.
