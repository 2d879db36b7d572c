"""Results of trials as JSON files, one a setting with all its seeds: runs on different days and machines add up.

A file holds what the setting is (its whole config) and, by seed, what came out. Files of the same setting are joined;
a seed that several files hold is taken from the first.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from ajepa import storage
from ajepa.documents import read_document, refusing_damage, require_types
from ajepa.errors import UserError

FORMAT_VERSION = 2  # 1 named datasets by their content hashes
ADVICE = "restore or delete it"  # about a damaged file


@dataclass(frozen=True)
class Result:
    """All seeds of a setting."""

    key: str
    name: str
    identity: dict[str, Any]
    seeds: dict[int, dict[str, Any]]  # what run_trial returns, without what stands here

    def score(self, seed: int, data: str, protocol: str, pooling: str) -> dict[str, Any] | None:
        """One probe's outcome; None where it was not made."""
        for found in self.seeds.get(seed, {}).get("scores", ()):
            if (found["data"]["hash"], found["protocol"], found["pooling"]) == (data, protocol, pooling):
                return dict(found)
        return None


def from_trials(trials: Iterable[dict[str, Any]]) -> dict[str, Result]:
    """Results by key, of what run_trial returned."""
    found: dict[str, Result] = {}
    for trial in trials:
        own = {name: value for name, value in trial.items() if name not in ("key", "name", "identity", "seed", "kind")}
        result = Result(trial["key"], trial["name"], trial["identity"], {})
        found.setdefault(trial["key"], result).seeds.setdefault(trial["seed"], own)
    return found


def joined(groups: Iterable[dict[str, Result]]) -> dict[str, Result]:
    """Results of several places as one. Of a seed in several of them the first counts; its missing probes are taken
    from the others."""
    total: dict[str, Result] = {}
    for group in groups:
        for key, result in group.items():
            known = total.setdefault(key, Result(key, result.name, result.identity, {}))
            for seed, outcome in result.seeds.items():
                own = known.seeds.setdefault(seed, outcome | {"scores": []})
                kept = [_which(score) for score in own["scores"]]
                own["scores"] = own["scores"] + [s for s in outcome["scores"] if _which(s) not in kept]
    return total


def require_one_recipe(folders: Mapping[str, Mapping[str, Result]]) -> None:
    """Check that what is fine-tuned in several folders has one recipe: of two scores one would be lost.

    Raises:
        UserError: there are two.
    """
    seen: dict[tuple[object, ...], tuple[str, object]] = {}
    for folder, results in folders.items():
        for result in results.values():
            for seed, outcome in result.seeds.items():
                for score in outcome["scores"]:
                    where, recipe = seen.setdefault((result.key, seed, *_which(score)), (folder, score.get("recipe")))
                    if recipe != score.get("recipe"):
                        raise UserError(
                            f"{result.name}, seed {seed}, was fine-tuned on {score['data']['name']} by one recipe in "
                            f"{where!r} and by another in {folder!r}: remove the older scores"
                        )


def _which(score: dict[str, Any]) -> tuple[str, str, str]:
    return score["data"]["hash"], score["protocol"], score["pooling"]


def read_results(folder: str) -> dict[str, Result]:
    """All results of a folder; {} where it has none.

    Raises:
        UserError: a file that is damaged or of another version.
        OSError: one that cannot be read.
    """
    found = []
    for name in sorted(name for name in storage.contents(folder) if name.endswith(".json") and "/" not in name):
        path = storage.join(folder, name)
        content = read_document(path, ADVICE)
        with refusing_damage(path, ADVICE):
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise UserError(f"{path!r} has results of format {version}, this version reads {FORMAT_VERSION}")
            require_types(content, key=str, name=str, identity=dict, seeds=dict)
            seeds = {int(seed): outcome for seed, outcome in content["seeds"].items()}
            for outcome in seeds.values():
                require_scores(outcome)
            found.append({content["key"]: Result(content["key"], content["name"], content["identity"], seeds)})
    return joined(found)


def require_results(folder: str) -> dict[str, Result]:
    """As `read_results`.

    Raises:
        UserError: also a folder without any.
    """
    results = read_results(folder)
    if not results:
        raise UserError(f"{folder!r} has no results")
    return results


def write_results(results: dict[str, Result], folder: str) -> None:
    """A file a setting."""
    storage.make_folder(folder)
    for result in results.values():
        content = {
            "format_version": FORMAT_VERSION, "key": result.key, "name": result.name, "identity": result.identity,
            "seeds": {str(seed): result.seeds[seed] for seed in sorted(result.seeds)},
        }  # fmt: skip
        storage.write_text(storage.join(folder, f"{result.name}.json"), json.dumps(content, indent=1) + "\n")


def require_scores(outcome: dict[str, Any]) -> None:
    """Check, inside `refusing_damage`, that what came out of a trial has scores that tables can be made of.

    Raises:
        KeyError, TypeError: it has not.
    """
    require_types(outcome, scores=list)
    for score in outcome["scores"]:
        require_types(score, data=dict, protocol=str, pooling=str, score=(int, float), right=(str, NoneType))
        require_types(score["data"], name=str, hash=str, clips=int)


def right_clips(score: dict[str, Any]) -> np.ndarray | None:
    """[n] bool, which tested clips are right; None of multi-label sets."""
    if score["right"] is None:
        return None
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(score["right"]), np.uint8))
    return bits[: score["data"]["clips"]].astype(bool)
