"""What the viewer shows of a map: its table and its settings; and the page itself, which Embedding Atlas brings."""

import importlib.metadata
import importlib.util
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ajepa.errors import UserError

# Later versions draw with WebGPU alone, which many browsers on Linux do not have. What the page asks a server for may
# be otherwise in another version.
VIEWER, VERSION = "embedding-atlas", "0.22.0"
PAGE = Path(__file__).with_name("page")  # what is added to the viewer's page
ID = "row"
INLINE = ("split", "fold", "start_s", "duration_s", "cluster")  # shown in one line
NONE = {"split": "", "fold": -1, "label": ""}  # what a column holds of clips that have none
CHARTS = ("label", "cluster", "split", "fold", "duration_s")


def find_viewer() -> Path:
    """The folder of Embedding Atlas's page. Only its files are used: it is not imported.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec("embedding_atlas")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if Path(place, "static", "index.html").is_file():
            return Path(place, "static")
    raise UserError(
        f"the viewer is not installed: pip install --no-deps {VIEWER}=={VERSION} (only its page is used; `make setup` "
        "installs it, too)"
    )


@dataclass(frozen=True)
class Site:
    """A map as the viewer takes it."""

    table: pa.Table  # `embedding_map.SCHEMA`
    viewer: Path  # the folder of its page
    paths: bool = True  # show where sounds lie

    @cached_property
    def colour(self) -> str:
        """The column that points are coloured by."""
        return "label" if any(self.table["label"].unique().to_pylist()) else "cluster"

    @cached_property
    def columns(self) -> pa.Table:
        """What is shown: the map without locators and empty columns, with the numbers that neighbours name."""
        empty = [name for name, value in NONE.items() if self.table[name].unique().to_pylist() == [value]]
        hidden = ["locator", *([] if self.paths else ["uri"])]
        table = self.table.drop_columns([*hidden, *empty])
        return table.add_column(0, ID, pa.array(np.arange(len(table))))

    def served(self, base: str) -> pa.Table:
        """The table of a server at `base`: players want whole addresses."""
        rows = range(self.table.num_rows)
        sound = pa.array([f"{base}sound/{row}.wav" for row in rows])
        return self.columns.append_column("sound", sound).append_column(
            "log_mel", pa.array([f"{base}log-mel/{row}.png" for row in rows])
        )

    def metadata(self, heard: bool = True) -> dict[str, Any]:
        """What the page asks for first: where its data is, and how it is shown.

        Args:
            heard: the table has the columns `sound` and `log_mel`.
        """
        shown = {"clip_id": "full", "label": "full", "uri": "badge", **dict.fromkeys(INLINE, "badge")}
        there = self.columns.column_names
        styles: dict[str, Any] = {name: {"display": how} for name, how in shown.items() if name in there}
        styles |= {name: {"display": "hidden"} for name in (ID, "x", "y", "neighbors")}
        if heard:
            styles |= {
                "sound": {"renderer": "audio", "display": "full"},
                "log_mel": {"renderer": "image", "options": {"size": 360}, "display": "full"},
            }
        projection = {"x": "x", "y": "y"}
        embedding = {**projection, "text": "clip_id", "category": self.colour, "neighbors": "neighbors"}
        return {
            "isStatic": True,  # nothing to ask the server for but files
            "database": {"type": "wasm", "load": True},
            "props": {
                "data": {"id": ID, "projection": projection, "neighbors": "neighbors", "text": "clip_id"},
                "defaultChartsConfig": {
                    "include": [name for name in CHARTS if name in there],
                    "embedding": {"data": embedding},
                },
                "embeddingViewLabels": self.names_on_the_map(),
                "initialState": {"columnStyles": styles},
            },
        }

    def names_on_the_map(self) -> list[dict[str, Any]]:
        """A text in the middle of each cluster: its most frequent label, or its own name where clips have none."""
        found = []
        clusters = np.array(self.table["cluster"].to_pylist())
        labels = self.table["label"].to_numpy(zero_copy_only=False)
        x, y = self.table["x"].to_numpy(), self.table["y"].to_numpy()
        for name in sorted(set(clusters)):
            members = clusters == name
            text = Counter(labels[members]).most_common(1)[0][0] if self.colour == "label" else name
            place = {"x": float(np.median(x[members])), "y": float(np.median(y[members]))}
            found.append(
                {**place, "text": text or name, "content": text or name, "level": 0, "priority": int(members.sum())}
            )
        return found

    def index(self, search: bool, begin: dict[str, Any] | None = None) -> str:
        """The viewer's page with what is added to it: a sound plays where a clip is clicked, and, with `search`, a
        recording that is dropped is looked for; `begin` is shown as found at first."""
        page = (self.viewer / "index.html").read_text()
        added = (
            '<link rel="stylesheet" href="explore/explore.css">'
            f"<script>window.AJEPA_EXPLORE = {_in_script({'search': search, 'begin': begin})}</script>"
            '<script type="module" src="explore/explore.js"></script>'
        )
        return page.replace("</head>", f"{added}</head>", 1)


def version_remark() -> str | None:
    """What to know of a viewer of another version."""
    found = importlib.metadata.version(VIEWER)
    return None if found == VERSION else f"{VIEWER} {found} is installed; this command was tried with {VERSION}"


def _in_script(value: Any) -> str:
    """JSON that ends no <script>, whatever a clip is called."""
    return json.dumps(value).replace("<", "\\u003c")
