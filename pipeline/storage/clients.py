"""The clients of object stores: requests without listing, repetition, and the meaning of errors.

Uses fsspec's file systems where their calls are single requests, else sends the store's own requests.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from typing import Any
from urllib.parse import quote

from pipeline.command_line import install
from pipeline.outcome import Failed, FailureClass, Misplaced

ATTEMPTS = 6
"""Tries of one request to an S3 store, with growing pauses, unless AWS_MAX_ATTEMPTS is set. The HTTP client
itself repeats a request whose kept connection the store closed."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcp", "gcs": "gcp"}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with AWS_PROFILE",
    "gcp": "run gcloud auth application-default login, or name a key file in GOOGLE_APPLICATION_CREDENTIALS",
}
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound",
    "CredentialRetrievalError", "DefaultCredentialsError",
)  # fmt: skip
_kept: dict[int, Any] = {}
"""Every file system used here. A forked child must not collect an inherited one: that would take its sockets
out of the poll set shared with the parent, which would then wait for ever."""

_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "requests", "urllib3", "fsspec")


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and its root there.

    Call it at each use: fsspec keeps one a process, and makes a new one after a fork.

    Raises:
        Failed: class storage: a package is missing, or the URL's scheme is unknown.
    """
    protocol = url.partition("://")[0]
    try:
        import fsspec

        found, root = fsspec.core.url_to_fs(url, **_options(protocol))
    except ImportError as error:
        remedy = install(_EXTRAS[protocol]) if protocol in _EXTRAS else str(error)
        raise _storage(f"{url} needs a package that is not installed; {remedy}") from None
    except ValueError as error:
        known = "not known" not in str(error)
        why = f"cannot be used ({error})" if known else "is in no storage known here"
        raise _storage(f"{url} {why}; give a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER") from None
    _kept[id(found)] = found
    if isinstance(dialect(found), _S3):
        found.retries = 1  # botocore repeats requests; s3fs on top would multiply them
    return found, root.rstrip("/")


def _options(protocol: str) -> dict[str, Any]:
    """No cached listings, as other processes write too; otherwise the user's own fsspec settings."""
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        import fsspec.config

        retries: dict[str, Any] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries["total_max_attempts"] = ATTEMPTS
        config = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**config, "retries": retries}
        options["max_concurrency"] = 1  # else every read asks for the size first
    return options


class _Other:
    """Any other file system of fsspec; its conditional write is two requests."""

    def size(self, fs: Any, at: str) -> int:
        info = fs.info(at)
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "a folder, not a file", at)
        return int(info["size"])

    def version(self, fs: Any, at: str) -> str:
        return hashlib.sha256(fs.cat_file(at)).hexdigest()

    def put(self, fs: Any, at: str, content: bytes) -> None:
        fs.pipe_file(at, content)

    def put_if(self, fs: Any, at: str, content: bytes, version: str | None) -> None:
        if version is not None and self.version(fs, at) != version:
            raise FileExistsError(at)
        fs.pipe_file(at, content, mode="create" if version is None else "overwrite")


class _S3(_Other):
    """S3's own requests: s3fs lists where an object is absent, and has no If-Match."""

    def size(self, fs: Any, at: str) -> int:
        return int(self._head(fs, at)["ContentLength"])

    def version(self, fs: Any, at: str) -> str:
        return str(self._head(fs, at)["ETag"])

    def _head(self, fs: Any, at: str) -> dict[str, Any]:
        bucket, key, _ = fs.split_path(at)
        return fs.call_s3("head_object", Bucket=bucket, Key=key)

    def put(self, fs: Any, at: str, content: bytes, **condition: Any) -> None:
        bucket, key, _ = fs.split_path(at)
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)

    def put_if(self, fs: Any, at: str, content: bytes, version: str | None) -> None:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        mark = {"write": secrets.token_hex(8)}
        try:
            self.put(fs, at, content, Metadata=mark, **condition)
        except Exception as error:
            if answer(error)[0] != 412:
                raise
            with contextlib.suppress(FileNotFoundError):
                if self._head(fs, at).get("Metadata") == mark:
                    return  # an earlier try succeeded, but its answer was lost
            raise FileExistsError(at) from error


class _Google(_Other):
    """Google Cloud Storage's own requests: gcsfs lists where it looks for an object, and has no condition
    on a generation other than "none"."""

    def size(self, fs: Any, at: str) -> int:
        return int(self._about(fs, at)["size"])

    def version(self, fs: Any, at: str) -> str:
        return str(self._about(fs, at)["generation"])

    def _about(self, fs: Any, at: str) -> dict[str, Any]:
        bucket, key, _ = fs.split_path(at)
        return fs.call("GET", "b/{}/o/{}", bucket, key, json_out=True)

    def put(self, fs: Any, at: str, content: bytes, **condition: str) -> None:
        bucket, key, _ = fs.split_path(at)
        where = f"{fs._location}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        headers = {"Content-Type": "application/octet-stream"}
        fs.call("POST", where, uploadType="media", name=key, data=content, headers=headers, **condition)

    def put_if(self, fs: Any, at: str, content: bytes, version: str | None) -> None:
        try:
            self.put(fs, at, content, ifGenerationMatch=version or "0")
        except FileExistsError:  # gcsfs for 412
            if fs.cat_file(at) != content:  # else it has this content already
                raise


def dialect(fs: Any) -> _Other:
    """The requests of a file system for an object's size, version (a token of its content) and writing.

    ``put_if`` writes only if the object has the version, or is absent (None); else it raises FileExistsError,
    and FileNotFoundError where the object to replace is absent.
    """
    names = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return _S3() if "s3" in names else _Google() if "gs" in names else _Other()


def answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and the store's own code of an error, if it comes from a store."""
    for said in (error.__cause__, error):
        response = getattr(said, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
    code = str(getattr(error, "code", ""))
    return int(code) if code.isdigit() else None, ""


def explain(error: Exception, done: str, where: str) -> Exception:
    """An error of a file system or its libraries as a failure with a sentence; any other error unchanged."""
    name, library = type(error).__name__, type(error).__module__.partition(".")[0]
    if not isinstance(error, OSError) and library not in _LIBRARIES:
        return error
    status, code = answer(error)
    text = " ".join((getattr(error, "strerror", None) or str(error) or name).split())[:300]
    remedy = "repeat the command when the storage answers again"
    if code == "NoSuchBucket":
        bucket = "/".join(where.split("/")[:3])
        return Misplaced(
            f"{where} could not be {done}: there is no such bucket; create {bucket}, or correct its name"
        )
    if name in _NO_CREDENTIALS:
        text, remedy = "no credentials were found", _CREDENTIALS[_EXTRAS.get(where.partition(":")[0], "s3")]
    elif isinstance(error, PermissionError) or status in (401, 403) or text.startswith("Forbidden"):
        text = f"the store refuses it ({code or text})"
        remedy = "give credentials that may read, write, delete and list there"
    elif status == 501:
        text, remedy = f"the store cannot do it ({code})", "use one that supports conditional writes"
    return _storage(f"{where} could not be {done}: {text}; {remedy}")


def _storage(sentence: str) -> Failed:
    return Failed(FailureClass.STORAGE, sentence)
