"""Contents of picture files, such as Pillow itself does not write."""

import struct
import zlib

import numpy as np

H, W = 40, 56


def smooth(channels=3):
    """As photographs are, so that a JPEG of it is much like it."""
    rows, columns = np.mgrid[:H, :W] / np.array([H, W])[:, None, None]
    planes = [np.sin(rows * (2 + i) + columns * (3 - i)) * 90 + 128 for i in range(channels)]
    return np.stack(planes, 2).astype(np.uint8)


def png16(values, colour):
    """A PNG of 16 bits a channel, of [H, W, C]."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(values, photometric=2, *, extra=(), planar=False, packed=False):
    """A TIFF of [H, W, C] in its dtype.

    `extra`: what the last channels are; `planar`: each by itself; `packed`: compressed.
    """
    height, width, channels = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    parts = [plane.tobytes() for plane in values.transpose(2, 0, 1)] if planar else [values.tobytes()]
    parts = [zlib.compress(part) if packed else part for part in parts]
    content, places = bytearray(b"II*\0\0\0\0\0"), []
    for part in parts:
        places.append(len(content))
        content += part + b"\0" * (len(part) % 2)
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [values.dtype.itemsize * 8] * channels),
        259: ("H", [8 if packed else 1]),
        262: ("H", [photometric]),
        273: ("I", places),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", list(map(len, parts))),
        284: ("H", [2 if planar else 1]),
        338: ("H", list(extra)),
        339: ("H", [kind] * channels),
    }
    entries = []
    for tag, (code, numbers) in tags.items():
        if not numbers:
            continue
        data = struct.pack(f"<{len(numbers)}{code}", *numbers)
        if len(data) > 4:
            content += data
            data = struct.pack("<I", len(content) - len(data))
        entries.append(struct.pack("<HHI", tag, {"H": 3, "I": 4}[code], len(numbers)) + data.ljust(4, b"\0"))
    content[4:8] = struct.pack("<I", len(content))
    return bytes(content + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")
