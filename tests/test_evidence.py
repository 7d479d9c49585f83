"""The evidence over seeds: one table in the shape of one seed's scores."""

from __future__ import annotations

from statistics import fmean

import pytest

from benchmarks.evidence import combine, table
from culturemanager.errors import ConfigError
from culturemanager.evaluation.baselines import SYSTEMS
from culturemanager.evaluation.runner import SUBJECT, Evaluation
from tests.evaluation_world import ScriptedEngine, knowledge, run, world


@pytest.fixture(scope="module")
def seeds() -> list[Evaluation]:
    """Three trainings, each of which knows a little more than the one before."""
    place = world()
    return [run(place, ScriptedEngine(place.items, place.tasks, place.tokenizer,
                                      lambda *asked, more=more: knowledge(*asked) + more), seed=seed)
            for seed, more in enumerate((0.0, 0.05, 0.1))]


def test_one_seed_keeps_its_scores(seeds: list[Evaluation]) -> None:
    combined, alone = combine(seeds[:1]), seeds[0].summary
    assert set(combined) == set(alone) - {"adapters"}
    for name, system in combined["systems"].items():
        assert system == alone["systems"][name] | {"by_seed": [alone["systems"][name]["accuracy"]]}
    assert combined["differences"] == alone["differences"]


def test_accuracies_and_differences_are_means_over_the_seeds(seeds: list[Evaluation]) -> None:
    combined = combine(seeds)
    means = {name: fmean(seed.summary["systems"][name]["accuracy"] for seed in seeds) for name in SYSTEMS}
    assert {name: system["accuracy"] for name, system in combined["systems"].items()} == pytest.approx(means, abs=1e-6)
    assert set(combined["differences"]) == set(SYSTEMS) - {SUBJECT}
    for name, against in combined["differences"].items():
        assert against["difference"] == pytest.approx(means[SUBJECT] - means[name], abs=2e-6)
        assert against["interval"][0] <= against["difference"] <= against["interval"][1]
    assert combined["seed"] == [0, 1, 2]


def test_seeds_that_differ_widen_the_interval(seeds: list[Evaluation]) -> None:
    def width(evaluations: list[Evaluation]) -> float:
        low, high = combine(evaluations)["systems"]["base"]["interval"]
        return high - low

    again = Evaluation(seeds[0].summary | {"seed": 7}, seeds[0].answers)
    assert width([seeds[0], seeds[2]]) > width([seeds[0], again])


def test_the_parts_have_intervals_over_items_and_seeds(seeds: list[Evaluation]) -> None:
    alone, together = combine(seeds[:1])["systems"]["base"], combine(seeds)["systems"]["base"]
    for part in ("by_task", "by_culture"):
        assert together[part].keys() == together[f"{part}_interval"].keys() == alone[part].keys()
        for name, value in together[part].items():
            low, high = together[f"{part}_interval"][name]
            assert low <= value <= high
    assert alone["by_task_interval"] == seeds[0].summary["systems"]["base"]["by_task_interval"]


def test_what_a_seed_has_no_figure_for_is_the_others_mean_and_what_it_never_counted_counts_as_none(
        seeds: list[Evaluation]) -> None:
    def routed(precision: float | None, confusion: dict[str, int]) -> dict:
        return {"router": seeds[0].summary["router"] | {"precision_without_cue": precision,
                                                        "confusion_with_cue": {"turkey": confusion}}}

    combined = combine([Evaluation(seeds[0].summary | routed(0.5, {"turkey": 20, "abstained": 2}), seeds[0].answers),
                        Evaluation(seeds[1].summary | routed(None, {"turkey": 22}), seeds[1].answers)])
    assert combined["router"]["precision_without_cue"] == 0.5
    assert combined["router"]["confusion_with_cue"] == {"turkey": {"turkey": 21, "abstained": 1}}


def test_seeds_that_cannot_be_compared_are_refused(seeds: list[Evaluation]) -> None:
    with pytest.raises(ConfigError, match="seed 0 is there 2 times"):
        combine([seeds[0], seeds[0]])
    with pytest.raises(ConfigError, match=r"seed 1 has \d+ answers, seed 0 has \d+, and 1 of them are in one only"):
        combine([seeds[0], Evaluation(seeds[1].summary, seeds[1].answers[1:])])


def test_the_table_shows_every_system(seeds: list[Evaluation]) -> None:
    assert table(combine(seeds)).row_count == len(SYSTEMS)
