"""A user's mistakes: one clear line, exit code 2, and nothing left behind that a later run would trust."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.classifiers import save_classifier

from pipelines import ablate, demo, embed, export, finetune, predict, preprocess, pretrain, probe
from pipelines.cli import lock
from pipelines.cli.command import run_command


@pytest.fixture(scope="module")
def places(small_dataset, finished_run, build_dataset, sounds, tmp_path_factory):
    """Inputs, good and bad, by name."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("empty", "texts", "no-esc50"):
        (folder / name).mkdir()
    (folder / "texts" / "a.txt").write_text("x")
    (folder / "file").write_text("x")
    (folder / "no-uri.csv").write_text("where,labels\na.wav,dog\n")
    (folder / "a.wav").touch()
    (folder / "twice.csv").write_text("clip_id,uri\nsame,a.wav\nsame,b.wav\n")
    shutil.copytree(small_dataset.path, folder / "unfinished")
    (folder / "unfinished" / "dataset.json").unlink()
    shutil.copytree(small_dataset.path, folder / "unlabelled")
    torn = shutil.copytree(finished_run.output, folder / "torn")
    for path in torn.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    other = shutil.copytree(finished_run.output, folder / "other-config")
    for path in other.rglob("checkpoint.json"):
        manifest = json.loads(path.read_text())
        manifest["config"]["model"]["width"] = 96
        path.write_text(json.dumps(manifest))
    waves = sorted(Path(small_dataset.path).parent.glob("*.wav"))
    clips = [{"clip_id": wave.stem, "uri": str(wave)} for wave in waves]
    build_dataset(folder / "bare", clips, shard_size=40, front_end=small_dataset.front_end, label_names=[])
    about = shutil.copytree(small_dataset.path, folder / "other-front-end") / "dataset.json"
    about.write_text(about.read_text().replace('"f_min": 0.0', '"f_min": 50.0'))
    save_classifier(folder / "model", small_dataset, small_dataset.label_names)
    (folder / "notes.csv").write_text("mine")
    (folder / "taken").mkdir()
    lock._OwnLock(str(folder / "taken")).acquire()  # by this process, which does not give it back
    return {p.name: str(p) for p in folder.iterdir()} | {
        "shards": small_dataset.path, "sounds": str(sounds), "new": str(folder / "new"), "gone": str(folder / "gone"),
        "below": str(folder / "file/x"),
        "run": finished_run.output,
    }  # fmt: skip


PREPROCESS = ["--source", "folder", "--output", "{new}", "--input"]
EMBED = ["--encoder", "{run}", "--output", "{new}", "--input"]
PREDICT = ["--model", "{model}", "--output", "{new}", "--input"]
PRETRAIN = ["--output", "{new}", "--num-workers", "0", "--data"]
FINETUNE = ["--output", "{new}", "--num-workers", "0", "--data"]
MISTAKES = {
    "verify an unfinished folder": (preprocess, ["--verify", "{unfinished}"], "or one that is not finished"),
    "merge of one": (preprocess, ["--merge", "{shards}", "--output", "{new}"], "at least two datasets"),
    "merge of one twice": (preprocess, ["--merge", "{shards}", "{shards}", "--output", "{new}"], "given twice"),
    "segments longer than a clip": (
        preprocess, [*PREPROCESS, "{sounds}", "--segment", "60"], "at most 10.24 s (--clip-frames)",
    ),
    "options in a URI": (
        preprocess, [*PREPROCESS, "s3://b/x?endpoint_override=127.0.0.1"], "set AWS_ENDPOINT_URL",
    ),
    "input folder missing": (preprocess, [*PREPROCESS, "{gone}"], "does not exist"),
    "input folder empty": (preprocess, [*PREPROCESS, "{empty}"], "is empty"),
    "no audio in the folder": (preprocess, [*PREPROCESS, "{texts}"], "none with an audio extension"),
    "input is a file": (preprocess, [*PREPROCESS, "{file}"], "is a file, a folder is needed"),
    "unreadable scheme": (preprocess, [*PREPROCESS, "ftp://host/sounds"], "scheme ftp:// is not supported"),
    "unwritable scheme": (
        preprocess, ["--source", "folder", "--input", "{sounds}", "--output", "ftp://h/x"], "scheme ftp://",
    ),
    "output is a file": (
        preprocess, ["--source", "folder", "--input", "{sounds}", "--output", "{file}"], "no shard folder",
    ),
    "output holds something else": (
        preprocess, ["--source", "folder", "--input", "{sounds}", "--output", "{texts}"], "no shard folder",
    ),
    "not an ESC-50 copy": (
        preprocess, ["--source", "esc50", "--input", "{no-esc50}", "--output", "{new}"], "not an ESC-50 copy",
    ),
    "manifest without uri": (
        preprocess, ["--source", "manifest", "--input", "{no-uri.csv}", "--output", "{new}"], "no column `uri`",
    ),
    "clip id twice": (
        preprocess, ["--source", "manifest", "--input", "{twice.csv}", "--output", "{new}"], "more than once",
    ),
    "columns of a folder": (
        preprocess, [*PREPROCESS, "{sounds}", "--columns", "uri=file"], "--columns is for --source",
    ),
    "columns that are no pairs": (
        embed, [*EMBED, "{twice.csv}", "--source", "manifest", "--columns", "file"], "give pairs OURS=THEIRS",
    ),
    "columns of shards": (
        embed, [*EMBED, "{shards}", "--source", "shards", "--columns", "uri=file"], "--columns is for audio files",
    ),
    "clip frames off the grid": (
        preprocess, [*PREPROCESS, "{sounds}", "--clip-frames", "1000"], "not a multiple of 16",
    ),
    "shards unfinished": (pretrain, [*PRETRAIN, "{unfinished}"], "or one that is not finished"),
    "shards missing": (pretrain, [*PRETRAIN, "{gone}"], "does not exist"),
    "unknown preset": (pretrain, [*PRETRAIN, "{shards}", "--preset", "huge"], "unknown preset 'huge': choose"),
    "grid does not divide": (pretrain, [*PRETRAIN, "{shards}", "--crop-frames", "100"], "not a multiple of"),
    "ratio out of range": (pretrain, [*PRETRAIN, "{shards}", "--mask-ratio", "1.5"], "between 0 and 1"),
    "other mel bins": (pretrain, [*PRETRAIN, "{shards}", "--n-mels", "64"], "the model takes 64"),
    "more workers than clips in a batch": (
        pretrain, ["--output", "{new}", "--data", "{shards}", "--num-workers", "65"], "use at most 64",
    ),
    "workers are no number": (
        pretrain, ["--output", "{new}", "--data", "{shards}", "--num-workers", "8:4"], "a range like 4:8",
    ),
    "run of another config": (
        pretrain, ["--output", "{run}", "--num-workers", "0", "--data", "{shards}"], "with other settings",
    ),
    "output is no run": (
        pretrain, ["--output", "{shards}", "--num-workers", "0", "--data", "{shards}"], "no run folder",
    ),
    "a GPU that is not there": (
        pretrain, [*PRETRAIN, "{shards}", "--device", "cuda"], "--device cuda: torch finds no GPU here",
    ),
    "a GPU to fine-tune on that is not there": (
        finetune, [*FINETUNE, "{shards}", "--encoder", "{run}", "--device", "cuda"], "torch finds no GPU here",
    ),
    "mlflow keeps no files": (
        pretrain, [*PRETRAIN, "{shards}", "--mlflow-uri", "file:///tmp/mlruns"], "records to no file:// store",
    ),
    "mlflow in a folder that is not there": (
        export, ["{run}", "{new}", "--mlflow-uri", "sqlite:////no/such/folder/mlflow.db"], "no database can be at",
    ),
    "output below a file": (
        probe, ["--encoder", "{run}", "--data", "{shards}", "--output", "{below}"], "cannot create --output",
    ),
    "run below a file": (
        pretrain, ["--data", "{shards}", "--num-workers", "0", "--output", "{below}"], "cannot create --output",
    ),
    "shards below a file": (
        preprocess, ["--source", "folder", "--input", "{sounds}", "--output", "{below}"], "cannot create --output",
    ),
    "mlflow is no uri": (
        pretrain, [*PRETRAIN, "{shards}", "--mlflow-uri", "somewhere"], "is no URI",
    ),
    "encoder to fine-tune missing": (finetune, [*FINETUNE, "{shards}", "--encoder", "{gone}"], "does not exist"),
    "encoder to fine-tune of another front end": (
        finetune, [*FINETUNE, "{other-front-end}", "--encoder", "{run}"],
        "the encoder was trained with f_min=0.0, the shards in",
    ),
    "no labels to fine-tune on": (
        finetune, [*FINETUNE, "{bare}", "--encoder", "{run}"], "no clip in",
    ),
    "encoder learning rate of zero": (
        finetune, [*FINETUNE, "{shards}", "--encoder", "{run}", "--encoder-lr", "0"],
        "encoder_lr must be positive, got 0",
    ),
    "unknown recipe": (
        finetune, [*FINETUNE, "{shards}", "--encoder", "{run}", "--preset", "best"], "unknown preset 'best'",
    ),
    "fold that is not there": (
        finetune, [*FINETUNE, "{shards}", "--encoder", "{run}", "--fold", "7"],
        "--fold 7: it has the folds 1, 2, 3, 4, 5",
    ),
    "no seed at all": (
        finetune, [*FINETUNE, "{shards}", "--encoder", "{run}", "--seeds", "0"], "--seeds must be positive",
    ),
    "mixup of uneven shares": (
        finetune,
        ["--data", "{shards}", "--encoder", "{run}", "--output", "{new}", "--mixup", "1", "--batch-size", "10",
         "--num-workers", "3"],
        "--batch-size is a multiple of 6",
    ),
    "fine-tuning into a run": (
        finetune, ["--data", "{shards}", "--encoder", "{run}", "--output", "{run}", "--num-workers", "0"],
        "is no fine-tuning folder",
    ),
    "encoder missing": (probe, ["--encoder", "{gone}", "--data", "{shards}"], "does not exist"),
    "encoder of no such name": (
        embed, ["--encoder", "nona", "--input", "{sounds}", "--output", "{new}"],
        "no encoder 'nona' comes with ajepa (there is: nano)",
    ),
    "shipped encoder to fine-tune without an output": (
        finetune, ["--encoder", "nano", "--data", "{shards}"], "--output is needed when the encoder is no run folder",
    ),
    "encoder on the Hub to probe without an output": (
        probe, ["--encoder", "hf://lab/nano", "--data", "{shards}"], "--output is needed: the encoder 'hf://lab/nano'",
    ),
    "shipped encoder to export as it is": (export, ["nano", "{new}"], "is an export already"),
    "graph of half the size": (
        export, ["{run}", "{new}", "--format", "onnx", "--weights", "float16"],
        "--weights float16 is for --format safetensors, not for onnx",
    ),
    "encoder folder without a run": (probe, ["--encoder", "{empty}", "--data", "{shards}"], "no checkpoint"),
    "checkpoint torn": (probe, ["--encoder", "{torn}", "--data", "{shards}"], "is intact"),
    "checkpoint of another config": (
        probe, ["--encoder", "{other-config}", "--data", "{shards}"], "holds other weights than its config",
    ),
    "encoder to export missing": (export, ["{gone}", "{new}"], "does not exist"),
    "export over something": (export, ["{run}", "{texts}"], "exists: choose another"),
    "export of a folder without a run": (export, ["{empty}", "{new}"], "no checkpoint"),
    "encoder to embed with missing": (
        embed, ["--encoder", "{gone}", "--input", "{sounds}", "--output", "{new}"], "does not exist",
    ),
    "sounds to embed missing": (embed, [*EMBED, "{gone}"], "does not exist"),
    "no sounds to embed": (embed, [*EMBED, "{texts}"], "none with an audio extension"),
    "shards to embed unfinished": (
        embed, ["--source", "shards", *EMBED, "{unfinished}"], "or one that is not finished",
    ),
    "layer that is not there": (embed, [*EMBED, "{sounds}", "--layers", "9"], "has the layers 1 to 4"),
    "pooling of patches": (
        embed, [*EMBED, "{sounds}", "--level", "patch", "--pooling", "mean+std"], "is for --level clip",
    ),
    "segments of shards": (embed, [*EMBED, "{shards}", "--segment", "1"], "is for audio files"),
    "no workers to embed": (embed, [*EMBED, "{sounds}", "--num-workers", "0"], "must be positive"),
    "clips of no length": (embed, [*EMBED, "{sounds}", "--max-seconds", "0"], "must be positive"),
    "embeddings over something": (
        embed, ["--encoder", "{run}", "--input", "{sounds}", "--output", "{shards}"], "no embedding folder",
    ),
    "an encoder to predict with": (
        predict, ["--model", "{run}", "--output", "{new}", "--input", "{sounds}"],
        "holds an encoder (a pretraining run), which knows no labels: fine-tune it",
    ),
    "model to predict with missing": (
        predict, ["--model", "{gone}", "--output", "{new}", "--input", "{sounds}"], "is no fine-tuned model",
    ),
    "shards to predict of another front end": (
        predict, [*PREDICT, "{other-front-end}"], "the encoder was trained with f_min=0.0, the shards in",
    ),
    "no sounds to predict": (predict, [*PREDICT, "{texts}"], "none with an audio extension"),
    "a hop of clips": (predict, [*PREDICT, "{sounds}", "--hop", "0.3"], "--hop 0.3 is for --level window"),
    "a hop beyond a window": (
        predict, [*PREDICT, "{sounds}", "--level", "window", "--hop", "3"], "beyond which sound would be left out",
    ),
    "a hop of nothing": (
        predict, [*PREDICT, "{sounds}", "--level", "window", "--hop", "0"], "give from 0.16 (a column of patches)",
    ),
    "top labels without a csv": (predict, [*PREDICT, "{sounds}", "--top", "3"], "--top is for --csv"),
    "no top labels": (predict, [*PREDICT, "{sounds}", "--csv", "{gone}", "--top", "0"], "--top must be positive"),
    "a threshold that is no probability": (
        predict, [*PREDICT, "{sounds}", "--csv", "{gone}", "--threshold", "50"], "is a probability from 0 to 1, got 50",
    ),
    "a csv over something": (predict, [*PREDICT, "{sounds}", "--csv", "{notes.csv}"], "is no CSV of predictions"),
    "predictions over something": (
        predict, ["--model", "{model}", "--input", "{sounds}", "--output", "{shards}"], "no prediction folder",
    ),
    "neighbours in no embeddings": (
        embed, ["--neighbours", "{file}", "--output", "{shards}"], "no embeddings.json",
    ),
    "neighbours in a missing folder": (embed, ["--neighbours", "{file}", "--output", "{gone}"], "does not exist"),
    "unknown table": (ablate, ["colour", "--data", "{shards}", "--output", "{new}"], "unknown table 'colour'"),
    "unknown value of a table": (
        ablate, ["loss", "--values", "huber", "--data", "{shards}", "--output", "{new}"], "not 'huber'",
    ),
    "unknown masking strategy": (
        ablate, ["masking_strategy", "--values", "blobs", "--data", "{shards}", "--output", "{new}"],
        "strategy is one of multiblock, single_block, random, time, frequency, time_frequency, curriculum, not 'blobs'",
    ),
    "value of a table is no number": (
        ablate, ["masking_ratio", "--values", "most", "--data", "{shards}", "--output", "{new}"], "is no value",
    ),
    **{
        f"output in use, {command.__name__.rpartition('.')[2]} {argv[0]}": (command, argv, "is in use by process")
        for command, argv in (
            (preprocess, ["--source", "folder", "--input", "{sounds}", "--output", "{taken}"]),
            (preprocess, ["--merge", "{shards}", "{unlabelled}", "--output", "{taken}"]),
            (pretrain, ["--output", "{taken}", "--num-workers", "0", "--data", "{shards}"]),
            (pretrain, ["--output", "{taken}", "--overwrite", "--data", "{shards}"]),
            (finetune, ["--output", "{taken}", "--data", "{shards}", "--encoder", "{run}"]),
            (probe, ["--output", "{taken}", "--data", "{shards}", "--encoder", "{run}"]),
            (export, ["{run}", "{taken}"]),
            (export, ["--format", "torch", "{run}", "{taken}"]),
            (embed, ["--output", "{taken}", "--encoder", "{run}", "--input", "{sounds}"]),
            (predict, ["--output", "{taken}", "--model", "{model}", "--input", "{sounds}"]),
            (ablate, ["loss", "--data", "{shards}", "--output", "{taken}"]),
            (demo, ["--output", "{taken}"]),
        )
    },
    "ablation folder taken": (ablate, ["loss", "--data", "{shards}", "--output", "{texts}"], "no ablation folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_line_and_exit_code_2(name, places, capsys, tmp_path, monkeypatch):
    command, argv, message = MISTAKES[name]
    monkeypatch.chdir(tmp_path)  # where the default mlflow.db would appear
    argv = [places[a[1:-1]] if a.startswith("{") else a for a in argv]
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: command.main(command.parse_args(argv)))
    assert stop.value.code == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in error and "Traceback" not in error
    assert not Path(places["new"]).exists() and len(list(Path(places["taken"]).iterdir())) == 1
    assert not list(tmp_path.iterdir())
