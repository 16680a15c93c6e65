"""What is seen: a video -> its key frames."""
import collections, contextlib, itertools, math, re

import numpy as np

from data.sources import Bad, speaks

FRAME_SEEKED = 1                 # frames.flags: no key frame, but sought
TS_DISCONT = 512                 # of a format: its clock may step (transport streams, Ogg)

class Decoder:
    """One open video. start and duration (as declared) are in seconds."""
    def __init__(self, path, language='any'):
        import av
        self.errors = av.FFmpegError
        self.path, self.language = path, language
        self.seeker = None
        self.bad = 0                               # packets
        self.ends = collections.Counter()          # of the packets of a stream, in its unit
        self.clock = None                          # seconds, the latest of it,
        self.added = [0.0, 0.0]                    # with so much added, before and since a step
        self.steps = 0                             # taken out of it
        self.keys = collections.deque([(-math.inf, 0, None, self.added)], maxlen=4)
        try:
            self.container = av.open(f'file:{path}')       # a: b.mp4 is no protocol
        except (av.FFmpegError, OSError, ValueError) as e:
            raise Bad('not_media', f'{path}: cannot be opened as a video: {e}') from None
        self.start = (self.container.start_time or 0) / 1e6
        self.duration = (self.container.duration or 0) / 1e6
        self.may_step = self.container.format.flags & TS_DISCONT
        streams = self.container.streams
        pictures = [s for s in streams.video if not s.disposition & 1 << 10]       # no cover art
        self.video = next((s for s in pictures if s.codec_context), None)
        if pictures and not self.video:
            av.logging.set_level(av.logging.INFO)  # only FFmpeg's own summary has a name for it
            name = re.search('Video: ([^,]*)|$', self.container.dumps_format())[1]
            av.logging.set_level(None)
            raise Bad('no_codec', f'{path}: no decoder for its pictures: {name}')
        sounds = [s for s in streams.audio if s.codec_context]
        if sounds[1:]:                             # what was asked for, then what players choose
            sounds.sort(key=lambda s: (not speaks(s.language, language), not s.disposition & 1))
        self.audio = next(iter(sounds), None)
        for stream in filter(None, (self.video, self.audio)):
            stream.codec_context.thread_count = 1  # threads lose frames on an error
        if self.video:
            w, h = self.video.codec_context.width, self.video.codec_context.height
            if min(w, h) < 16 or max(w, h) > 8192:
                raise Bad('size', f'{path}: {w} x {h} pixels')

    def packets(self, *streams):
        """Yield packets of these, in order. Where the clock may step it is that of pictures and
        sound, so both are read."""
        if self.may_step:
            streams = list(filter(None, (self.video, self.audio)))
        for stream in self.container.streams:      # what is not asked for is not read
            stream.discard = 0 if stream in streams else 48
        try:
            for packet in self.container.demux(*streams):
                if self.bad > 10_000:
                    return
                if self.may_step:
                    self.take_out_step(packet)
                if packet.pts is not None:
                    end = packet.pts + (packet.duration or 0)
                    self.ends[packet.stream_index] = max(self.ends[packet.stream_index], end)
                if self.may_step and packet.pos is None and packet.stream is self.audio:
                    packet.pts = None              # reckoned, by the form the sound had at first
                yield packet
        except self.errors:
            self.bad += 1

    def take_out_step(self, packet):
        """A clock that goes back or ahead by more than 10 s goes on from where it was."""
        if packet.dts is None:
            return
        unit = float(packet.time_base)
        t = packet.dts * unit
        added = self.added[-1]
        if self.clock is not None and abs(t + added - self.clock) > 10:
            added = self.added[0]                  # a packet from before the last step?
            if abs(t + added - self.clock) > 10:
                added = self.clock - t
                self.added = [self.added[-1], added]
                self.steps += 1
                self.duration = 0.0                # was told by this clock
        self.clock = max(self.clock or -math.inf, t + added)
        packet.dts += round(added / unit)
        if packet.pts is not None:
            packet.pts += round(added / unit)

    def seconds(self, stream, pts):
        return None if pts is None else float(pts * stream.time_base) - self.start

    def end(self, stream):
        """Seconds to the end of its last packet."""
        return self.seconds(stream, self.ends[stream.index])

    def short(self, stream):
        """Whether its packets, if they were read, end before the end that is declared for it."""
        if self.may_step or not stream.duration or stream.index not in self.ends:
            return False
        return self.end(stream) < .98 * self.seconds(stream, stream.start_time + stream.duration)

    def decode(self, stream, packet):
        """-> frames; what cannot be decoded is counted and skipped. By packets, for
        container.decode() ends for good at the first bad one (PyAV issue 812)."""
        context = stream.codec_context
        try:
            frames = context.decode(packet)
        except self.errors:
            self.bad += 1
            return []
        frames = [frame for frame in frames if not frame.is_corrupt]
        if stream is self.video:
            frames = [frame for frame in frames if frame.pts is not None]
            says = context if self.may_step else stream      # these files do not, their frames do
            for frame in frames:
                frame.opaque = float(says.sample_aspect_ratio or 1)    # of a pixel
        return frames

    def frames(self, stream):
        """Yield (seconds, frame), each; of sound seconds may be None: it goes on."""
        stream.codec_context.skip_frame = 'DEFAULT'
        for packet in self.packets(stream):
            if packet.stream_index == stream.index:
                for frame in self.decode(stream, packet):
                    yield self.seconds(stream, frame.pts), frame

    def key_frames(self):
        """Yield (seconds, frame, flags) of each key frame; frame None: it is lost. Each by itself:
        beside others, some left out between, the order of open GOPs is ambiguous. From one that
        shows nothing so (an edit list hides it, it only begins a refresh) all is decoded."""
        stream = self.video
        context = stream.codec_context
        began = None                               # a key frame that is not seen yet
        position = 0
        for packet in self.packets(stream):
            if packet.stream_index != stream.index or not packet.size:
                continue
            position = position if packet.pos is None else packet.pos
            flags = 0
            if packet.is_keyframe:
                if began is not None:
                    yield began, None, 0
                began = self.seconds(stream, packet.dts if packet.pts is None else packet.pts)
                self.keys.append((began, position, self.clock, self.added))
                go_on = False
                bad = self.bad
                context.flush_buffers()
                context.skip_frame = 'NONKEY'
                frames = self.decode(stream, packet) + self.decode(stream, None)
                if not frames and self.bad == bad:
                    context.flush_buffers()
                    context.skip_frame = 'DEFAULT'
                    go_on = not self.decode(stream, packet)    # else it was no key frame
            elif began is not None and go_on:
                frames = self.decode(stream, packet)
                flags = FRAME_SEEKED
            if began is not None and frames:
                yield self.seconds(stream, frames[0].pts), frames[0], flags
                began = None
        if began is not None:
            yield began, None, 0

    def seek(self, t):
        """(seconds, frame): the first at or after t exactly, decoded from the key frame before it
        by a second reader of the file. None at the end."""
        seeker = self.seeker = self.seeker or Decoder(self.path, self.language)
        with contextlib.suppress(self.errors):
            if self.may_step:                      # by time it would find another part of the file
                key = [key for key in self.keys if key[0] <= t + 1e-3][-1]
                _, position, seeker.clock, seeker.added = key
                seeker.container.seek(position, unsupported_byte_offset=True)
            else:
                seeker.container.seek(int((t + self.start) * 1e6))
            found = seeker.frames(seeker.video)
            return next(((s, frame) for s, frame in found if s >= t - 1e-3), None)

def reach(files):
    """The open file of the pictures, and of sound that has its own -> seconds for which the last
    picture stands, to the last of both; whether a file is cut off: then to its end of pictures."""
    last = [0.0]
    for file in files:
        wanted = .98 * file.duration
        both = list(filter(None, (file.video, file.audio)))
        if max(map(file.end, both), default=0.0) <= wanted:
            rest = Decoder(file.path, file.language)         # what else is in it?
            collections.deque(rest.packets(*rest.container.streams), maxlen=0)
            file.ends = rest.ends
        all_end = max(map(file.end, file.container.streams))
        if all_end < wanted or any(map(file.short, both)):
            return files[0].end(files[0].video), True
        last += map(file.end, both)
        if not file.bad and max(last) >= wanted:
            last.append(file.duration)
    return max(last), False

def thumbnail(frame):
    """-> 36 x 32 grey int16, and its dHash: 64 bits, each whether a cell of an 8 x 9 grid is darker
    than its right neighbour."""
    grey = frame.reformat(36, 32, 'gray', interpolation='AREA').to_ndarray().astype(np.int16)
    cells = grey.reshape(8, 4, 9, 4).sum((1, 3))
    return grey, np.packbits(cells[:, 1:] > cells[:, :-1])

def square(frame, size):
    """-> uint8 (size, size, 3): upright, the shorter side to `size`, centre crop."""
    shape = frame.width * frame.opaque, frame.height
    w, h = (max(size, round(side * size / min(shape))) for side in shape)
    space = 'ITU709' if frame.colorspace == 2 and frame.height >= 720 else None    # 2: unspecified
    rgb = frame.reformat(w, h, 'rgb24', src_colorspace=space, interpolation='AREA').to_ndarray()
    if matrix := frame.side_data.get('DISPLAYMATRIX'):

        # (x, y) is shown at (a x + c y, b x + d y): mirrored or turned
        (a, b), (c, d) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2]
        if abs(b) > abs(a):
            rgb = rgb.transpose(1, 0, 2)
            a, d = c, b
        rgb = rgb[::-1 if d < 0 else 1, ::-1 if a < 0 else 1]
    y, x = ((side - size) // 2 for side in rgb.shape[:2])
    return rgb[y:y + size, x:x + size]

def shots(video, max_gap_s):
    """Yield (seconds, frame, flags): the key frames in order, and sought frames where they are
    rarer than max_gap_s; frame None: it is lost."""
    last = 0.0
    for t, frame, flags in itertools.chain(video.key_frames(), [(math.inf, None, 0)]):
        end = min(t, video.end(video.video))
        while end - last > 1.5 * max_gap_s:
            last += max_gap_s
            found = video.seek(last)
            if t == math.inf and not found or found and found[0] > t - 1e-3:
                break                              # the picture stands until t
            yield *(found or (last, None)), FRAME_SEEKED
        last = t
        if t < math.inf:
            yield t, frame, flags

def key_frames(video, cfg, count):
    """Yield (t_ms, flags, dHash, picture uint8 (S, S, 3)) of the frames to keep, in order; picture
    None: an earlier one is back, or none is seen. `count` says how many were dropped, and why."""
    kept = []                                      # the last 64 thumbnails
    last_t = -math.inf
    before = unseen = 0.0                          # seconds
    lost = True
    for t, frame, flags in shots(video, cfg.max_gap_s):
        unseen += (t - before) * lost
        before = t
        lost = frame is None
        if lost:
            kept = []
            yield round(t * 1000), 0, None, None
            continue
        count['frames_seen'] += 1
        grey, bits = thumbnail(frame)

        # a fade: look half a second later
        if not flags and (grey.std() < 8 or not 10 <= grey.mean() <= 245):
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
            yield round(t * 1000), flags, bits, square(frame, cfg.image_size)
    unseen += (video.end(video.video) - before) * lost
    count['seconds_unseen'] = int(unseen)
    count['clock_steps'] = video.steps
