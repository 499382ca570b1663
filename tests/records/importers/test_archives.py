# SPDX-License-Identifier: Apache-2.0
"""Images within files read as the bytes they are, or say why not."""

import base64
import os

import pytest

from florence2_jax.records.importers.archives import Base64, Bytes, Slice


def test_a_slice_is_a_part_of_a_file(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    part = Slice(path, 3, 4, "member")
    assert part.exists() and part.read_bytes() == b"3456"
    with pytest.raises(OSError, match="the archive is cut off"):
        Slice(path, 8, 4, "member").read_bytes()
    assert not Slice(tmp_path / "none", 0, 1, "member").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):  # And does not wait.
        Slice(tmp_path / "pipe", 0, 1, "member").read_bytes()


def test_values_of_a_row_are_images_too():
    assert Base64(base64.b64encode(b"image").decode(), "a").read_bytes() == b"image"
    with pytest.raises(OSError, match="base64 text is damaged"):
        Base64("no base64!", "a").read_bytes()
    assert Bytes(b"image", "a").read_bytes() == b"image"
    assert not Bytes(None, "a").exists()
    with pytest.raises(OSError, match="its row holds no image"):
        Bytes(None, "a").read_bytes()
