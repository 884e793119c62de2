"""Types of requests and results. generate.proto gives units and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence, TypedDict, Union

# A text, or the ids of its tokens.
Text = Union[str, Sequence[int]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. None stands for the server's default."""

    temperature: Optional[float] = None  # [0, 100]; 0 always takes the most likely token
    top_p: Optional[float] = None  # [0, 1]
    top_k: Optional[int] = None  # tokens; 0: no limit
    min_p: Optional[float] = None  # [0, 1], share of the most likely token's probability
    presence_penalty: Optional[float] = None  # [-100, 100]
    frequency_penalty: Optional[float] = None  # [-100, 100]
    penalty_decay: Optional[float] = None  # [0, 1]
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the logit of a token id, [-100, 100]
    banned_tokens: Sequence[int] = ()  # never drawn


# Repeatable without a seed, for evaluations and tests.
GREEDY = Sampling(temperature=0, presence_penalty=0, frequency_penalty=0)


@dataclass(frozen=True)
class Context:
    """What a server keeps of a text under a name. contexts.proto says more."""

    name: str
    tokens: int
    etag: str  # another one after every change
    pinned: bool
    created_unix_seconds: float
    last_use_unix_seconds: float
    expires_unix_seconds: Optional[float]  # unless it is used before; None: never
    bytes: int
    shared_bytes: int  # of these, what other contexts have, too
    snapshots: Sequence[int]  # positions from which texts go on at no cost
    place: str  # "nowhere", "memory", "disk" or "memory and disk"
    transformer_bytes: int  # what a transformer of the same shape would keep


# A context, or its name.
ContextName = Union[str, Context]


@dataclass(frozen=True)
class KeepAs:
    """How a context is kept."""

    name: str
    expire_after_seconds: Optional[float] = None  # since its last use; None: until it is deleted
    etag: str = ""  # of the context of this name that it takes the place of; without it the name must be free


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate() and stream(). Those not given have the server's default."""

    # Most tokens of each sample; 0 only reads the prompt. None: 256, or fewer where the longest sequence ends.
    max_tokens: Optional[int]
    n: int  # number of samples
    sampling: Optional[Sampling]
    seed: Optional[int]  # seed of the random draws; None: a random seed
    stop: Union[str, Sequence[str]]  # texts that end a sample and are not part of it
    stop_ids: Sequence[int]  # token ids that end a sample
    ignore_eos: bool  # never draw token 0, which ends a text
    logprobs: Optional[int]  # log-probabilities of each token and of this many most likely ones; None: none
    priority: int  # higher goes first
    request_id: str  # for logs
    progress: bool  # also return pieces with `progress` while the prompt is read
    cache: bool  # whether the server may begin with what it has kept of the same text, and keep this one
    context: Optional[ContextName]  # whose tokens come before the prompt, which may then be empty
    context_tokens: Optional[int]  # only so many of its first tokens
    keep_as: Union[str, KeepAs, None]  # keeps prompt and answer as a context of this name
    breakpoints: Sequence[int]  # tokens of the prompt after which other prompts will go on differently


class ScoreOptions(TypedDict, total=False):
    """Keyword arguments of score()."""

    score_prompt: bool  # slower: attention layers run for every token
    logprobs: int  # this many most likely tokens at each position
    logits: bool
    priority: int
    request_id: str
    cache: bool  # as in GenerateOptions
    context: Optional[ContextName]  # as in GenerateOptions
    context_tokens: Optional[int]


@dataclass(frozen=True)
class Logprob:
    """A candidate token and the natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Token:
    id: int
    logprob: Optional[float] = None  # if requested
    top: Sequence[Logprob] = ()  # the most likely tokens, the best first


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
    cached_tokens: int = 0  # of prompt_tokens, those that were not read again
    reread_tokens: int = 0  # that were read once more: after a loss or a parking, or for a further sample


@dataclass(frozen=True)
class Progress:
    prompt_tokens_done: int
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """The next part of one sample. Text may arrive later than its tokens."""

    index: int  # which sample
    text: str = ""
    tokens: Sequence[Token] = ()
    finish_reason: Optional[str] = None  # "end of text", "stop" or "length", in a sample's last piece
    usage: Optional[Usage] = None  # in the last piece
    progress: Optional[Progress] = None  # if this is set, nothing else is


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
        """The text of the first sample."""
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
    logits: bytes = b""  # [tokens, vocab_size] float32, little-endian; if requested

    @property
    def logprob(self) -> float:
        """Log-probability of the whole text."""
        return sum(token.logprob or 0.0 for token in self.tokens)


@dataclass(frozen=True)
class Score:
    continuations: Sequence[ScoredText]
    prompt: Optional[ScoredText]  # from the second token on; if requested
    usage: Usage
    request_id: str
