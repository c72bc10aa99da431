"""Runs ffmpeg once over a whole video and reads its two outputs side by side in bounded memory.

The encoder delays pictures, so a plane comes before its picture and is queued here. When the queue is full,
ffmpeg is blocked, unless the reader waits for a picture.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.media import clip, subprocesses
from pipeline.media.corruption import find_complaint
from pipeline.media.probe import SourceInfo
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_PLANES = 64  # in the queue at most, unless the reader waits for a picture
_COMPLAINTS = 100  # lines of ffmpeg's log that are kept


class Pass:
    """The pass of `pipeline.media.clip` over a whole video. Raises Failed(ENVIRONMENT) without ffmpeg.

    Args:
        start: seconds, by the clip's clock; wanted: frames at the recipe's rate.
        patience: seconds without output after which ffmpeg is killed.
    """

    def __init__(
        self,
        path: Path,
        info: SourceInfo,
        start: float,
        wanted: int,
        recipe: EncodeRecipe,
        ffmpeg: str,
        patience: float,
    ):
        self._path, self._patience = path, patience
        self._width, self._height = info.output_size(recipe.short_side)
        self._encoded, writing = os.pipe()
        argv = clip.command(path, info, start, wanted, recipe, writing, ffmpeg)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._encoded)
            raise Failed(FailureClass.ENVIRONMENT, f"{ffmpeg} does not run: {error.strerror}") from error
        finally:
            os.close(writing)
        self._changed = threading.Condition()
        self._planes: deque[bytes | None] = deque()  # None is their end
        self._bytes: deque[bytes] = deque()  # of the encoded pictures; b"" is their end
        self._complaints: list[str] = []
        self._picture_wanted = self._stopped = False
        tasks = (self._read_planes, self._read_bytes, self._read_log)
        self._threads = [threading.Thread(target=task, daemon=True) for task in tasks]

    def __enter__(self) -> Pass:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        subprocesses.kill_group(self._process.pid)
        self._process.wait()
        for thread in self._threads:
            thread.join()
        os.close(self._encoded)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def pictures(self) -> Iterator[VideoFrame]:
        """The encoded pictures, decoded by one thread: the frames of the clip."""
        import av

        options = {"probesize": "32768", "protocol_whitelist": "pipe"}
        try:
            with av.open(self, "r", format="nut", options=options) as container:
                stream = container.streams.video[0]
                stream.codec_context.thread_count = 1
                yield from container.decode(stream)
        except (av.error.FFmpegError, IndexError):  # ffmpeg gave nothing, or not all: `ended` says why
            return

    def read(self, size: int) -> bytes:
        """The next bytes of the encoded pictures, for PyAV."""
        with self._changed:
            self._picture_wanted = True
            self._changed.notify_all()
            self._wait(lambda: bool(self._bytes))
            self._picture_wanted = False
            data = self._bytes.popleft()
            if not data or len(data) > size:
                self._bytes.appendleft(data[size:])
            return data[:size]

    def grays(self) -> Iterator[np.ndarray]:
        """The luma planes in full range, uint8 (H, W): one more than pictures where the source goes on."""
        while (plane := self.plane()) is not None:
            yield clip.gray(np.frombuffer(plane, np.uint8).reshape(self._height, self._width))

    def ended(self) -> str | None:
        """Waits for ffmpeg's end; its first complaint about damage, if any.

        Raises Failed(CORRUPT) where it ended with neither success nor such a complaint.
        """
        while self.plane() is not None:
            pass
        code = self._process.wait()
        for thread in self._threads:
            thread.join()
        complaint = find_complaint("\n".join(self._complaints), "")
        if code and not complaint:
            raise Failed(FailureClass.CORRUPT, f"ffmpeg ended with {code} before the video did")
        return complaint

    def plane(self) -> bytes | None:
        """The next luma plane in limited range; None after the last one."""
        with self._changed:
            self._wait(lambda: bool(self._planes))
            if self._planes[0] is None:
                return None
            self._changed.notify_all()
            return self._planes.popleft()

    def _wait(self, there: Callable[[], bool]) -> None:
        if not self._changed.wait_for(there, self._patience):
            raise Failed(FailureClass.TOO_LARGE, f"ffmpeg gave nothing for {self._patience:g} s")

    def _put(self, line: deque[Any], item: bytes | None) -> None:
        with self._changed:
            line.append(item)
            self._changed.notify_all()

    def _read_planes(self) -> None:
        pipe, size = self._process.stdout, self._width * self._height
        assert pipe is not None
        while len(plane := pipe.read(size)) == size:
            self._put(self._planes, plane)
            with self._changed:
                self._changed.wait_for(
                    lambda: len(self._planes) < _PLANES or self._picture_wanted or self._stopped
                )
        self._put(self._planes, None)

    def _read_bytes(self) -> None:
        while data := os.read(self._encoded, 1 << 16):
            self._put(self._bytes, data)
        self._put(self._bytes, b"")

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        where = str(self._path.absolute())
        for line in self._process.stderr:
            text = line.decode("utf-8", "replace").rstrip()
            if len(self._complaints) < _COMPLAINTS and find_complaint(text, where):
                self._complaints.append(text.replace(where, ""))
