"""Files under the names of checkpoints that ask for unbounded work, or are something else."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

MERSENNE = (1 << 61) - 1  # Python's hash of an integer is its remainder by this
P2 = b"\x80\x02"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def dtype(code: bytes) -> bytes:
    return b"cnumpy\ndtype\n(S'%s'\nI0\nI1\ntR" % code


def array(shape: bytes, code: bytes = b"f4", raw: bytes = b"S'abcd'\n") -> bytes:
    """Return the operations that make an array; the shape is what makes a tuple."""
    return ARRAY + b"(I1\n" + shape + dtype(code) + b"I00\n" + raw + b"tb"


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def model(content: bytes, key: bytes = b"X\x01\0\0\0a") -> bytes:
    """Return a pickle of a checkpoint whose model has one parameter."""
    return P2 + b"}(X\x05\0\0\0model}" + key + content + b"sX\x0a\0\0\0__author__X\0\0\0\0u."


def doubled(times: int, first: bytes = b")", pair: bytes = b"\x86") -> bytes:
    """Return operations that make a pair of twice the same pair, and so on."""
    return first + (b"q\x00h\x00" + pair) * times


PICKLES: dict[str, bytes] = {
    "colliding numbers": P2
    + b"}("
    + b"".join(number(k * MERSENNE) + b"N" for k in range(1, 100_000))
    + b"u.",
    "colliding members of a set": b"\x80\x04\x8f("
    + b"".join(number(k * MERSENNE) for k in range(1, 100_000))
    + b"\x90.",
    "numbers with equal low bits": P2
    + b"}("
    + b"".join(number(k << 40) + b"N" for k in range(200_000))
    + b"u.",
    "many tuples as keys": P2 + b"}" + b"K\x01\x85Ns" * 2000 + b".",
    "tuples as members": P2 + b"c__builtin__\nset\n(](" + b"K\x01\x85" * 2000 + b"etR.",
    "tuples in pairs": P2 + b"ccollections\nOrderedDict\n(](" + b"K\x01\x85N\x86" * 2000 + b"etR.",
    "a key of doubled tuples": P2 + b"}" + doubled(200) + b"Ns.",
    "a member of doubled tuples": P2 + b"c__builtin__\nset\n(]" + doubled(200) + b"atR.",
    "doubled tuples": P2 + doubled(2000) + b".",
    "doubled tuples as a parameter": model(doubled(60)),
    "one text for many arrays": P2
    + b"(X"
    + struct.pack("<I", 8 << 20)
    + bytes(8 << 20)
    + b"q\x000"
    + b"".join(array(b"(I2097152\nt", raw=b"h\x00") for _ in range(2000))
    + b"t.",
    "one text encoded many times": P2
    + b"(X"
    + struct.pack("<I", 8 << 20)
    + bytes(8 << 20)
    + b"q\x000"
    + b"c_codecs\nencode\n(h\x00X\x06\0\0\0latin1tR" * 2000
    + b"t.",
    "one list for many dicts": P2
    + b"("
    + b"]q\x00("
    + b"K\x01K\x02\x86" * 100_000
    + b"e0"
    + b"ccollections\nOrderedDict\n(h\x00tR" * 20_000
    + b"t.",
    "a text of 4 GB": P2 + b"X\xff\xff\xff\xff.",
    "a text of 2**62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "bytes of 2**63 bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 63) + b".",
    "a frame of 2**62 bytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"].",
    "a number of 2 GB": P2 + b"\x8b\xff\xff\xff\x7f.",
    "a number of many digits": b"I" + b"9" * 5_000_000 + b"\n.",
    "a place of the memory beyond 4e9": P2 + b"]r\xff\xff\xff\xff.",
    "many lists": P2 + b"]" * 4_000_000,
    "lists within lists": P2 + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list within itself": P2 + b"]q\x00h\x00a.",
    "an array of 1e18 empty texts": model(array(b"(L1000000000000000000L\nt", b"S0", b"S''\n")),
    "an array of 2e9 empty words": model(array(b"(L2000000000L\nt", b"U0", b"S''\n")),
    "an array of negative sides": model(array(b"(I-1\nI-1\nt")),
    "an array of 100,000 sides": model(array(b"(" + b"I1\n" * 100_000 + b"t")),
    "an array of huge sides": model(array(b"(" + number(1 << 2000) * 30 + b"t")),
    "an array of too few bytes": model(array(b"(I1000000\nt")),
    "an array of texts": model(array(b"(I1\nt", b"S4")),
    "an array of objects": model(array(b"(I1\nt", b"O8")),
    "an array of records": model(array(b"(I1\nt", b"f4,O")),
    "an array of complex numbers": model(array(b"(I1\nt", b"c8", b"S'abcdefgh'\n")),
    "an escape sequence in a name": b"cos\x1b[2J\nsystem\n(S'x'\ntR.",
    "a zip archive": b"PK\x03\x04" + bytes(100),
}


def save(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def weights(**more: Any) -> dict[str, Any]:
    return {"model": {"a": torch.arange(4.0)}, **more}


def repacked(change: Callable[[zipfile.ZipInfo, bytes], tuple[str, bytes, int]]) -> bytes:
    """Return a file of torch whose members are changed: name, content and compression."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(save(weights()))) as old,
        zipfile.ZipFile(buffer, "w") as new,
    ):
        for member in old.infolist():
            name, content, compression = change(member, old.read(member))
            new.writestr(name, content, compression)
    return buffer.getvalue()


def with_pickle(content: bytes, *storages: bytes) -> bytes:
    """Return an archive as of torch with a pickle and storages of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage)
    return buffer.getvalue()


def storage(numel: int, kind: bytes = b"FloatStorage", place: bytes = b"cpu") -> bytes:
    """Return the operations that name storage 0."""
    return (
        b"(X\x07\0\0\0storagectorch\n%s\nX\x01\0\0\0" % kind
        + b"0X%s%s" % (struct.pack("<I", len(place)), place)
        + number(numel)
        + b"tQ"
    )


def tensor(shape: bytes, stride: bytes, of: bytes, offset: int = 0) -> bytes:
    """Return the operations that make a tensor of a storage."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + of
        + number(offset)
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def parameter(content: bytes) -> bytes:
    return P2 + b"}X\x05\0\0\0model}X\x01\0\0\0a" + content + b"ss."


def sparse() -> torch.Tensor:
    return torch.sparse_coo_tensor([[0]], [1.0], (1 << 40,), check_invariants=False)


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def strange_metadata() -> bytes:
    state = OrderedDict(a=torch.ones(1))
    state._metadata = 5  # type: ignore[attr-defined]
    return save({"model": state})


ONE = b"K\x01\x85"
LEGACY = {"_use_new_zipfile_serialization": False}
FILES: dict[str, Callable[[], bytes]] = {
    "declared 4 TB": lambda: with_pickle(parameter(tensor(ONE, ONE, storage(1 << 40))), b"abcd"),
    "declared 8 bytes": lambda: with_pickle(parameter(tensor(ONE, ONE, storage(2))), b"abcd"),
    "declared less than nothing": lambda: with_pickle(
        parameter(tensor(ONE, ONE, storage(-1))), b""
    ),
    "no storage": lambda: with_pickle(parameter(tensor(ONE, ONE, storage(1)))),
    "beyond the storage": lambda: with_pickle(
        parameter(tensor(b"K\x09\x85", ONE, storage(1))), b"abcd"
    ),
    "offset beyond the storage": lambda: with_pickle(
        parameter(tensor(ONE, ONE, storage(1), 9)), b"abcd"
    ),
    "negative size": lambda: with_pickle(
        parameter(tensor(number(-5) + b"\x85", ONE, storage(1))), b"abcd"
    ),
    "one number repeated 1e12 times": lambda: with_pickle(
        parameter(tensor(number(10**12) + b"\x85", b"K\x00\x85", storage(1))), b"abcd"
    ),
    "meta storage": lambda: with_pickle(
        parameter(tensor(ONE, ONE, storage(1, place=b"meta"))), b"abcd"
    ),
    "quantized storage": lambda: with_pickle(
        parameter(tensor(ONE, ONE, storage(1, b"QInt8Storage"))), b"abcd"
    ),
    "bytes of 1 TB": lambda: with_pickle(
        parameter(b"c__builtin__\nbytearray\n" + number(1 << 40) + b"\x85R")
    ),
    "colliding numbers": lambda: with_pickle(PICKLES["colliding numbers"]),
    "a key of doubled tuples": lambda: with_pickle(PICKLES["a key of doubled tuples"]),
    "a text of 4 GB": lambda: with_pickle(PICKLES["a text of 4 GB"]),
    "a new object": lambda: with_pickle(
        parameter(b"ctorch.nn.parameter\nParameter\n" + number(1 << 40) + b"\x85\x81")
    ),
    "sparse": lambda: save({"model": {"a": sparse()}}),
    "quantized": lambda: save(
        {"model": {"a": torch.quantize_per_tensor(torch.ones(4), 1, 0, torch.qint8)}}
    ),
    "meta": lambda: save({"model": {"a": torch.empty(1 << 40, device="meta")}}),
    "nested": lambda: save({"model": {"a": torch.nested.nested_tensor([torch.ones(2)])}}),
    "complex": lambda: save({"model": {"a": torch.ones(2, dtype=torch.complex64)}}),
    "a tensor in place of a dict": lambda: save(torch.ones(2)),
    "an attribute in place of a method": lambda: with_pickle(
        P2 + b"}X\x05\0\0\0modelccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x05sbs."
    ),
    "a number in place of versions": strange_metadata,
    "compressed": lambda: repacked(
        lambda member, content: (member.filename, content, zipfile.ZIP_DEFLATED)
    ),
    "64 MB of zeros in 64 kB": lambda: repacked(
        lambda member, content: (
            member.filename,
            bytes(1 << 26) if member.filename.endswith("data/0") else content,
            zipfile.ZIP_DEFLATED,
        )
    ),
    "a member that leads upward": lambda: repacked(
        lambda member, content: (member.filename.replace("version", "../x"), content, 0)
    ),
    "a member twice": lambda: repacked(
        lambda member, content: (member.filename.replace("byteorder", "version"), content, 0)
    ),
    "an archive of something else": lambda: repacked(
        lambda member, content: (member.filename.replace("data.pkl", "word.xml"), content, 0)
    ),
    "an archive without its end": lambda: save(weights())[:-100],
    "half an archive": lambda: save(weights(more=torch.ones(1000)))[:2000],
    "half a legacy file": lambda: save(weights(more=torch.ones(1000)), **LEGACY)[:2000],
    "a legacy file that declares more": lambda: save(weights(), **LEGACY).replace(
        b"K\x04N", b"M\xff\xffN"
    ),
    "a legacy file without its last bytes": lambda: save(weights(), **LEGACY)[:-3],
    "an archive of 200,000 members": lambda: save(weights()).replace(
        b"PK\x05\x06", b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xfe" + bytes(6)
    ),
    "a plain pickle": lambda: pickle.dumps(np.ones(3), 2),
    "TorchScript": script,
    "tar": tar,
    "HTML": lambda: b"\n<!doctype html>\n<html><title>Sign in</title></html>",
    "Git LFS": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
    "safetensors": lambda: struct.pack("<Q", 2) + b"{}" + bytes(64),
    "JSON": lambda: b'{"message": "Not Found"}',
    "text": lambda: b"404: Not Found",
    "nothing": lambda: b"",
    "zeros": lambda: bytes(1 << 20),
}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
