"""What is said of nodes, without a cluster."""

import ajepa
from pipelines.rayjobs.nodes import look
from pipelines.rayjobs.waiting import changes


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
