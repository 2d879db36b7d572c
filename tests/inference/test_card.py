"""Model cards: what a run has recorded, and what it has not."""

import json
import shutil

import pytest
import yaml
from helpers.hub import make_classifier, make_encoder
from helpers.training_state import save_run

import ajepa
from ajepa.choices import ExportFormat
from ajepa.errors import UserError
from ajepa.inference.card import USE, model_card
from ajepa.inference.facts import facts_of_run
from ajepa.inference.pretrained import facts_of, known_facts


@pytest.fixture(scope="module")
def saved(tmp_path_factory, small_dataset):
    """A run of one step. Read only."""
    folder = tmp_path_factory.mktemp("card") / "run"
    save_run(folder, small_dataset, 1)
    about = {"data": "s3://bucket/secret/piles|of sound", "clips": 40, "hours": 0.0178, "dataset_hash": "x"}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def card_of(run, format: ExportFormat = "safetensors") -> str:
    encoder = ajepa.load_encoder(run)
    return model_card(facts_of(encoder, known_facts(run, encoder)), format)


def write_probe(run, digest: str, name: str = "linear-1a2b3c4d", **row) -> None:
    scores = {"features": "pretrained", "pooling": "mean", "metric": "accuracy", "mean": 0.75, "std": None}
    rows = [
        scores | {"interval95": [0.7, 0.8], "dimension": 32} | row,
        scores | {"features": "random init", "mean": 0.5, "std": 0.01, "interval95": [0.45, 0.55]},
    ]
    about = {
        "protocol": "linear", "data": "/home/me/esc10", "dataset_hash": "e5c", "splits": "its 5 folds", "clips": 400,
        "encoder_digest": f"other {digest}",
    }  # fmt: skip
    (run / "probes" / name).mkdir(parents=True)
    (run / "probes" / name / "results.json").write_text(json.dumps({"about": about, "rows": rows}))


@pytest.mark.parametrize("format", list(USE))
def test_the_front_matter_is_read_and_the_licence_left_to_the_user(run, format):
    text = card_of(run, format)
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["pipeline_tag"] == "feature-extraction" and "audio" in found["tags"] and "license" not in found
    assert found["library_name"] == {"transformers": "transformers", "safetensors": "ajepa"}.get(
        format, found["library_name"]
    )
    assert "# license: not set. Fill it in" in front
    assert body.index("This folder (needs") < body.index("export.py RUN OUTPUT --format")


def test_a_card_says_what_the_run_recorded(run):
    text = card_of(run)
    assert "| training set | piles\\|of sound; digest " in text and "; 40 clips, 0.02 h |" in text
    assert "bucket" not in text  # where data lie is nobody's business
    assert "| objective | jepa; the target encoder |" in text
    assert "| steps | 1 of 50; batches of 8 clips, seed 0 |" in text
    assert "| masking | multiblock, ratio 0.7, wrap |" in text and "window | 1.28 s;" in text
    assert "128 Slaney mel bins from 0 to 8000 Hz" in text


def test_a_card_says_that_nothing_was_measured_and_how_to(run):
    assert "Not measured. `python pipelines/probe.py --encoder RUN" in card_of(run)


def test_a_card_holds_probes_beside_the_baselines(run):
    write_probe(run, ajepa.load_encoder(run).about["digest"])
    text = card_of(run)
    assert "linear probe on esc10 (digest e5c, 400 clips, its 5 folds):" in text and "Not measured" not in text
    assert "| pretrained | mean | 0.750 | 0.700 to 0.800 |" in text
    assert "| random init | mean | 0.500 ± 0.010 | 0.450 to 0.550 |" in text


def test_probes_of_other_weights_are_counted_not_shown(run):
    write_probe(run, "of another step")
    text = card_of(run)
    assert "0.750" not in text and "Left out: 1 probes of the run's other checkpoints or branches." in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("probes/linear-1a2b3c4d/results.json", '{"about": {}}'),
        ("probes/linear-1a2b3c4d/results.json", '{"about": '),
        ("run.json", '{"data": "x", "clips": 40, "hours": "many"}'),
        ("run.json", '{"data": "x", "clips": 40}'),
    ],
)
def test_a_damaged_document_is_named(run, file, content):
    write_probe(run, ajepa.load_encoder(run).about["digest"])
    (run / file).write_text(content)
    with pytest.raises(UserError, match=rf"{file}' is damaged .*the model card then says less"):
        card_of(run)


def test_a_damaged_row_of_a_probe_is_named(run):
    write_probe(run, ajepa.load_encoder(run).about["digest"], mean="high")
    with pytest.raises(UserError, match=r"results\.json' is damaged"):
        card_of(run)


def test_an_interval_that_there_is_not_is_left_open(run):
    write_probe(run, ajepa.load_encoder(run).about["digest"], interval95=[None, None])
    assert "| pretrained | mean | 0.750 | – to – |" in card_of(run)


def test_a_damaged_export_says_to_export_again(run, tmp_path):
    ajepa.export_encoder(str(run), str(tmp_path / "export"))
    about = tmp_path / "export/encoder.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"recorded": {"train": 3}}))
    with pytest.raises(UserError, match=r"encoder\.json' is damaged .*: export it again"):
        card_of(tmp_path / "export")


def test_clips_and_hours_of_an_earlier_run_come_from_its_shards(run, small_dataset):
    (run / "run.json").write_text(json.dumps({"data": small_dataset.path}))
    assert f"; 40 clips, {small_dataset.hours:.2f} h |" in card_of(run)
    (run / "run.json").write_text(json.dumps({"data": f"{small_dataset.path}-moved"}))
    assert "; clips and hours not recorded |" in card_of(run)


def test_an_export_carries_on_what_its_run_recorded(run, tmp_path):
    write_probe(run, ajepa.load_encoder(run).about["digest"])
    ajepa.export_encoder(str(run), str(tmp_path / "export"))
    shutil.rmtree(run)
    written = (tmp_path / "export/README.md").read_text()
    assert card_of(tmp_path / "export") == written and "0.700 to 0.800" in written


def test_a_checkpoint_knows_the_run_around_it(run):
    digest = ajepa.load_encoder(run).about["digest"]
    assert facts_of_run(str(run / "checkpoints/step-00000001"), digest)["dataset"]["clips"] == 40


def test_a_fine_tuned_model_has_a_card(tmp_path):
    make_classifier(tmp_path, multi_label=True)
    text = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: audio-classification" in text and "load_classifier(folder)" in text
    assert "| labels | 3, a clip may have several: cat, dog, rain |" in text
    assert "| fine-tuned on | digest f1e7; epoch 2; seed 0; fold 1 |" in text and "score on test clips is not" in text
    assert 'function_to_apply="sigmoid"' in text  # transformers 4 would take the softmax


def test_a_card_needs_nothing_but_the_encoder():
    text = model_card(facts_of(make_encoder(), {}), "onnx")
    assert "name not recorded; digest d16e57; clips and hours not recorded" in text and "masking | not recorded" in text
