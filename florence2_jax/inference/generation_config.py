# SPDX-License-Identifier: Apache-2.0
"""How to generate: the options of `transformers`, by their names and with their meaning."""

import dataclasses
import math
from collections.abc import Mapping

from florence2_jax.tasks.registry import TASKS, get_task
from florence2_jax.text.tokenizer import BOS_ID, EOS_ID
from florence2_jax.typing import UserError

DEFAULT_NEW_TOKENS = 256
"""Where no length is given. Ours: 20 tokens, as in transformers, cut most detections short."""

_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Options of one call; hashable, so that a compiled program belongs to each.

    Defaults are those of the released models (3 beams, no trigram twice, early stopping, `<s>`
    first, `</s>` last). Every decoder starts with `</s>`, ends at `</s>` and pads with `<pad>`.

    Attributes:
        num_beams: hypotheses searched side by side; 1 is greedy, or plain sampling.
        do_sample: draw tokens instead of taking the most probable ones.
        temperature: what scores are divided by before drawing.
        top_k: draw among the `top_k` most probable tokens; 0 for all.
        top_p: draw among the most probable tokens that reach this probability together.
        length_penalty: a finished beam is worth its log-probability divided by
            `new_tokens ** length_penalty`, so above 0 long answers gain, below 0 they lose.
        early_stopping: True stops when `num_beams` hypotheses are finished; False when the best
            open one would not be better at its present length; `"never"` when it could not be
            better at any length.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in an answer; 0 for no
            such rule.
        task_ngram_sizes: the rule for single tasks, `{"<OCR>": 0}`; kept as sorted pairs.
        forced_bos_token_id: the first new token, or None.
        forced_eos_token_id: the last new token where the length is used up, or None.
        suppress_bos: no `<s>` after the first new token. Ours, against endless `<s>`.
        pool_locations: locations are weighed against other tokens by the probability of all of
            them together, which the likeliest gets. Ours, for models that learnt with smoothed
            locations (`loss.location_smoothing_bins`): no single location is probable there, so
            outlines would end half drawn. Nothing to `do_sample`, which needs no such help.
        max_new_tokens: length of an answer at most, `<s>` and `</s>` included.
        max_length: the same with the decoder's start token counted. Give one of the two.
        min_new_tokens: no `</s>` before so many new tokens.
        min_length: the same with the start token counted. Give one of the two.
        num_return_sequences: R, answers per prompt: the best beams, or independent samples.
        seed: of the random numbers of `do_sample`.

    Raises:
        UserError: if options contradict each other or would have no effect; it names them.
    """

    num_beams: int = 3
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    length_penalty: float = 1.0
    early_stopping: bool | str = True  # "never" is the only string.
    no_repeat_ngram_size: int = 3
    task_ngram_sizes: tuple[tuple[str, int], ...] | Mapping[str, int] = ()
    forced_bos_token_id: int | None = BOS_ID
    forced_eos_token_id: int | None = EOS_ID
    suppress_bos: bool = False
    pool_locations: bool = False
    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    num_return_sequences: int = 1
    seed: int = 0

    def __post_init__(self):
        sizes = {get_task(name).token: size for name, size in dict(self.task_ngram_sizes).items()}
        object.__setattr__(self, "task_ngram_sizes", tuple(sorted(sizes.items())))
        self._check_numbers()
        self._check_lengths()
        self._check_combinations()

    @property
    def num_new_tokens(self) -> int:
        """T: tokens of an answer at most, `<s>` and `</s>` included."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return DEFAULT_NEW_TOKENS if self.max_length is None else self.max_length - 1

    @property
    def fewest_new_tokens(self) -> int:
        """Tokens of an answer at least, `</s>` not included."""
        if self.min_new_tokens is not None:
            return self.min_new_tokens
        return max(0, (self.min_length or 0) - 1)

    @property
    def largest_ngram_size(self) -> int:
        """The largest n-gram any task must not repeat."""
        return max(self.no_repeat_ngram_size, *dict(self.task_ngram_sizes).values(), 0)

    def ngram_size(self, task: str) -> int:
        """The n-gram rule of a task, by its token."""
        return dict(self.task_ngram_sizes).get(task, self.no_repeat_ngram_size)

    def exempt_structured(self) -> "GenerationConfig":
        """The same without the n-gram rule for tasks that must be free to repeat themselves.

        Coordinates and what is read off an image do repeat: for them the released rule corrupts
        answers. Prose (captions, descriptions, questions) keeps the rule.
        """
        exempt = {
            token: 0
            for token, task in TASKS.items()
            if task.grammar not in ("text", "region_text") or task.metric.startswith("word")
        }
        sizes = exempt | dict(self.task_ngram_sizes)
        return dataclasses.replace(self, task_ngram_sizes=tuple(sizes.items()))

    def _check_numbers(self) -> None:
        for name in ("num_beams", "num_return_sequences", "max_new_tokens"):
            value = getattr(self, name)
            _check(value is None or value >= 1, name, value, "at least 1")
        _check(self.max_length is None or self.max_length >= 2, "max_length", self.max_length,
               "at least 2: the start token and one more")  # fmt: skip
        for name in ("top_k", "no_repeat_ngram_size", "min_new_tokens", "min_length", "seed"):
            value = getattr(self, name)
            _check(value is None or value >= 0, name, value, "not negative")
        for task, size in dict(self.task_ngram_sizes).items():
            _check(size >= 0, f"task_ngram_sizes[{task}]", size, "not negative")
        finite = math.isfinite(self.temperature) and self.temperature > 0
        _check(finite, "temperature", self.temperature, "positive")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "a probability above 0")
        _check(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "finite")
        is_known = self.early_stopping in (True, False, "never")
        _check(is_known, "early_stopping", self.early_stopping, 'True, False or "never"')
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            value = getattr(self, name)
            _check(value is None or value >= 0, name, value, "a token id or None")

    def _check_lengths(self) -> None:
        both = self.max_new_tokens is not None and self.max_length is not None
        if both and self.max_length != self.num_new_tokens + 1:
            raise UserError(
                f"max_new_tokens={self.max_new_tokens} and max_length={self.max_length} (which"
                " counts the start token) contradict each other: give one of them"
            )
        both = self.min_new_tokens is not None and self.min_length is not None
        if both and max(0, (self.min_length or 0) - 1) != self.fewest_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens} and min_length={self.min_length} (which"
                " counts the start token) contradict each other: give one of them"
            )
        if self.fewest_new_tokens >= self.num_new_tokens:
            raise UserError(
                f"an answer of {self.fewest_new_tokens} tokens before </s> (min_new_tokens,"
                f" min_length) does not fit into {self.num_new_tokens} (max_new_tokens, max_length)"
            )

    def _check_combinations(self) -> None:
        if not self.do_sample:
            for name, default in _SAMPLING.items():
                if getattr(self, name) != default:
                    value = getattr(self, name)
                    raise UserError(f"{name}={value} does nothing without do_sample=True")
        returned, beams = self.num_return_sequences, self.num_beams
        if beams == 1 and returned > 1 and not self.do_sample:
            raise UserError(
                f"num_return_sequences={returned}: greedy search finds one; use num_beams or"
                " do_sample"
            )
        if 1 < beams < returned:
            raise UserError(f"num_return_sequences={returned} is more than num_beams={beams}")


def _check(is_right: bool, name: str, value: object, what: str) -> None:
    if not is_right:
        raise UserError(f"{name}={value!r} must be {what}")
