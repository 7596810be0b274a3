"""A seeded generator of corrupt files: `corrupt` makes one fault of one kind in one file."""

import csv
import io
import json
import math
import os
import random
import struct
import zipfile
import zlib

import numpy as np

DEEP, HUGE = "[" * 200_000, "9" * 6_000
VALUES = [None, True, 0, -1, 3, 2**31, 10**19, -0.5, 7.25, 1e308, "", "x", "../..", "a\rb", [], {}]
VALUES += [[1], [-1, 2], [10**6, 10**6], [[]], {"a": 1}, "0" * 64, [0.5, 2], ["a", "b"]]
LITERALS = ["NaN", "-Infinity", DEEP, HUGE, "1e999", '"\\ud800"', "tru", ""]
CELLS = ["", "NaN", "inf", "-1", "2", "1e400", '"', "a,b", "\0", "train\r", "x" * 200_000, "test"]
HEADERS = ["(9, 9", "(-1, 4, 4)", "(2**9, 2**9)", f"({2**70},)", "(1.5,)", "'ab'", "()", "(0,)"]


def corrupt(path, rng: random.Random) -> str:
    """Corrupt a file in place; return its name and the kind of fault."""
    kinds = [*KINDS.get(path.suffix, []), *ANY, *KINDS.get(path.suffix, [])]
    kind = rng.choice(kinds)
    kind(path, rng)
    return f"{path.name}: {kind.__name__}"


def truncated(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.choice([0, 1, 10, len(content) // 2, max(len(content) - 1, 0)])])


def flipped(path, rng):
    content = bytearray(path.read_bytes() or b"x")
    for _ in range(rng.choice([1, 8, 100])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def replaced(path, rng):
    path.write_bytes(rng.choice([rng.randbytes(500), b"\xff\xfe\x00", b"\0" * 4096, b"PK\3\4" * 9]))


def a_folder(path, rng):
    path.unlink()
    path.mkdir()


def a_pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


def a_dangling_link(path, rng):
    path.unlink()
    path.symlink_to("nowhere")


def json_value(path, rng):
    value = json.loads(path.read_text())
    container, key = rng.choice([*_items(value)])
    literal = None
    choice = rng.random()
    if choice < 0.15 and isinstance(container, dict):
        del container[key]
    elif choice < 0.3:
        literal, container[key] = rng.choice(LITERALS), "LITERAL"
    else:
        container[key] = rng.choice(VALUES)
    text = json.dumps(value)
    path.write_text(text if literal is None else text.replace('"LITERAL"', literal))


def json_document(path, rng):
    value = json.loads(path.read_text())
    path.write_text(rng.choice([DEEP, HUGE, "[]", "null", "7", json.dumps([value]), '{"x": 1}']))


def _items(value):
    """Yield (container, key) of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, dict | list) and item:
            yield from _items(item)


def csv_cell(path, rng):
    rows = [*csv.reader(io.StringIO(path.read_text()))]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(CELLS)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_text(text.getvalue())


def csv_text(path, rng):
    lines = path.read_text().splitlines()
    line = rng.randrange(len(lines))
    lines[line] = rng.choice(['"' + lines[line], lines[line] + ",x", "", "\0", lines[0], "x"])
    path.write_text("\n".join(lines))
    if rng.random() < 0.3:
        path.write_bytes(path.read_bytes() + b"\xff\xfe\xc3")


def npy_header(path, rng):
    path.write_bytes(_with_header(path.read_bytes(), rng))


def npz_under_its_name(path, rng):
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def _with_header(content, rng):
    shape, kind = rng.choice(HEADERS), rng.choice(["|u1", "<f8", "|O", "<U9", "<i2"])
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return (
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content[128:]
    )


def npz_array(path, rng):
    with np.load(path) as file:
        arrays = dict(file)
    name = rng.choice([*arrays])
    array = arrays.pop(name)
    new = [
        lambda: array.astype("float64") + 0.5 if array.dtype.kind in "iuf" else array[..., None],
        lambda: np.full(array.shape, -5.0),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, 65_535, "uint16"),
        lambda: array.ravel()[:1],
        lambda: np.array("text"),
        lambda: np.array('{"epoch": -1, "step": "x", "history": [], "seconds": null}'),
        lambda: np.array(2**62),
        lambda: np.zeros((0, 3)),
    ]
    if rng.random() < 0.8:
        arrays[name] = rng.choice(new)()
    with path.open("wb") as file:
        np.savez(file, **arrays)


def npz_header(path, rng):
    entries = _read_zip(path)
    name = rng.choice([*entries])
    _write_zip(path, entries | {name: _with_header(entries[name], rng)})


def keras_config(path, rng):
    entries = _read_zip(path)
    inside = path.with_name("inside.json")
    inside.write_bytes(entries["config.json"])
    json_value(inside, rng)
    entries["config.json"] = inside.read_bytes()
    inside.unlink()
    _write_zip(path, entries)


def keras_weights(path, rng):
    entries = _read_zip(path)
    content = entries["model.weights.h5"]
    entries["model.weights.h5"] = rng.choice([content[: len(content) // 2], b"", b"x" * 100])
    _write_zip(path, entries)


def nifti_header(path, rng):
    """Write an extreme value into dim, datatype, pixdim, vox_offset, scl_slope or the sform."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        offset, value = rng.choice([*range(40, 56, 2), 70]), rng.choice([-1, 0, 2, 9999, 32767])
        struct.pack_into("<h", content, offset, value)
    else:
        offset = rng.choice([*range(76, 120, 4), *range(280, 328, 4)])
        value = rng.choice([math.nan, math.inf, 0.0, -1.0, 1e20, 1e-20])
        struct.pack_into("<f", content, offset, value)
    path.write_bytes(content)


def png_size(path, rng):
    """Claim another width and height, with a valid checksum."""
    content = bytearray(path.read_bytes())
    sides = rng.choice([(0, 0), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (63, 64), (1, 1)])
    content[16:24] = struct.pack(">II", *sides)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def _read_zip(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def _write_zip(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            file.writestr(name, content)


ANY = [truncated, flipped, replaced, a_folder, a_pipe, a_dangling_link]
KINDS = {
    ".json": [json_value, json_value, json_value, json_document],
    ".csv": [csv_cell, csv_cell, csv_text],
    ".npy": [npy_header, npy_header, npz_under_its_name],
    ".npz": [npz_array, npz_array, npz_header],
    ".nii": [nifti_header] * 4,
    ".png": [png_size],
    ".keras": [keras_config, keras_config, keras_weights],
}
