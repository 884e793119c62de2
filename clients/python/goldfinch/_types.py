"""Requests and results. Units and limits are those of generate.proto."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence, TypedDict, Union

# A text, or the ids of its tokens.
Text = Union[str, Sequence[int]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. None: the server's default."""

    temperature: Optional[float] = None  # [0, 100]; 0 is greedy
    top_p: Optional[float] = None  # [0, 1]
    top_k: Optional[int] = None  # tokens; 0: no limit
    min_p: Optional[float] = None  # [0, 1], of the likeliest token's probability
    presence_penalty: Optional[float] = None  # [-100, 100]
    frequency_penalty: Optional[float] = None  # [-100, 100]
    penalty_decay: Optional[float] = None  # [0, 1]
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token id, [-100, 100]
    banned_tokens: Sequence[int] = ()  # never drawn


# As evaluations and tests want it.
GREEDY = Sampling(temperature=0, presence_penalty=0, frequency_penalty=0)


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate() and stream(); what is not given has the server's default."""

    max_tokens: Optional[int]  # of each sample; 0 only reads the prompt
    n: int  # samples
    sampling: Optional[Sampling]
    seed: Optional[int]  # of the draws; None: random
    stop: Union[str, Sequence[str]]  # texts that end a sample and are not part of it
    stop_ids: Sequence[int]  # tokens that do
    ignore_eos: bool  # never draw token 0, which ends a text
    logprobs: Optional[int]  # of each token and of so many likeliest ones; None: none
    priority: int  # higher goes first
    request_id: str  # for logs
    progress: bool  # also pieces while the prompt is read


class ScoreOptions(TypedDict, total=False):
    """Keyword arguments of score()."""

    score_prompt: bool  # the slower path: attention layers run for every token
    logprobs: int  # so many likeliest tokens at each position
    logits: bool
    priority: int
    request_id: str


@dataclass(frozen=True)
class Logprob:
    """A token that could have been, and the natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Token:
    id: int
    logprob: Optional[float] = None  # if asked for
    top: Sequence[Logprob] = ()  # the likeliest, best first


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    transformer_cache_bytes: int
    recoveries: int


@dataclass(frozen=True)
class Progress:
    prompt_tokens_done: int
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """What came next of one sample. Text may come later than its tokens."""

    index: int  # the sample
    text: str = ""
    tokens: Sequence[Token] = ()
    finish_reason: Optional[str] = None  # "end of text", "stop" or "length", in a sample's last piece
    usage: Optional[Usage] = None  # in the last piece of all
    progress: Optional[Progress] = None  # nothing else is set beside it


@dataclass(frozen=True)
class Completion:
    """A whole sample."""

    text: str
    tokens: Sequence[Token]
    finish_reason: Optional[str]


@dataclass(frozen=True)
class Generation:
    samples: Sequence[Completion]
    usage: Usage
    request_id: str
    seed: int

    @property
    def text(self) -> str:
        """Of the first sample."""
        return self.samples[0].text

    @property
    def tokens(self) -> Sequence[Token]:
        return self.samples[0].tokens

    @property
    def finish_reason(self) -> Optional[str]:
        return self.samples[0].finish_reason


@dataclass(frozen=True)
class ScoredText:
    tokens: Sequence[Token]  # each with its logprob
    logits: bytes = b""  # [tokens, vocab_size] float32, little-endian; if asked for

    @property
    def logprob(self) -> float:
        """Of the whole text."""
        return sum(token.logprob or 0.0 for token in self.tokens)


@dataclass(frozen=True)
class Score:
    continuations: Sequence[ScoredText]
    prompt: Optional[ScoredText]  # from the second token on; if asked for
    usage: Usage
    request_id: str
