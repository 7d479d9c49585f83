"""The evidence over seeds: one table in the shape of one seed's scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.evidence import table
from benchmarks.seeds import Seed, combine
from culturemanager.errors import ConfigError
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.results import SUBJECT, Evaluation, save
from culturemanager.storage import Workspace
from tests.evaluation_world import ScriptedEngine, knowledge, run, world


@pytest.fixture(scope="module")
def evaluations() -> list[Evaluation]:
    """Of three trainings, each of which knows a little more than the one before."""
    place = world()
    return [run(place, ScriptedEngine(place.items, place.tasks, place.tokenizer,
                                      lambda *asked, more=more: knowledge(*asked) + more), seed=seed)
            for seed, more in enumerate((0.0, 0.05, 0.1))]


@pytest.fixture(scope="module")
def seeds(evaluations: list[Evaluation]) -> list[Seed]:
    """What is compared of them."""
    return list(map(Seed.of, evaluations))


def test_one_seed_keeps_its_scores(seeds: list[Seed]) -> None:
    combined, alone = combine(seeds[:1]), seeds[0].summary
    assert set(combined) == set(alone) - {"adapters"} | {"answers"}
    for name, system in combined["systems"].items():
        assert system == alone["systems"][name] | {"by_seed": [alone["systems"][name]["accuracy"]]}
    assert combined["differences"] == alone["differences"]


def test_accuracies_and_differences_are_means_over_the_seeds(seeds: list[Seed]) -> None:
    combined = combine(seeds)
    means = {name: fmean(seed.summary["systems"][name]["accuracy"] for seed in seeds) for name in SYSTEMS}
    assert {name: system["accuracy"] for name, system in combined["systems"].items()} == pytest.approx(means, abs=1e-6)
    assert set(combined["differences"]) == set(SYSTEMS) - {SUBJECT}
    for name, against in combined["differences"].items():
        assert against["difference"] == pytest.approx(means[SUBJECT] - means[name], abs=2e-6)
        assert against["interval"][0] <= against["difference"] <= against["interval"][1]
    assert combined["seed"] == [0, 1, 2]


def test_seeds_that_differ_widen_the_interval(seeds: list[Seed]) -> None:
    def width(several: list[Seed]) -> float:
        low, high = combine(several)["systems"]["base"]["interval"]
        return high - low

    again = replace(seeds[0], summary=seeds[0].summary | {"seed": 7})
    assert width([seeds[0], seeds[2]]) > width([seeds[0], again])


def test_the_parts_have_intervals_over_items_and_seeds(seeds: list[Seed]) -> None:
    alone, together = combine(seeds[:1])["systems"]["base"], combine(seeds)["systems"]["base"]
    for part in ("by_task", "by_culture"):
        assert together[part].keys() == together[f"{part}_interval"].keys() == alone[part].keys()
        for name, value in together[part].items():
            low, high = together[f"{part}_interval"][name]
            assert low <= value <= high
    assert alone["by_task_interval"] == seeds[0].summary["systems"]["base"]["by_task_interval"]


def test_what_a_seed_has_no_figure_for_is_the_others_mean_and_what_it_never_counted_counts_as_none(
        seeds: list[Seed]) -> None:
    def routed(precision: float | None, confusion: dict[str, int]) -> dict:
        return {"router": seeds[0].summary["router"] | {"precision_without_cue": precision,
                                                        "confusion_with_cue": {"turkey": confusion}}}

    combined = combine([replace(seeds[0], summary=seeds[0].summary | routed(0.5, {"turkey": 20, "abstained": 2})),
                        replace(seeds[1], summary=seeds[1].summary | routed(None, {"turkey": 22}))])
    assert combined["router"]["precision_without_cue"] == 0.5
    assert combined["router"]["confusion_with_cue"] == {"turkey": {"turkey": 21, "abstained": 1}}


def test_seeds_that_cannot_be_compared_are_refused(evaluations: list[Evaluation], seeds: list[Seed]) -> None:
    with pytest.raises(ConfigError, match="seed 0 is there 2 times"):
        combine([seeds[0], seeds[0]])
    lacking = Seed.of(Evaluation(evaluations[1].summary, evaluations[1].answers[1:]))
    with pytest.raises(ConfigError, match=r"seed 1 has \d+ answers, seed 0 has \d+, and 1 of them are in one only"):
        combine([seeds[0], lacking])


def test_seeds_are_put_together_alike_from_their_workspaces_and_from_their_files(
        tmp_path: Path, evaluations: list[Evaluation], seeds: list[Seed]) -> None:
    for seed, evaluation in zip(seeds, evaluations, strict=True):
        with Workspace(str(tmp_path / f"{seed.summary['seed']}")).stage("evaluation").writing("any") as draft:
            save(draft, evaluation)
        (tmp_path / f"{seed.summary['seed']}.json").write_text(json.dumps(combine([seed]) | {"measured": "today"}))
    workspaces = [Seed.read(tmp_path / f"{number}") for number in range(3)]
    files = [Seed.read(tmp_path / f"{number}.json") for number in range(3)]
    assert combine(workspaces) == combine(seeds)
    assert combine(files) == combine(seeds) | {"measured": "today"}
    (tmp_path / "all.json").write_text(json.dumps(combine(seeds)))
    for wrong, why in (("all.json", "ValueError"), ("missing.json", "FileNotFoundError")):
        with pytest.raises(ConfigError, match=rf"{wrong} is neither a seed's workspace nor the figures of one seed \({why}"):
            Seed.read(tmp_path / wrong)


def test_the_table_shows_every_system(seeds: list[Seed]) -> None:
    assert table(combine(seeds)).row_count == len(SYSTEMS)
