"""Sound in tar archives: indexed by their headers, read by byte ranges, the same shards as from loose files."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from helpers.containers import Sound, bad_rows, flac, loose_dataset, make_shards, members, sounds, tar

from ajepa.audio.archives import tar_index
from ajepa.audio.archives.splits import split_of
from ajepa.audio.sources import load_manifest
from ajepa.errors import UserError
from ajepa.shards.verify import verify_dataset


@pytest.mark.parametrize("store", [False, True], ids=["local", "s3"])
def test_equal_to_loose_files(tmp_path, store, request):
    clips = sounds(30)
    where = str(tmp_path / "in")
    for k in range(3):
        tar(tmp_path / f"in/shard-{k:06d}.tar", members(clips[10 * k : 10 * k + 10]))
    if store:
        s3 = request.getfixturevalue("s3")
        where = f"s3://sounds/{tmp_path.name}"
        for path in sorted((tmp_path / "in").iterdir()):
            s3.Object(f"{tmp_path.name}/{path.name}").put(Body=path.read_bytes())
    manifest = load_manifest("webdataset", where)
    assert manifest.clips["clip_id"].to_pylist() == [c.id for c in clips]  # dots stay in ids
    dataset = make_shards(manifest, tmp_path / "shards")
    assert sum(verify_dataset(dataset.path)) == 30
    assert dataset.content_hash == loose_dataset(tmp_path, clips).content_hash


def test_labels_from_each_kind_of_file(tmp_path):
    clips = [Sound(f"{i}", flac(i), (str(i % 2),)) for i in range(4)]
    by_class = load_manifest("webdataset", tar(tmp_path / "train-000.tar", members(clips, "cls")))
    assert by_class.label_names == ["0", "1"] and by_class.clips["labels"].to_pylist() == [[0], [1], [0], [1]]
    assert by_class.clips["split"].to_pylist() == ["train"] * 4
    captions = tar(tmp_path / "b.tar", members(clips, "txt"))
    assert load_manifest("webdataset", captions).label_names == []
    assert load_manifest("webdataset", captions, columns=["labels=txt"]).label_names == ["0", "1"]
    inside = json.dumps({"original_data": {"mids": ["/m/1", "/m/2"]}, "set": "eval", "part": 3, "label": "other"})
    nested = tar(tmp_path / "c.tar", [("x.flac", flac(0)), ("x.json", inside.encode())])
    manifest = load_manifest(
        "webdataset", nested, columns=["labels=json.original_data.mids", "split=json.set", "fold=json.part"]
    )
    (row,) = manifest.clips.to_pylist()
    assert (manifest.label_names, row["split"], row["fold"]) == (["/m/1", "/m/2"], "eval", 3)
    assert load_manifest("webdataset", nested).label_names == ["other"]
    (tmp_path / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/2,Bee\n1,/m/1,Ant\n")
    named = load_manifest("webdataset", nested, columns=["labels=json.original_data.mids"])
    assert named.label_names == ["Bee", "Ant"] and named.clips["labels"].to_pylist() == [[1, 0]]


def test_keys_that_end_at_the_first_dot(tmp_path):
    path = tar(tmp_path / "a.tar", [
        ("one.audio.flac", flac(0)), ("one.meta.json", b'{"label": "a"}'),
        ("two.audio.flac", flac(1)), ("two.meta.json", b'{"label": "b"}'),
    ])  # fmt: skip
    manifest = load_manifest("webdataset", path)
    assert manifest.clips["clip_id"].to_pylist() == ["one", "two"]
    assert manifest.clips["labels"].to_pylist() == [[0], [1]]
    assert any("keys end at the first dot" in remark for remark in manifest.remarks)


def test_what_is_not_taken_is_counted_and_named(tmp_path):
    good = flac(0)
    path = tar(tmp_path / "a.tar", [
        ("./a.flac", good), ("a.json", b"{broken"), ("b.flac", good), ("b.wav", good), ("c.pyd", b"\x80pickle"),
        ("d.json", b'{"label": "x"}'), ("__MACOSX/._a.flac", b"x"), ("a.flac", good), ("../../etc/e.flac", good),
        ("f.flac", b"not sound"), ("g.flac", b""),
    ])  # fmt: skip
    manifest = load_manifest("webdataset", path)
    remarks = "\n".join(manifest.remarks)
    for wanted in ("1 .json files that cannot be read: a.json", "first is taken: b.wav", "1 other members: c.pyd",
                   "1 samples without sound: d", "files of macOS: __MACOSX", "numbered #2 and on: a.flac"):  # fmt: skip
        assert wanted in remarks
    assert manifest.clips["clip_id"].to_pylist() == ["a", "b", "a#2", "../../etc/e", "f", "g"]
    before = sorted(tmp_path.parent.iterdir())
    dataset = make_shards(manifest, tmp_path / "shards")
    assert set(bad_rows(dataset)) == {"f", "g"} and sorted(tmp_path.parent.iterdir()) == before


def test_one_key_in_two_archives(tmp_path):
    for name in ("x/0.tar", "x/1.tar"):
        tar(tmp_path / name, [("a.flac", flac(0))])
    manifest = load_manifest("webdataset", str(tmp_path / "x"))
    assert manifest.clips["clip_id"].to_pylist() == ["0/a", "1/a"]


@pytest.mark.parametrize("cut", [300, 600, 1100, 3000])
def test_an_archive_that_is_cut_off(tmp_path, cut):
    """The member that was hit is a bad row, and the loss is said."""
    clips = sounds(5)
    path = tmp_path / "a.tar"
    tar(path, [(f"{c.id}.flac", c.data) for c in clips])
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[: last.offset_data + last.size - cut])
    manifest = load_manifest("webdataset", str(path))
    dataset = make_shards(manifest, tmp_path / "shards")
    assert dataset.num_clips == 4
    assert list(bad_rows(dataset).values()) == [f"read: the archive ends {cut:,} bytes before this member does"]
    path.write_bytes(whole[: last.offset])  # where a header would begin
    again = load_manifest("webdataset", str(path))
    assert again.clips.num_rows == 4 and any("without their closing blocks" in remark for remark in again.remarks)


def test_damage_between_members(tmp_path):
    clips = sounds(4)
    path = tmp_path / "a.tar"
    tar(path, [(f"{c.id}.flac", c.data) for c in clips])
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    data = bytearray(path.read_bytes())
    data[third.offset : third.offset + 100] = b"\xff" * 100
    path.write_bytes(data)
    manifest = load_manifest("webdataset", str(path))
    assert manifest.clips.num_rows == 2 and any("what follows is lost" in remark for remark in manifest.remarks)


def test_links_and_sparse_members(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        data = flac(0)
        info = tarfile.TarInfo("a.flac")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("b.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        sparse = tarfile.TarInfo("c.flac")
        sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "100"}
        body = b"1\n0\n100\n".ljust(512, b"\0") + bytes(100)
        sparse.size = len(body)
        archive.addfile(sparse, io.BytesIO(body))
    dataset = make_shards(load_manifest("webdataset", str(path)), tmp_path / "shards")
    reasons = bad_rows(dataset)
    assert dataset.num_clips == 1 and "a link to '/etc/passwd'" in reasons["b"] and "sparse" in reasons["c"]


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as raised:
        load_manifest("webdataset", str(path), **options)
    return str(raised.value)


def test_refusals(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.flac"))
    assert "is compressed (gzip)" in refusal(tmp_path / "a.tar.gz")
    (tmp_path / "a.tar.gz").rename(tmp_path / "b.tar")
    assert "is compressed (gzip)" in refusal(tmp_path / "b.tar")
    assert "hold no sound (1 empty archives" in refusal(tar(tmp_path / "c.tar", []))
    (tmp_path / "d.tar").write_bytes(b"")
    assert "hold no sound (1 empty archives" in refusal(tmp_path / "d.tar")
    (tmp_path / "e.tar").write_bytes(b"no archive at all " * 100)
    assert "is no tar archive" in refusal(tmp_path / "e.tar")
    assert "hold no sound (1 samples without sound: a)" in refusal(tar(tmp_path / "f.tar", [("a.json", b"{}")]))
    assert "none of our columns" in refusal(tmp_path / "f.tar", columns=["uri=x"])
    assert "are read from cls, txt or a path" in refusal(tmp_path / "f.tar", columns=["labels=x"])
    assert "holds no tar archives" in refusal((tmp_path / "none").mkdir() or tmp_path / "none")


def test_a_header_of_a_gigabyte_is_not_read(tmp_path):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 30
    path = tmp_path / "a.tar"
    tar(path, [("a.flac", flac(0))])
    with tarfile.open(path) as archive:
        end = archive.getmembers()[0]
    data = path.read_bytes()
    after = end.offset_data + -(-end.size // 512) * 512
    path.write_bytes(data[:after] + info.tobuf(tarfile.USTAR_FORMAT) + bytes(10_240))
    manifest = load_manifest("webdataset", str(path))
    assert manifest.clips.num_rows == 1 and any("a header of" in remark for remark in manifest.remarks)


def test_indexing_passes_over_the_sound(tmp_path, monkeypatch):
    clips = [Sound(f"{i}", flac(i, 8.0), ()) for i in range(6)]
    path = tar(tmp_path / "a.tar", members(clips))
    read = []
    original = tar_index._Hops.read

    def counted(self, count=-1):
        before = self._held
        data = original(self, count)
        if self._held is not before:
            read.append(len(self._held))
        return data

    monkeypatch.setattr(tar_index._Hops, "read", counted)
    assert load_manifest("webdataset", path).clips.num_rows == 6
    assert len(read) <= 8 and sum(read) < 0.2 * sum(len(c.data) for c in clips)  # labels come with headers


@pytest.mark.parametrize(("name", "split"), [
    ("train-00000-of-00012.parquet", "train"), ("data/validation-00000-of-00001-2f1ab3e9.parquet", "validation"),
    ("my-split-00001-of-00002.tar", "my-split"), ("data/bal_train/03.parquet", "bal_train"), ("eval/0.tar", "test"),
    ("clips_test_3.tar", "test"), ("dev.parquet", "validation"), ("testament.tar", ""), ("a/b/c.tar", ""),
    ("train/dev/0.tar", "validation"),
    ("unbalanced_train_part07.h5", "unbalanced_train"), ("Testing/x.tar", "test"), ("data/shard-000001.tar", ""),
])  # fmt: skip
def test_splits_from_names(name, split):
    assert split_of(name) == split


def test_archives_joined_without_a_word_of_it(tmp_path):
    one, two = (Path(tar(tmp_path / f"{i}.tar", [(f"{i}.flac", flac(i))])).read_bytes() for i in range(2))
    (tmp_path / "both.tar").write_bytes(one + two)
    manifest = load_manifest("webdataset", str(tmp_path / "both.tar"))
    assert manifest.clips.num_rows == 1 and any("go on behind their end" in remark for remark in manifest.remarks)


def test_a_member_that_is_called_like_an_archive(tmp_path):
    for start in ("PK", "BZh9"):
        path = tar(tmp_path / f"{start}.tar", [(f"{start}xyz.flac", flac(0))])
        assert load_manifest("webdataset", path).clips["clip_id"].to_pylist() == [f"{start}xyz"]


def test_labels_stay_with_the_sound_before_them(tmp_path):
    path = tar(tmp_path / "a.tar", [("a.flac", flac(0)), ("a.cls", b"1"), ("a.flac", flac(1)), ("a.cls", b"2")])
    manifest = load_manifest("webdataset", path)
    assert manifest.clips["clip_id"].to_pylist() == ["a", "a#2"] and manifest.clips["labels"].to_pylist() == [[0], [1]]
    before = tar(tmp_path / "b.tar", [("a.cls", b"5"), ("a.flac", flac(0))])
    assert load_manifest("webdataset", before).label_names == ["5"]


def test_texts_and_numbers_that_are_none(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("good.flac", "caf\xe9.flac"):
            info = tarfile.TarInfo(name)
            info.size = len(flac(0))
            archive.addfile(info, io.BytesIO(flac(0)))
        text = b'{"label": null, "tags": ["\\ud800x"], "fold": Infinity, "split": 0}'
        info = tarfile.TarInfo("good.json")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    manifest = load_manifest("webdataset", str(path), columns=["fold=json.fold", "split=json.split"])
    (row,) = manifest.clips.to_pylist()
    assert (row["clip_id"], row["fold"], row["split"], manifest.label_names) == ("good", -1, "0", ["?x"])
    assert any("names are not UTF-8" in remark for remark in manifest.remarks)


@pytest.mark.parametrize("size", [b"\xff" * 8 + b"\xff\xff\xfe\x00", b"\x80" + b"\x7f" * 11], ids=["negative", "huge"])
def test_a_size_that_no_member_has(tmp_path, size):
    path = Path(tar(tmp_path / "a.tar", [("a.flac", flac(0)), ("b.flac", flac(1))]))
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1]
    data = bytearray(path.read_bytes())
    header = data[second.offset : second.offset + 512]
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[second.offset : second.offset + 512] = header
    path.write_bytes(data)
    manifest = load_manifest("webdataset", str(path))
    assert make_shards(manifest, tmp_path / "shards").num_clips == 1 and manifest.remarks
