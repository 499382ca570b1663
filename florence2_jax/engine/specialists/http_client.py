# SPDX-License-Identifier: Apache-2.0
"""Asking a service over HTTP: tries, waits, limits, costs, and answers that are kept.

An answer is bytes until it was read as JSON within its bounds; what it says is never run, and no
redirection is followed, for it would take the key along.
"""

import contextlib
import dataclasses
import email.utils
import hashlib
import json
import math
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from florence2_jax.engine.specialists.base import SpecialistError
from florence2_jax.engine.specialists.configured import needs
from florence2_jax.typing import UserError

INSTALL = '"florence2-jax[engine]"'
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}
_REFUSED = {401: "refuses the key", 403: "refuses the key", 404: "has no such page or model",
            405: "takes no POST", 407: "asks for a proxy's password"}  # fmt: skip

_Answer = TypeVar("_Answer")


class GarbageError(ValueError):
    """An answer that is not what was asked for. The message says why, in one short line."""


class ServiceError(Exception):
    """One request that failed for good; the next may not."""


@dataclasses.dataclass(kw_only=True, eq=False)
class HttpConfig:
    """How a service is asked.

    `request_timeout_s` is how long one try waits for the first byte, and then for the last. Waits
    between tries double from `wait_s`, unless the service says how long; none is longer than
    `max_wait_s`.
    `requests_per_minute` is of one worker; 0 for no limit. After `max_failures` requests in a row
    that failed in all their tries, the service is taken to be down.
    """

    request_timeout_s: float = 60.0
    num_tries: int = 5
    wait_s: float = 1.0
    max_wait_s: float = 60.0
    requests_per_minute: float = 0.0
    max_answer_bytes: int = 4 * 2**20
    max_failures: int = 20

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Raises UserError on a setting that cannot be."""
        for name in ("request_timeout_s", "wait_s", "max_wait_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: {getattr(self, name)} is no time")
        for name in ("num_tries", "max_answer_bytes", "max_failures"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is not 1 or more")


@dataclasses.dataclass
class Usage:
    """What a service was asked for, and what that cost, in this process."""

    requests: int = 0
    retries: int = 0
    from_cache: int = 0
    garbage: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class HttpClient:
    """Posts JSON and reads JSON; several threads may share it.

    Args:
        key_variable: the environment variable with the key, "" for a service without one. Keys
            stand in no file and no message.
        cache: a folder for answers, by the digest of what was asked; None for no cache.
    """

    def __init__(
        self, url: str, config: HttpConfig, *, key_variable: str = "", cache: Path | None = None
    ):
        requests: Any = needs("requests", INSTALL)
        if not url.startswith(("http://", "https://")):
            raise SpecialistError(f"{url}: no http:// or https:// address")
        if key_variable and not os.environ.get(key_variable):
            raise SpecialistError(
                f"{url}: the environment variable {key_variable} holds no key; set it"
            )
        self.url, self.config, self.cache = url, config, cache
        self.usage = Usage()
        self._requests, self._urllib3 = requests, needs("urllib3", INSTALL).exceptions
        self._local, self._lock = threading.local(), threading.Lock()
        key = os.environ.get(key_variable, "") if key_variable else ""
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._next_start = 0.0
        self._failures = 0

    def ask(
        self,
        body: Mapping[str, Any],
        read: Callable[[Any], _Answer],
        charge: Callable[[Any], None] = lambda _: None,
    ) -> _Answer:
        """Posts `body`, and reads the JSON of the answer.

        Args:
            charge: is given the JSON of answers that are not from the cache, before `read`.
            read: turns the JSON into what is wanted; raises GarbageError on anything else. Only
                answers that it could read are kept in the cache.

        Raises:
            GarbageError: if the answer is no JSON, too long, or not what `read` wants.
            TimeoutError: if there was no whole answer in time, try after try.
            ServiceError: if this request failed otherwise.
            SpecialistError: if the service refuses, or request after request failed.
        """
        place = self._place(body)
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if place is not None:
                answer = read(parse_json(place.read_bytes()))
                self._count(from_cache=1)
                return answer
        content = self._post(body)
        try:
            value = parse_json(content)
            charge(value)
            answer = read(value)
        except GarbageError:
            self._count(garbage=1)
            raise
        if place is not None:
            _keep(place, content)
        return answer

    def pay(self, *, input_tokens: int, output_tokens: int, cost: float) -> None:
        """Counts what an answer cost."""
        self._count(input_tokens=input_tokens, output_tokens=output_tokens, cost=cost)

    def _count(self, **amounts: Any) -> None:
        with self._lock:
            for name, amount in amounts.items():
                setattr(self.usage, name, getattr(self.usage, name) + amount)

    def _place(self, body: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        said = json.dumps([self.url, body], sort_keys=True)
        digest = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"

    def _post(self, body: Mapping[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        last: Exception = ServiceError("not asked")
        for attempt in range(self.config.num_tries):
            if attempt:
                self._count(retries=1)
            self._wait_for_turn()
            wait_s = self.config.wait_s * 2**attempt * random.uniform(0.75, 1.25)
            try:
                status, headers, content = self._send(data)
            except TimeoutError as error:
                last = error
            except (self._requests.RequestException, self._urllib3.HTTPError) as error:
                last = ServiceError(f"{type(error).__name__} at {self.url}")
            else:
                if status == 200:
                    self._failures = 0
                    return content
                self._refuse(status, content)
                last = ServiceError(f"status {status} of {self.url}")
                wait_s = _retry_after(headers.get("Retry-After", ""), wait_s)
            if attempt + 1 < self.config.num_tries:
                time.sleep(min(wait_s, self.config.max_wait_s))
        self._fail(last)

    def _fail(self, error: Exception) -> NoReturn:
        """Raises it, or that it is one too many in a row."""
        self._failures += 1
        if self._failures >= self.config.max_failures:
            raise SpecialistError(
                f"{self.url}: {self._failures} requests in a row failed (last: {error}); "
                "is the service up? Run again when it is, what was annotated is kept"
            ) from error
        raise error

    def _refuse(self, status: int, content: bytes) -> None:
        """Raises on a status that another try would not change."""
        said = _first_words(content)
        if status in _REFUSED:
            raise SpecialistError(f"{self.url}: {_REFUSED[status]} (status {status}: {said})")
        if 300 <= status < 400:
            raise SpecialistError(f"{self.url}: has moved (status {status}); give its new address")
        if status not in _TRY_AGAIN:
            self._fail(ServiceError(f"status {status} of {self.url}: {said}"))

    def _wait_for_turn(self) -> None:
        """Spaces requests of all threads evenly."""
        if self.config.requests_per_minute <= 0:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60 / self.config.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _send(self, data: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """One try: status, headers and body."""
        self._count(requests=1)
        try:
            with self._session().post(
                self.url,
                data=data,
                headers={"Content-Type": "application/json", **self._headers},
                timeout=self.config.request_timeout_s,
                allow_redirects=False,
                stream=True,
            ) as response:
                return response.status_code, response.headers, self._body(response)
        except (self._requests.Timeout, self._urllib3.ReadTimeoutError) as error:
            raise TimeoutError(self._late()) from error

    def _body(self, response: Any) -> bytes:
        """As it comes, byte by byte if need be: `requests` itself limits only each wait."""
        end = time.monotonic() + self.config.request_timeout_s
        content = bytearray()
        while chunk := response.raw.read1(2**16, decode_content=True):
            content += chunk
            if time.monotonic() > end:
                raise TimeoutError(self._late())
            if len(content) > self.config.max_answer_bytes:
                self._count(garbage=1)
                raise GarbageError(f"an answer of more than {self.config.max_answer_bytes} bytes")
        return bytes(content)

    def _late(self) -> str:
        return f"no whole answer of {self.url} in {self.config.request_timeout_s:g} s"

    def _session(self) -> Any:
        """One per thread, for sessions are not made to be shared."""
        if not hasattr(self._local, "session"):
            session = self._requests.Session()
            session.auth = lambda request: request  # Else ~/.netrc would replace the key.
            self._local.session = session
        return self._local.session


def parse_json(content: bytes) -> Any:
    """The JSON of an answer. Raises GarbageError on HTML, half an answer, NaN and the like."""
    try:
        text = content.decode("utf-8")
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise GarbageError("JSON nested too deeply") from error
    except ValueError as error:
        raise GarbageError(f"no JSON: {_first_words(content)}") from error


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is no number of JSON")
    return value


def _first_words(content: bytes) -> str:
    said = " ".join(content[:300].decode("utf-8", "replace").split())[:100]
    return "".join(c if c.isprintable() else "?" for c in said) or "nothing"


def _retry_after(value: str, otherwise_s: float) -> float:
    """Seconds that a service asks for, given as such or as a date."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return otherwise_s


def _keep(place: Path, content: bytes) -> None:
    """Writes an answer whole or not at all: several workers share a cache."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, suffix=".tmp", delete=False) as file:
        file.write(content)
    Path(file.name).replace(place)
