# SPDX-License-Identifier: Apache-2.0
"""The search for what fits, over a compiler whose memory is a line: every figure can be checked."""

import pytest

from florence2_jax.planning.chips import Topology
from florence2_jax.planning.compile import Compiled
from florence2_jax.planning.search import changed, find_remedies
from florence2_jax.typing import UserError

GIB = 1 << 30
TOPOLOGY = Topology.parse("v5e:4x4")  # 15.75 GiB on each of 16 devices.
STATE_GIB = 3
IMAGE_GIB = {"none": 1.5, "dots": 0.7, "full": 0.2}


class Compiler:
    """Needs `state` GiB and more per image, by the remat policy; notes what it is asked."""

    def __init__(self, state: float = STATE_GIB, image: dict = IMAGE_GIB):
        self.state, self.image, self.asked = state, image, []

    def __call__(self, config, topology):
        accumulate = config.get("accumulate", 1)
        remat, images = config["model"]["remat"], config["input"]["batch_size"] // 16 // accumulate
        self.asked.append((remat, images))
        needed = round((self.state + images * self.image[remat]) * GIB)
        fits = needed <= topology.chip.hbm_bytes
        own = {"parameters": GIB, "optimizer": round((self.state - 1) * GIB), "batch": 0}
        program = {"bytes_per_device": own, "images_per_device": images, "remat": remat}
        return Compiled(
            program=program | {"accumulate": accumulate},
            memory={} if fits else None,
            needed_bytes=None if fits else needed,
        )


def search(compiler: Compiler, *, images: int, remat: str = "none"):
    config = {"model": {"remat": remat}, "input": {"batch_size": 16 * images}}
    failed = compiler(config, TOPOLOGY)
    assert not failed.fits
    compiler.asked.clear()
    return find_remedies(config, TOPOLOGY, failed, compiler)


@pytest.mark.parametrize(("images", "remat", "parts"), [(12, "dots", 2), (32, "full", 4)])
def test_the_cheapest_policy_that_fits_is_found(images, remat, parts):
    compiler = Compiler()
    found = search(compiler, images=images)
    assert found.remat == remat
    # Of its own policy: 3 GiB and 8 images of 1.5 GiB in 15.75 GiB.
    assert (found.policy, found.images_per_device, found.batch_size) == ("none", 8, 128)
    assert found.overrides() == [
        f"--config.model.remat={remat}",
        f"--config.model.remat=none --config.accumulate={parts}",
        "--config.model.remat=none --config.input.batch_size=128",
    ]
    assert compiler.asked[-1] == ("none", images // parts)  # Compiled, not worked out.
    assert len(compiler.asked) <= 5


def test_the_largest_batch_of_the_last_policy_where_none_holds_all():
    compiler = Compiler()
    found = search(compiler, images=200, remat="dots")
    assert found.remat is None and found.policy == "full"
    assert 55 <= found.images_per_device <= 63  # To an eighth; 63 would just fit.
    assert found.batch_size == 16 * found.images_per_device
    assert ("full", found.images_per_device) in compiler.asked
    assert len(compiler.asked) <= 7
    assert found.accumulate == 4  # 200 images in parts of 50.
    assert len(found.overrides()) == 2


def test_memory_that_does_not_grow_by_a_line_is_found_by_halves():
    """The compiler's message may count only a part, so that a prediction is far too large."""

    class Odd(Compiler):
        def __call__(self, config, topology):
            found = super().__call__(config, topology)
            return found if found.fits else Compiled(program=found.program, needed_bytes=GIB)

    found = search(Odd(), images=64, remat="full")
    assert 32 <= found.images_per_device <= 63


def test_what_cannot_fit_at_all_is_refused_with_remedies():
    with pytest.raises(UserError, match=r"one image per device with model\.remat=full needs more"):
        search(Compiler(state=15.7), images=8)


def test_one_image_that_does_not_fit_has_only_policies_left():
    compiler = Compiler(state=14.5)
    found = search(compiler, images=1)
    assert found.remat == "dots" and found.images_per_device == 0
    assert found.overrides() == ["--config.model.remat=dots"]


def test_a_changed_run_leaves_the_old_one_alone():
    config = {"model": {"remat": "none"}, "input": {"batch_size": 4}}
    new = changed(config, remat="full", batch_size=2)
    assert config == {"model": {"remat": "none"}, "input": {"batch_size": 4}}
    assert new == {"model": {"remat": "full"}, "input": {"batch_size": 2}}
