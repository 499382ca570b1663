# SPDX-License-Identifier: Apache-2.0
"""Any annotator behind an address: a cloud's OCR behind a few lines of one's own, for one.

What is posted and what must come back is in `wire.py`.
"""

import dataclasses

from florence2_jax.engine.specialists.base import KINDS, Annotations, Kind
from florence2_jax.engine.specialists.configured import check_kinds
from florence2_jax.engine.specialists.http_client import GarbageError
from florence2_jax.engine.specialists.service import ServiceSpecialist, media_type
from florence2_jax.engine.specialists.wire import WireError, read_answer, request_of
from florence2_jax.records.schema import Record


@dataclasses.dataclass(kw_only=True, eq=False)
class HttpAnnotator(ServiceSpecialist):
    """What a service answers to an image.

    Settings:
        kinds: what it makes.
        called: its name in the provenance; its address by default.
        service_version: of what is behind the address, which nobody else can know.
    """

    kinds: tuple[Kind, ...]
    called: str = ""
    service_version: str = "1"

    def check(self) -> None:
        super().check()
        self.kinds = check_kinds(self.kinds, KINDS)

    def title(self) -> str:
        return f"http:{self.called or self.url}"

    def software(self) -> str:
        return self.service_version

    def ask_about(self, record: Record) -> Annotations:
        def read(answer: object) -> Annotations:
            try:
                return read_answer(answer, record, self.kinds, self.maker)
            except WireError as error:
                raise GarbageError(str(error)) from error

        body = request_of(record, self.kinds, media_type(record.image))
        return self._client.ask(body, read)
