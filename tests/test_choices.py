"""Every name that an option takes has what it stands for."""

from typing import get_args

from ajepa.audio.sources import SOURCES
from ajepa.choices import POOLINGS, ExportFormat, GraphFormat, LossName, Placement, Pooling, ProbePooling, SourceName
from ajepa.config import PRESETS, MaskConfig, TrainConfig
from ajepa.experiments.settings import settings_of
from ajepa.inference.card import USE
from ajepa.inference.graph import EXPORTERS
from ajepa.model.pooling import METHODS


def test_each_source_is_read():
    assert set(SOURCES) == set(get_args(SourceName))


def test_each_pooling_is_computed():
    assert set(METHODS) == set(get_args(Pooling)) == set(POOLINGS)
    assert set(get_args(ProbePooling)) == {*POOLINGS, "attentive"}


def test_each_graph_is_written():
    assert set(EXPORTERS) == set(get_args(GraphFormat))
    assert set(get_args(ExportFormat)) == {*EXPORTERS, "safetensors", "transformers"} == set(USE)


def test_ablations_of_named_settings_take_all_their_names():
    assert tuple(settings_of("loss", PRESETS["nano"])) == get_args(LossName)
    assert tuple(settings_of("placement", PRESETS["nano"])) == get_args(Placement)
    for name in get_args(LossName):
        assert TrainConfig(loss=name).loss == name
    for name in get_args(Placement):
        assert MaskConfig(placement=name).placement == name
