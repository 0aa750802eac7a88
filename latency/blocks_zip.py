"""Block bundles, `blocks/2`: the workloads of a space, for machines that have neither torch nor the space.

A zip of `index.json` and one ONNX graph per workload, without weights: `latency.weights` generates them again, so that
gigabytes of blocks fit in a few megabytes and still give the same bytes as the space itself.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec
import onnx
from msgspec import Struct

from latency.block import BlockSpec, network_key
from latency.decoding import Unzipped, decode_json
from latency.errors import FileError, LatencyError
from latency.files import raised_as, read_bytes, write_atomically
from latency.outputs import BLOCKS, require_file
from latency.profile import Workload
from latency.values import Sha256, Width
from latency.weights import filled, strip_weights

_INDEX = "index.json"
MAX_BUNDLE_BYTES = 2**30
"""Maximum size of a bundle that is read."""


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One workload."""

    kind: Literal["block", "network"]
    key: str
    blocks: tuple[str, ...]
    """keys of a network's blocks, in order"""
    file: str
    """name of its graph in the zip"""
    sha256: Sha256
    """hash of that file"""


# blocks/1: until 0.1. Every constant was stripped and generated as a weight: graphs with other constants must be
# rewritten.
# blocks/2: constants that are not read as weights keep their values.
class Index(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`index.json`."""

    schema: Literal["blocks/2"] = "blocks/2"
    lowering: str
    """version of the code that wrote the graphs"""
    space: str
    precision: Literal["fp32", "fp16"]
    batch: Width = 1
    """images per inference"""
    entries: tuple[Entry, ...]


class _Index1(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`index.json` of blocks/1."""

    schema: Literal["blocks/1"]
    lowering: str
    space: str
    precision: Literal["fp32", "fp16"]
    entries: tuple[Entry, ...]


class _Version(Struct, frozen=True, kw_only=True):
    """The schema of an index, whatever its other fields are."""

    schema: str = ""


def _from_1(old: _Index1) -> Index:
    """Upgrade an index of blocks/1: same fields; graphs that lack constants are refused when they are filled."""
    return Index(lowering=old.lowering, space=old.space, precision=old.precision, entries=old.entries)


def _decode_index(text: bytes, where: str) -> Index:
    if decode_json(text, _Version, where).schema == "blocks/1":
        return _from_1(decode_json(text, _Index1, where))
    return decode_json(text, Index, where)


@dataclass(frozen=True, kw_only=True)
class BlocksZip:
    """A block bundle, read and checked."""

    index: Index
    workloads: list[Workload]
    """in the order of the index; weights are generated when `onnx` is called"""
    sha256: str
    """hash of the file"""


def write(
    path: str | os.PathLike[str],
    workloads: Iterable[Workload],
    *,
    lowering: str,
    space: str,
    precision: Literal["fp32", "fp16"],
    force: bool = False,
) -> Index:
    """Write a bundle atomically; the same workloads always give the same bytes.

    Args:
        path: path of the bundle; an existing bundle is replaced.
        workloads: blocks and networks with weights by `latency.weights`; of several with one key, the first is used.
        lowering: version of the code that lowers them.
        space: name of their search space.
        precision: precision of their weights and arithmetic.
        force: whether any file is replaced.

    Raises:
        LatencyError: the file cannot be written, or the path holds another kind of file.
    """
    require_file(path, BLOCKS, flag="--out", force=force)
    files: dict[str, bytes] = {}
    entries: dict[str, Entry] = {}
    batch = 1
    for work in workloads:
        assert work.batch == batch or not entries, "a bundle is of one batch"
        batch = work.batch
        assert work.kind in ("block", "network"), work.kind
        if work.key in entries:
            continue
        model = work.lower().onnx
        graph = _stripped(model)
        assert filled(graph) == model, f"{work.key}: not the weights of latency.weights"
        name = f"{len(files):05d}.onnx"
        files[name] = graph
        entries[work.key] = Entry(kind=work.kind, key=work.key, blocks=work.blocks, file=name, sha256=_sha256(graph))
    index = Index(lowering=lowering, space=space, precision=precision, batch=batch, entries=tuple(entries.values()))
    text = msgspec.json.format(msgspec.json.encode(index), indent=1)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {_INDEX: text, **files}.items():
            member = zipfile.ZipInfo(name)  # always dated 1980
            member.compress_type, member.create_system, member.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(member, content)
    write_atomically(path, packed.getvalue())
    return index


def read(path: str | os.PathLike[str]) -> BlocksZip:
    """Read a bundle and check every file in it.

    Raises:
        LatencyError: the file is not a bundle, or a file in it is missing or changed; names the file.
    """
    with raised_as(LatencyError, f"write it again with `lathe bundle SPACE --out {path}`"):
        packed = read_bytes(path, limit=MAX_BUNDLE_BYTES)
        archive = Unzipped(packed, path)
        index = _decode_index(archive.read(_INDEX), f"{path}: {_INDEX}")
        for entry in index.entries:
            _require_key(entry, f"{path}: {_INDEX}")
        if len({entry.file for entry in index.entries}) < len(index.entries):
            raise FileError(f"{path}: {_INDEX}", "is damaged: two entries have one file")
        workloads: list[Workload] = []
        for entry in index.entries:
            graph = archive.read(entry.file)
            if _sha256(graph) != entry.sha256:
                raise FileError(f"{path}: {entry.file}", f"was changed, it is not the graph of {entry.key} any more")
            workloads.append(
                Workload(
                    kind=entry.kind, key=entry.key, blocks=entry.blocks, onnx=partial(filled, graph), batch=index.batch
                )
            )
    return BlocksZip(index=index, workloads=workloads, sha256=_sha256(packed))


def _require_key(entry: Entry, where: str) -> None:
    """Require that an entry's key and blocks are valid and match its kind.

    Raises:
        FileError: the entry is damaged.
    """
    try:
        for key in (entry.key,) if entry.kind == "block" else entry.blocks:
            BlockSpec.parse(key)
    except LatencyError as error:
        raise FileError(where, f"is damaged: {error}") from error
    if entry.kind == "network" and entry.key != network_key(entry.blocks):
        raise FileError(where, f"is damaged: {entry.key!r} is not the key of a network of these blocks")


def _stripped(model: bytes) -> bytes:
    graph = onnx.load_from_string(model)
    strip_weights(graph)
    return graph.SerializeToString(deterministic=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
