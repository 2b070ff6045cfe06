"""Every archive that is refused, and that nothing of it is left behind."""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.importing import archive, import_mar, zips

from .mar import MANIFEST, MODEL, manifest, mar, tarred, zipped

GOOD = [("model.pt", MODEL), (MANIFEST, manifest())]


def refusal(path: Path) -> str:
    """The error of an import, which must leave no file, neither where it belongs nor anywhere near."""
    folder = path.parent / "work"
    folder.mkdir()
    (folder / "near").write_text("untouched")
    with pytest.raises(ConfigError) as caught:
        import_mar(path, folder / "out")
    assert [(item.name, item.read_text()) for item in folder.iterdir()] == [("near", "untouched")]
    assert {item.name for item in path.parent.iterdir()} == {path.name, "work"}
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../near", "leads out"),
        ("a/../../near", "leads out"),
        ("/tmp/near", "absolute"),
        ("C:/near", "absolute"),
        ("c:near", "absolute"),
        ("..\\near", "backslash"),
        ("near\n", "control characters"),
        ("near\x1b[2J", "control characters"),
        ("near\x9b2J", "control characters"),
        ("near\u202etxt", "invisible signs"),
        ("x" * 256, "no usable file name"),
        (".", "no usable file name"),
        ("model.pt/below", "below model.pt, which is a file"),
        ("./model.pt", "there twice"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_are_refused(tmp_path: Path, name: str, why: str, kind: str) -> None:
    if kind == "zip":
        path = zipped(tmp_path / "bad.mar", [*GOOD, (zipfile.ZipInfo(name), b"x")])
    else:
        path = tarred(tmp_path / "bad.tar.gz", [*GOOD, (name, b"x")])
    assert why in refusal(path)


def test_a_name_given_twice(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile's own, of the duplicate
        path = zipped(tmp_path / "bad.mar", [*GOOD, ("model.pt", b"other")])
    assert "'model.pt': there twice" in refusal(path)


def test_what_follows_a_nul_is_seen(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bad.mar", [*GOOD, ("fine?../../near", b"x")])
    path.write_bytes(path.read_bytes().replace(b"fine?../", b"fine\0../"))
    assert "control characters" in refusal(path)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR | stat.S_IFLNK])
def test_links_and_devices_in_a_zip(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("weights")
    info.external_attr = (mode | 0o777) << 16
    assert "a link or a device" in refusal(zipped(tmp_path / "bad.mar", [*GOOD, (info, "/etc/passwd")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("weights")
    info.type, info.linkname = kind, "/etc/passwd"
    assert "a link, a device" in refusal(tarred(tmp_path / "bad.tar.gz", [*GOOD, (info, b"")]))


def test_encrypted_members(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bad.mar", GOOD)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1  # general purpose flag, bit 0 (APPNOTE 4.4.4)
    path.write_bytes(data)
    assert "'model.pt': encrypted" in refusal(path)


def test_other_compressions(tmp_path: Path) -> None:
    path = tmp_path / "bad.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as made:
        made.writestr("model.pt", MODEL)
    assert "method 14" in refusal(path)


@pytest.fixture
def small_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_RATIO_FROM_BYTES", 2**20)


@pytest.mark.usefixtures("small_bombs")
def test_a_zip_bomb_is_judged_before_it_is_unfolded(tmp_path: Path) -> None:
    zeros = bytes(2**20 + 1)
    assert "unfolds to more than is safe" in refusal(zipped(tmp_path / "bad.mar", [*GOOD, ("zeros", zeros)]))


@pytest.mark.usefixtures("small_bombs")
def test_a_gzip_bomb_ends_at_the_limit(tmp_path: Path) -> None:
    zeros = bytes(2**20 + 1)
    assert "unfolds to more than is safe" in refusal(tarred(tmp_path / "bad.tar.gz", [*GOOD, ("zeros", zeros)]))


@pytest.mark.usefixtures("small_bombs")
def test_a_gzip_bomb_outside_the_members_ends_at_the_limit(tmp_path: Path) -> None:
    path = tarred(tmp_path / "bad.tar.gz", GOOD)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(2**20)))
    assert "unfolds to more than is safe" in refusal(path)


def test_sizes_together_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", len(MODEL) + 10)
    assert "unfolds to more than is safe" in refusal(zipped(tmp_path / "bad.mar", GOOD))


def test_the_number_of_files_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 4)
    many = [(f"extra{number}", b"") for number in range(5)]
    assert "over 4 files" in refusal(zipped(tmp_path / "bad.mar", many))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folders_are_counted_and_may_not_be_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def packed(*names: str) -> str:
        members = [*GOOD, *((name, b"") for name in names)]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return refusal(zipped(folder / "bad.mar", members) if kind == "zip" else tarred(folder / "bad.tgz", members))

    assert "over 32 folders deep" in packed("a/" * 32 + "b")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)  # model.pt, MANIFEST.json and MAR-INF are three
    assert "over 10 files and folders" in packed("a/b/c/d/e/f/g/h")


def test_the_members_of_a_zip_are_counted_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their list: the number that its end tells may be wrong, and zipfile does not look at it."""
    path = zipped(tmp_path / "bad.mar", [(f"extra{number}", b"") for number in range(archive.MAX_MEMBERS + 1)])
    data = bytearray(path.read_bytes())
    data[-14:-10] = struct.pack("<HH", 1, 1)
    path.write_bytes(data)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "over 10000 files" in refusal(path)


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [
        (lambda data: data + b"more", "something follows"),
        (lambda data: data[:-22] + b"gap" + data[-22:], "not where it should be"),
        (lambda data: data[:-10] + struct.pack("<I", 2**27) + data[-6:], "a list of members of 134217728 bytes"),
    ],
)
def test_a_zip_that_can_be_read_in_two_ways_is_damaged(
    tmp_path: Path, spoiled: Callable[[bytes], bytes], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "bad.mar", GOOD)
    path.write_bytes(spoiled(path.read_bytes()))
    if "bytes" in why:
        monkeypatch.setattr(zips, "_directory", lambda stream: (0, 2**27))
    assert why in refusal(path)


def test_a_zip64_archive_is_read(tmp_path: Path) -> None:
    """As torch writes its files."""
    path = zipped(tmp_path / "good.mar", GOOD)
    data = path.read_bytes()
    size_bytes, offset = struct.unpack("<LL", data[-10:-2])
    end = len(data) - 22
    record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, size_bytes, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    path.write_bytes(data[:end] + record + locator + data[end:])
    assert zips.count(path) == 2
    path.write_bytes(data[:end] + b"gap" + record + locator + data[end:])
    assert "its zip64 record is not where it should be" in refusal(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_a_tar_are_not_read_beyond_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes
) -> None:
    monkeypatch.setattr(archive, "MAX_HEADER_BYTES", 2**16)
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 2**17
    path = tmp_path / "bad.tar.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(info.tobuf() + bytes(2**17) + bytes(1024))
    assert "headers of over 65536 bytes" in refusal(path)


def test_headers_that_are_many_are_too_much_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_HEADER_BYTES", 2**15)
    many = []
    for number in range(20):
        info = tarfile.TarInfo(f"extra{number}")
        info.pax_headers = {"comment": "x" * 2000}
        many.append((info, b""))
    assert "headers of over 32768 bytes" in refusal(tarred(tmp_path / "bad.tar.gz", [*GOOD, *many]))


def test_a_size_that_is_not_the_one_told(tmp_path: Path) -> None:
    path = zipped(tmp_path / "bad.mar", [("model.pt", b"x" * 1000)])
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 10)  # uncompressed size (APPNOTE 4.3.12)
    path.write_bytes(data)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a TorchServe archive"),
        (b"\x89PNG....", "not a TorchServe archive"),
        (b"PK\x03\x04 and nothing else", "damaged"),
        (b"\x1f\x8b and nothing else", "damaged"),
    ],
)
def test_files_that_are_no_archives(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "bad.mar"
    path.write_bytes(data)
    assert why in refusal(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_truncated_archive(tmp_path: Path, kind: str) -> None:
    path = zipped(tmp_path / "bad.mar", GOOD) if kind == "zip" else tarred(tmp_path / "bad.tar.gz", GOOD)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in refusal(path)


def test_content_that_does_not_fit_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "bad.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        made.writestr("model.pt", MODEL)
    path.write_bytes(path.read_bytes().replace(b"torch.mul", b"torch.add"))
    assert "Bad CRC-32" in refusal(path)


def test_a_folder_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"a folder, not an archive[\s\S]*no-archive"):
        import_mar(tmp_path / "model", tmp_path / "out")
    with pytest.raises(ConfigError, match="cannot read the archive"):
        import_mar(tmp_path / "none.mar", tmp_path / "out")


def test_files_keep_neither_modes_nor_the_folder_around_them(tmp_path: Path) -> None:
    info = tarfile.TarInfo("tiny/model.pt")
    info.mode = 0o4777
    path = tarred(tmp_path / "tiny.tar.gz", [("tiny/a/b.txt", b"b"), (info, MODEL), (f"tiny/{MANIFEST}", manifest())])
    target = tmp_path / "target"
    target.mkdir()
    assert archive.unpack(path, target) == (MANIFEST, "a/b.txt", "model.pt")
    assert (target / "model.pt").read_bytes() == MODEL
    assert not (target / "model.pt").stat().st_mode & 0o111


def test_a_good_archive_packed_on_another_system_is_read(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("model.pt")
    info.create_system, info.external_attr = 0, 0x20  # MS-DOS, "archive"
    folder = zipfile.ZipInfo("extra/")
    target = tmp_path / "target"
    target.mkdir()
    path = zipped(tmp_path / "good.mar", [(folder, b""), (info, MODEL), (MANIFEST, manifest())])
    assert archive.unpack(path, target) == (MANIFEST, "model.pt")


def test_the_default_archive_of_these_tests_is_accepted(tmp_path: Path) -> None:
    assert import_mar(mar(tmp_path / "tiny.mar"), tmp_path / "out").config == tmp_path / "out" / "tiny.yaml"
