"""Trace files: JSON lines in and out, gzipped when they are saved, and Parquet for the tables.

A file is read leniently (what can be read is kept, the rest is named) and written atomically, except while a run goes
on: then whole lines are appended, so a killed run leaves every completed round behind.
"""

import base64
import gzip
import io
import json
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from workbench.errors import BadInput, BadTrace
from workbench.trace import tables
from workbench.trace.door import FREE, Door
from workbench.trace.files import made_folder, write_whole
from workbench.trace.forms import Damaged, writable
from workbench.trace.schema import SCHEMA, TABLES

BOM, GZIP = b"\xef\xbb\xbf", b"\x1f\x8b"  # what some editors put before UTF-8; how gzip begins
BATCH = 64  # lines of a file that are checked together
DECODER = json.JSONDecoder(parse_constant=lambda name: None)
PACKED = 256  # cells of tables for a byte of a Parquet file
MEMBER = 2**20  # bytes of lines in a gzip member
SWELL = 16  # how many times its own size a gzipped trace may have
OF_PAGE = 8  # the same of the page of a capsule; 0.1 wrote single members that may shrink more


def encode(event: dict[str, Any]) -> bytes:
    """One event as one line of UTF-8 JSON."""
    try:
        return json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:  # lone surrogates, as a command line may carry them
        return json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def packed(events: Iterable[dict[str, Any]]) -> bytes:
    """Events as gzip members of whole lines, none of which is smaller than a reader lets in."""
    members, waiting, size = [], [], 0
    for line in (*map(encode, events), b""):
        waiting.append(line)
        size += len(line)
        if size >= MEMBER or not line:
            lines, waiting, size = b"".join(waiting), [], 0
            member = gzip.compress(lines, mtime=0)
            members.append(member if len(lines) <= SWELL * len(member) else gzip.compress(lines, 0, mtime=0))
    return b"".join(members)


def write(path: str | Path, events: Iterable[dict[str, Any]]) -> None:
    """Write a whole trace, all or nothing. Raises BadInput where that is impossible."""
    write_whole(path, packed(list(events)))


def read(path: str | Path, limit: int | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """The events of a trace file (or of the one in a capsule) and one line about each thing that had to be dropped.

    What is in keeps to the schema (`workbench.trace.door`), and costs what the bytes of the file allow. limit: the most
    bytes that a trace may have, unpacked.

    Raises BadInput where there is no such file, BadTrace where it is no trace or follows a newer schema.
    """
    path = Path(path)
    with _opened(path) as file:
        begins = _begin(file)
        if limit is not None and path.stat().st_size > limit * (2 if begins == GZIP else 1):
            raise BadInput(f"{path} has more than {limit:,} bytes, the most that a trace may have here")
        lines, damage = file if begins == b"{" else (), ""
        if begins in (b"<", GZIP):
            whole = file.read()
            content = whole if begins == GZIP else _unwrap(whole, path)
            most = SWELL * len(content) if begins == GZIP else max(SWELL * len(content), OF_PAGE * len(whole))
            lines, damage = _unpack(content, path, most if limit is None else min(most, limit))
        return _events(lines, path, damage)


def is_capsule(path: str | Path) -> bool:
    """Whether a file begins as a page does; a trace begins otherwise. Raises BadInput where there is no such file."""
    with _opened(Path(path)) as file:
        return _begin(file) == b"<"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, where it is one: a pipe or a device may have no end."""
    if "\0" in str(path):
        raise BadInput(f"cannot read {str(path)!r}: no file has such a name")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise BadInput(f"cannot read {path}: it is {kind}; expected a trace file such as run.wb")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; expected a trace file such as run.wb") from None
    except MemoryError:
        raise BadInput(f"cannot read {path}: it needs more memory than there is") from None


def _begin(file: BinaryIO) -> bytes:
    """Go behind a byte order mark, which is not part of a file's text; the first character there that is no space, or
    how gzip begins."""
    if file.read(len(BOM)) != BOM:
        file.seek(0)
    start = file.tell()
    begins = file.read(1024)
    file.seek(start)
    return GZIP if begins.startswith(GZIP) else begins.lstrip()[:1]


def _events(lines: Iterable[bytes], path: Path, damage: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    """damage: what is wrong behind the lines."""
    lines = iter(lines)
    first = next(lines, b"")
    run = _parse(first)
    if not isinstance(run, dict) or run.get("type") != "run":
        wanted = "expected lines that start with a run event, as trace.save writes, or a page that trace.capsule wrote"
        raise BadTrace(f"{path} is not a trace: {wanted}")
    version = run.get("schema")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadTrace(f"{path} names no schema version; expected a whole number from 1 to {SCHEMA} in its first line")
    if version > SCHEMA:
        version = version if version < 2**63 else "of a very large number"
        raise BadTrace(f"{path} has schema {version}; this version reads up to {SCHEMA}; upgrade decoding-workbench")
    door = Door()
    door.run(run, len(first))
    events = _numbered(lines, damage)
    while several := list(islice(events, BATCH)):
        door.enter(*several)
    return door.log, door.dropped


def _numbered(lines: Iterable[bytes], damage: str) -> Iterator[tuple[Any, int, int]]:
    """What the lines behind the first one hold, or the `Damaged` that says why that is nothing; bytes and number."""
    number = 1
    for number, line in enumerate(lines, start=2):
        event = _parse(line)
        if event is None and not line.endswith(b"\n"):  # only the last line of a file
            event, damage = Damaged(damage or "cut off"), ""
        if event is not None or not line.isspace():
            yield Damaged("not an event") if event is None else event, len(line), number
    if damage:
        yield Damaged(damage), 0, number + 1


def _unwrap(page: bytes, path: Path) -> bytes:
    """The gzipped trace inside a capsule, however a browser wrote the page again. Costs in proportion to the page."""
    for tag in re.finditer(rb"<script\b([^<>]{0,1000})>", page, re.IGNORECASE):
        if re.search(rb"\bid\s*=\s*[\"']?workbench-trace(?![\w-])", tag[1], re.IGNORECASE):
            end = re.compile(rb"</script", re.IGNORECASE).search(page, tag.end())
            packed = page[tag.end() : end.start() if end else len(page)]
            with suppress(ValueError):
                content = base64.b64decode(b"".join(packed.split()), validate=True)
                if content.startswith(GZIP):
                    return content
            break
    raise BadTrace(f"{path} holds no readable trace: expected an HTML file that trace.capsule wrote")


def _unpack(content: bytes, path: Path, most: int) -> tuple[BinaryIO, str]:
    """The lines of gzip members, and what is wrong behind them: what a cut-off or damaged one has before is kept.

    most: bytes that they may have; what claims to be more is refused. What was copied as if it were text, each line
    feed behind a carriage return, is read as it was before.
    """
    found = _members(content, path, most)
    if found[1] and b"\r\n" in content:
        before = _members(content.replace(b"\r\n", b"\n"), path, most)
        found = max(found, before, key=lambda one: (not one[1], len(one[0].getbuffer())))
    return found


def _members(content: bytes, path: Path, most: int) -> tuple[io.BytesIO, str]:
    stream, pieces, left, damage = gzip.GzipFile(fileobj=io.BytesIO(content)), [], most, ""
    try:
        while left >= 0 and (piece := stream.read1(2**16)):
            pieces.append(piece)
            left -= len(piece)
    except EOFError:
        damage = "cut off"
    except (OSError, zlib.error):
        damage = "damaged from here on"
    if left < 0:
        raise BadTrace(f"{path} is refused: its trace is larger than {most:,} bytes, the most that one may have here")
    return io.BytesIO(b"".join(pieces)), damage


def _parse(line: bytes) -> Any:
    try:
        return DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None


PACKED_AS = {"topk": lambda pair: {"ids": pair[0], "p": pair[1]}}  # cells in Parquet, by type of column
PACKED_AS |= dict.fromkeys(("text", "short", "name"), writable) | dict.fromkeys(("runs", "place", "any"), json.dumps)


def write_tables(folder: str | Path, frames: dict[str, pd.DataFrame]) -> None:
    """One Parquet file per table; `topk` columns become structs of ids and p, `any` columns JSON text.

    Every file is written all or nothing. Raises BadInput where that is impossible.
    """
    folder = made_folder(folder)
    for name, frame in frames.items():
        frame = frame.copy()
        for column in TABLES[name]:
            if pack := PACKED_AS.get(column.type):
                cells = [None if cell is None else pack(cell) for cell in frame[column.name]]
                frame[column.name] = pd.Series(cells, index=frame.index, dtype=object)
        content = frame.to_parquet(engine="pyarrow", index=False, schema=_arrow_schema(name))
        write_whole(folder / f"{name}.parquet", content)


def _arrow_schema(name: str) -> Any:
    """The columns of a table as they are in its Parquet file."""
    import pyarrow as pa

    types = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    topk = pa.struct([("ids", pa.list_(pa.int64())), ("p", pa.list_(pa.float64()))])
    kinds = [(c, topk if c.type == "topk" else types.get(c.dtype, pa.string())) for c in TABLES[name]]
    return pa.schema([pa.field(c.name, kind, nullable=not c.required) for c, kind in kinds])


def read_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables written by `write_tables`, equal to the originals. Raises BadInput or BadTrace naming the file."""
    import pyarrow as pa

    frames = {}
    for name in TABLES:
        path = Path(folder) / f"{name}.parquet"
        if not path.is_file():
            raise BadInput(f"no {path.name} in {folder}: expected a folder written by trace.to_parquet")
        try:
            frames[name] = tables.frame(name, _from_parquet(path, name))
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError):
            raise BadTrace(f"{path} is damaged: expected a Parquet file written by trace.to_parquet") from None
    return frames


def _from_parquet(path: Path, name: str) -> dict[str, list]:
    """The columns of a table. Raises what pyarrow does, and ValueError, where they are not all there."""
    import pyarrow.parquet as pq

    schema = _arrow_schema(name)
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows * len(schema) > FREE + PACKED * path.stat().st_size:
            raise ValueError("more rows than its bytes allow")
        data = file.read().select(schema.names).cast(schema)
    columns = data.to_pydict()
    for column in TABLES[name]:
        cells = columns[column.name]
        if column.required and None in cells:
            raise ValueError("a value is missing")
        if column.type == "topk":
            columns[column.name] = [cell and [cell["ids"], cell["p"]] for cell in cells]
        elif column.is_json:
            columns[column.name] = [cell if cell is None else json.loads(cell) for cell in cells]
    return columns
