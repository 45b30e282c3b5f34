"""Mutated tars and indexes: nothing but UserError comes out, in bounded time and memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.check import CheckedSample, Fault, check_shard
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.shards.tar import members
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.errors import UserError
from tests.fuzz.budget import fuzzed
from tests.unit.street_shards import scene, scenes

EXAMPLES = int(os.environ.get("PPAR_FUZZ_EXAMPLES", "25"))
MEMORY = 8 << 20  # bytes that Python may hold while it walks a shard of some kilobytes
BLOCK = 512
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
fuzz = settings(fuzzed, max_examples=EXAMPLES)


@cache
def tar(form: int, long: bool = False) -> bytes:
    """Three samples; with ``long`` names need headers of their own."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for number in range(3):
            stem = ("ü" * 60 + "/") * 3 * long + f"street_{number}"
            for extension, content in zip(("jpg", "png"), scene(number, 12, 16), strict=True):
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


SEEDS = [tar(form) for form in FORMATS] + [tar(form, long=True) for form in FORMATS[1:]]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes] = SEEDS, block: int = BLOCK) -> bytes:
    """Bytes flipped, cut, inserted, zeroed; blocks moved and repeated; headers with a right checksum."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 8, 12, 100, block, 2 * block]))
        first = at // block * block
        kind = draw(st.sampled_from(["flip", "cut", "end", "insert", "zero", "repeat", "move", "header"]))
        if kind == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16)) * (length // 8 + 1)
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == "repeat":
            data[first:first] = data[first : first + length]
        elif kind == "move":
            taken = data[first : first + block]
            del data[first : first + block]
            data += taken
        elif kind == "header":
            data[first:first] = draw(headers())
    return bytes(data)


NUMBERS = st.one_of(
    st.integers(0, 8**11 - 1).map(lambda n: b"%011o\0" % n),
    st.integers(-(2**90), 2**90).map(
        lambda n: (b"\x80" if n >= 0 else b"\xff") + n.to_bytes(12, "big", signed=True)[1:]
    ),
    st.binary(min_size=12, max_size=12),
)
NAMES = st.one_of(
    st.sampled_from([b"a.jpg", b"a.png", b"/etc/a.jpg", b"../a.png", b".jpg", b"a.pkl", b"\xff.jpg", b"a/"]),
    st.binary(max_size=100),
)
PAX = st.one_of(
    st.binary(max_size=80),
    st.tuples(
        st.sampled_from([b"path", b"size", b"GNU.sparse.map", b"hdrcharset", b"comment", b""]),
        st.one_of(NAMES, st.integers(-(10**25), 10**25).map(lambda n: b"%d" % n)),
        st.integers(-2, 2),
    ).map(lambda parts: pax_record(*parts)),
    st.integers(1, 4000).map(lambda n: b"1" * n),
)


def pax_record(key: bytes, value: bytes, wrong: int) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return b"%d" % max(length + wrong, 0) + body


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A header block of any content with the checksum that it should have."""
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([bytes([c]) for c in b"0\0567123xgXLKSDVM?"]))
    data = draw(PAX) if kind in b"xgXLK" else draw(st.binary(max_size=40))
    size = draw(st.one_of(st.just(b"%011o\0" % len(data)), NUMBERS))
    return header(draw(NAMES), size, kind) + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


@contextmanager
def bounded_memory(limit: int = MEMORY) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak} bytes"


def scan(data: bytes) -> list[CheckedSample | Fault]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        with bounded_memory():
            found = list(check_shard(path, 6, "d/a.tar"))
    for each in found:
        if isinstance(each, CheckedSample):
            assert each.key.encode("utf-8")
            for offset, size in (each.image, each.label, each.json):
                assert offset >= 0
                assert offset + size <= len(data)
        else:
            assert len(str(each.error)) < 700
            assert str(each.error).isprintable()
    return found


def walk(data: bytes) -> list[Any]:
    """Names, offsets, sizes and kinds that our walk finds; an error is the last entry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        found: list[Any] = []
        try:
            found += [(m.name.rstrip("/"), m.offset, m.size) for m in members(path, "d") if m.plain]
        except SampleError:
            return ["refused"]
        return found


def reference(data: bytes) -> list[Any]:
    """The same by tarfile, whose header chains are its own."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            found = archive.getmembers()
    except Exception:
        return ["refused"]
    plain = (m for m in found if m.isreg() and not m.issparse())
    return [(m.name.rstrip("/"), m.offset_data, m.size) for m in plain]  # it strips slashes of some itself


@fuzz
@given(mutated())
@example(b"")
@example(bytes(BLOCK))
@example(header(b"a.jpg", b"\xff" * 12, b"0"))  # a negative size
@example(header(b"a.jpg", b"\x80" + b"\xff" * 11, b"0"))
@example((header(b"x", b"%011o\0" % 20, b"x") + b"20 comment=1234567\n\0".ljust(BLOCK, b"\0")) * 3000)
@example(header(b"x", b"%011o\0" % 60_000, b"x") + (b"1" * 60_000).ljust(60_416, b"\0"))
@example(header(b"x", b"%011o\0" % (1 << 30), b"L") + bytes(BLOCK))
def test_any_bytes_give_samples_and_faults(data: bytes) -> None:
    scan(data)


@fuzz
@given(mutated())
@example(header(b"a/", b"%011o\0" % 0, b"0") + tar(tarfile.USTAR_FORMAT))  # a plain file with a slash
@example(tar(tarfile.GNU_FORMAT, long=True)[: 2 * BLOCK] + tar(tarfile.GNU_FORMAT, long=True))  # named twice
def test_what_is_accepted_is_what_tarfile_finds(data: bytes) -> None:
    """Where our walk takes a tar for whole, tarfile sees the same plain members at the same offsets."""
    found = walk(data)
    if found != ["refused"]:
        assert found == reference(data)


@fuzz
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300)
    )
)
def test_any_names_are_found_as_tarfile_writes_them(names: list[str]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name + ".jpg"), io.BytesIO())
    data = stream.getvalue()
    assert [name for name, _, _ in walk(data)] == [name + ".jpg" for name in names]
    assert not any(isinstance(each, CheckedSample) for each in scan(data))


@fuzz
@given(mutated([b for number in range(3) for b in scene(number, 12, 16)], block=32))
def test_any_picture_bytes_are_decoded_or_bad(data: bytes) -> None:
    other = scene(0, 12, 16)
    for image, label in ((data, other[1]), (other[0], data)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in (("a.jpg", image), ("a.png", label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "a.tar").write_bytes(stream.getvalue())
            try:
                index, _ = index_folder(folder, "roads6")
            except UserError:
                continue
            try:
                read_sample(index, 0)
                read_sample(index, 0, min_side=4)
            except SampleError:
                continue  # the full decoder is stricter than the one that checks


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domain(
        tmp_path_factory.mktemp("f") / "day", "roads6", scenes("day", 5), samples_per_shard=2
    ).path


def use(folder: Path) -> None:
    """Open an index and read all of it: bad samples and ConfigErrors are the only ways to fail."""
    for lenient in (None, 1.0):
        try:
            with bounded_memory(64 << 20):
                index = DomainIndex.open(folder, lenient)
        except UserError as error:
            one_line(error)
            continue
        for sample in range(min(len(index), 8)):
            index.names(sample)
            for read in (read_sample, DomainIndex.metadata):
                try:
                    read(index, sample)
                except SampleError as error:
                    one_line(error)


def one_line(error: UserError) -> None:
    assert str(error).isprintable()


def mutants(domain: Path, name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(domain, Path(scratch) / "day")
        (folder / name).write_bytes(content)
        use(folder)


@fuzz
@given(data=st.data(), name=st.sampled_from(["domain.json", "index.npy", "keys.npy", "counts.npy"]))
def test_any_index_is_opened_or_refused(domain: Path, data: st.DataObject, name: str) -> None:
    content = data.draw(mutated([(domain / name).read_bytes()], block=16))
    mutants(domain, name, content)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@fuzz
@given(data=st.data(), value=VALUES)
def test_any_value_in_domain_json(domain: Path, data: st.DataObject, value: Any) -> None:
    tree = json.loads((domain / "domain.json").read_text())
    holder = data.draw(st.sampled_from([tree, tree["shards"][0]]))
    key = data.draw(st.sampled_from(sorted(holder)))
    holder[key] = value
    mutants(domain, "domain.json", json.dumps(tree).encode())


@fuzz
@given(data=st.data())
def test_any_record_is_read_or_bad(domain: Path, data: st.DataObject) -> None:
    records = np.load(domain / "index.npy")
    for _ in range(data.draw(st.integers(1, 4))):
        field = data.draw(st.sampled_from(records.dtype.names))
        top = 2 ** (8 * records.dtype[field].itemsize) - 1
        near = st.integers(0, 5000) | st.integers(0, top) | st.integers(top - 600, top)
        records[data.draw(st.integers(0, len(records) - 1))][field] = data.draw(near)
    stream = io.BytesIO()
    np.save(stream, records)
    mutants(domain, "index.npy", stream.getvalue())


@pytest.mark.parametrize("header_size", [10**6, 10**9])
def test_numpy_headers_of_any_size_are_refused(domain: Path, header_size: int) -> None:
    content = b"\x93NUMPY\x03\x00" + struct.pack("<I", header_size) + b"{" * 100_000
    mutants(domain, "index.npy", content)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_with_two_long_names_is_refused(form: int) -> None:
    """tarfile believes the first, others the last."""
    data = tar(form, long=True)
    assert len(walk(data)) == 6
    (fault,) = scan(data[: 2 * BLOCK] + data)
    assert isinstance(fault, Fault)
    assert "two headers give the path of one member" in str(fault.error)
    assert fault.error.reason == "damaged"


@pytest.mark.parametrize("kind", [b"K", b"L", b"x", b"X"])
def test_a_header_that_swallows_every_member_is_no_empty_shard(kind: bytes) -> None:
    """Its size is wrong, and right behind what it takes stands the end mark."""
    data = tar(tarfile.USTAR_FORMAT)
    size = BLOCK + walk(data)[-1][1] + BLOCK  # what it should hold, and all members
    own = b"9 a=bcde\n" if kind in b"xX" else b"name"
    (fault,) = scan(header(b"a.jpg", b"%011o\0" % size, kind) + own.ljust(BLOCK, b"\0") + data)
    assert isinstance(fault, Fault)
    assert fault.error.reason == "damaged"
    assert "belongs to no member" in str(fault.error)


@pytest.mark.parametrize(("kind", "data", "size"), [(b"L", b"ab", 1), (b"x", b"9 a=bcde\n11 path=no\n", 9)])
def test_a_header_longer_than_it_says_is_refused(kind: bytes, data: bytes, size: int) -> None:
    """tarfile reads on into what should be padding."""
    longer = header(b"a", b"%011o\0" % size, kind) + data.ljust(BLOCK, b"\0") + tar(tarfile.USTAR_FORMAT)
    (fault,) = scan(longer)
    assert isinstance(fault, Fault)
    assert f"a header with more than its {size} bytes" in str(fault.error)
