"""Converts between the package's types and the messages of generate.proto and contexts.proto."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import grpc

from goldfinch import contexts_pb2
from goldfinch import generate_pb2 as pb
from goldfinch._errors import GoldfinchError
from goldfinch._types import (
    Completion,
    Context,
    ContextName,
    Generation,
    KeepAs,
    Logprob,
    Piece,
    Progress,
    Sampling,
    Score,
    ScoredText,
    Text,
    Token,
    Usage,
)

_FINISH_REASONS = {pb.END_OF_TEXT: "end of text", pb.STOP: "stop", pb.LENGTH: "length"}


_PLACES = {
    contexts_pb2.NOWHERE: "nowhere",
    contexts_pb2.MEMORY: "memory",
    contexts_pb2.DISK: "disk",
    contexts_pb2.MEMORY_AND_DISK: "memory and disk",
}


def name_of(context: Optional[ContextName]) -> str:
    if context is None:
        return ""
    return context.name if isinstance(context, Context) else context


def keep_as_of(keep_as: Union[str, KeepAs]) -> pb.KeepAs:
    if isinstance(keep_as, str):
        return pb.KeepAs(name=keep_as)
    return pb.KeepAs(name=keep_as.name, expire_after_seconds=keep_as.expire_after_seconds, etag=keep_as.etag)


def context_of(message: contexts_pb2.Context) -> Context:
    expires = message.expires_unix_seconds if message.HasField("expires_unix_seconds") else None
    return Context(
        name=message.name,
        tokens=message.tokens,
        etag=message.etag,
        pinned=message.pinned,
        created_unix_seconds=message.created_unix_seconds,
        last_use_unix_seconds=message.last_use_unix_seconds,
        expires_unix_seconds=expires,
        bytes=message.bytes,
        shared_bytes=message.shared_bytes,
        snapshots=tuple(message.snapshots),
        place=_PLACES.get(message.place, "unknown"),
        transformer_bytes=message.transformer_bytes,
    )


def set_text(message, text: Text) -> None:
    """Sets the text or the ids of a message that has a oneof of both."""
    if isinstance(text, str):
        message.text = text
    else:
        message.ids.ids.extend(text)


def set_sampling(message: pb.SamplingOptions, sampling: Sampling) -> None:
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "penalty_decay",
    ):
        value = getattr(sampling, name)
        if value is not None:
            setattr(message, name, value)
    message.logit_bias.update(sampling.logit_bias)
    message.banned_tokens.extend(sampling.banned_tokens)


def generate_request(
    prompt: Text,
    *,
    max_tokens: Optional[int] = None,
    n: int = 1,
    sampling: Optional[Sampling] = None,
    seed: Optional[int] = None,
    stop: Union[str, Sequence[str]] = (),
    stop_ids: Sequence[int] = (),
    ignore_eos: bool = False,
    logprobs: Optional[int] = None,
    priority: int = 0,
    request_id: str = "",
    progress: bool = False,
    cache: bool = True,
    context: Optional[ContextName] = None,
    context_tokens: Optional[int] = None,
    keep_as: Union[str, KeepAs, None] = None,
    breakpoints: Sequence[int] = (),
) -> pb.GenerateRequest:
    request = pb.GenerateRequest(
        n=n,
        stop=[stop] if isinstance(stop, str) else stop,
        stop_ids=stop_ids,
        ignore_eos=ignore_eos,
        priority=priority,
        request_id=request_id,
        progress=progress,
        cache=cache,
        context=name_of(context),
        breakpoints=breakpoints,
        # None leaves these out, which is not the same as 0.
        max_tokens=max_tokens,
        seed=seed,
        logprobs=logprobs,
        context_tokens=context_tokens,
        keep_as=None if keep_as is None else keep_as_of(keep_as),
    )
    set_text(request, prompt)
    if sampling is not None:
        set_sampling(request.sampling, sampling)
    return request


def score_request(
    prompt: Text,
    continuations: Sequence[Text] = (),
    *,
    score_prompt: bool = False,
    logprobs: int = 0,
    logits: bool = False,
    priority: int = 0,
    request_id: str = "",
    cache: bool = True,
    context: Optional[ContextName] = None,
    context_tokens: Optional[int] = None,
) -> pb.ScoreRequest:
    if isinstance(continuations, str):
        raise TypeError("continuations is a str, expected a list of texts or of lists of ids")
    request = pb.ScoreRequest(
        score_prompt=score_prompt,
        logprobs=logprobs,
        logits=logits,
        priority=priority,
        request_id=request_id,
        cache=cache,
        context=name_of(context),
        context_tokens=context_tokens,
    )
    set_text(request, prompt)
    for continuation in continuations:
        set_text(request.continuations.add(), continuation)
    return request


def create_context_request(
    keep_as: Union[str, KeepAs],
    prompt: Text,
    *,
    context: Optional[ContextName] = None,
    context_tokens: Optional[int] = None,
    breakpoints: Sequence[int] = (),
    priority: int = 0,
    request_id: str = "",
) -> contexts_pb2.CreateContextRequest:
    request = contexts_pb2.CreateContextRequest(
        keep_as=keep_as_of(keep_as),
        context=name_of(context),
        context_tokens=context_tokens,
        breakpoints=breakpoints,
        priority=priority,
        request_id=request_id,
    )
    set_text(request, prompt)
    return request


def append_context_request(
    name: ContextName,
    prompt: Text,
    *,
    etag: str = "",
    priority: int = 0,
    request_id: str = "",
) -> contexts_pb2.AppendContextRequest:
    request = contexts_pb2.AppendContextRequest(
        name=name_of(name), etag=etag, priority=priority, request_id=request_id
    )
    set_text(request, prompt)
    return request


def get_context_request(name: ContextName) -> contexts_pb2.GetContextRequest:
    return contexts_pb2.GetContextRequest(name=name_of(name))


def fork_context_request(
    context: ContextName, keep_as: Union[str, KeepAs], *, context_tokens: Optional[int] = None
) -> contexts_pb2.ForkContextRequest:
    return contexts_pb2.ForkContextRequest(
        context=name_of(context), context_tokens=context_tokens, keep_as=keep_as_of(keep_as)
    )


def rename_context_request(
    name: ContextName, new_name: str, *, etag: str = ""
) -> contexts_pb2.RenameContextRequest:
    return contexts_pb2.RenameContextRequest(name=name_of(name), new_name=new_name, etag=etag)


def pin_context_request(name: ContextName, pinned: bool, *, etag: str = "") -> contexts_pb2.PinContextRequest:
    return contexts_pb2.PinContextRequest(name=name_of(name), pinned=pinned, etag=etag)


def delete_context_request(name: ContextName, *, etag: str = "") -> contexts_pb2.DeleteContextRequest:
    return contexts_pb2.DeleteContextRequest(name=name_of(name), etag=etag)


def progress_of(message: pb.Progress) -> Progress:
    return Progress(message.prompt_tokens_done, message.prompt_tokens)


def token_of(message: pb.Token) -> Token:
    return Token(
        id=message.id,
        logprob=message.logprob if message.HasField("logprob") else None,
        top=tuple(Logprob(top.id, top.logprob) for top in message.top),
    )


def usage_of(message: pb.Usage) -> Usage:
    return Usage(**{field.name: getattr(message, field.name) for field in pb.Usage.DESCRIPTOR.fields})


def piece_of(message: pb.GenerateResponse) -> Piece:
    progress = None
    if message.HasField("progress"):
        progress = progress_of(message.progress)
    return Piece(
        index=message.index,
        text=message.text,
        tokens=tuple(token_of(token) for token in message.tokens),
        finish_reason=_FINISH_REASONS.get(message.finish_reason),
        usage=usage_of(message.usage) if message.HasField("usage") else None,
        progress=progress,
    )


class Header:
    """The request id and the seed, which the first response brings."""

    def __init__(self) -> None:
        self.request_id = ""
        self.seed = 0

    def see(self, message: pb.GenerateResponse) -> None:
        if message.request_id:
            self.request_id, self.seed = message.request_id, message.seed


class GenerationBuilder:
    """Joins the pieces of a stream into a Generation."""

    def __init__(self) -> None:
        self._texts: Dict[int, List[str]] = {}
        self._tokens: Dict[int, List[Token]] = {}
        self._reasons: Dict[int, str] = {}
        self._usage: Optional[Usage] = None

    def add(self, piece: Piece) -> None:
        if piece.progress is None:
            self._texts.setdefault(piece.index, []).append(piece.text)
            self._tokens.setdefault(piece.index, []).extend(piece.tokens)
        if piece.finish_reason is not None:
            self._reasons[piece.index] = piece.finish_reason
        if piece.usage is not None:
            self._usage = piece.usage

    def build(self, samples: int, header: Header) -> Generation:
        return Generation(
            samples=tuple(
                Completion("".join(self._texts.get(i, ())), tuple(self._tokens.get(i, ())), self._reasons.get(i))
                for i in range(samples)
            ),
            usage=self._usage or usage_of(pb.Usage()),
            request_id=header.request_id,
            seed=header.seed,
        )


class ScoreBuilder:
    """Joins the responses of a Score call into a Score."""

    def __init__(self, request: pb.ScoreRequest) -> None:
        self._prompt = request.score_prompt
        # By the index of the continuation; -1 is the prompt.
        self._tokens: Dict[int, List[Token]] = {i: [] for i in range(-1, len(request.continuations))}
        self._logits: Dict[int, List[bytes]] = {i: [] for i in self._tokens}
        self._usage = usage_of(pb.Usage())
        self._request_id = ""

    def add(self, message: pb.ScoreResponse) -> None:
        self._request_id = message.request_id or self._request_id
        if message.HasField("usage"):
            self._usage = usage_of(message.usage)
        part = message.WhichOneof("part")
        if part is None:
            return
        index = -1 if part == "prompt" else message.continuation
        self._tokens[index].extend(token_of(token) for token in message.tokens)
        self._logits[index].append(message.logits)

    def build(self) -> Score:
        texts = {i: ScoredText(tuple(self._tokens[i]), b"".join(self._logits[i])) for i in self._tokens}
        return Score(
            continuations=tuple(texts[i] for i in range(len(texts) - 1)),
            prompt=texts[-1] if self._prompt else None,
            usage=self._usage,
            request_id=self._request_id,
        )


class ContextBuilder:
    """Takes the responses of a call that has a text read, up to the context that it has made."""

    def __init__(self, progress: Optional[Callable[[Progress], None]]) -> None:
        self._progress = progress
        self._context: Optional[Context] = None

    def add(self, message: Any) -> None:
        if message.HasField("progress") and self._progress is not None:
            self._progress(progress_of(message.progress))
        if message.HasField("context"):
            self._context = context_of(message.context)

    def build(self) -> Context:
        if self._context is None:
            raise GoldfinchError(grpc.StatusCode.INTERNAL, "the server has ended the call without the context")
        return self._context
