# Copyright 2026 The glip_hf authors. MIT licence.
"""Detections in videos, and in any other sequence of frames.

    video = Video("clip.mp4")
    with write_video("out.mp4", video.rate / 5) as write:
        for frame in ground_frames(engine, video, ["cat", "dog"], stride=5):
            write(draw_detections(frame.image, frame.detections))

Files are read and written with PyAV, of the extra `video`; frames from a camera or another library need nothing.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ._extras import require
from ._writing import replacing
from .inference import Detections, GroundingEngine, Request
from .values_glip import check_number, counted

# `update` of a tracker of the library trackers: a `supervision.Detections` to one with `tracker_id`
Track = Callable[[Any], Any]


class GroundedFrame(NamedTuple):
    """What was found in one frame.

    Attributes:
        index: of the frame, from 0; frames that were skipped count.
        image: the frame in RGB.
        detections: as of any image, with a tracker also `track_ids` [K] int64; -1 where it has none yet.
    """

    index: int
    image: Any
    detections: Detections


def ground_frames(
    engine: GroundingEngine,
    frames: Iterable[Any],
    text: Any,
    phrases: Any = None,
    *,
    bgr: bool = False,
    stride: int = 1,
    track: Track | None = None,
) -> Iterator[GroundedFrame]:
    """Detections in frames, one after the other, while the next frames are read.

    Args:
        engine: its options say how detections are made. It reads `workers + batch_size` frames ahead.
        frames: arrays [H, W, 3] uint8, PIL images, or a generator of them, which may be endless; or a `Video` or the
            path of one.
        text, phrases: class names or a caption, as `GlipProcessor` takes them.
        bgr: the frames are arrays in BGR, as OpenCV gives them.
        stride: ground only every so many frames, beginning with the first.
        track: gives objects the same number in all frames, such as `trackers.ByteTrackTracker().update`.

    Raises:
        ValueError: for a frame that is not an image, and what `Video` raises.
    """
    stride = check_number("stride", stride, least=1, whole=True)
    frames = Video(frames) if isinstance(frames, str | os.PathLike) else frames
    images: deque[tuple[int, Any]] = deque()

    def requests() -> Iterator[Request]:
        for index, frame in islice(enumerate(frames), 0, None, stride):
            if bgr:
                if not isinstance(frame, np.ndarray) or frame.shape[2:] != (3,):
                    got = f"{type(frame).__name__} {list(getattr(frame, 'shape', ()))}"
                    raise ValueError(f"frame {index} is {got}: with bgr=True give arrays [H, W, 3].")
                frame = np.ascontiguousarray(frame[..., ::-1])
            images.append((index, frame))
            yield Request(frame, text, phrases)

    for grounded in engine.ground(requests(), in_order=True):
        (index, image), (detections,) = images.popleft(), grounded.detections
        if track is not None:
            detections = {**detections, "track_ids": _track(track, detections)}
        yield GroundedFrame(index, image, detections)


def _track(track: Track, detections: Detections) -> torch.Tensor:
    """The track of each detection, whichever of them the tracker returns, and in whatever order."""
    boxes, scores, labels = (detections[name].numpy() for name in ("boxes", "scores", "labels"))
    rows = {"row": np.arange(len(boxes))}
    tracked = track(require("supervision", "track").Detections(boxes, None, scores, labels, data=rows))
    ids = torch.full((len(boxes),), -1)
    if len(tracked):
        ids[tracked.data["row"]] = torch.as_tensor(tracked.tracker_id.astype(np.int64))
    return ids


class Video:
    """The frames of a video file: arrays [H, W, 3] uint8 in RGB, upright. It can be iterated more than once.

    Args:
        path: of a file that FFmpeg reads.

    Attributes:
        rate: frames per second, on average.
        count: frames, as the file says; 0 where it does not.

    Raises:
        FileNotFoundError, ValueError: where there is no video in it, and, from the iteration, where it breaks off.
        ImportError: without PyAV.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._open() as stream:
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25).limit_denominator(1001)
            self.count = stream.frames

    @contextmanager
    def _open(self) -> Iterator[Any]:
        av = require("av", "video")
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file")
        try:
            with av.open(os.path.abspath(self.path)) as container:  # FFmpeg takes "12:30.mp4" for a protocol "12"
                if not container.streams.video:
                    raise ValueError(f"{self.path}: there is no video in this file")
                container.streams.video[0].thread_type = "AUTO"
                yield container.streams.video[0]
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: not a readable video ({error.strerror})") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._open() as stream:
            count, end = 0, 0.0
            for frame in stream.container.decode(stream):
                count, end = count + 1, max(end, frame.time or 0.0)
                # FFmpeg's angle and numpy's quarter turns both count against the clock.
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
            # FFmpeg ends quietly with a file that was cut; the first and last frames may be left out on purpose.
            if count < max(0.9 * self.count, 1):
                raise ValueError(f"{self.path}: the video breaks off after {counted(count, 'frame')} of {self.count}")
            hours, minutes, seconds = map(float, stream.metadata.get("DURATION", "0:0:0").split(":"))  # Matroska, WebM
            if end + 1 / self.rate < 0.9 * (duration := 3600 * hours + 60 * minutes + seconds):
                raise ValueError(f"{self.path}: the video breaks off after {end:.1f} of {duration:.1f} seconds")


@contextmanager
def write_video(output: str | os.PathLike[str], rate: Fraction | float) -> Iterator[Callable[[Any], None]]:
    """A function that appends an image, PIL or [H, W, 3] uint8 in RGB, to a video without sound. The suffix of `output`
    chooses container and codec (.mp4: H.264, .webm: VP9). The file is there once the block ends, and not if it fails.

    Args:
        rate: frames per second.

    Raises:
        ValueError: for a rate of 0 or less, a suffix that is not one of a video, no image, one of another size or form,
            or what its codec refuses.
        ImportError: without PyAV.
    """
    if not 0 < float(rate) < math.inf:
        raise ValueError(f"{output}: rate={rate} must be frames per second, above 0.")
    av, streams = require("av", "video"), []
    with replacing(output) as path:
        try:
            container = av.open(os.path.abspath(path), "w")
        except ValueError:
            raise ValueError(f"{output}: not a suffix of a video; use .mp4 or .webm") from None

        def write(image: Any) -> None:
            pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
            if pixels.shape[2:] != (3,) or pixels.dtype != np.uint8:
                got = f"{pixels.dtype} {list(pixels.shape)}"
                raise ValueError(f"{output}: a frame is {got}: give PIL images, or arrays [H, W, 3] uint8 in RGB.")
            height, width = (side + side % 2 for side in pixels.shape[:2])  # its colours come in blocks of 2 x 2
            if not streams:
                codec = container.default_video_codec
                streams.append(container.add_stream(codec, Fraction(rate).limit_denominator(1001)))
                streams[0].width, streams[0].height, streams[0].pix_fmt = width, height, "yuv420p"
            if (width, height) != (streams[0].width, streams[0].height):
                raise ValueError(f"{output}: a frame of {width} x {height} pixels after others of another size.")
            pad = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
            frame = av.VideoFrame.from_ndarray(np.pad(pixels, pad, mode="edge"), format="rgb24")
            try:
                container.mux(streams[0].encode(frame))
            except av.FFmpegError as error:
                form = f"{width} x {height} pixels, {float(rate):g} frames per second"
                remedy = "save .mp4 or .webm"
                raise ValueError(f"{output}: its codec {streams[0].name} does not take {form}; {remedy}") from error

        with container:
            yield write
            if not streams:
                raise ValueError(f"{output}: there is no frame to write")
            container.mux(streams[0].encode())
