"""Heat maps as PNG data: transparent where the memory is zero, so that they suit light and dark pages."""

import base64
import struct
import zlib

import torch
from torch import Tensor

POSITIVE, NEGATIVE = (220, 60, 50), (45, 120, 235)
GAP = 1


def heat_map(heads: Tensor, *, top: float) -> str:
    """One layer's heads side by side, a pixel for each number, as a `data:` URL.

    Args:
        heads: [heads, r, r].
        top: the number that is drawn in full colour, and all beyond it; positive.
    """
    count, rank, _ = heads.shape
    strip = torch.zeros(rank, count * (rank + GAP) - GAP)
    for head in range(count):
        left = head * (rank + GAP)
        strip[:, left : left + rank] = heads[head]
    colours = torch.where(strip[..., None] >= 0, torch.tensor(POSITIVE), torch.tensor(NEGATIVE))
    alpha = (255 * strip.abs() / top).clamp(0, 255).round()
    pixels = torch.cat([colours, alpha[..., None].long()], -1).to(torch.uint8)
    return "data:image/png;base64," + base64.b64encode(_png(pixels)).decode()


def _png(pixels: Tensor) -> bytes:
    """uint8 [height, width, 4] as a PNG file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)  # 6: red, green, blue and alpha
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
