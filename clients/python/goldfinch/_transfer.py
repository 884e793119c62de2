"""Files of exported contexts on their way, without the calls that move them."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Optional, Union

import grpc

from goldfinch import contexts_pb2 as pb
from goldfinch import generate_pb2
from goldfinch._errors import AbortedError, GoldfinchError

Path = Union[str, "os.PathLike[str]"]

_PIECE_BYTES = 1 << 20


class Download:
    """What has come of an export: PATH.partial, which grows, and PATH.partial.etag, of the context that it is of. Both
    stay after an error, and a later download goes on there."""

    def __init__(self, path: Path, name: str, etag: str, overwrite: bool) -> None:
        self._path = pathlib.Path(path)
        if not overwrite and self._path.exists():
            raise FileExistsError(f"{self._path} exists; overwrite=True replaces it")
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._etag_path = self._path.with_name(self._path.name + ".partial.etag")
        self._name = name
        self._wanted_etag = etag
        try:
            self._etag = self._etag_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self._etag = ""
        self._file = open(self._partial, "ab+")
        self._restart()
        if self._etag and etag in ("", self._etag):
            self._read_what_is_there()
        else:
            self.discard()

    def close(self) -> None:
        self._file.close()

    def _restart(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self.file_bytes: Optional[int] = None
        self._sha256 = b""

    def _read_what_is_there(self) -> None:
        self._file.seek(0)
        while True:
            piece = self._file.read(_PIECE_BYTES)
            if not piece:
                return
            self._hash.update(piece)
            self.bytes += len(piece)

    def discard(self) -> None:
        """Begins again."""
        self._etag_path.unlink(missing_ok=True)
        self._file.truncate(0)
        self._etag = ""
        self._restart()

    def may_begin_again(self) -> bool:
        """Whether a context that has changed may be exported from its beginning on: unless its etag was asked for."""
        return self.bytes > 0 and not self._wanted_etag

    def request(self) -> pb.ExportContextRequest:
        """For what is missing."""
        self.file_bytes = None
        return pb.ExportContextRequest(name=self._name, offset=self.bytes, etag=self._wanted_etag or self._etag)

    def take(self, response: pb.ExportContextResponse) -> None:
        if self.file_bytes is None:
            self.file_bytes = response.file_bytes
            if self.bytes > 0 and response.etag != self._etag:
                raise AbortedError(grpc.StatusCode.ABORTED, "the context has changed while it was exported")
            self._etag = response.etag
            self._etag_path.write_text(self._etag, encoding="utf-8")
        if self.bytes + len(response.data) > self.file_bytes:
            message = f"the server has sent more than the {self.file_bytes} bytes that the file should have"
            raise GoldfinchError(grpc.StatusCode.INTERNAL, message)
        self._file.write(response.data)
        self._hash.update(response.data)
        self.bytes += len(response.data)
        self._sha256 = response.sha256 or self._sha256

    def finish(self) -> None:
        """All has come."""
        if self.bytes != self.file_bytes or self._hash.digest() != self._sha256:
            self.discard()
            self._partial.unlink()
            raise GoldfinchError(
                grpc.StatusCode.DATA_LOSS, f"{self._partial}: what has come is not what was sent, by its SHA-256"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)
        self._etag_path.unlink(missing_ok=True)


class Upload:
    """A file on its way to a server. The same file under the same name goes on where an earlier upload has ended."""

    def __init__(self, path: Path, keep_as: generate_pb2.KeepAs) -> None:
        self._keep_as = keep_as
        self._file = open(path, "rb")
        digest = hashlib.sha256()
        self.file_bytes = 0
        while True:
            piece = self._file.read(_PIECE_BYTES)
            if not piece:
                break
            digest.update(piece)
            self.file_bytes += len(piece)
        self._sha256 = digest.digest()
        # As the command line does, so that either goes on with what the other has begun.
        self._upload = hashlib.sha256(self._sha256 + keep_as.name.encode()).hexdigest()
        self._at: Optional[int] = None  # where the server is, if it is known

    def close(self) -> None:
        self._file.close()

    def asks(self) -> bool:
        """Whether request() asks where the server is, and may be repeated."""
        return self._at is None

    def broke(self) -> None:
        """The answer to a request has not come."""
        self._at = None

    def request(self) -> pb.ImportContextRequest:
        if self._at is None:
            return pb.ImportContextRequest(upload=self._upload)
        self._file.seek(self._at)
        data = self._file.read(_PIECE_BYTES)
        request = pb.ImportContextRequest(upload=self._upload, offset=self._at, data=data)
        if self._at + len(data) >= self.file_bytes:
            request.last = True
            request.sha256 = self._sha256
            request.keep_as.CopyFrom(self._keep_as)
        return request

    def take(self, response: pb.ImportContextResponse) -> Optional[pb.Context]:
        """Returns the context when it is there."""
        if response.HasField("context"):
            return response.context
        stuck = self._at is not None and response.received <= self._at
        if stuck or response.received > self.file_bytes:
            message = f"the server has received {response.received} of {self.file_bytes} bytes, without a context"
            raise GoldfinchError(grpc.StatusCode.INTERNAL, message)
        self._at = response.received
        return None
