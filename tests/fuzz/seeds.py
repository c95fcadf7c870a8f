#!/usr/bin/env python3
"""Writes the seeds that the corpus of the fuzz targets `image`, `import` and `model` began with, each as small as its format allows.

pip install pillow==13.* numpy tifffile imagecodecs; python3 tests/fuzz/seeds.py FOLDER
(The seeds of the others are text, written by hand. Coverage-guided runs have added to all of them.)
"""
import hashlib
import io
import json
import pathlib
import pickle
import struct
import sys
import zipfile
import zlib

import numpy as np
import tifffile
from PIL import Image

root = pathlib.Path(sys.argv[1])


def put(target, name, data):
    folder = root / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


y, x = np.mgrid[0:5, 0:7]
rgb = np.stack([x * 36, y * 60, 255 - x * 20 - y * 10], 2).astype(np.uint8)
gray = rgb[..., 0]
color = Image.fromarray(rgb)
exif = Image.Exif()
exif[0x112] = 6


def save(name, image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    put("image", name, out.getvalue())


# PNG: every colour type, 1 to 16 bits, transparency, interlace, EXIF, several frames.
for mode in ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]:
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else color.convert(mode)
    save(f"png-{mode.replace(';', '')}.png", image, "PNG")
save("png-exif.png", color, "PNG", exif=exif)
save("png-transparent.png", color.convert("L"), "PNG", transparency=7)
save("png-animated.png", color, "PNG", save_all=True, append_images=[color.rotate(180)])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(header, rows, *more):
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *header)), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # Adam7
rows = b"".join(b"\0" + gray[r, x0::dx].tobytes() for x0, y0, dx, dy in passes for r in range(y0, 5, dy) if x0 < 7)
put("image", "png-interlaced.png", png((7, 5, 8, 0, 0, 0, 1), rows))
filtered = b"".join(bytes([r % 5]) + rgb[r].astype(">u2").tobytes() for r in range(5))
put("image", "png-16.png", png((7, 5, 16, 2, 0, 0, 0), filtered))
put("image", "png-2bit.png", png((2, 1, 2, 3, 0, 0, 0), b"\0\x60", chunk(b"PLTE", bytes([9, 8, 7, 200, 100, 50, 1, 2, 3]))))

# JPEG: gray, YCbCr at each subsampling, CMYK, progressive, restart markers, EXIF.
save("jpeg-gray.jpg", color.convert("L"), "JPEG")
save("jpeg-420.jpg", color, "JPEG", subsampling=2, optimize=True)
save("jpeg-444.jpg", color, "JPEG", subsampling=0, restart_marker_blocks=1)
save("jpeg-progressive.jpg", color, "JPEG", progressive=True)
save("jpeg-cmyk.jpg", color.convert("CMYK"), "JPEG")
save("jpeg-exif.jpg", color, "JPEG", exif=exif, optimize=True)

# BMP: 1, 4, 8, 24 bits; 16 and 32 with masks, RLE8.
for mode in ["1", "L", "P", "RGB", "RGBA"]:
    save(f"bmp-{mode}.bmp", color.convert(mode), "BMP")
info = lambda bits, compression, size: struct.pack("<IiiHHIIiiII", 40, 4, 2, 1, bits, compression, size, 0, 0, 0, 0)
bmp = lambda head, data: b"BM" + struct.pack("<IHHI", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data
put("image", "bmp-565.bmp", bmp(info(16, 3, 16) + struct.pack("<III", 0xF800, 0x7E0, 0x1F), bytes(range(16))))
put("image", "bmp-rle8.bmp", bmp(info(8, 1, 16) + bytes(range(256)) * 4, b"\4\5\0\0\0\3\1\2\3\0\1\7\0\1"))
put("image", "bmp-rle4.bmp", bmp(info(4, 2, 8) + bytes(range(64)), b"\4\x12\0\0\0\2\2\0\0\1"))

# TIFF: bits, samples, compressions, predictors, strips, tiles, planes, both byte orders, BigTIFF, orientation.
for name, data, options in [
    ("gray8", gray, {}),
    ("gray16", gray.astype(np.uint16) * 257, {"byteorder": ">"}),
    ("rgb-lzw", rgb, {"compression": "lzw", "predictor": 2}),
    ("rgb-deflate", rgb, {"compression": "zlib", "rowsperstrip": 2}),
    ("rgb-packbits", rgb, {"compression": "packbits"}),
    ("rgb-planes", np.moveaxis(rgb, 2, 0), {"planarconfig": "separate", "photometric": "rgb"}),
    ("rgb-tiles", np.resize(rgb, (16, 16, 3)), {"tile": (16, 16), "compression": "zlib"}),
    ("rgb-jpeg", np.resize(rgb, (16, 16, 3)), {"compression": "jpeg"}),
    ("rgba", np.dstack([rgb, gray]), {"extrasamples": ["unassalpha"]}),
    ("float", gray.astype(np.float32) / 255, {"compression": "zlib", "predictor": 3}),
    ("float64", gray.astype(np.float64), {}),
    ("int32", gray.astype(np.uint32), {}),
    ("big", gray, {"bigtiff": True}),
    ("turned", rgb, {"extratags": [(274, "H", 1, 6, True)]}),
]:
    out = io.BytesIO()
    tifffile.imwrite(out, data, metadata=None, software=None, **options)
    put("image", f"tiff-{name}.tif", out.getvalue())
for form in ["group3", "group4"]:
    save(f"tiff-{form}.tif", color.convert("1"), "TIFF", compression=form)
save("tiff-cmyk.tif", color.convert("CMYK"), "TIFF")
save("tiff-palette.tif", color.convert("L").quantize(4), "TIFF")

# PNM: plain and raw, 1, 8 and 16 bits, PAM.
for name, data in [
    ("p1", b"P1\n# a comment\n3 2\n1 0 1\n0 1 0\n"),
    ("p2", b"P2 3 2 255 1 2 3 4 5 6"),
    ("p3", b"P3 1 2 65535 1 2 3 400 5 6\n"),
    ("p4", b"P4 9 2\n\xaa\x80\x55\0"),
    ("p5", b"P5 3 2 255\n" + bytes(6)),
    ("p5-16", b"P5 3 2 1023\n" + bytes(12)),
    ("p6", b"P6 2 1 255\n" + bytes(6)),
    ("p7", b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(8)),
    ("p7-gray", b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 1\nMAXVAL 65535\nTUPLTYPE GRAYSCALE\nENDHDR\n" + bytes(4)),
    ("p7-bits", b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nTUPLTYPE BLACKANDWHITE\nENDHDR\n\1\0"),
]:
    put("image", f"pnm-{name}.pnm", data)

# WebP: lossy, lossless, alpha, several frames, EXIF.
save("webp-lossy.webp", color, "WEBP", quality=50)
save("webp-lossless.webp", color, "WEBP", lossless=True)
save("webp-palette.webp", color.convert("L").quantize(4).convert("RGB"), "WEBP", lossless=True)
save("webp-alpha.webp", Image.fromarray(np.dstack([rgb, gray])), "WEBP", quality=50, exact=True)
save("webp-animated.webp", color, "WEBP", save_all=True, append_images=[color.rotate(180)])
save("webp-exif.webp", color, "WEBP", exif=exif)


# Weights: the two formats of PyTorch, a wheel, safetensors.
def storage(key, kind, count):
    return b"(X\x07\0\0\0storagectorch\n" + kind + b"\nX\x01\0\0\0" + key + b"X\x03\0\0\0cpuK" + bytes([count]) + b"tQ"


def tensor(store, offset, shape, strides):
    whole = lambda values: b"(" + b"".join(b"K" + bytes([v]) for v in values) + b"t"
    rest = b"K" + bytes([offset]) + whole(shape) + whole(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + store + rest


name = lambda text: b"X" + struct.pack("<I", len(text)) + text
state = b"\x80\x02ccollections\nOrderedDict\n)Rq\0(" + b"".join([
    name(b"a"), tensor(storage(b"0", b"FloatStorage", 6), 0, [2, 3], [1, 2]),
    name(b"b"), tensor(storage(b"0", b"FloatStorage", 6), 1, [], []),
    name(b"c"), tensor(storage(b"1", b"HalfStorage", 2), 0, [2], [1]),
    name(b"d"), tensor(storage(b"2", b"LongStorage", 1), 0, [], []),
]) + b"u."
numbers = [np.arange(6, dtype="<f4").tobytes(), np.ones(2, "<f2").tobytes(), np.ones(1, "<i8").tobytes()]


def archive(files, how=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file:
        for path, data in files:
            file.writestr(zipfile.ZipInfo(path), data, how)
    return out.getvalue()


parts = [("archive/data.pkl", state), ("archive/byteorder", b"little")]
parts += [(f"archive/data/{i}", data) for i, data in enumerate(numbers)]
put("import", "archive.pth", archive(parts))
put("import", "deflated.pth", archive(parts, zipfile.ZIP_DEFLATED))
put("import", "nested.pth", archive([("data.pkl", b"\x80\x02}X\x05\0\0\0model" + state[2:-1] + b"s."), *[(f"data/{i}", d) for i, d in enumerate(numbers)]]))
magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
keys = b"\x80\x02](X\x01\0\0\x000X\x01\0\0\x001X\x01\0\0\x002e."
lengths = [6, 2, 1]
stream = magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + state + keys
stream += b"".join(struct.pack("<Q", n) + data for n, data in zip(lengths, numbers))
put("import", "stream.pth", stream)
put("import", "wheel.whl", archive([("package/weights.pth", stream), ("package/__init__.py", b"")], zipfile.ZIP_DEFLATED))
for protocol in range(5):
    made = pickle.dumps({"a": [1, 2.5, None, True, (1, "b")], "state_dict": {"c": -(2**40)}}, protocol)
    put("import", f"pickle{protocol}.pth", archive([("x/data.pkl", made)]))
for dtype, size in [("F32", 4), ("F16", 2), ("BF16", 2), ("F64", 8), ("I64", 8)]:
    header = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"%s","shape":[2,1],"data_offsets":[0,%d]}}' % (dtype.encode(), 2 * size)
    put("import", f"{dtype.lower()}.safetensors", struct.pack("<Q", len(header)) + header + bytes(2 * size))

# Model files: a card of picture space with three tensors (not those of a model), and with none.
scores = [i / 8 for i in range(1, 21)]
ng = {"value": 2.5, "rank": 20, "n": 20, "false_reject_rate": 0.05, "interval": [0.001, 0.17]}
warn = {"value": 1.25, "rank": 10, "n": 20, "false_reject_rate": 0.53, "interval": [0.3, 0.73]}
made = [
    ("b.weight", "F32", [2, 3], np.array([0.5, -1, 2, 3.25, -0.0, 1e-40], "<f4")),
    ("c.scale", "F32", [], np.array([7], "<f4")),
    ("a.half", "F16", [3], np.array([1, -2.5, 65504], "<f2")),
]


def model(tensors, classes):
    digest = hashlib.sha256()
    for title, dtype, shape, values in sorted(tensors, key=lambda t: t[0]):
        digest.update(struct.pack("<Q", len(title)) + title.encode() + dtype.encode() + b"\0")
        digest.update(struct.pack(f"<Q{len(shape)}Q", len(shape), *shape) + values.tobytes())
    fields = {"train_images": 9, "calibration_scores": scores, "ng": ng, "warn": warn, "pixel_threshold": 1.0}
    card = {
        "schema": 1,
        "tool": "diad 0.1.0",
        "config": {"input": {"size": 64}, "features": {"space": "pixel", "grid": 4}, "denoiser": {"width": 16}},
        "classes": [{"name": title, **fields, "prototype_limit": 1.5} for title in classes],
        "training": {"images": 29, "data_sha256": "d" * 64, "seed": 1, "steps": 2},
        "tensors_sha256": digest.hexdigest(),
    }
    text = json.dumps(card, separators=(",", ":"))
    header, at = {"__metadata__": {"diad": text, "diad.sha256": hashlib.sha256(text.encode()).hexdigest()}}, 0
    for title, dtype, shape, values in tensors:
        header[title] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    header = json.dumps(header, separators=(",", ":"))
    header += " " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header.encode() + b"".join(values.tobytes() for *_, values in tensors)


put("model", "three.diad", model(made, ["bottle"]))
put("model", "none.diad", model([], ["a", 'Schraube "M6"']))
