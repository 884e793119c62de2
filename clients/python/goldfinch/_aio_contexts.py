"""Named contexts, for the client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Optional, Sequence, Union

from goldfinch import _messages
from goldfinch import contexts_pb2 as pb
from goldfinch._errors import AbortedError, UnavailableError
from goldfinch._transfer import Download, Path, Upload
from goldfinch._types import Context, ContextName, KeepAs, Progress, Text

if TYPE_CHECKING:
    from goldfinch._aio import AsyncClient


class AsyncContexts:
    """The named contexts of a server: `client.contexts`, with the methods of Contexts."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
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
        """As Contexts.create()."""
        request = _messages.create_context_request(
            keep_as,
            prompt,
            context=context,
            context_tokens=context_tokens,
            breakpoints=breakpoints,
            priority=priority,
            request_id=request_id,
        )
        return await self._read("Contexts.Create", request, progress, timeout)

    async def append(
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
        """As Contexts.append()."""
        request = _messages.append_context_request(
            name, prompt, etag=etag, priority=priority, request_id=request_id
        )
        return await self._read("Contexts.Append", request, progress, timeout)

    async def get(self, name: ContextName, *, timeout: Optional[float] = None) -> Context:
        return await self._change("Contexts.Get", _messages.get_context_request(name), timeout)

    async def list(self, *, page_size: int = 0, timeout: Optional[float] = None) -> AsyncIterator[Context]:
        """As Contexts.list(), for `async for`."""
        request = pb.ListContextsRequest(page_size=page_size)
        while True:
            page = await self._client._unary("Contexts.List", request, timeout)
            for message in page.contexts:
                yield _messages.context_of(message)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def fork(
        self,
        context: ContextName,
        keep_as: Union[str, KeepAs],
        *,
        context_tokens: Optional[int] = None,
        timeout: Optional[float] = None,
    ) -> Context:
        """As Contexts.fork()."""
        request = _messages.fork_context_request(context, keep_as, context_tokens=context_tokens)
        return await self._change("Contexts.Fork", request, timeout)

    async def rename(
        self, name: ContextName, new_name: str, *, etag: str = "", timeout: Optional[float] = None
    ) -> Context:
        request = _messages.rename_context_request(name, new_name, etag=etag)
        return await self._change("Contexts.Rename", request, timeout)

    async def pin(
        self, name: ContextName, pinned: bool = True, *, etag: str = "", timeout: Optional[float] = None
    ) -> Context:
        """As Contexts.pin()."""
        request = _messages.pin_context_request(name, pinned, etag=etag)
        return await self._change("Contexts.Pin", request, timeout)

    async def delete(self, name: ContextName, *, etag: str = "", timeout: Optional[float] = None) -> None:
        request = _messages.delete_context_request(name, etag=etag)
        await self._client._unary("Contexts.Delete", request, timeout)

    async def export_to(
        self,
        name: ContextName,
        path: Path,
        *,
        etag: str = "",
        overwrite: bool = False,
        progress: Optional[Callable[[int, int], None]] = None,
        timeout: Optional[float] = None,
    ) -> None:
        """As Contexts.export_to()."""
        left = self._client._attempts(timeout).timeout
        download = await asyncio.to_thread(Download, path, _messages.name_of(name), etag, overwrite)
        failures = 0  # since anything has come
        try:
            while True:
                before = download.bytes
                try:
                    async for response in self._client._responses("Contexts.Export", download.request(), left()):
                        await asyncio.to_thread(download.take, response)
                        if progress is not None:
                            progress(download.bytes, download.file_bytes or 0)
                    await asyncio.to_thread(download.finish)
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

    async def import_from(
        self,
        path: Path,
        keep_as: Union[str, KeepAs],
        *,
        progress: Optional[Callable[[int, int], None]] = None,
        timeout: Optional[float] = None,
    ) -> Context:
        """As Contexts.import_from()."""
        left = self._client._attempts(timeout).timeout
        upload = await asyncio.to_thread(Upload, path, _messages.keep_as_of(keep_as))
        failures = 0  # since the server has taken anything
        try:
            while True:
                retries = None if upload.asks() else 0
                try:
                    response = await self._client._unary("Contexts.Import", upload.request(), left(), retries)
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

    async def _change(self, method: str, request: Any, timeout: Optional[float]) -> Context:
        return _messages.context_of(await self._client._unary(method, request, timeout))

    async def _read(
        self,
        method: str,
        request: Any,
        progress: Optional[Callable[[Progress], None]],
        timeout: Optional[float],
    ) -> Context:
        builder = _messages.ContextBuilder(progress)
        async for response in self._client._responses(method, request, timeout):
            builder.add(response)
        return builder.build()
