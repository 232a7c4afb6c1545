# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Certified radii: every one was itself certified, and nothing is concluded that sets do not imply."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctkd.boxes import Box
from ctkd.certify.radii import Bracket, Radii, Search, bracket, next_trial
from ctkd.certify.trials import Trial, Trials
from ctkd.errors import BadInput, Contradiction, Interrupted
from ctkd.interrupt import StopRequest
from ctkd.progress import Silent
from ctkd.propagate import Network
from ctkd.run import certify, certify_each, radii

from .test_cascade import STAGES, cascade, network, split

TOLERANCE = 0.01


def trial(eps: float, status: str, *, stage: str = "", margin: float = -1.0, sample: int = 0) -> Trial:
    return Trial(sample, eps, 0, status, stage, None, margin if status == "broken" else 1.0, 0.0)  # type: ignore[arg-type]


def search(
    path: Path, *, start: float = 0.1, stages: Any = STAGES, samples: range = range(60), **options: Any
) -> Radii:
    net = network()
    data = split(net)
    one = Search(cascade(net, start, stages), options.pop("tolerance", TOLERANCE), options.pop("batch", 16))
    with Trials(path, "net", "test", {}) as store:
        return one.run(data, samples, store, Silent(), options.pop("stop", StopRequest()), "Go on")


def proved(found: Radii) -> list[tuple[float | None, float | None]]:
    """The certified ends. Attacks on other batches may end at another point, since they take signs of gradients."""
    return [(one.certified, one.refused) for one in found.brackets.values()]


def stored(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT sample, eps, status FROM radius_trials ORDER BY sample, eps").fetchall()


# What trials imply ---------------------------------------------------------------------------------------


def test_the_bracket_of_some_trials() -> None:
    trials = [trial(0.1, "certified"), trial(0.2, "undecided"), trial(0.4, "broken"), trial(0.3, "unbroken")]
    assert bracket(trials) == Bracket(0.1, 0.2, 0.3, 0.4)
    assert bracket([]) == Bracket(None, None, None, None)


def test_a_misclassified_sample_is_broken_at_zero() -> None:
    found = bracket([trial(0.1, "broken", stage="natural")])
    assert found == Bracket(None, 0.0, None, 0.0, "natural")
    assert next_trial(found, TOLERANCE, 0.1) is None


def test_a_stage_that_is_not_monotone_is_believed_where_it_certifies() -> None:
    """A certificate at 0.3 holds for all smaller boxes, whatever the stage said there."""
    found = bracket([trial(0.1, "undecided"), trial(0.3, "certified"), trial(0.4, "undecided")])
    assert (found.certified, found.refused) == (0.3, 0.4)


def test_certified_beyond_a_clear_break_is_a_contradiction() -> None:
    with pytest.raises(Contradiction, match=r"sample 0 is certified at eps=0.3 by 'ibp' and broken at eps=0.2 by ''"):
        bracket([trial(0.2, "broken"), trial(0.3, "certified", stage="ibp")])
    # Rounding of float32 at the edge is none; the sample counts as broken.
    found = bracket([trial(0.1, "certified"), trial(0.2, "broken", margin=-1e-7), trial(0.3, "certified")])
    assert (found.certified, found.broken) == (0.1, 0.2)


STATUSES = st.sampled_from(["certified", "undecided", "unbroken", "broken"])


@given(
    holds=st.floats(0, 1.2),
    breaks=st.floats(0, 1.2),
    tolerance=st.sampled_from([0.3, 0.05, 1 / 255, 0.0123]),
    start=st.floats(0, 1),
    odd=st.sets(st.integers(0, 100)),
)
def test_the_search_ends_and_keeps_its_promise(
    holds: float, breaks: float, tolerance: float, start: float, odd: set[int]
) -> None:
    """A made-up sample: a stage certifies below ``holds`` but for odd places, an attack breaks from ``breaks`` on."""
    breaks = max(breaks, holds)
    known: list[Trial] = []
    for _ in range(400):
        wanted = next_trial(bracket(known), tolerance, start)
        if wanted is None:
            break
        eps, stages = wanted
        assert 0 <= eps <= 1
        assert eps not in {t.eps for t in known if stages or t.status != "unbroken"}
        if eps >= breaks and breaks < 1.1:
            status = "broken"
        elif not stages:
            status = "unbroken"
        else:
            status = "certified" if eps < holds and round(eps * 100) not in odd else "undecided"
        known.append(trial(eps, status, stage="attack" if status == "broken" else ""))
    else:
        raise AssertionError("the search does not end")
    found = bracket(known)
    tried = {t.eps: t.status for t in known}
    if found.certified is not None:
        assert tried[found.certified] == "certified"
        assert found.certified < holds
        if found.certified < 1:
            assert found.refused is not None
            assert found.refused - found.certified <= tolerance * (1 + 1e-9)
            assert tried[found.refused] != "certified"
    if found.broken is not None:
        assert tried[found.broken] == "broken"
        assert found.survived is None or found.broken - found.survived <= tolerance * (1 + 1e-9)
    else:
        assert found.survived == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_accuracies_follow_from_the_radii(ends: list[tuple[float, float]]) -> None:
    brackets = {i: Bracket(min(pair), None, None, max(pair)) for i, pair in enumerate(ends) if min(pair) < max(pair)}
    if not brackets:
        return
    found = Radii(brackets, dict.fromkeys(brackets, 0), 0.1, True, 0.0)
    for eps in [0.0, 0.5, 1.0, *found.steps()]:
        assert found.certified_accuracy(eps) == sum(b.certified >= eps for b in brackets.values()) / len(brackets)  # type: ignore[operator]
        assert found.adversarial_accuracy(eps) == sum(b.broken > eps for b in brackets.values()) / len(brackets)  # type: ignore[operator]
        assert found.certified_accuracy(eps) <= found.adversarial_accuracy(eps) or eps in found.steps()
    assert found.average() == pytest.approx(sum(b.certified or 0 for b in brackets.values()) / len(brackets))


# On a network --------------------------------------------------------------------------------------------


def test_a_radius_certifies_and_the_next_one_tried_did_not(tmp_path: Path) -> None:
    found = search(tmp_path / "r.sqlite")
    net = network()
    data = split(net)
    assert len(found.brackets) == 60
    assert all(found.brackets[i].broken == 0 for i in range(0, 60, 10))
    certified = {i: b for i, b in found.brackets.items() if b.certified}
    assert len(certified) > 40
    for i, one in list(certified.items())[::6]:
        assert one.certified is not None
        assert one.refused is not None
        assert one.broken is not None
        assert one.refused - one.certified <= TOLERANCE * (1 + 1e-9)
        assert one.survived is not None
        assert one.broken - one.survived <= TOLERANCE * (1 + 1e-9)
        assert one.certified < one.broken
        assert cascade(net, one.certified).settle(data, [i])[0].status == "certified"
        assert cascade(net, one.refused).settle(data, [i])[0].status != "certified"
        assert cascade(net, one.broken).settle(data, [i])[0].status == "broken"
    trials = {(sample, eps): status for sample, eps, status in stored(tmp_path / "r.sqlite")}
    assert all(trials[i, b.certified] == "certified" for i, b in certified.items())


def test_batches_change_nothing(tmp_path: Path) -> None:
    one, other = search(tmp_path / "a.sqlite", batch=1, samples=range(5)), search(tmp_path / "b.sqlite", batch=60)
    assert proved(one) == proved(other)[:5]


def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(tmp_path / "whole.sqlite")
    stop = StopRequest()
    stop.signal_number = 15
    for _ in range(3):
        with pytest.raises(Interrupted, match=r"finished trials are stored\. Go on"):
            search(tmp_path / "parts.sqlite", stop=stop)
    before = stored(tmp_path / "parts.sqlite")
    assert 0 < len(before) < len(stored(tmp_path / "whole.sqlite"))
    resumed = search(tmp_path / "parts.sqlite")
    assert proved(resumed) == proved(whole)
    assert set(before) <= set(stored(tmp_path / "parts.sqlite"))
    # Nothing is left to do: no sample is tried again.
    monkeypatch.setattr("ctkd.certify.cascade.Cascade.settle", None)
    assert search(tmp_path / "parts.sqlite").brackets == resumed.brackets


def test_a_finer_tolerance_goes_on_from_a_coarser_one(tmp_path: Path) -> None:
    coarse = search(tmp_path / "r.sqlite", tolerance=0.05, samples=range(20))
    count = len(stored(tmp_path / "r.sqlite"))
    fine = search(tmp_path / "r.sqlite", tolerance=0.01, samples=range(20))
    assert len(stored(tmp_path / "r.sqlite")) < 2 * count + 60
    for i, one in fine.brackets.items():
        rough = coarse.brackets[i]
        assert (one.certified is None) == (rough.certified is None)
        if one.certified is not None and rough.certified is not None:
            assert rough.certified <= one.certified <= rough.certified + 0.05


class Lies:
    """A stage that claims to have proved everything."""

    def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(labels), net.classes, dtype=box.lower.dtype)


def test_a_wrong_stage_is_a_contradiction_and_stores_nothing(tmp_path: Path) -> None:
    with pytest.raises(Contradiction, match=r"is certified by .* and broken by an attacked point"):
        search(tmp_path / "r.sqlite", stages={"lies": Lies()})
    assert stored(tmp_path / "r.sqlite") == []


def test_a_stage_that_never_proves_anything_gives_no_radius(tmp_path: Path) -> None:
    class Nothing:
        def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(labels), net.classes), -torch.inf, dtype=box.lower.dtype)

    found = search(tmp_path / "r.sqlite", stages={"nothing": Nothing()}, samples=range(6), start=0.0)
    assert {one.certified for one in found.brackets.values()} == {None}
    assert all(one.broken is not None for one in found.brackets.values())
    assert found.average() == 0
    assert found.summary()["radii"][1]["certified"] is None


def test_a_sample_that_nothing_breaks_ends_at_the_whole_image_space(tmp_path: Path) -> None:
    class Still:
        def perturb(self, logits: Any, x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            return x

    net = network()
    one = Search(cascade(net, 0.1), 0.25, 60)
    object.__setattr__(one.cascade, "attack", Still())
    with Trials(tmp_path / "r.sqlite", "net", "test", {}) as store:
        found = one.run(split(net), range(1, 4), store, Silent(), StopRequest(), "")
    assert all((b.broken, b.survived) == (None, 1.0) for b in found.brackets.values())


def test_a_stage_that_searches_is_not_asked_about_nothing(tmp_path: Path) -> None:
    """At a radius that breaks all samples nothing is left for it."""

    class Searches:
        def search(self, net: Network, box: Box, labels: torch.Tensor, stop: Any) -> Any:
            from ctkd.api import Found

            assert len(labels)
            return Found(torch.full((len(labels), net.classes), -torch.inf, dtype=box.lower.dtype))

        def margins(self, net: Network, box: Box, labels: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    found = search(tmp_path / "r.sqlite", stages={**STAGES, "searches": Searches()}, samples=range(4), start=0.9)
    plain = search(tmp_path / "plain.sqlite", samples=range(4), start=0.9)
    assert proved(found) == proved(plain)


# Commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, quick_run: tuple[Path, dict[str, Any]]) -> Path:
    shutil.copytree(quick_run[0], tmp_path / "run")
    return tmp_path / "run"


def test_radii_agree_with_certify(copy: Path) -> None:
    """The samples that `certify` certifies at a radius are those whose certified radius is not smaller."""
    found = radii(copy, tolerance="1/100")
    assert found["samples"] == 40
    assert found["tolerance"] == 0.01
    for step in (0.02, 0.05):
        at = certify(copy, eps=step)
        by_radius = [one for one in found["radii"] if one["certified"] is not None and one["certified"] >= step]
        assert len(by_radius) == at["counts"]["certified"]
        broken = [one for one in found["radii"] if one["broken"] is not None and one["broken"] <= step]
        assert len(broken) == at["counts"]["broken"]
    assert found["average_certified_radius"] == pytest.approx(sum(one["certified"] or 0 for one in found["radii"]) / 40)


def test_what_certify_found_is_not_done_again(copy: Path) -> None:
    radii(copy, tolerance=0.05)
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        same = connection.execute(
            "SELECT count(*) FROM radius_trials "
            "JOIN samples USING (sample, status, attack_margin, seconds) WHERE eps = 0.1"
        ).fetchone()[0]
    assert same == 40  # the run's own certification was taken over, with its times


def test_several_radii_in_one_command(copy: Path, ctkd_command: Any) -> None:
    import json

    code, out, err = ctkd_command("certify", str(copy), "--eps", "0.02, 0.05", "--eps", "1/50", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["eps"] for one in found] == [0.02, 0.05]
    assert found[1]["certified_accuracy"] == certify(copy, eps=0.05)["certified_accuracy"]
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        radii_of = connection.execute(
            "SELECT eps, count(*) FROM samples JOIN settings ON id = settings GROUP BY settings"
        )
        assert dict(radii_of.fetchall()) == {0.1: 40, 0.02: 40, 0.05: 40}
    code, out, err = ctkd_command("certify", str(copy), "--eps", "0.02,0.05")
    assert code == 0
    assert "eps 0.05: certified by stage" in out
    assert out.count("attack: pgd") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["certify", "--eps", "0.1,,0.2"],
            "error: --eps 0.1,,0.2: a radius is missing beside a comma; write --eps 0.05,0.1",
        ),
        (
            ["certify", "--eps", "0.02,8"],
            "error: eps=8: outside [0, 1]; radii are in raw pixel units, did you mean 8/255?",
        ),
        (["radii", "--tolerance", "0"], "error: tolerance=0 is outside [1e-06, 1]; it is in raw pixel units, like eps"),
        (["radii", "--tolerance", "x"], "error: tolerance=x: 'x' is not a finite number; write 0.1 or 8/255"),
        (["radii", "--set", "train.epochs=1"], "error: train.epochs: certifying takes certify.* settings only; "),
    ],
)
def test_bad_input_is_one_line(copy: Path, ctkd_command: Any, arguments: list[str], line: str) -> None:
    before = (copy / "certification.sqlite").read_bytes()
    code, out, err = ctkd_command(arguments[0], str(copy), *arguments[1:])
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1
    if arguments[0] == "certify":
        assert (copy / "certification.sqlite").read_bytes() == before


def test_every_radius_is_checked_before_the_first_is_certified(copy: Path) -> None:
    with pytest.raises(BadInput, match="eps=2: outside"):
        certify_each(copy, [0.02, 2])
    with sqlite3.connect(copy / "certification.sqlite") as connection:
        assert connection.execute("SELECT eps FROM settings").fetchall() == [(0.1,)]


def test_the_command_prints_a_table(copy: Path, ctkd_command: Any) -> None:
    code, out, err = ctkd_command("radii", str(copy), "--tolerance", "0.1", "--samples", "10")
    assert code == 0, err
    assert "Accuracy by radius on 10 test samples" in " ".join(out.split())
    assert "average certified radius" in out
    assert "searching radii, round 1" in err
