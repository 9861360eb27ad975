"""Pictures and arrays with nothing but the standard library: reads PNG, resizes, cuts, writes .npy.

A picture is decoded once, at set-up, so plain Python is fast enough (half a second for a photo) and saves two compiled
packages for each version of Python that might run the script. The arithmetic is that of IEEE doubles, the same on every
machine, so what is made here can be pinned by hash.
"""

import struct
import sys
import zlib
from array import array

PNG_MARK = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3}  # PNG colour types that we read: grey and RGB
PIXELS_MAX = 1 << 24


class PictureError(ValueError):
    """The bytes are no picture that this module reads."""


class Picture:
    """8-bit samples, row-major, channels innermost: `samples[(y * width + x) * channels + c]`."""

    def __init__(self, width, height, channels, samples):
        self.width, self.height, self.channels, self.samples = width, height, channels, samples


def read_png(data):
    """Decodes an 8-bit grey or RGB PNG that is not interlaced."""
    if not data.startswith(PNG_MARK):
        raise PictureError("no PNG file")
    header, packed, place = None, b"", len(PNG_MARK)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        if len(body) < length:
            raise PictureError("the PNG file ends inside a chunk")
        if kind == b"IHDR" and length == 13:
            header = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            packed += body
        place += 12 + length
    if header is None:
        raise PictureError("the PNG file has no header")
    width, height, depth, colour, _, _, interlaced = header
    if depth != 8 or colour not in CHANNELS or interlaced or not 0 < width * height <= PIXELS_MAX:
        raise PictureError(f"{width} x {height}, depth {depth}, colour type {colour}: not a PNG that is read here")
    channels = CHANNELS[colour]
    try:
        rows = zlib.decompressobj().decompress(packed, height * (width * channels + 1))
    except zlib.error as error:
        raise PictureError(f"the PNG file is damaged: {error}") from error
    return Picture(width, height, channels, _unfilter(rows, width * channels, height, channels))


def _unfilter(rows, stride, height, step):
    """Undoes PNG's row filters (PNG specification, section 9); `step` is the bytes of one pixel."""
    if len(rows) != height * (stride + 1):
        raise PictureError(f"the PNG file has {len(rows)} of {height * (stride + 1)} bytes of samples")
    samples, above = bytearray(), bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        kind, row = rows[start], bytearray(rows[start + 1 : start + 1 + stride])
        if kind == 1:
            for i in range(step, stride):
                row[i] = (row[i] + row[i - step]) & 255
        elif kind == 2:
            for i in range(stride):
                row[i] = (row[i] + above[i]) & 255
        elif kind == 3:
            for i in range(stride):
                row[i] = (row[i] + ((row[i - step] if i >= step else 0) + above[i]) // 2) & 255
        elif kind == 4:
            for i in range(stride):
                left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
                row[i] = (row[i] + _paeth(left, above[i], corner)) & 255
        elif kind != 0:
            raise PictureError(f"row {y} has filter {kind}; PNG has 0 to 4")
        samples += row
        above = row
    return bytes(samples)


def _paeth(left, up, corner):
    guess = left + up - corner
    to_left, to_up, to_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
    if to_left <= to_up and to_left <= to_corner:
        return left
    return up if to_up <= to_corner else corner


def resize(picture, box, width, height):
    """The part `box` (left, top, right, bottom, in pixels) scaled to `width` x `height`, in planes.

    A triangle filter as wide as the reduction: every source pixel counts, so nothing flickers away. The result is one
    list of floats (0 to 255) per channel, row-major.
    """
    left, top, right, bottom = box
    columns = _taps(left, right, width, picture.width)
    rows = _taps(top, bottom, height, picture.height)
    first, last = rows[0][0], max(start + len(weights) for start, weights in rows)
    planes = []
    for channel in range(picture.channels):
        narrow = {}
        for y in range(first, last):
            begin = y * picture.width * picture.channels + channel
            line = picture.samples[begin : begin + picture.width * picture.channels : picture.channels]
            narrow[y] = [sum(map(_times, line[at : at + len(taps)], taps)) for at, taps in columns]
        plane = []
        for at, taps in rows:
            sources = [narrow[at + i] for i in range(len(taps))]
            plane += [sum(map(_times, pixels, taps)) for pixels in zip(*sources)]
        planes.append(plane)
    return planes


def _times(sample, weight):
    return sample * weight


def _taps(start, stop, count, limit):
    """For each of `count` output pixels over [start, stop): the first source pixel and the weights from there on."""
    scale = (stop - start) / count
    reach = max(scale, 1.0)
    taps = []
    for i in range(count):
        centre = start + (i + 0.5) * scale
        low, high = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), limit)
        weights = [max(0.0, 1.0 - abs(x + 0.5 - centre) / reach) for x in range(low, high)]
        total = sum(weights)
        taps.append((low, [weight / total for weight in weights]))
    return taps


def cut(picture, corner, across, down, width, height):
    """A slanted part of a grey picture, straightened to `width` x `height`, as one plane of floats (0 to 255).

    `corner` is the part's top left (x, y); `across` and `down` are its sides as vectors, in pixels. Between pixels it is
    linear, so it is meant for parts that grow or stay as large as they are.
    """
    plane = []
    for v in range(height):
        for u in range(width):
            s, t = (u + 0.5) / width, (v + 0.5) / height
            x = min(max(corner[0] + across[0] * s + down[0] * t - 0.5, 0.0), picture.width - 1.001)
            y = min(max(corner[1] + across[1] * s + down[1] * t - 0.5, 0.0), picture.height - 1.001)
            at = int(y) * picture.width + int(x)
            fx, fy = x - int(x), y - int(y)
            upper = picture.samples[at] * (1 - fx) + picture.samples[at + 1] * fx
            lower = picture.samples[at + picture.width] * (1 - fx) + picture.samples[at + picture.width + 1] * fx
            plane.append(upper * (1 - fy) + lower * fy)
    return plane


def npy(dims, values, kind="f4"):
    """A .npy file (format 1.0) of float32 ("f4"), int64 ("i8") or int32 ("i4"), row-major."""
    data = array({"f4": "f", "i8": "q", "i4": "i"}[kind], values)
    count = 1
    for dim in dims:
        count *= dim
    if len(data) != count:
        raise ValueError(f"{len(data)} values for dimensions {list(dims)}")
    if sys.byteorder != "little":
        data.byteswap()
    shape = "(" + "".join(f"{dim}, " for dim in dims).strip() + ")"
    header = f"{{'descr': '<{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data.tobytes()
