"""What is said of nodes and of workers that wait, without a cluster."""

import ajepa
from pipelines.rayjobs.nodes import look
from pipelines.rayjobs.waiting import Place, changes


def test_nodes_that_left_and_joined_are_named():
    assert changes({"a": "one", "b": "two"}, {"b": "two", "c": "three", "d": "two"}) == [
        "node one left the cluster: 3 nodes now",
        "node three joined the cluster: 3 nodes now",
        "node two joined the cluster: 3 nodes now",
    ]
    assert changes({"a": "one", "b": "two"}, {"a": "one"}) == ["node two left the cluster: 1 node now"]
    assert changes({"a": "one"}, {"a": "one"}) == []


def test_a_node_names_the_first_file_that_it_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.rayjobs.nodes.LATE_SECONDS", 0)
    (tmp_path / "there").touch()
    seen = look({"--data": (str(tmp_path), ["there"]), "--output": (str(tmp_path), ["there", "b", "c"])})
    assert seen.missing == {"--output": "b"}
    assert seen.versions["ajepa"] == ajepa.__version__ and "torch" in seen.versions


def test_what_is_said_of_workers_that_wait_for_their_place():
    place = Place("GPU", 4)
    waiting = "waiting for 4 GPUs that other jobs of the cluster use: {} free now".format
    looks = [
        (4, set(), None),  # nothing is asked for yet
        (4, {"PENDING"}, None),  # they are about to start
        (1, {"PENDING"}, waiting(1)),
        (1, {"PENDING"}, None),
        (0, {"REMOVED"}, None),  # between two attempts
        (3, {"REMOVED", "PENDING"}, waiting(3)),
        (0, {"REMOVED", "CREATED"}, "the workers have their 4 GPUs"),
        (0, {"REMOVED", "CREATED"}, None),
    ]
    assert [place.line(free, states) for free, states, _ in looks] == [line for _, _, line in looks]


def test_workers_that_do_not_wait_are_not_mentioned():
    place = Place("CPU", 2)
    assert place.line(0, {"CREATED"}) is None and place.had
