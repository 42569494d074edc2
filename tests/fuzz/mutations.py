"""Damage done to valid files: to bytes, text, JSON, tensors and tables; everything by one seed."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = (
    "", " ", "\x00", "a\x00b", "\x1b[31mred\x1b[0m", "\r", "../../../evil", "/tmp/evil", "..", ".",
    "~nobody/evil", "a" * 300, "a" * 20_000, "\U0001f600", "‮desrever", "\ud800", "é" * 200,
    "<script>document.title='x'</script>", "=1+1", "%s%n", "{0}", "nan", "inf", "None", "true",
    "a,b", "a\nb", "a\tb", '"', "'", "\\", "#", ";", "?", "_", "data_", "H" * 50, "Xx", "D", "D2O",
    "((((((((((", "(" * 3000, "H(" * 2000 + ")" * 2000, "H1e400", "H" + "9" * 400, "H0", "H-1",
    "1" * 5000, "0.000001", "NaN!", "__import__('os').system('true')",
)  # fmt: skip
"""Texts that readers stumble over."""

NUMBERS = (
    "0", "-0.0", "-1", "1", "2", "0.5", "1e300", "-1e300", "1e-300", "5e-324", "1e400", "nan",
    "-inf", "inf", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
    "1000000000", "4294967296", "65535", "1e9", "1e6", "1e-6", "0.0001", "89.99999", "180", "360",
    "9" * 400, "9" * 5000, "1_000", "0x10", "1,5", "1.2.3", "1(5)", "1/3", "?", ".", "",
)  # fmt: skip
"""Numbers, as they are written, that readers stumble over."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 10**9, 10**30, -(10**30), 0.0, -0.5, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", "x", [], {}, [[]], [None], {"": None}, [1, 2, 3],
    {"a": {"b": {"c": []}}}, [[1.0, 2.0], [3.0]], ["\ud800"], "\ud800", "1", "nan", "2026-01-01",
)  # fmt: skip
"""JSON values of other types than what stands there."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*")


def damage_bytes(random: Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert and overwrite, often near the ends, where headers are."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        size = len(damaged)
        near = min(size, random.choice((16, 64, 512, size or 1)))
        place = random.randrange(near) if near else 0
        if random.random() < 0.5 and size:
            place = size - 1 - place
        length = random.choice((1, 2, 4, 8, 64, max(1, size // 3)))
        kind = random.randrange(8)
        if kind == 0 and size:
            damaged[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del damaged[place:]
        elif kind == 2:
            del damaged[place : place + length]
        elif kind == 3:
            damaged[place:place] = damaged[place : place + length] * random.choice((1, 2, 50))
        elif kind == 4:
            damaged[place:place] = random.randbytes(length)
        elif kind == 5:
            extreme = random.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            damaged[place : place + 8] = struct.pack("<Q", extreme)
        elif kind == 6:
            damaged[place : place + length] = bytes([random.choice((0, 0xFF, 0x80, 0x20))]) * length
        else:
            start = random.randrange(size) if size else 0
            damaged[place : place + length] = damaged[start : start + length]
    return bytes(damaged)


def damage_text(random: Random, text: str) -> bytes:
    """Change lines, numbers and words of a text; now and then its bytes."""
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        kind = random.randrange(8)
        lines = text.split("\n")
        line = random.randrange(len(lines))
        if kind == 0:
            del lines[line]
            text = "\n".join(lines)
        elif kind == 1:
            lines[line : line + 1] = [lines[line]] * random.choice((2, 3, 100))
            text = "\n".join(lines)
        elif kind == 2:
            other = random.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            text = "\n".join(lines)
        elif kind in (3, 4, 5):
            text = _replace(random, text, _NUMBER, NUMBERS + (WORDS if kind == 3 else ()))
        elif kind == 6:
            text = _replace(random, text, _WORD, WORDS)
        else:
            lines.insert(line, random.choice(WORDS + NUMBERS))
            text = "\n".join(lines)
    data = text.encode("utf-8", errors="surrogatepass")
    return damage_bytes(random, data) if random.random() < 0.15 else data


def _replace(random: Random, text: str, what: re.Pattern[str], by: tuple[str, ...]) -> str:
    found = list(what.finditer(text))
    if not found:
        return text
    chosen = random.choice(found)
    return text[: chosen.start()] + random.choice(by) + text[chosen.end() :]


def damage_json(random: Random, value: Any) -> Any:
    """Replace, drop, add, repeat or nest some part of a JSON value; the value stays as it is."""
    copied = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        copied = _change(random, copied, random.random() < 0.9)
    return copied


def _change(random: Random, value: Any, go_on: bool) -> Any:
    if go_on and isinstance(value, dict) and value:
        key = random.choice(list(value))
        kind = random.randrange(12)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[random.choice(WORDS)] = value[key]
        elif kind == 2:
            value[random.choice(WORDS)] = value.pop(key)
        else:
            value[key] = _change(random, value[key], random.random() < 0.85)
        return value
    if go_on and isinstance(value, list) and value:
        place = random.randrange(len(value))
        kind = random.randrange(10)
        if kind == 0:
            del value[place]
        elif kind == 1:
            value[place:place] = [value[place]] * random.choice((1, 2, 100))
        elif kind == 2:
            random.shuffle(value)
        else:
            value[place] = _change(random, value[place], random.random() < 0.85)
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and random.random() < 0.5:
        return random.choice((0, -1, -value, value + 1, value * 2, 10**9, 10**18, 1e308, 2**64))
    if isinstance(value, str) and random.random() < 0.5:
        return random.choice(WORDS)
    return random.choice(VALUES)


def write_json(random: Random, value: Any) -> bytes:
    """A JSON value as bytes, damaged in its structure or its bytes, seldom nested deep."""
    kind = random.random()
    if kind < 0.03:
        return b"[" * 100_000 + b"]" * random.choice((0, 100_000))
    if kind < 0.05:
        return b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    if kind < 0.08:
        return json.dumps(value).replace("1", "1" * 5000, 1).encode()
    data = json.dumps(damage_json(random, value) if kind < 0.85 else value).encode()
    return data if kind < 0.8 else damage_bytes(random, data)


DTYPES = (
    "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL",
    "F8_E4M3", "X9", "",
)  # fmt: skip


def damage_tensors(random: Random, data: bytes) -> bytes:
    """Damage a safetensors file in its lengths, shapes, types, names, header or numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = bytearray(data[8 + length :])
    declared: int | None = None
    for _ in range(random.choice((1, 1, 2, 3))):
        names = [name for name in header if name != "__metadata__"]
        kind = random.randrange(11)
        if not names:
            break
        name = random.choice(names)
        entry = header[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            break
        if kind == 0:
            declared = random.choice((0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, len(data)))
        elif kind == 1:
            entry["dtype"] = random.choice(DTYPES)
        elif kind == 2:
            entry["shape"] = random.choice(
                ([], [0], [1], [2**40], [2**32, 2**32], [-1], entry["shape"] * 2, ["a"], [1.5])
            )
        elif kind == 3:
            begin, end = (*entry["data_offsets"], 0, 0)[:2]
            entry["data_offsets"] = random.choice(
                ([0, 2**50], [begin, end + 1], [end, begin], [-1, 4], [begin], [begin, begin])
            )
        elif kind == 4:
            del header[name]
        elif kind == 5:
            header[random.choice(WORDS)] = header.pop(name)
        elif kind == 6:
            other = random.choice(names)
            header[name], header[other] = header[other], header[name]
        elif kind in (7, 8):
            kept = header.get("__metadata__")
            inner = kept.get("header") if isinstance(kept, dict) else None
            if isinstance(inner, str) and len(inner) < 1_000_000:
                with suppress(ValueError, RecursionError):
                    written = write_json(random, json.loads(inner))
                    header["__metadata__"] = {"header": written.decode(errors="replace")}
        elif kind == 9:
            _overwrite(random, header, name, body)
        else:
            header = damage_json(random, header)
            if not isinstance(header, dict):
                break
    text = json.dumps(header).encode()
    size = len(text) if declared is None else declared
    whole = struct.pack("<Q", size) + text + bytes(body)
    return damage_bytes(random, whole) if random.random() < 0.15 else whole


def retype_tensors(random: Random, data: bytes) -> bytes:
    """A valid safetensors file with a tensor of another shape or type, its bytes cut to fit."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    chosen = random.choice([name for name in header if name != "__metadata__"])
    sizes = {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U8": 1,
    }
    sizes |= {"U16": 2, "U32": 4, "U64": 8, "BOOL": 1}
    written: dict[str, Any] = {"__metadata__": header.get("__metadata__", {})}
    parts: list[bytes] = []
    at = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        part, shape, dtype = body[begin:end], list(entry["shape"]), entry["dtype"]
        if name == chosen:
            if random.random() < 0.5:
                dtype = random.choice(tuple(sizes))
            change = random.randrange(5)
            if change == 0 and shape:
                shape[random.randrange(len(shape))] += random.choice((-1, 1, 7))
            elif change == 1:
                shape = shape[1:]
            elif change == 2:
                shape = [*shape, random.choice((0, 1, 2))]
            elif change == 3:
                shape = shape[::-1]
            shape = [max(0, size) for size in shape]
            wanted = sizes[dtype]
            for size in shape:
                wanted *= size
            part = (part * (wanted // max(1, len(part)) + 1))[:wanted].ljust(wanted, b"\0")
        written[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(written).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def _overwrite(random: Random, header: dict[str, Any], name: str, body: bytearray) -> None:
    """Put NaN, infinity, zeros, ones or noise in place of a tensor's numbers."""
    entry = header[name]
    if not isinstance(entry, dict) or "data_offsets" not in entry:
        return
    begin, end = (*entry["data_offsets"], 0, 0)[:2]
    if not 0 <= begin < end <= len(body):
        return
    pattern = random.choice(
        (
            b"\0", b"\xff", struct.pack("<f", float("nan")), struct.pack("<f", float("inf")),
            struct.pack("<d", float("nan")), struct.pack("<d", 1e300), struct.pack("<f", 3e38),
            struct.pack("<q", -1), struct.pack("<q", 2**62), random.randbytes(16),
        )
    )  # fmt: skip
    span = end - begin
    if random.random() < 0.5:
        place = begin + (random.randrange(span) // 8) * 8
        body[place : min(place + len(pattern), end)] = pattern[: max(0, end - place)]
        return
    body[begin:end] = (pattern * (span // len(pattern) + 1))[:span]


def _wrong_columns(rows: int) -> tuple[Callable[[], pa.Array], ...]:
    def repeat(value: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array([value] * rows, kind)

    return (
        lambda: pa.nulls(rows),
        lambda: repeat(None, pa.float64()),
        lambda: repeat(None, pa.string()),
        lambda: repeat("x"),
        lambda: repeat(""),
        lambda: repeat("\x1b[31m<script>"),
        lambda: repeat("../../evil"),
        lambda: repeat("9" * 5000),
        lambda: repeat("H" + "(" * 2000),
        lambda: repeat("é" * 3000),
        lambda: repeat(float("nan")),
        lambda: repeat(float("inf")),
        lambda: repeat(1e308),
        lambda: repeat(-1),
        lambda: repeat(2**62),
        lambda: repeat(2**64 - 1, pa.uint64()),
        lambda: repeat(True),
        lambda: repeat(b"\xff\xfe", pa.binary()),
        lambda: repeat(date(2026, 1, 1)),
        lambda: repeat(Decimal("1.5")),
        lambda: repeat([]),
        lambda: repeat([None]),
        lambda: repeat([[1.0, 2.0, 3.0]]),
        lambda: repeat([[1.0], [2.0, 3.0]]),
        lambda: repeat(["x", None]),
        lambda: repeat({"a": 1}),
        lambda: repeat("x").dictionary_encode(),
        lambda: repeat([1.0] * 9, pa.list_(pa.float32(), 9)),
        lambda: repeat([float("nan")] * 9),
        lambda: repeat([1e300] * 9),
        lambda: repeat([0.0] * 9),
        lambda: repeat(1.5, pa.float16()),
        lambda: repeat("x", pa.large_string()),
        lambda: repeat([1], pa.large_list(pa.int64())),
        lambda: pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
    )


def damage_table(random: Random, table: pa.Table, path: Path) -> None:
    """Write a table as Parquet with columns of other types, rows gone, or damaged bytes."""
    kind = random.random()
    if kind < 0.75:
        for _ in range(random.choice((1, 1, 2))):
            table = _change_table(random, table)
    metadata = {b"pandas": random.choice((b"{}", b"[", b'{"index_columns": [{"kind": 5}]}'))}
    if random.random() < 0.05:
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path, compression=random.choice(("none", "snappy", "zstd")))
    if kind > 0.65:
        path.write_bytes(damage_bytes(random, path.read_bytes()))


def _change_table(random: Random, table: pa.Table) -> pa.Table:
    names = table.column_names
    place = random.randrange(len(names))
    name = names[place]
    kind = random.randrange(12)
    if kind == 0:
        return table.remove_column(place)
    if kind == 1:
        return table.rename_columns([random.choice(WORDS[:10]) if n == name else n for n in names])
    if kind == 2:
        return table.slice(0, 0)
    if kind == 3:
        return pa.concat_tables([table] * 3)
    if kind == 4:
        return table.append_column(name, table.column(place))
    if kind == 5:
        rows = [random.randrange(table.num_rows) for _ in range(3)] if table.num_rows else []
        return table.take(pa.array(rows, pa.int64()))
    values = random.choice(_wrong_columns(table.num_rows))()
    if kind in (6, 7) and table.num_rows:  # one value alone
        column = table.column(place).to_pylist()
        column[random.randrange(len(column))] = random.choice((None, *VALUES, *WORDS))
        with suppress(pa.ArrowException, TypeError, ValueError, OverflowError):
            values = pa.array(column, table.column(place).type)
    return table.set_column(place, name, values)
