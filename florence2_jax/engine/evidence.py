# SPDX-License-Identifier: Apache-2.0
"""What a prediction is worth: how found and missed annotations change their scores.

A score is read as the probability that an annotation is true. The model of a round looks at the
image of every annotation again. Of true ones it finds a share `recall`, which the audit measured
for each class; of false ones it repeats a share `echo`, for it was trained on them. So, by Bayes'
rule, the odds of an annotation change by

    found   recall / echo
    missed  (1 - recall) / (1 - echo)

A class that the model knows well (recall 0.9, echo 0.3) has its odds tripled where it is found and
divided by 7 where it is not; a class that it finds no oftener than it repeats errors tells nothing,
and its scores stay.
"""

import dataclasses
from collections.abc import Mapping

from florence2_jax.records.schema import Provenance
from florence2_jax.typing import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """The `refine` section of a run file: how predictions are merged with what is there.

    Raises:
        UserError: for a number out of range.
    """

    iou: float = 0.5
    """Boxes that overlap so much, intersection over union, are one place."""
    new_iou: float = 0.3
    """A prediction that overlaps a region of its name so much says nothing new."""
    add_score: float = 0.5
    """What the model predicts where nothing is enters the record with this score or more."""
    echo: float = 0.3
    """The share of false annotations that a model trained on them repeats. A guess of ours: the
    higher it is, the less the model's word counts."""
    recall: float = 0.5
    """Of what the audit has measured none for."""
    max_recall: float = 0.95
    """A miss is never proof: recalls above are taken as this."""
    max_score: float = 0.99
    """Agreement raises scores up to this; it is never certainty."""
    unscored: float = 0.5
    """The score of annotations whose maker gave none."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 < (value := getattr(self, field.name)) < 1:
                raise UserError(f"refine.{field.name}: {value} must lie between 0 and 1")
        if self.new_iou > self.iou:
            raise UserError(f"refine.new_iou: {self.new_iou} must not exceed refine.iou {self.iou}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one round's model finds or misses changes scores by this.

    `recalls` are those of the model by class, lower case, as measured on the audited split; under
    "" that of all classes together, for those which are not there.
    """

    config: RefineConfig
    round: int
    recalls: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def score(self, maker: Provenance) -> float:
        """The score of an annotation, that of `unscored` where there is none."""
        return self.config.unscored if maker.score is None else maker.score

    def found(self, score: float, name: str = "") -> float:
        """The score of what the model found again; never lower than it was."""
        recall, echo = self._recall(name), self.config.echo
        return max(score, min(self._scaled(score, recall / echo), self.config.max_score))

    def missed(self, score: float, name: str = "") -> float:
        """The score of what the model, asked for it, did not find; never higher than it was."""
        recall, echo = self._recall(name), self.config.echo
        return min(score, self._scaled(score, (1 - recall) / (1 - echo)))

    def _recall(self, name: str) -> float:
        """At least `echo`: to be found is never evidence against, nor to be missed evidence for."""
        others = self.recalls.get("", self.config.recall)
        recall = self.recalls.get(name.casefold(), others)
        return min(max(recall, self.config.echo), self.config.max_recall)

    def _scaled(self, score: float, ratio: float) -> float:
        score = min(score, self.config.max_score)
        return score * ratio / (score * ratio + 1 - score)

    def entering(self, maker: Provenance, dropped: str = "") -> Provenance:
        """The provenance of a prediction that enters a record in this round."""
        return dataclasses.replace(maker, round=self.round, dropped=dropped)

    @property
    def contradicted(self) -> str:
        """The mark of the weaker of two annotations that name one place differently."""
        return f"{CONTRADICTED} in round {self.round}"

    @property
    def replaced(self) -> str:
        """The mark of what an earlier round's model said and this one says differently."""
        return f"{REPLACED} in round {self.round}"


CONTRADICTED, REPLACED = "contradicted", "replaced"


def is_set_aside(maker: Provenance) -> bool:
    """Whether merging, not a filter, took an annotation out: filters leave its mark alone."""
    return maker.dropped.startswith((CONTRADICTED, REPLACED))
