"""Sound in Parquet files, tar archives and HDF5 files, in the schemas of known sets: a dozen clips each."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from helpers.containers import AUDIO, Layout, Sound, audio, encoded, flac, members, mp3_pack, pack, parquet, sounds, tar
from helpers.lists import cut, lines, recording

COUNT = 12
CLASSES = 527  # of AudioSet
NAMES = {
    "/m/05zppz": "Male speech, man speaking",
    "/m/0jbk": "Animal",
    "/m/09x0r": "Speech",
}  # in an order of their own
HEARD = [("/m/09x0r",), ("/m/09x0r", "/m/05zppz"), ()]
IS_AUDIO = {"audio": {"_type": "Audio"}}
TABLE = "class_labels_indices.csv"


def class_table(path: Path, names: dict[str, str]) -> None:
    """AudioSet's table of its classes."""
    rows = "".join(f'{i},{mid},"{name}"\n' for i, (mid, name) in enumerate(names.items()))
    path.write_text(f"index,mid,display_name\n{rows}")


def audioset(folder: Path, labels: str = "labels", table: bool = False) -> Layout:
    """`agkphysics/AudioSet` since October 2025: FLAC files of 24 bits, a tenth of them at 44.1 kHz."""
    clips = [
        Sound(
            f"-_{i:08d}k", flac(i, 0.3 + 0.01 * i, 48_000 if i % 10 else 44_100, subtype="PCM_24"), HEARD[i % 3],
            "bal_train" if i < 6 else "test",
        )
        for i in range(COUNT)
    ]  # fmt: skip
    named = [replace(clip, labels=tuple(NAMES[mid] for mid in clip.labels)) for clip in clips]
    texts = pa.list_(pa.string())
    for k, name in enumerate(("bal_train/00", "bal_train/01", "eval/00", "eval/01")):
        part = slice(3 * k, 3 * k + 3)
        parquet(folder / f"data/{name}.parquet", {
            "video_id": [c.id for c in clips[part]], "audio": audio(clips[part]),
            "labels": pa.array([c.labels for c in clips[part]], texts),
            "human_labels": pa.array([c.labels for c in named[part]], texts),
        }, group=2, features=IS_AUDIO)  # fmt: skip
    if table:
        class_table(folder / "data" / TABLE, NAMES)
    columns = () if labels == "labels" else (f"labels={labels}",)
    expected = clips if labels == "labels" and not table else named
    return Layout("parquet", str(folder / "data"), expected, columns, list(NAMES.values()) if table else None)


def esc50(folder: Path) -> Layout:
    """A mirror of ESC-50 on the Hub, whose classes are numbered."""
    kinds = ["dog", "rooster", "pig"]
    clips = [
        Sound(f"{1 + i % 5}-{1000 + i}-A-{i % 3}.wav", flac(i, 0.3 + 0.01 * i, 44_100, "WAV"), (kinds[i % 3],), "train",
              1 + i % 5)
        for i in range(COUNT)
    ]  # fmt: skip
    parquet(folder / "data/train-00000-of-00001-2f1ab3.parquet", {
        "filename": [c.id for c in clips], "fold": [c.fold for c in clips], "target": [i % 3 for i in range(COUNT)],
        "category": [c.labels[0] for c in clips], "esc10": [i % 3 < 2 for i in range(COUNT)],
        "src_file": [1000 + i for i in range(COUNT)], "take": ["A"] * COUNT,
        "audio": pa.array([{"bytes": c.data, "path": None} for c in clips], AUDIO),
    }, features={"audio": {"_type": "Audio", "sampling_rate": 44_100}})  # fmt: skip
    return Layout("parquet", str(folder / "data"), clips, label_names=kinds)


def fsd50k(folder: Path) -> Layout:
    """FSD50K in one file: names that are numbers, labels and their ids in texts."""
    heard = [("Electric_guitar", "Guitar"), ("Child_speech_and_kid_speaking",), ("Bark", "Dog", "Animal")]
    clips = [
        replace(clip, id=str(64_000 + i), labels=heard[i % 3], split="val" if i % 4 == 3 else "train")
        for i, clip in enumerate(sounds(COUNT))
    ]
    path = parquet(folder / "fsd50k.parquet", {
        "fname": pa.array([int(c.id) for c in clips], pa.int64()), "labels": [",".join(c.labels) for c in clips],
        "mids": [",".join(f"/m/0{len(label)}" for label in c.labels) for c in clips], "split": [c.split for c in clips],
        "audio": audio(clips),
    }, group=5, features=IS_AUDIO)  # fmt: skip
    return Layout("parquet", path, clips, ("clip_id=fname",))


def common_voice(folder: Path, column: str = "audio") -> Layout:
    """Common Voice: the paths of MP3 files beside the table, in a struct without bytes or as plain texts."""
    names = [f"clips/common_voice_en_{1000 + i}.mp3" for i in range(COUNT)]
    clips = [Sound(n, flac(i, 0.3 + 0.01 * i, 32_000, "MP3"), (), "test") for i, n in enumerate(names)]
    for clip in clips:
        (folder / clip.id).parent.mkdir(parents=True, exist_ok=True)
        (folder / clip.id).write_bytes(clip.data)
    said = {
        "client_id": ["one"] * COUNT, "path": names, "sentence": ["Hello."] * COUNT, "up_votes": [2] * COUNT,
        "down_votes": [0] * COUNT, "age": ["", "teens"] * 6, "gender": [""] * COUNT, "accent": [""] * COUNT,
        "locale": ["en"] * COUNT, "segment": [""] * COUNT,
    }  # fmt: skip
    if column == "audio":
        said["audio"] = pa.array([{"bytes": None, "path": name} for name in names], AUDIO)
    return Layout("parquet", parquet(folder / "test.parquet", said, group=5), clips)


def plain_bytes(folder: Path, kind: pa.DataType) -> Layout:
    """Bytes under any name, in two files."""
    clips = [replace(clip, split="dev", fold=i % 2) for i, clip in enumerate(sounds(COUNT))]
    for k, part in enumerate((clips[:7], clips[7:])):
        parquet(folder / f"parts/{k}.parquet", {
            "key": [c.id for c in part], "payload": pa.array([c.data for c in part], kind),
            "kind": [c.labels[0] for c in part], "subset": ["dev"] * len(part), "fold": [c.fold for c in part],
            "extra": [b""] * len(part),
        }, group=3)  # fmt: skip
    columns = ("audio=payload", "clip_id=key", "labels=kind")
    return Layout("parquet", str(folder / "parts/*.parquet"), clips, columns)


def laion(folder: Path) -> Layout:
    """LAION's tars: in each the names begin at 0, sizes.json beside them counts them."""
    clips = [
        replace(clip, id=f"{'train' if i < 6 else 'test'}/0/{i % 6}", split="train" if i < 6 else "test")
        for i, clip in enumerate(sounds(COUNT, lambda i: ["rain", "wind"] if i % 2 else ["rain"]))
    ]
    for k, split in enumerate(("train", "test")):
        part = [replace(clip, id=clip.id.rpartition("/")[2]) for clip in clips[6 * k : 6 * k + 6]]
        tar(folder / split / "0.tar", members(part))
        (folder / split / "sizes.json").write_text(json.dumps({"0.tar": 6}))
    return Layout("webdataset", str(folder), clips, ("labels=json.tag",))


def numbered_tars(folder: Path, suffix: str, columns: tuple[str, ...] = ()) -> Layout:
    """Tars whose labels are a number, or a text, beside each sound; ids have dots."""
    names = ("2", "10") if suffix == "cls" else ("a dog", "rain")
    clips = [replace(clip, split="validation") for clip in sounds(COUNT, lambda i: [names[i % 2]])]
    for k in range(3):
        tar(folder / f"val-{k:06d}.tar", members(clips[4 * k : 4 * k + 4], suffix))
    return Layout("webdataset", str(folder / "val-*.tar"), clips, columns)


def shar(folder: Path) -> Layout:
    """lhotse's Shar: a tar of recordings, and cuts beside it, which are not read."""
    clips = [replace(clip, labels=()) for clip in sounds(COUNT)]
    place = {"sources": [{"type": "shar", "channels": [0], "source": ""}]}
    recordings = [recording(clip.id, "") | place for clip in clips]
    found: list[tuple[str, bytes]] = []
    for clip, about in zip(clips, recordings, strict=True):
        found += [(f"{clip.id}.flac", clip.data), (f"{clip.id}.json", json.dumps(about).encode())]
    tar(folder / "recording.000000.tar", found)
    cuts = lines(*(cut(clip.id, "", recording=about) for clip, about in zip(clips, recordings, strict=True)))
    (folder / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(cuts.encode()))
    return Layout("webdataset", str(folder / "recording.*.tar"), clips)


def targets(clips: list[Sound]) -> np.ndarray:
    """[clips, CLASSES] bool of labels that are numbers."""
    target = np.zeros((len(clips), CLASSES), bool)
    for row, clip in zip(target, clips, strict=True):
        row[[int(label) for label in clip.labels]] = True
    return target


def panns(folder: Path, kind: type, table: bool = False) -> Layout:
    """PANNs' packs: of integers those of old, of floats those of today; an index without sound lies beside them."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (COUNT, 9_600))
    stored = np.round(noise * 32_767).astype(np.int16) if kind is np.int16 else noise.astype(np.float32)
    waveform = stored / np.float32(32_767) if kind is np.int16 else stored
    clips = [
        Sound(f"Yid{i:08d}", encoded(w, 32_000, "WAV", "FLOAT"), (str(i), str(CLASSES - 1)), "unbalanced_train")
        for i, w in enumerate(waveform)
    ]
    for k in range(2):
        part = slice(6 * k, 6 * k + 6)
        names = [f"{clip.id}.wav" for clip in clips[part]]
        path = folder / f"waveforms/unbalanced_train/unbalanced_train_part{k:02d}.h5"
        pack(path, stored[part], names=names, target=targets(clips[part]))
    pack(folder / "waveforms/unbalanced_train.h5", stored[:, :1], array="index_in_hdf5")
    names = [str(i) for i in range(CLASSES)]
    if table:
        classes = {f"/m/{i}": f"Class {i}, with a comma" for i in range(CLASSES)}
        class_table(folder / "waveforms" / TABLE, classes)
        names = list(classes.values())
        clips = [replace(clip, labels=tuple(names[int(label)] for label in clip.labels)) for clip in clips]
    return Layout("hdf5", str(folder / "waveforms"), clips, label_names=names)


def passt(folder: Path) -> Layout:
    """PaSST's file of MP3 files."""
    clips = [
        Sound(f"Yid{i:08d}", flac(i, 0.3 + 0.01 * i, 32_000, "MP3"), (str(i), str(CLASSES - 1)), "balanced_train")
        for i in range(COUNT)
    ]
    path = mp3_pack(folder / "balanced_train_segments_mp3.hdf", clips, targets(clips))
    return Layout("hdf5", path, clips, label_names=[str(i) for i in range(CLASSES)])
