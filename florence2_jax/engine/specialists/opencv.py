# SPDX-License-Identifier: Apache-2.0
"""People and faces by the two detectors that OpenCV 4 carries with it.

People by histograms of oriented gradients and a linear support vector machine (Dalal and Triggs,
2005), whole, upright and at least 128 px tall; faces by a cascade of Haar-like features (Viola and
Jones, 2001), seen from the front. OpenCV 5 moved both, and the files of the cascades, to its extra
modules (opencv/opencv pull request 25198): its main wheels have neither.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image

from florence2_jax.engine.specialists.base import Annotations, SpecialistError
from florence2_jax.engine.specialists.configured import (
    ImageSpecialist,
    check_share,
    clipped,
    needs,
)
from florence2_jax.engine.specialists.grounding import surest
from florence2_jax.records.schema import Label, Record, Region
from florence2_jax.typing import UserError

INSTALL = '"opencv-python-headless>=4.10,<5"'


@dataclasses.dataclass(kw_only=True, eq=False)
class OpenCvDetector(ImageSpecialist):
    """Boxes of one class. Its scores are margins of a classifier, pressed into [0, 1].

    Settings:
        label: what a box is called.
        threshold: of the score `1 / (1 + exp(-margin))`; 0.5 is the classifier's own border.
        scale: from one size of search window to the next.
        nms_iou: of two boxes that overlap more, the surer stays.
        max_side_px: larger images are searched at this size; 0 for their own.
    """

    label: str = ""
    threshold: float = 0.5
    scale: float = 1.05
    nms_iou: float = 0.5
    max_side_px: int = 1280

    family: ClassVar[str]
    default_label: ClassVar[str]
    kinds = ("boxes",)

    def check(self) -> None:
        check_share("threshold", self.threshold)
        check_share("nms_iou", self.nms_iou)
        if not self.scale > 1:
            raise UserError(f"scale: {self.scale} is not above 1")

    def title(self) -> str:
        return f"opencv:{self.family}"

    def software(self) -> str:
        return needs("cv2", INSTALL).__version__

    def look(
        self, records: Sequence[Record], images: Sequence[Image.Image]
    ) -> Sequence[Annotations]:
        return [self._find(r, image) for r, image in zip(records, images, strict=True)]

    def _find(self, record: Record, image: Image.Image) -> Annotations:
        factor = min(1.0, self.max_side_px / max(image.size)) if self.max_side_px else 1.0
        if factor < 1:
            width, height = (max(1, round(side * factor)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        grey = np.asarray(image.convert("L"))
        corners, margins = self.search(grey)
        scores = np.array([1 / (1 + math.exp(-min(50.0, max(-50.0, m)))) for m in margins])
        regions = []
        for i in surest(corners, scores, self.threshold, self.nms_iou):
            box = clipped((corners[i] / factor).tolist(), record.size)
            if box is not None:
                labels = (Label(text=self.label or self.default_label),)
                maker = self.maker(float(scores[i]))
                regions.append(Region(box=box, labels=labels, provenance=maker))
        return Annotations(regions=tuple(regions))

    @abc.abstractmethod
    def search(self, grey: NDArray) -> tuple[Float[NDArray, "R 4"], Float[NDArray, "R"]]:
        """Boxes in pixels of a grey image, and the margin of each."""


def _with(cv2: Any, name: str) -> Any:
    """A class of OpenCV 4. Raises SpecialistError where it is gone."""
    if not hasattr(cv2, name):
        raise SpecialistError(
            f"opencv: version {cv2.__version__} has no {name}; run: pip install {INSTALL}"
        )
    return getattr(cv2, name)


def _corners(rectangles: Any) -> Float[NDArray, "R 4"]:
    """`x, y, width, height` as corners."""
    values = np.asarray(rectangles, np.float64).reshape(-1, 4)
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)


@dataclasses.dataclass(kw_only=True, eq=False)
class People(OpenCvDetector):
    """People on their feet."""

    family = "people"
    default_label = "person"

    def load(self) -> None:
        cv2 = needs("cv2", INSTALL)
        cv2.setNumThreads(max(1, int(self.num_cpus)))
        kind = _with(cv2, "HOGDescriptor")
        self._hog = kind()
        self._hog.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())

    def search(self, grey: NDArray) -> tuple[Float[NDArray, "R 4"], Float[NDArray, "R"]]:
        if grey.shape[0] < 128 or grey.shape[1] < 64:  # The search window.
            return np.zeros((0, 4)), np.zeros(0)
        boxes, margins = self._hog.detectMultiScale(
            grey, winStride=(8, 8), padding=(8, 8), scale=self.scale
        )
        return _corners(boxes), np.asarray(margins, np.float64).reshape(-1)


@dataclasses.dataclass(kw_only=True, eq=False)
class Faces(OpenCvDetector):
    """Faces from the front.

    Settings:
        min_neighbours: windows that must agree on a face.
    """

    min_neighbours: int = 5

    family = "faces"
    default_label = "face"

    def load(self) -> None:
        cv2 = needs("cv2", INSTALL)
        cv2.setNumThreads(max(1, int(self.num_cpus)))
        kind = _with(cv2, "CascadeClassifier")
        path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
        if not path.is_file():
            raise SpecialistError(f"opencv: {path} is missing; run: pip install {INSTALL}")
        self._cascade: Any = kind(str(path))

    def search(self, grey: NDArray) -> tuple[Float[NDArray, "R 4"], Float[NDArray, "R"]]:
        boxes, _, margins = self._cascade.detectMultiScale3(
            grey,
            scaleFactor=self.scale,
            minNeighbors=self.min_neighbours,
            outputRejectLevels=True,
        )
        return _corners(boxes), np.asarray(margins, np.float64).reshape(-1)
