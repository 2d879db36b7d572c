"""Columns are known by their names where a name can mean one thing alone; all others are refused or named."""

import re

import pytest

from ajepa.audio.columns import OURS, match_columns, parse_columns
from ajepa.errors import UserError


def match(*names, **chosen):
    return match_columns(list(names), chosen, "list.csv")


def refused(*names, **chosen):
    with pytest.raises(UserError) as error:
        match(*names, **chosen)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "audio_filepath", "file_name", "filename", "path", "file", "wav", "audio", "audio_path", "filepath", "fname",
        "filePath", "File Name", "audio.path", "url", "Wav-Path",
    ],
)  # fmt: skip
def test_the_sound_files_are_found_under_their_usual_names(name):
    columns = match(name, "speaker")
    assert columns.taken == {"uri": name} and columns.left_out == ("speaker",)
    assert columns.remarks == (f"column {name!r} of the manifest taken for 'uri'",)


@pytest.mark.parametrize(
    ("column", "ours"),
    [
        ("label", "labels"), ("category", "labels"), ("Class", "labels"), ("tags", "labels"), ("class_name", "labels"),
        ("label_name", "labels"), ("Labels names", "labels"), ("primary_label", "labels"), ("ebird_code", "labels"),
        ("Species", "labels"), ("category id", "labels"), ("classID", "labels"), ("className", "labels"),
        ("event_label", "labels"), ("class_label", "labels"), ("sound class", "labels"), ("Common Name", "labels"),
        ("Scientific name", "labels"), ("target", "labels"),
        ("start", "start_s"), (" onset", "start_s"), ("start time", "start_s"), ("Begin Time (s)", "start_s"),
        ("start-seconds", "start_s"), ("offset_sec", "start_s"), ("startTime", "start_s"), ("t_start", "start_s"),
        ("starttime", "start_s"), ("begintime", "start_s"), ("startsec", "start_s"), ("segment_start", "start_s"),
        ("chunk start", "start_s"), ("start_offset", "start_s"), ("xmin", "start_s"), ("offset", "start_s"),
        ("end", "end_s"), ("EndTime", "end_s"), ("End Time (s)", "end_s"), ("tmax", "end_s"), ("endtime", "end_s"),
        ("stop", "end_s"),
        ("duration", "duration_s"), ("Delta Time (s)", "duration_s"), ("dur", "duration_s"), ("dur_s", "duration_s"),
        ("length_seconds", "duration_s"), ("seconds", "duration_s"),
        ("subset", "split"), ("partition", "split"), ("data_split", "split"), ("dataset split", "split"),
        ("split-name", "split"), ("cv_fold", "fold"), ("k_fold", "fold"), ("kfold", "fold"), ("fold id", "fold"),
        ("clipId", "clip_id"), ("Clip ID", "clip_id"), ("id", "clip_id"), ("utt_id", "clip_id"), ("key", "clip_id"),
        ("video_id", "clip_id"),
    ],
)  # fmt: skip
def test_a_name_that_means_one_thing_is_taken_and_said(column, ours):
    columns = match("uri", column)
    assert columns.taken == {"uri": "uri", ours: column} and columns.guessed == {ours}
    what = "the end of the clip" if ours == "end_s" else repr(ours)
    assert columns.remarks == (f"column {column!r} of the manifest taken for {what}",)


@pytest.mark.parametrize(
    ("column", "ours", "unit"),
    [
        ("start_ms", "start_s", "ms"), ("onset (frames)", "start_s", "frames"), ("duration_ms", "duration_s", "ms"),
        ("startms", "start_s", "ms"), ("stop_samples", "end_s", "samples"), ("num_samples_duration_us", None, None),
    ],
)  # fmt: skip
def test_times_in_other_units_are_refused(column, ours, unit):
    if ours is None:
        assert match("uri", column).left_out == (column,)
        return
    said = f"a column {column!r}, which may be {ours} but in {unit}: add a column in seconds, or do without it with "
    assert refused("uri", column).endswith(f"{said}--columns {ours}=")
    assert match("uri", column, **{ours: ""}).left_out == (column,)
    assert "seconds are needed, not " + unit in refused("uri", column, **{ours: column})


@pytest.mark.parametrize(
    ("column", "ours"),
    [
        ("len", "duration_s"),
        ("length", "duration_s"),
        ("is_train", "split"),
        ("train_test", "split"),
        ("test", "split"),
    ],
)
def test_a_name_that_may_mean_something_is_taken_when_it_is_said(column, ours):
    assert refused("uri", column).endswith(
        f"may be {ours}: --columns {ours}={column} says so, and --columns {ours}= that it is not"
    )
    assert match("uri", column, **{ours: column}).taken[ours] == column
    assert match("uri", column, **{ours: ""}).left_out == (column,)


@pytest.mark.parametrize(
    "column",
    [
        "file_length", "sample_rate", "secondary_labels", "Low Freq (Hz)", "Begin File", "recordist", "name",
        "eventType", "audio_length", "train_loss", "segment_id", "dataset", "file_offset", "startle", "text", "",
    ],
)  # fmt: skip
def test_names_that_mean_something_else_are_left_out(column):
    columns = match("uri", column)
    assert columns.taken == {"uri": "uri"} and columns.left_out == (column,) and columns.remarks == ()


@pytest.mark.parametrize(
    ("names", "ours"),
    [(("file", "path"), "uri"), (("uri", "target", "category"), "labels"), (("uri", "start", "onset"), "start_s"),
     (("uri", "subset", "partition"), "split")],
)  # fmt: skip
def test_two_that_may_be_the_same_are_refused(names, ours):
    first, second = names[-2:]
    assert f"the columns {first!r} and {second!r}, and each may be {ours}: say which with --columns {ours}={first}" in (
        refused(*names)
    )
    columns = match(*names, **{ours: second})
    assert columns.taken[ours] == second and first in columns.left_out


def test_two_that_may_be_ids_are_left_out_and_named():
    columns = match("uri", "id", "key")
    assert columns.left_out == ("id", "key")
    assert columns.remarks == ("'id' and 'key' may each name the clips: none is taken (--columns clip_id=id)",)
    assert match("uri", "id", "key", clip_id="key").remarks == ()


def test_an_address_beside_a_path_is_where_the_sound_came_from():
    assert match("path", "url").taken == {"uri": "path"}


def test_a_name_of_ours_comes_before_all_that_may_mean_it():
    columns = match("Path", " URI", "label", "labels", "start_s", "start_ms")
    assert columns.taken == {"uri": " URI", "labels": "labels", "start_s": "start_s"}
    assert columns.left_out == ("Path", "label", "start_ms")


def test_an_offset_beside_a_start_is_an_end():
    assert match("uri", "start_s", "offset").taken["end_s"] == "offset"
    assert match("uri", "offset", "onset").taken == {"uri": "uri", "start_s": "onset", "end_s": "offset"}
    assert match("uri", "offset", "duration").taken["start_s"] == "offset"


def test_an_end_beside_a_start_and_a_duration_is_left_out():
    assert match("uri", "start_s", "duration_s", "end", "offset").left_out == ("end", "offset")
    assert match("uri", "start", "duration", "end_ms").left_out == ("end_ms",)
    assert match("uri", "start", "end", "duration_ms").left_out == ("duration_ms",)
    assert "'is_train', which may be split" in refused("uri", "start", "end", "duration_ms", "is_train")


def test_a_duration_and_an_end_without_a_start_are_refused():
    said = "'duration' and 'end' but no start: do without one of them, with --columns end_s= or --columns duration_s="
    assert refused("uri", "duration", "end").endswith(said)
    assert match("uri", "duration", "end", end_s="").taken["duration_s"] == "duration"
    assert match("uri", "duration", "end", duration_s="").taken["end_s"] == "end"
    assert match("uri", "duration", "end", end_s="end").left_out == ("duration",)


@pytest.mark.parametrize("names", [("uri", "uri"), ("uri", "URI"), ("uri", "labels", " labels"), ("file", "x", "x")])
def test_a_column_that_occurs_twice_is_refused(names):
    assert re.search(r"has the column '\w+' twice: remove one", refused(*names))


def test_columns_without_a_name_may_be_several():
    assert match("", "uri", "").left_out == ("", "")


def test_a_list_without_sound_files_says_what_it_has():
    assert refused("speaker", "text").endswith(
        "has no column `uri`, nor another for the sound files (it has: speaker, text): say which one names them with "
        "--columns uri=COLUMN"
    )
    assert refused("/data/a.wav", "dog").endswith("its first line must name the columns")
    assert "has: a b, c)" in refused("a\nb", "c")
    assert refused("a.wav").endswith("its first line must name the columns")


def test_pairs_are_parsed():
    assert parse_columns(["uri=my file", "labels=a=b", "fold="]) == {"uri": "my file", "labels": "a=b", "fold": ""}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["uri"], f"--columns uri: give pairs OURS=THEIRS, as uri=file; OURS is one of {', '.join(OURS)}"),
        (["path=uri"], f"--columns path=uri: 'path' is none of our columns ({', '.join(OURS)})"),
        (["uri=a", "uri=b"], "--columns names uri twice: 'a' and 'b'"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, said):
    with pytest.raises(UserError) as error:
        parse_columns(pairs)
    assert str(error.value) == said


def test_a_chosen_column_that_is_not_there_is_refused_with_those_that_are():
    assert refused("file", "x", labels="kind") == (
        "--columns labels=kind: the manifest 'list.csv' has no such column (it has: file, x)"
    )
    assert match("file", " Kind ", labels="kind").taken == {"labels": " Kind ", "uri": "file"}
