"""What is seen: a video -> its key frames."""
import contextlib, math

import numpy as np

from data.sources import Bad

FRAME_SEEKED = 1                 # frames.flags: no key frame, but sought

class Decoder:
    """One open video. start, duration (as declared) and end (as found) are in seconds."""
    def __init__(self, path):
        import av
        self.errors = av.FFmpegError
        self.path = path
        self.seeker = None
        self.bad = 0                               # packets
        self.end = 0.0
        try:
            self.container = av.open(f'file:{path}')       # a: b.mp4 is no protocol
        except (av.FFmpegError, OSError, ValueError) as e:
            raise Bad('not_media', f'{path}: cannot be opened as a video: {e}') from None
        streams = self.container.streams
        pictures = (s for s in streams.video if not s.disposition & 1 << 10)       # no cover art
        self.video = next(pictures, None)
        self.audio = next(iter(streams.audio), None)
        for stream in filter(None, (self.video, self.audio)):
            stream.codec_context.thread_count = 1  # threads lose frames on an error
        self.start = (self.container.start_time or 0) / 1e6
        self.duration = (self.container.duration or 0) / 1e6
        if self.video:
            w, h = self.video.codec_context.width, self.video.codec_context.height
            if min(w, h) < 16 or max(w, h) > 8192:
                raise Bad('size', f'{path}: {w} x {h} pixels')

    def packets(self, stream, keyframes=False):
        """Yield (seconds, frame) in order; what cannot be decoded is counted and skipped. By a
        packet loop, for container.decode() ends for good at the first bad one (PyAV issue 812)."""
        stream.codec_context.skip_frame = 'NONKEY' if keyframes else 'DEFAULT'
        packets = self.container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self.end = max(self.end, float(end) - self.start)
                if keyframes and packet.size and not packet.is_keyframe:
                    continue
                frames = packet.decode()
            except self.errors as e:
                self.bad += 1
                if self.bad > 10_000 or isinstance(e, EOFError):
                    return
                continue
            for frame in frames:
                if frame.time is not None and not frame.is_corrupt:
                    yield frame.time - self.start, frame

    def seek(self, t):
        """(seconds, frame): the first at or after t exactly, decoded from the key frame before it
        by a second reader of the file. None at the end."""
        self.seeker = self.seeker or Decoder(self.path)
        with contextlib.suppress(self.errors):
            self.seeker.container.seek(int((t + self.start) * 1e6))
            found = self.seeker.packets(self.seeker.video)
            return next(((s, frame) for s, frame in found if s >= t - 1e-3), None)

def thumbnail(frame):
    """-> 36 x 32 grey int16, and its dHash: 64 bits, each whether a cell of an 8 x 9 grid is darker
    than its right neighbour."""
    grey = frame.reformat(36, 32, 'gray', interpolation='AREA').to_ndarray().astype(np.int16)
    cells = grey.reshape(8, 4, 9, 4).sum((1, 3))
    return grey, np.packbits(cells[:, 1:] > cells[:, :-1])

def square(frame, stream, size):
    """-> uint8 (size, size, 3): upright, the shorter side to `size`, centre crop."""
    shape = frame.width * float(stream.sample_aspect_ratio or 1), frame.height
    w, h = (max(size, round(side * size / min(shape))) for side in shape)
    space = 'ITU709' if frame.colorspace == 2 and frame.height >= 720 else None    # 2: unspecified
    rgb = frame.reformat(w, h, 'rgb24', src_colorspace=space, interpolation='AREA')
    rgb = np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)
    y, x = ((side - size) // 2 for side in rgb.shape[:2])
    return rgb[y:y + size, x:x + size]

def shots(video, max_gap_s):
    """Yield (seconds, frame or None, flags): the key frames in order, and sought frames where they
    are rarer than max_gap_s."""
    def fill(last, until):
        for gap in np.arange(last + max_gap_s, until - max_gap_s / 2, max_gap_s):
            yield *(video.seek(gap) or (gap, None)), FRAME_SEEKED
    last = 0.0
    for t, frame in video.packets(video.video, keyframes=True):
        yield from fill(last, t)
        last = t
        yield t, frame, 0
    yield from fill(last, video.end)

def key_frames(video, cfg, count):
    """Yield (t_ms, flags, dHash, picture uint8 (S, S, 3)) of the frames to keep, in order; picture
    None: an earlier one is back. `count` says how many were dropped, and why."""
    kept = []                                      # the last 64 thumbnails
    last_t = -math.inf
    for t, frame, flags in shots(video, cfg.max_gap_s):
        count['frames_seen'] += 1
        grey, bits = thumbnail(frame) if frame else (np.zeros(1), None)

        # a fade: look half a second later
        if frame and not flags and (grey.std() < 8 or not 10 <= grey.mean() <= 245):
            _, later = video.seek(t + .5) or (t, frame)
            better, better_bits = thumbnail(later)
            if better.std() > grey.std():
                frame, flags, grey, bits = later, FRAME_SEEKED, better, better_bits

        def like(other, limit):
            differ = np.bitwise_count(bits ^ other[1]).sum()
            return differ <= limit and np.abs(grey - other[0]).max() <= cfg.same_level
        if grey.std() < 2:
            count['frames_blank'] += 1
        elif kept and like(kept[-1], cfg.same_bits):
            count['frames_duplicate'] += 1
        elif t - last_t < cfg.min_gap_s:
            count['frames_too_soon'] += 1
        elif any(like(other, cfg.again_bits) for other in kept):
            count['frames_again'] += 1
            yield round(t * 1000), 0, bits, None
        else:
            count['frames_kept'] += 1
            kept = kept[-63:] + [(grey, bits)]
            last_t = t
            yield round(t * 1000), flags, bits, square(frame, video.video, cfg.image_size)
