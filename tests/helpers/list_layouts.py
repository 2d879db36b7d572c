"""Lists of sounds in every format that is read: a dozen clips each, as whole files or as pieces of longer ones."""

import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

from helpers.container_layouts import COUNT, NAMES, TABLE, class_table
from helpers.containers import Layout, Sound, encoded, parquet, sounds
from helpers.lists import cut, lines, recording, supervision

Piece = tuple[str, float, float]  # file, start and duration in seconds


def files(folder: Path, clips: Sequence[Sound]) -> list[str]:
    """The clips as files in a folder below; their paths."""
    (folder / "sounds/more").mkdir(parents=True)
    paths = [f"sounds/{'more/' * (i % 2)}{i:02d}.flac" for i in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        (folder / path).write_bytes(clip.data)
    return paths


def pieces(folder: Path, clips: Sequence[Sound]) -> list[Piece]:
    """The clips joined, those of a sample rate in one file, with other sound before and behind each."""
    folder.mkdir(parents=True)
    found: list[Piece] = []
    parts: dict[int, list[np.ndarray]] = {}
    for clip in clips:
        samples, rate = soundfile.read(io.BytesIO(clip.data), dtype="int16")
        between = np.full(rate // 10, 1000, np.int16)
        before = parts.setdefault(rate, [between])
        found.append((f"{rate}-Hz.flac", sum(map(len, before)) / rate, len(samples) / rate))
        before += [samples, between]
    for rate, arrays in parts.items():
        (folder / f"{rate}-Hz.flac").write_bytes(encoded(np.concatenate(arrays), rate))
    return found


def called(clips: Sequence[Sound], ids: Sequence[str]) -> list[Sound]:
    return [replace(clip, id=name) for clip, name in zip(clips, ids, strict=True)]


def by_times(found: Sequence[Piece]) -> list[str]:
    """What pieces are called that have no names."""
    return [f"{file}@{start:.10g}-{start + duration:.10g}" for file, start, duration in found]


def unlabelled(clips: Sequence[Sound]) -> list[Sound]:
    return [replace(clip, labels=()) for clip in clips]


def save(path: Path, text: str) -> str:
    """A list, compressed where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return str(path)


def esc50_csv(folder: Path) -> Layout:
    """A CSV with names of columns and values as ESC-50's table has them."""
    clips = [replace(clip, fold=1 + i % 5) for i, clip in enumerate(sounds(COUNT))]
    paths = files(folder, clips)
    rows = [f"{p},{c.fold},{len(c.labels[0])},{c.labels[0]},True,1,A" for p, c in zip(paths, clips, strict=True)]
    text = "\n".join(["filename,fold,target,category,esc10,src_file,take", *rows]) + "\n"
    columns = ("uri=filename", "labels=category")
    return Layout("manifest", save(folder / "meta.csv", text), called(clips, paths), columns)


def tsv(folder: Path) -> Layout:
    """Tabs, a column of ids, several labels in a cell."""
    clips = sounds(COUNT, lambda i: ["dog", "cat, wild"][: 1 + i % 2])
    clips = [replace(clip, split=("train", "dev")[i % 2]) for i, clip in enumerate(clips)]
    rows = [["path", "utt_id", "labels", "set", "text"]]
    for path, clip in zip(files(folder, clips), clips, strict=True):
        rows.append([path, clip.id, ";".join(clip.labels), clip.split, 'said "so'])
    text = "".join("\t".join(row) + "\n" for row in rows)
    return Layout("manifest", save(folder / "list.tsv", text), clips)


def semicolons(folder: Path) -> Layout:
    """As a spreadsheet with decimal commas saves it: commas also between labels. Clips are pieces of longer files."""
    clips = sounds(COUNT, lambda i: ["dog", "cat"][: 1 + i % 2])
    rows, found = ["file;start;duration;labels"], pieces(folder, clips)
    for clip, (file, start, duration) in zip(clips, found, strict=True):
        times = f"{start:.6f};{duration:.6f}".replace(".", ",")
        rows.append(f"{file};{times};{', '.join(clip.labels)}")
    text = "".join(f"{row}\n" for row in rows)
    return Layout("manifest", save(folder / "list.csv", text), called(clips, by_times(found)))


def byte_order_mark(folder: Path) -> Layout:
    """As Excel saves "CSV UTF-8": a mark before the first name, lines that end in two characters, quotes."""
    clips = [replace(clip, labels=("Gerät, laut",), split="test", fold=2) for clip in sounds(COUNT)]
    rows = [f'{p},{c.id},"{c.labels[0]}",test,2' for p, c in zip(files(folder, clips), clips, strict=True)]
    text = "\r\n".join(["uri,clip_id,labels,split,fold", *rows]) + "\r\n"
    return Layout("manifest", save(folder / "list.csv", f"\ufeff{text}"), clips)


def parquet_list(folder: Path) -> Layout:
    """A Parquet file of paths, labels in lists."""
    clips = sounds(COUNT, lambda i: ["dog", "cat"][: i % 3])
    clips = [replace(clip, split="test", fold=i % 3) for i, clip in enumerate(clips)]
    path = parquet(folder / "list.parquet", {
        "file": files(folder, clips), "id": [c.id for c in clips],
        "labels": pa.array([c.labels for c in clips], pa.list_(pa.string())), "split": ["test"] * COUNT,
        "fold": pa.array([c.fold for c in clips], pa.int64()), "thumbnail": [b"x"] * COUNT,
    })  # fmt: skip
    return Layout("manifest", path, clips)


def nemo(folder: Path) -> Layout:
    """NeMo's manifest: pieces of longer files, which name no clip."""
    clips = sounds(COUNT)
    found = pieces(folder, clips)
    rows = [
        {"audio_filepath": file, "offset": start, "duration": duration, "text": "hello", "label": clip.labels[0]}
        for clip, (file, start, duration) in zip(clips, found, strict=True)
    ]
    return Layout("manifest", save(folder / "train_manifest.json", lines(*rows)), called(clips, by_times(found)))


def openbeats(folder: Path, name: str) -> Layout:
    """OpenBEATs' JSON Lines: ids, and pieces from one time to another."""
    clips = unlabelled(sounds(COUNT))
    rows = [{"id": clip.id, "audio": file, "start": start, "end": start + duration}
            for clip, (file, start, duration) in zip(clips, pieces(folder, clips), strict=True)]  # fmt: skip
    return Layout("manifest", save(folder / name, lines(*rows)), clips)


def audio_folder(folder: Path) -> Layout:
    """An audio folder of Hugging Face `datasets`."""
    clips = sounds(COUNT, lambda i: ["dog", "cat"][: i % 3])
    paths = files(folder, clips)
    rows = [
        {"file_name": p, "labels": list(c.labels), "meta": {"year": 1999}} for p, c in zip(paths, clips, strict=True)
    ]
    return Layout("manifest", save(folder / "metadata.jsonl", lines(*rows)), called(clips, paths))


def lhotse_recordings(folder: Path, name: str) -> Layout:
    """Recordings of lhotse's: whole files, by absolute paths."""
    clips = unlabelled(sounds(COUNT))
    rows = []
    for path, clip in zip(files(folder, clips), clips, strict=True):
        about = soundfile.info(folder / path)
        rows.append(recording(clip.id, str(folder / path), about.samplerate, about.frames))
    return Layout("manifest", save(folder / name, lines(*rows)), clips)


def lhotse_cuts(folder: Path, name: str) -> Layout:
    """Cuts of lhotse's, whose speakers are the labels."""
    clips = sounds(COUNT, lambda i: ["ann", "bob"][: i % 3])
    rows = [
        cut(clip.id, file, start, duration, supervisions=[supervision("hi", speaker=label) for label in clip.labels])
        for clip, (file, start, duration) in zip(clips, pieces(folder, clips), strict=True)
    ]
    return Layout("manifest", save(folder / name, lines(*rows)), clips, ("labels=speaker",))


def kaldi(folder: Path) -> Layout:
    """A wav.scp alone."""
    clips = unlabelled(sounds(COUNT))
    rows = "".join(f"{clip.id} {path}\n" for clip, path in zip(clips, files(folder, clips), strict=True))
    return Layout("manifest", save(folder / "wav.scp", rows), clips)


def kaldi_segments(folder: Path) -> Layout:
    """A data folder of Kaldi's: utterances of recordings, and their labels."""
    clips = sounds(COUNT, lambda i: ["dog", "cat"][: 1 + i % 2])
    found = pieces(folder, clips)
    recorded = {file: file.removesuffix(".flac") for file, _, _ in found}
    save(folder / "wav.scp", "".join(f"{name} {file}\n" for file, name in recorded.items()))
    rows = zip(clips, found, strict=True)
    save(folder / "segments", "".join(f"{c.id} {recorded[f]} {s:.6f} {s + d:.6f}\n" for c, (f, s, d) in rows))
    save(folder / "utt2label", "".join(f"{clip.id} {' '.join(clip.labels)}\n" for clip in clips))
    return Layout("manifest", str(folder), clips)


def ast(folder: Path) -> Layout:
    """The JSON of AST, SSAST and AudioMAE: absolute paths, ids of classes, and their table beside it."""
    heard = [("/m/09x0r",), ("/m/09x0r", "/m/05zppz"), ("/m/05zppz",)]
    clips = [replace(clip, labels=tuple(NAMES[mid] for mid in heard[i % 3])) for i, clip in enumerate(sounds(COUNT))]
    paths = [str(folder / path) for path in files(folder, clips)]
    data = [{"wav": path, "labels": ",".join(heard[i % 3])} for i, path in enumerate(paths)]
    class_table(folder / TABLE, NAMES)
    path = save(folder / "train.json", json.dumps({"data": data}))
    return Layout("manifest", path, called(clips, paths), label_names=list(NAMES.values()))


LISTS: dict[str, Callable[[Path], Layout]] = {
    "CSV": esc50_csv,
    "TSV": tsv,
    "semicolons": semicolons,
    "byte order mark": byte_order_mark,
    "Parquet list": parquet_list,
    "NeMo": nemo,
    "JSON Lines": lambda folder: openbeats(folder, "train.jsonl"),
    "JSON Lines, compressed": lambda folder: openbeats(folder, "train.jsonl.gz"),
    "audio folder": audio_folder,
    "lhotse recordings": lambda folder: lhotse_recordings(folder, "recordings.jsonl"),
    "lhotse recordings, compressed": lambda folder: lhotse_recordings(folder, "recordings.jsonl.gz"),
    "lhotse cuts": lambda folder: lhotse_cuts(folder, "cuts.jsonl"),
    "lhotse cuts, compressed": lambda folder: lhotse_cuts(folder, "cuts.jsonl.gz"),
    "Kaldi": kaldi,
    "Kaldi with segments": kaldi_segments,
    "AST": ast,
}
