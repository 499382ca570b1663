# SPDX-License-Identifier: Apache-2.0
"""One saved step on disk: its manifest, and how its arrays are read and held against it.

STEP/params/, STEP/training/   arrays, written by Orbax
STEP/adapters/, STEP/ema/      more of them, where a run trains adapters or keeps an average
STEP/data/metadata             JSON, the position in the data
STEP/manifest/manifest.json    JSON: what was saved, with a digest per array, and its own checksum

Everything here reads by itself, without a word to other processes.
"""

import asyncio
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from florence2_jax.training.digests import Digest, differences, digests, named
from florence2_jax.typing import UserError

PLAIN_FORMAT, FORMAT = 1, 2
"""0 had no manifest: it opens, but cannot be verified. 2 has adapters: who does not know them must
not take `params` for the model. All else is written as 1."""

MANIFEST, MANIFEST_FILE = "manifest", "manifest.json"
ARRAY_ITEMS = ("params", "training")
"""What every step has."""
OPTIONAL_ITEMS = ("adapters", "ema")


class Damaged(Exception):
    """A saved step cannot be used; says what of it, in one line."""


def make_manifest(
    step: int,
    arrays: Mapping[str, Digest],
    *,
    data: Mapping[str, Any] | None,
    metrics: Mapping[str, float] | None,
) -> dict[str, Any]:
    """What `manifest.json` holds."""
    has_adapters = any(name.startswith("adapters/") for name in arrays)
    manifest = {
        "format": FORMAT if has_adapters else PLAIN_FORMAT,
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        "data": None if data is None else _sha256(data),
        "arrays": {name: [x.dtype, list(x.shape), x.bits] for name, x in arrays.items()},
    }
    return manifest | {"checksum": _sha256(manifest)}


def saved_steps(directory: Path) -> list["SavedStep"]:
    """The steps in a checkpoints folder that were saved to their end, oldest first."""
    directory = directory.absolute()  # Orbax opens no relative path.
    if not directory.is_dir():
        return []
    paths = [path for path in directory.iterdir() if path.name.isdigit() and path.is_dir()]
    done = [path for path in paths if ocp.utils.is_checkpoint_finalized(epath.Path(path))]
    return [SavedStep(path) for path in sorted(done, key=lambda path: int(path.name))]


@dataclasses.dataclass(frozen=True)
class SavedStep:
    """A step that was saved to its end."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    def manifest(self) -> dict[str, Any] | None:
        """Its manifest; None if it was saved by a version that wrote none.

        Raises:
            Damaged: if it should have one and it cannot be trusted.
            UserError: if a newer version wrote it.
        """
        path = self.path / MANIFEST / MANIFEST_FILE
        if not path.is_file():
            if self._should_have_manifest():
                raise Damaged("its manifest is missing")
            return None
        manifest = _read_json(path, "manifest")
        rest = {key: value for key, value in manifest.items() if key != "checksum"}
        if manifest.get("checksum") != _sha256(rest):
            raise Damaged("its manifest is damaged: the checksum is not that of its content")
        if manifest["format"] > FORMAT:
            raise UserError(
                f"{self.path} is of checkpoint format {manifest['format']}, this version reads up "
                f"to {FORMAT}: install the florence2-jax it was saved with, or a newer one"
            )
        return manifest

    def data(self) -> dict[str, Any] | None:
        """Its position in the data; None if it was saved without. Raises Damaged."""
        path, manifest = self.path / "data" / "metadata", self.manifest()
        data = _read_json(path, "position in the data") if path.is_file() else None
        if manifest is not None and manifest["data"] != (None if data is None else _sha256(data)):
            raise Damaged("its position in the data is not the one that was saved")
        return data

    def read(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Reads trees of arrays, not verified yet.

        Args:
            wanted: item -> tree of sharded `ShapeDtypeStruct` leaves, for some of its items.

        Raises:
            Damaged: if something cannot be read.
            UserError: if these are not the arrays that were saved: it is of another model.
        """
        self._check_arrays(wanted)
        handler = ocp.StandardCheckpointHandler()
        return {
            item: _call_orbax(
                handler.restore,
                epath.Path(self.path / item),
                args=ocp.args.StandardRestore(tree),
            )
            for item, tree in wanted.items()
        }

    def problems(self, found: Mapping[str, Digest]) -> list[str]:
        """What of these digests is not as it was saved; without a manifest only what is not finite.

        Raises:
            Damaged: if the manifest cannot be trusted.
        """
        bad = [
            f"{name} holds {digest.num_not_finite} values that are not finite"
            for name, digest in found.items()
            if digest.num_not_finite
        ]
        manifest = self.manifest()
        return bad if manifest is None else bad + differences(found, _digests(manifest))

    def audit(self, *, group_bytes: int = 1 << 28) -> Iterator[str]:
        """Reads every array, some at a time, on the default device; yields what is wrong.

        Raises:
            UserError: if a newer version wrote it.
        """
        try:
            self.data()
            expected = self.arrays()
        except Damaged as error:
            yield str(error)
            return
        for item in self.items():
            try:
                tree = self._metadata(item)
            except Damaged as error:
                yield f"{item} cannot be read: {error}"
                continue
            there = {f"{item}/{name}" for name in named(tree)}
            for name in expected:
                if name.startswith(f"{item}/") and name not in there:
                    yield f"{name} is not there"
            for names in _groups(named(tree), group_bytes):
                yield from self._audit(item, tree, names)

    def _audit(self, item: str, tree: Any, names: list[str]) -> Iterator[str]:
        """Reads these arrays of a tree of metadata."""
        try:
            arrays = _read_some(self.path / item, tree, names)
        except Damaged as error:
            if len(names) == 1:
                yield f"{item}/{names[0]} cannot be read: {error}"
                return
        else:
            yield from self.problems(digests({item: arrays}))
            return
        middle = len(names) // 2  # Orbax does not always say which one it was.
        yield from self._audit(item, tree, names[:middle])
        yield from self._audit(item, tree, names[middle:])

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and shape of what was saved, by name. Raises as `manifest` does."""
        if (manifest := self.manifest()) is not None:
            return {name: (x.dtype, x.shape) for name, x in _digests(manifest).items()}
        return _kinds({item: self._metadata(item) for item in self.items()})

    def items(self) -> tuple[str, ...]:
        """The trees of arrays it was saved with. Raises as `manifest` does."""
        if (manifest := self.manifest()) is not None:
            known = {name.partition("/")[0] for name in manifest["arrays"]}
        else:
            known = {path.name for path in self.path.iterdir()}
        return (*ARRAY_ITEMS, *(item for item in OPTIONAL_ITEMS if item in known))

    def _metadata(self, item: str) -> Any:
        handler = ocp.StandardCheckpointHandler()
        return _call_orbax(handler.metadata, epath.Path(self.path / item)).tree

    def _check_arrays(self, wanted: Mapping[str, Any]) -> None:
        here = _kinds(wanted)
        there = {name: kind for name, kind in self.arrays().items() if name.split("/")[0] in wanted}
        offenders = [
            f"{name} is {_text(there.get(name, 'missing'))} there, "
            f"{_text(here.get(name, 'unknown'))} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if offenders:
            raise UserError(
                f"the checkpoint of step {self.number} in {self.path.parent} is of another model: "
                f"{'; '.join(offenders[:3])}{' ...' if len(offenders) > 3 else ''}"
            )

    def _should_have_manifest(self) -> bool:
        items = _read_json(self.path / "_CHECKPOINT_METADATA", "list of items").get("item_handlers")
        return MANIFEST in (items or ())


def one_line(error: BaseException, *, most: int = 240) -> str:
    """What an error says, short enough to stand in a line with others."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, Damaged) else f"{type(error).__name__}: {text}"
    return text if len(text) <= most else f"{text[:most]} ..."


def _call_orbax(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls Orbax, without a word to other processes. Whatever it raises is Damaged."""
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientLoops())
    try:
        return function(*args, **kwargs)
    except Exception as error:  # What its libraries raise.
        text = one_line(error)
    finally:
        asyncio.set_event_loop_policy(policy)
    raise Damaged(text)  # Without the error, whose frames hold what was read.


class _PatientLoop(asyncio.SelectorEventLoop):
    """Waits for the reads of other arrays when one has failed.

    Orbax closes its event loop over them, and each would print a traceback when it ends.
    """

    def close(self) -> None:
        if not self.is_closed() and (reads := asyncio.all_tasks(self)):
            self.run_until_complete(asyncio.gather(*reads, return_exceptions=True))
        super().close()


class _PatientLoops(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _PatientLoop()


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"its {what} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise Damaged(f"its {what} is damaged: not a JSON object")
    return values


def _sha256(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _digests(manifest: Mapping[str, Any]) -> dict[str, Digest]:
    rows = manifest["arrays"].items()
    return {name: Digest(dtype, tuple(shape), bits, 0) for name, (dtype, shape, bits) in rows}


def _kinds(tree: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(np.dtype(x.dtype)), tuple(x.shape)) for name, x in named(tree).items()}


def _text(kind: tuple[str, tuple[int, ...]] | str) -> str:
    return kind if isinstance(kind, str) else f"{kind[0]}{list(kind[1])}"


def _groups(arrays: Mapping[str, Any], most_bytes: int) -> Iterator[list[str]]:
    """Names of arrays in groups of about so many bytes."""
    group, size = [], 0
    for name, x in arrays.items():
        group.append(name)
        size += math.prod(x.shape) * np.dtype(x.dtype).itemsize
        if size >= most_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _read_some(path: Path, tree: Any, names: list[str]) -> dict[str, jax.Array]:
    """Reads the named arrays of a tree of metadata, on one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def pick(path: tuple, x: Any) -> Any:
        is_wanted = jax.tree_util.keystr(path, simple=True, separator="/") in names
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_wanted else ocp.PLACEHOLDER

    some = jax.tree_util.tree_map_with_path(pick, tree)
    arguments = jax.tree.map(
        lambda x: (
            ocp.RestoreArgs() if x is ocp.PLACEHOLDER else ocp.ArrayRestoreArgs(sharding=sharding)
        ),
        some,
    )
    restored = _call_orbax(
        ocp.PyTreeCheckpointHandler().restore,
        epath.Path(path),
        args=ocp.args.PyTreeRestore(item=some, restore_args=arguments),
    )
    return {name: x for name, x in named(restored).items() if name in names}
