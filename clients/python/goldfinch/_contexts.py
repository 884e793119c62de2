"""Named contexts, for the blocking client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional, Sequence, Union

from goldfinch import _messages
from goldfinch import contexts_pb2 as pb
from goldfinch._errors import AbortedError, UnavailableError
from goldfinch._transfer import Download, Path, Upload
from goldfinch._types import Context, ContextName, KeepAs, Progress, Text

if TYPE_CHECKING:
    from goldfinch._client import Client


class Contexts:
    """The named contexts of a server: `client.contexts`. contexts.proto documents what they are, and the limits.

    Where a context is asked for, its name will do. `keep_as` is the name of a context that is made, or a KeepAs. With
    an `etag`, a call does something only if the context still has it, and else raises AbortedError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        keep_as: Union[str, KeepAs],
        prompt: Text,
        *,
        context: Optional[ContextName] = None,
        context_tokens: Optional[int] = None,
        breakpoints: Sequence[int] = (),
        priority: int = 0,
        request_id: str = "",
        progress: Optional[Callable[[Progress], None]] = None,
        timeout: Optional[float] = None,
    ) -> Context:
        """Has a text read, and keeps it; returns when that is done. `prompt` is a text or a list of token ids.

        context, context_tokens: begins with the tokens of this context, or with so many of them.
        breakpoints: tokens of the prompt after which other texts will go on differently, which then costs nothing.
        progress: called while the text is read.
        """
        request = _messages.create_context_request(
            keep_as,
            prompt,
            context=context,
            context_tokens=context_tokens,
            breakpoints=breakpoints,
            priority=priority,
            request_id=request_id,
        )
        return self._read("Contexts.Create", request, progress, timeout)

    def append(
        self,
        name: ContextName,
        prompt: Text,
        *,
        etag: str = "",
        priority: int = 0,
        request_id: str = "",
        progress: Optional[Callable[[Progress], None]] = None,
        timeout: Optional[float] = None,
    ) -> Context:
        """Has more text read at the end of a context."""
        request = _messages.append_context_request(
            name, prompt, etag=etag, priority=priority, request_id=request_id
        )
        return self._read("Contexts.Append", request, progress, timeout)

    def get(self, name: ContextName, *, timeout: Optional[float] = None) -> Context:
        return self._change("Contexts.Get", _messages.get_context_request(name), timeout)

    def list(self, *, page_size: int = 0, timeout: Optional[float] = None) -> Iterator[Context]:
        """All contexts by name, a page at a time."""
        request = pb.ListContextsRequest(page_size=page_size)
        while True:
            page = self._client._unary("Contexts.List", request, timeout)
            for message in page.contexts:
                yield _messages.context_of(message)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def fork(
        self,
        context: ContextName,
        keep_as: Union[str, KeepAs],
        *,
        context_tokens: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> Context:
        """Gives a name to a context, or to its first tokens; both go on by themselves."""
        request = _messages.fork_context_request(context, keep_as, context_tokens=context_tokens)
        return self._change("Contexts.Fork", request, timeout)

    def rename(
        self, name: ContextName, new_name: str, *, etag: str = "", timeout: Optional[float] = None
    ) -> Context:
        request = _messages.rename_context_request(name, new_name, etag=etag)
        return self._change("Contexts.Rename", request, timeout)

    def pin(
        self, name: ContextName, pinned: bool = True, *, etag: str = "", timeout: Optional[float] = None
    ) -> Context:
        """Keeps a context from expiring, and its bytes in memory; or lets them go again."""
        request = _messages.pin_context_request(name, pinned, etag=etag)
        return self._change("Contexts.Pin", request, timeout)

    def delete(self, name: ContextName, *, etag: str = "", timeout: Optional[float] = None) -> None:
        request = _messages.delete_context_request(name, etag=etag)
        self._client._unary("Contexts.Delete", request, timeout)

    def export_to(
        self,
        name: ContextName,
        path: Path,
        *,
        etag: str = "",
        overwrite: bool = False,
        progress: Optional[Callable[[int, int], None]] = None,
        timeout: Optional[float] = None,
    ) -> None:
        """Writes a context to a safetensors file.

        Goes on after the connection broke, if the client has retries. What has come stays in PATH.partial after an
        error, and the next call for this path goes on there. `progress` is called with the bytes there and of all.
        """
        left = self._client._attempts(timeout).timeout
        download = Download(path, _messages.name_of(name), etag, overwrite)
        failures = 0  # since anything has come
        try:
            while True:
                before = download.bytes
                try:
                    for response in self._client._responses("Contexts.Export", download.request(), left()):
                        download.take(response)
                        if progress is not None:
                            progress(download.bytes, download.file_bytes or 0)
                    download.finish()
                    return
                except AbortedError:
                    if not download.may_begin_again():
                        raise
                    download.discard()
                except UnavailableError:
                    failures = 1 if download.bytes > before else failures + 1
                    if failures > self._client._retries:
                        raise
        finally:
            download.close()

    def import_from(
        self,
        path: Path,
        keep_as: Union[str, KeepAs],
        *,
        progress: Optional[Callable[[int, int], None]] = None,
        timeout: Optional[float] = None,
    ) -> Context:
        """Gives the server a context that was exported to a file.

        Goes on after the connection broke, if the client has retries; and so does the next call with this file and
        name after an error. `progress` is called with the bytes that the server has, and those of the file.
        """
        left = self._client._attempts(timeout).timeout
        upload = Upload(path, _messages.keep_as_of(keep_as))
        failures = 0  # since the server has taken anything
        try:
            while True:
                retries = None if upload.asks() else 0
                try:
                    response = self._client._unary("Contexts.Import", upload.request(), left(), retries)
                except UnavailableError:
                    failures += 1
                    if upload.asks() or failures > self._client._retries:
                        raise
                    upload.broke()
                    continue
                if not upload.asks():
                    failures = 0
                message = upload.take(response)
                if progress is not None:
                    progress(response.received, upload.file_bytes)
                if message is not None:
                    return _messages.context_of(message)
        finally:
            upload.close()

    def _change(self, method: str, request: Any, timeout: Optional[float]) -> Context:
        return _messages.context_of(self._client._unary(method, request, timeout))

    def _read(
        self,
        method: str,
        request: Any,
        progress: Optional[Callable[[Progress], None]],
        timeout: Optional[float],
    ) -> Context:
        builder = _messages.ContextBuilder(progress)
        for response in self._client._responses(method, request, timeout):
            builder.add(response)
        return builder.build()
