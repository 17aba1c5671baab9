"""Trace files: JSON lines in and out, and Parquet for the tables.

A file is read leniently (what can be read is kept, the rest is named) and written atomically, except while a run goes
on: then whole lines are appended, so a killed run leaves every completed round behind.
"""

import base64
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import BadInput, BadTrace
from workbench.trace import tables
from workbench.trace.files import made_folder, write_whole
from workbench.trace.packing import unpack
from workbench.trace.schema import KEYS, SCHEMA, TABLES

__all__ = ["CAPSULE", "encode", "read", "read_tables", "write", "write_tables"]

CAPSULE = b"<!doctype html>"  # how a capsule begins; a trace file begins with {


def encode(event: dict[str, Any]) -> bytes:
    """One event as one line of UTF-8 JSON."""
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # lone surrogates, as a command line may carry them
        return json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def write(path: str | Path, events: list[dict[str, Any]]) -> None:
    """Write a whole trace, all or nothing. Raises BadInput where that is impossible."""
    write_whole(path, b"".join(map(encode, list(events))))


def read(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The events of a trace file (or of the one in a capsule) and one line about each thing that had to be dropped.

    Raises BadInput where there is no such file, BadTrace where it is no trace or follows a newer schema.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; expected a trace file such as run.wb") from None
    if content.startswith(CAPSULE):
        content = _unwrap(content, path)
    lines = content.split(b"\n")
    complete = lines[-1] == b""  # the last line ends in a newline
    if complete:
        lines.pop()
    run = _parse(lines[0]) if lines else None
    if not isinstance(run, dict) or run.get("type") != "run":
        raise BadTrace(f"{path} is not a trace: expected JSON lines that start with a run event, as trace.save writes")
    version = run.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadTrace(f"{path} names no schema version; expected a whole number from 1 to {SCHEMA} in its first line")
    if version > SCHEMA:
        raise BadTrace(f"{path} has schema {version}; this version reads up to {SCHEMA}; upgrade decoding-workbench")
    events, dropped = [run], []
    for number, line in enumerate(lines[1:], start=2):
        event = _parse(line)
        problem = _problem(event)
        if problem is None:
            events.append(event)
        elif number == len(lines) and not complete:
            dropped.append(f"line {number}: cut off")
        else:
            dropped.append(f"line {number}: {problem}")
    return events, dropped


def _unwrap(page: bytes, path: Path) -> bytes:
    """The trace file inside a capsule."""
    found = re.search(rb'<script type="application/gzip" id="workbench-trace">([A-Za-z0-9+/=]*)</script>', page)
    try:
        return gzip.decompress(base64.b64decode(found[1], validate=True))
    except (TypeError, ValueError, OSError, EOFError, zlib.error):
        raise BadTrace(f"{path} holds no readable trace: expected an HTML file that trace.capsule wrote") from None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None


def _problem(event: Any) -> str | None:
    """What keeps a line from being used as an event; None where nothing does."""
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        return "not an event"
    kind = event["type"]
    if kind in ("round", "cache", "decision", "rows") and type(event.get("round")) is not int:
        return f"{kind} event without a round number"
    if kind != "round":
        return None
    for group, key in KEYS.items():
        packed = event.get(group, {})
        if not isinstance(packed, dict) or (packed and not isinstance(packed.get(key), list)):
            return f"round {event['round']} has damaged {group}"
        runs = packed.get("runs")
        if runs is not None and not (isinstance(runs, list) and all(type(count) is int for count in runs)):
            return f"round {event['round']} has damaged {group}"
        lengths = {sum(runs), len(runs)} if runs else {len(packed.get(key, ()))}
        if any(isinstance(column, list) and len(column) not in lengths for column in packed.values()):
            return f"round {event['round']} has {group} of unequal length"
    ids = unpack("tokens", event.get("tokens")).get("token_id", [])
    if len(ids) != event.get("emitted") or any(type(token) is not int for token in ids):
        return f"round {event['round']} has damaged tokens"
    cache = event.get("cache", {})
    if not isinstance(cache, dict) or not all(isinstance(columns, dict) for columns in cache.values()):
        return f"round {event['round']} has a damaged cache"
    if not all(isinstance(event.get(name, {}), dict) for name in ("ms", "figures")):
        return f"round {event['round']} is damaged"
    return None


def write_tables(folder: str | Path, frames: dict[str, pd.DataFrame]) -> None:
    """One Parquet file per table; `topk` columns become structs of ids and p, `any` columns JSON text.

    Every file is written all or nothing. Raises BadInput where that is impossible.
    """
    folder = made_folder(folder)
    for name, frame in frames.items():
        frame = frame.copy()
        for column in TABLES[name]:
            if column.type == "topk":
                frame[column.name] = _cells(frame, column.name, lambda pair: {"ids": pair[0], "p": pair[1]})
            elif column.type == "any":
                frame[column.name] = _cells(frame, column.name, json.dumps)
        write_whole(folder / f"{name}.parquet", _parquet(name, frame))


def _parquet(name: str, frame: pd.DataFrame) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    topk = pa.struct([("ids", pa.list_(pa.int64())), ("p", pa.list_(pa.float64()))])
    types = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    fields = [
        pa.field(c.name, topk if c.type == "topk" else types.get(c.dtype, pa.string()), nullable=not c.required)
        for c in TABLES[name]
    ]
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, schema=pa.schema(fields), preserve_index=False), out)
    return out.getvalue().to_pybytes()


def read_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables written by `write_tables`, equal to the originals. Raises BadInput or BadTrace naming the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frames = {}
    for name, columns in TABLES.items():
        path = Path(folder) / f"{name}.parquet"
        if not path.is_file():
            raise BadInput(f"no {path.name} in {folder}: expected a folder written by trace.to_parquet")
        try:
            data = pq.read_table(path).to_pydict()
        except (pa.ArrowException, OSError):
            raise BadTrace(f"{path} is damaged: expected a Parquet file written by trace.to_parquet") from None
        for column in columns:
            if column.type == "topk":
                cells = data.get(column.name, [])
                data[column.name] = [cell and [cell["ids"], cell["p"]] for cell in cells]
            elif column.type == "any":
                data[column.name] = [cell if cell is None else json.loads(cell) for cell in data.get(column.name, [])]
        frames[name] = tables.frame(name, data)
    return frames


def _cells(frame: pd.DataFrame, name: str, convert) -> pd.Series:
    cells = [None if cell is None else convert(cell) for cell in frame[name]]
    return pd.Series(cells, index=frame.index, dtype=object)
