"""The lab: what runs an experiment, that each runs, and that what is kept of the whole ones says what the theory supports."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mmrope
from mmrope.cli import app
from mmrope.lab import experiments, extension, films, grids, length, resolution, rules, sums
from mmrope.lab.encodings import OF_TEXT, Encoding, Rotary, counted
from mmrope.lab.harness import Cell, Experiment, results_of, run, spread
from mmrope.lab.reader import Reader, sizes
from mmrope.lab.report import plot, table
from mmrope.lab.text import source, windows
from mmrope.prompting import vote_accuracy
from tests.support import ROOT

RESULTS = ROOT / "scripts" / "results" / "lab"
ALL = {experiment.name: experiment for experiment in experiments()}


def kept(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def mean(results, variant, metric):
    found = spread(results, variant, metric)
    assert found is not None
    return found[0]


# --- running ----------------------------------------------------------------------------------------------------------


def counting(calls, together=False):
    def cell(variant, seed, cell):
        calls.append((variant, seed))
        return {"8": seed + cell.size, "16": 1.0}

    def all_of_them(seed, cell):
        calls.append(("both", seed))
        return {"a": {"8": 1.0}, "b": {"8": 2.0}}

    return Experiment(
        **{"name": "counting", "question": "?", "setting": "", "paper": "", "variants": ("a", "b")},
        **{"full": {"size": 2.0}, "quick": {"size": 1.0}, "x": "n", "y": "y"},
        cell=all_of_them if together else cell,
        together=together,
    )


def test_two_runs_to_one_file_keep_what_both_found(tmp_path):
    path, other = tmp_path / "r.json", counting([])

    def meanwhile(variant, seed, cell):
        run(other, path, seeds=2, variants=("b",))
        return {"8": 9.0}

    results = run(replace(counting([]), cell=meanwhile), path, seeds=1, variants=("a",))
    assert {name: set(cells) for name, cells in results["cells"].items()} == {"a": {"0"}, "b": {"0", "1"}}
    assert results_of(path) == results


def test_what_is_there_is_not_run_again(tmp_path):
    calls = []
    experiment, path = counting(calls), tmp_path / "r.json"
    run(experiment, path, seeds=1, variants=("b",))
    results = run(experiment, path, seeds=2)
    assert calls == [("b", 0), ("a", 0), ("a", 1), ("b", 1)]
    assert results == json.loads(path.read_text()) == run(experiment, path, seeds=2)
    assert len(calls) == 4
    assert spread(results, "a", "8") == (2.5, 2.0, 3.0)
    assert spread(results, "a", "32") is None
    assert results["settings"] == {"size": 2.0}
    assert results["torch"] == torch.__version__
    assert results["mmrope"] == mmrope.__version__


def test_a_cell_that_fails_leaves_those_before_it(tmp_path):
    calls = []
    experiment = counting(calls)

    def failing(variant, seed, cell):
        if variant == "b":
            raise RuntimeError("killed")
        return experiment.cell(variant, seed, cell)

    broken = Experiment(**{**vars(experiment), "cell": failing})
    with pytest.raises(RuntimeError):
        run(broken, tmp_path / "r.json", seeds=1)
    run(experiment, tmp_path / "r.json", seeds=1)
    assert calls == [("a", 0), ("b", 0)]


def test_variants_that_share_a_training(tmp_path):
    calls = []
    results = run(counting(calls, together=True), tmp_path / "r.json", seeds=2)
    assert calls == [("both", 0), ("both", 1)]
    assert mean(results, "b", "8") == 2


def test_results_of_other_settings_are_not_mixed(tmp_path):
    run(counting([]), tmp_path / "r.json", seeds=1)
    with pytest.raises(
        ValueError, match=r"r.json has results with settings \{'size': 2.0\}, now asked for settings \{'size': 1.0\}"
    ):
        run(counting([]), tmp_path / "r.json", seeds=1, quick=True)
    with pytest.raises(ValueError, match="counting has the variants a; b, not c"):
        run(counting([]), tmp_path / "s.json", variants=("c",))
    with pytest.raises(ValueError, match="counting needs at least one seed, got 0: ask for three"):
        run(counting([]), tmp_path / "s.json", seeds=0)
    with pytest.raises(ValueError, match=r"cannot use the device 'cuda:99'.*; try 'cpu'"):
        run(counting([]), tmp_path / "s.json", device="cuda:99")
    with pytest.raises(AttributeError, match="the experiment has no setting 'sizes'"):
        Cell(settings={}, device="cpu").sizes  # noqa: B018


def test_the_table_has_means_and_spreads(tmp_path):
    results = run(counting([]), tmp_path / "r.json", seeds=2)
    lines = list(table(counting([]), results))
    assert lines[0] == "| y | 8 | 16 |"
    assert lines[2] == "| a | 2.5 (2 to 3) | 1 |"
    assert lines[-1] == "size 2.0."


def test_what_is_measured_are_tables_and_panels_of_their_own():
    metrics = {"a": {"8": 1.0, "found at 8": 0.5}, "b": {"8": 2.0}}
    results = {"cells": {name: {"0": {"metrics": of, "seconds": 60}} for name, of in metrics.items()}}
    results |= {"device": "CPU", "torch": "2", "mmrope": "1", "python": "3", "date": "today", "settings": {}}
    lines = list(table(counting([]), results))
    assert lines[:4] == ["| y | 8 |", "|---|---|", "| a | 1 |", "| b | 2 |"]
    assert lines[5:8] == ["| found | 8 |", "|---|---|", "| a | 0.5 |"]
    figure = plot(counting([]), results)
    assert [ax.get_ylabel() for ax in figure.axes] == ["y", "found"]


# --- what the experiments are made of ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_TEXT)
def test_no_encoding_lets_a_token_look_ahead(name):
    torch.manual_seed(0)
    model = Reader(OF_TEXT[name](32, 4, 8, 16), sizes(32, 4, 2), 10).eval()
    x = torch.randint(0, 10, (2, 16))
    changed = x.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 10
    with torch.no_grad():
        one, other = (model(rows, counted(2, 16)) for rows in (x, changed))
    torch.testing.assert_close(one[:, :9], other[:, :9])
    assert (one[:, 9:] - other[:, 9:]).abs().max() > 1e-3


def test_a_reader_that_is_not_causal_sees_everything():
    torch.manual_seed(0)
    model = Reader(Encoding(), sizes(32, 4, 1), 10, features=3, causal=False).eval()
    x = torch.randn(1, 6, 3)
    with torch.no_grad():
        one, other = model(x, counted(1, 6)), model(x.flip(1), counted(1, 6))
    torch.testing.assert_close(one, other.flip(1))  # without an encoding order is nothing


def test_test_text_is_not_in_the_training_text():
    train, test = source(), source(test=True)
    assert len(train) > 5_000_000
    assert 0.01 < len(test) / len(train) < 0.2
    text, probes = bytes(train.numpy()), torch.linspace(0, len(test) - 64, 400).long()
    assert np.mean([bytes(row) in text for row in windows(test, probes, 64).tolist()]) < 0.02


def test_perplexities_are_of_the_same_bytes_at_every_length():
    cell = Cell(settings={**length.EXPERIMENT.quick, "lengths": [64, 128]}, device="cpu")

    class Known(torch.nn.Module):
        """Expects odd bytes to be repeated, whatever the window."""

        def forward(self, x, ids):
            return torch.nn.functional.one_hot(x, 256) * 3.0 * (x % 2)[..., None]

    torch.testing.assert_close(*(torch.tensor(length.perplexities(Known(), n, cell)) for n in (64, 128)))


def test_passkeys_stand_in_the_window_and_are_asked_for():
    rows = windows(source(test=True), torch.arange(20) * 500, 128)
    made, digits = extension.with_keys(rows, torch.Generator().manual_seed(0))
    for row, key in zip(made.tolist(), digits.tolist(), strict=True):
        text, key = bytes(row), bytes(key)
        assert text.endswith(extension.KEY + key)
        assert text.count(extension.KEY + key) == 2
        assert len(text) == 128


def test_extensions_change_the_rotation_past_the_trained_length_alone():
    cell = Cell(settings=extension.EXPERIMENT.quick, device="cpu")
    base = length.make("rope", cell)
    for method in extension.METHODS:
        same, longer = (extension.extended(base, method, n, cell).encoding.rotary.spec for n in (cell.length, 4 * cell.length))
        assert same == base.encoding.rotary.spec
        assert (longer == same) == (method == "none")


def test_allocations_of_grids_are_the_librarys():
    ids = grids.ids_of(2, 3)
    assert ids[:, 0].tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2] * 2]
    spec = grids.ALLOCATIONS["interleaved"](32, 1e4).rotary.spec
    assert spec == mmrope.RotarySpec.mrope(32, sections=(6, 5, 5), layout="interleaved")


def test_films_have_the_ids_of_their_rule():
    ids = films.film_ids(3, (2, 2))[:, 0]
    assert ids[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    assert ids[1].tolist() == [0, 0, 1, 1] * 3 + [3]
    diagonal = films.film_ids(3, (2, 2), "videorope")[:, 0]
    assert diagonal[0].tolist() == [0] * 4 + [2] * 4 + [4] * 4 + [5]
    assert diagonal[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]


def needles(rule, t, batch=256):
    cell = Cell(settings={**films.EXPERIMENT.full, "batch": batch}, device="cpu")
    periods = films.periods(rule, cell)
    for name, task in films.needles(periods).items():
        rows, start, answers = task(t, torch.Generator().manual_seed(0), cell)
        assert start == t * 4
        back = rows[:, -1:] - cell.symbols + 1
        yield name, rows[:, :-1].reshape(batch, t, 4)[:, :, 0], back, answers, periods


@pytest.mark.parametrize("rule", ["qwen2_vl", "videorope"])
def test_needles_stand_where_they_are_asked_for(rule):
    for _, frames, back, answers, _ in needles(rule, 24):
        assert set(back.flatten().tolist()) == set(range(1, 9))
        assert torch.equal(frames.gather(1, 24 - back), answers)
        assert (answers > 0).all()
        last = ((frames > 0) * torch.arange(1, 25)).argmax(dim=1, keepdim=True)
        assert (frames.gather(1, last) == answers).float().mean() < 0.4  # to look at the last picture is not enough


@pytest.mark.parametrize("rule", ["qwen2_vl", "videorope"])
@pytest.mark.parametrize("t", [12, 16, 24, 40])
def test_distractors_stand_at_the_periods_of_m_rope_or_as_many_elsewhere(rule, t):
    counts, off = {}, {}
    for name, frames, back, _, periods in needles(rule, t):
        row, frame = (frames[:, : t - 8] > 0).nonzero(as_tuple=True)
        turns = (t - back[row, 0] - frame)[:, None] / periods
        off[name] = ((turns - turns.round()).abs() * periods).masked_fill(turns < 0.5, torch.inf).amin(dim=1)
        counts[name] = torch.bincount(row, minlength=len(frames))
    periodic, other = "among periodic distractors at ", "among other distractors at "
    assert torch.equal(counts[periodic], counts[other])
    assert counts[periodic].max() == min(3, t - 8) if t > 16 else counts[periodic].sum() > 0
    assert off[periodic].max() <= 0.5
    assert off[other].min() > 1


def test_periods_are_those_of_the_ids():
    cell = Cell(settings=films.EXPERIMENT.full, device="cpu")
    ids = 2 * np.pi * 10000 ** (np.arange(4) / 16)
    np.testing.assert_allclose(films.periods("qwen2_vl", cell), ids, rtol=1e-6)
    np.testing.assert_allclose(films.periods("videorope", cell), ids / 2, rtol=1e-6)  # two ids a frame


def test_scenes_ask_for_the_arrows_direction():
    tail, towards, discs, colors = scenes = resolution.scenes(2000, torch.Generator().manual_seed(0))
    along = (torch.nn.functional.normalize(discs - tail[:, None], dim=-1) * towards[:, None]).sum(dim=-1)
    torch.testing.assert_close(along[:, 0], torch.ones(2000))  # the arrow points at the first disc
    assert along[:, 1:].max() < np.cos(resolution.ASIDE)
    assert (colors.sort(dim=1).values.diff() > 0).all()
    tip = tail + resolution.SHAFT * towards
    distance = (discs - tip[:, None]).norm(dim=-1)
    assert distance[:, 0].min() > resolution.HEAD + resolution.RADIUS + resolution.CLEAR - 1e-6
    assert (distance.argmin(dim=1) == 0).float().mean() < 0.45  # the nearest disc is most often a wrong one
    assert (discs[:, :, None] - discs[:, None]).norm(dim=-1).add(torch.eye(4)).min() > 2 * resolution.RADIUS
    some = [part[:50] for part in scenes]
    means = [resolution.draw(*some, side).unflatten(-1, (16, 3)).mean(dim=(1, 2)) for side in (6, 15)]  # [n, rgb]
    torch.testing.assert_close(*means, atol=5e-3, rtol=0)  # and they are the same at every size


def test_normalised_patches_are_dinov3s():
    made = Rotary(mmrope.RotarySpec.axial(64, theta=100.0)).rotary(resolution.patch_ids("normalised", 5))
    dinov3 = mmrope.patch_position_ids([(1, 5, 5)], order="raster", normalize="separate")
    theirs = mmrope.RotaryEmbedding(mmrope.encodings.preset("dinov3"))(torch.from_numpy(dinov3)[:, None])
    torch.testing.assert_close(made, theirs, atol=1e-6, rtol=0)


def test_learned_patches_are_resized_for_other_sizes():
    encoding = resolution.ENCODINGS["learned"](3, 8, 2, 4)
    added = encoding.added(resolution.patch_ids("learned", 5))
    resized = encoding.embedding.resized((3, 3), (5, 5)).weight
    torch.testing.assert_close(added[0], resized)


@pytest.mark.parametrize("how", sums.HOW)
@given(digits=st.integers(1, 8), seed=st.integers(0, 1000))
def test_sums_come_to_their_result(how, digits, seed):
    one = sums.Sum.draw(digits, random.Random(seed))
    assert max(len(str(one.a)), len(str(one.b))) == digits
    assert sums.result(one.answer(how)) == one.result
    assert "".join(filter(str.isdigit, one.result)) == str(one.a + one.b)


def test_a_sum_as_it_is_written():
    one = sums.Sum(47, 5, 2, 1)
    assert one.question == "\nC4B7+B5="
    assert one.answer("at once") == "so C5B2."
    assert one.answer("step by step") == "B7+5+0=12,C4+0+1=05,so C5B2."
    assert one.result == "C5B2"
    assert sums.result("B7+5+0=12,C4+0.") is None
    assert sums.result("so C5B2") is None  # it was cut off
    assert sums.result("so C5B2A.") != one.result


def test_votes_are_counted_by_sum():
    cell = Cell(settings={"tries": 5, "votes": 5}, device="cpu")
    two, one = sums.Sum(1, 1, 1, 1), sums.Sum(1, 0, 1, 1)
    texts = ["so B2.", "so B2.", "so B3.", "so B4.", "none."] + ["so B1."] * 2 + ["so B7."] * 3
    found = sums.votes(texts, [two, one], cell)
    assert found == {"drawn": 0.4, "vote of 5": 0.5, "binomial 5": 0.0}  # the first by plurality; the second is outvoted


@given(p=st.floats(0, 1), tries=st.integers(5, 20), votes=st.sampled_from([1, 3, 5]))
def test_majorities_of_tries_are_binomial_on_average(p, tries, votes):
    chance = [math.comb(tries, k) * p**k * (1 - p) ** (tries - k) for k in range(tries + 1)]
    mean = sum(c * sums.majority_of(k, tries, votes) for k, c in enumerate(chance))
    assert mean == pytest.approx(vote_accuracy(p, votes), abs=1e-9)


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_cache_changes_nothing(name):
    torch.manual_seed(0)
    model = Reader(OF_TEXT[name](32, 4, 8, 16), sizes(32, 4, 2), 10).eval()
    prompts = torch.randint(0, 10, (3, 6))
    written = model.write(prompts, 8)
    row = torch.cat([prompts, written], dim=1)
    with torch.no_grad():
        again = model(row, counted(3, 14))[:, 5:-1].argmax(dim=-1)
    assert torch.equal(again, written)


def test_writing_stops_when_all_have_ended():
    torch.manual_seed(0)
    model = Reader(Encoding(), sizes(32, 4, 1), 3).eval()
    prompts = torch.zeros(4, 2, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    written = model.write(prompts, 50, temperature=5.0, generator=generator, end=2)
    assert written.shape[1] < 50
    assert (written == 2).any(dim=1).all()
    assert not (written[:, :-1] == 2).any(dim=1).all()


def test_rules_differ_after_films_alone():
    reference, other = (rules.processor_of(name, padding_side="left") for name in rules.RULES)
    reel = rules.Reel.draw(np.random.default_rng(0), "held_out", films=2, least=5, most=5)
    asked = [{"role": "user", "content": [*reel.media(np.random.default_rng(0)), {"type": "text", "text": "When?"}]}]
    ours, theirs = (processor(asked, add_generation_prompt=True) for processor in (reference, other))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    video = (ours["mm_token_type_ids"][0] == 2).nonzero()[:, 0]
    first_text = int(video[4]) + 1
    assert torch.equal(ours["position_ids"][..., :first_text], theirs["position_ids"][..., :first_text])
    gap = ours["position_ids"][0, 0] - theirs["position_ids"][0, 0]
    assert gap[first_text] == 4  # five frames take five ids, or one
    assert gap[-1] == 8  # and so does the second film


def test_digits_of_a_reel_are_of_one_film():
    for seed in range(10):
        reel = rules.Reel.draw(np.random.default_rng(seed), "train", films=2, most=8)
        assert not set(reel.films[0].digits) & set(reel.films[1].digits)


# --- the experiments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ALL)
def test_an_experiment_runs_by_one_command(name, device, tmp_path):
    options = ["--quick", "--seeds", "1", "--device", device, "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["lab", "run", name, *options])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / f"{name}-quick.json").read_text())
    assert set(results["cells"]) == set(ALL[name].variants)
    assert (tmp_path / f"{name}-quick.png").stat().st_size > 10_000


def test_the_list_names_every_experiment():
    shown = CliRunner().invoke(app, ["lab", "list"]).output
    for experiment in ALL.values():
        assert f"{experiment.name} " in shown
        assert experiment.question in shown
    assert "there is no experiment 'no'; there are length" in CliRunner().invoke(app, ["lab", "run", "no"]).output


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_what_is_kept_is_whole_and_of_three_seeds(name):
    results = kept(name)
    assert results["settings"] == json.loads(json.dumps(ALL[name].full))
    assert {variant: len(cells) for variant, cells in results["cells"].items()} == dict.fromkeys(ALL[name].variants, 3)
    assert plot(ALL[name], results) is not None
    page = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
    assert "\n".join(table(ALL[name], results)) in page
    assert (ROOT / "docs" / f"lab-{name}.png").exists()


def test_experiments_that_are_kept_are_all_that_there_are():
    assert sorted(path.stem for path in Path(RESULTS).glob("*.json")) == sorted(ALL)


def test_trained_short_and_tested_long():
    """ALiBi holds, RoPE does not, sinusoidal least of all: the order of the paper from four times the length on."""
    results = kept("length")
    for tested in ("512", "1024"):
        alibi, rope, sinusoidal = (mean(results, name, tested) for name in ("alibi", "rope", "sinusoidal"))
        assert alibi < rope < sinusoidal
    assert mean(results, "alibi", "1024") < 1.1 * mean(results, "alibi", "128")
    assert mean(results, "sinusoidal", "256") > 1.3 * mean(results, "sinusoidal", "128")


def test_one_dimension_does_not_know_other_widths():
    results = kept("grids")
    for base in ("100", "10000"):
        assert mean(results, f"1D, base {base}", "6x6") > 0.95
        assert mean(results, f"1D, base {base}", "6x8") < 0.1
        assert mean(results, f"interleaved, base {base}", "6x8") > 0.85
        assert mean(results, f"contiguous, base {base}", "6x6") < 0.5 * mean(results, f"interleaved, base {base}", "6x6")


def test_extensions_in_the_order_of_their_papers_but_for_pi():
    """At eight times the length; interpolating positions is worse than nothing in models as small as these."""
    results = kept("extension")
    yarn, parts, ntk, none, pi = (mean(results, name, "1024") for name in ("YaRN", "NTK-by-parts", "NTK", "none", "PI"))
    assert yarn < 0.8 * parts
    assert max(parts, ntk) < 0.8 * none
    assert pi > none
    assert mean(results, "NTK-by-parts", "perplexity, tuned at 512") < mean(results, "none", "512")


def test_ids_of_films_grow_by_frames_and_one_dimension_by_tokens():
    results = kept("films")
    for frames in (8, 40):
        assert mean(results, "1D", f"largest id at {frames}") == 4 * frames
        assert mean(results, "interleaved", f"largest id at {frames}") == frames
    assert mean(results, "contiguous", "40") < 0.6 * mean(results, "interleaved", "40")


def test_needles_are_found_by_videorope_with_its_own_ids_and_by_one_dimension():
    """At four times the length, as published; but for one dimension, and it is the ids that do it."""
    results = kept("films")
    full, periodic, other = "needles found at 32", "among periodic distractors at 32", "among other distractors at 32"
    assert mean(results, "VideoRoPE, diagonal ids", full) > 4 * mean(results, "contiguous", full)
    assert mean(results, "1D", full) > 0.9
    for allocation in ("contiguous", "interleaved", "VideoRoPE"):
        for metric in (full, periodic, other):
            assert mean(results, f"{allocation}, diagonal ids", metric) > 1.3 * mean(results, allocation, metric)
    for variant in ("1D", "interleaved", "contiguous, diagonal ids", "interleaved, diagonal ids", "VideoRoPE, diagonal ids"):
        assert mean(results, variant, periodic) < mean(results, variant, other)


def test_steps_reach_what_answers_at_once_do_not_and_votes_more_than_single_tries():
    results = kept("sums")
    for encoding in OF_TEXT:
        assert mean(results, f"{encoding}, step by step", "5") > mean(results, f"{encoding}, at once", "5") + 0.4
        drawn, vote, binomial = (
            mean(results, f"{encoding}, step by step", f"{what} at 5") for what in ("drawn", "vote of 5", "binomial 5")
        )
        assert vote > drawn
        assert vote > binomial - 0.02  # the worst case, in which all wrong answers agree
    past = {name: mean(results, f"{name}, step by step", "6") for name in ("alibi", "nope", "rope", "sinusoidal")}
    assert min(past["alibi"], past["nope"]) > 0.1
    assert max(past["rope"], past["sinusoidal"]) < 0.02


def test_rules_matter_to_a_second_film_that_is_read_by_another():
    results = kept("rules")
    for name in rules.RULES:
        for read in ("", ", read by the other"):
            for about in ("one film", "the first of two films"):
                assert mean(results, f"{name}{read}", f"when, {about} at 8") > 0.95
                assert mean(results, f"{name}{read}", f"after, {about} at 8") > 0.95
        assert mean(results, name, "when, the second of two films at 8") > 0.95
        assert mean(results, f"{name}, read by the other", "when, the second of two films at 8") < 0.85


def test_places_within_the_image_carry_to_larger_images_and_places_in_patches_do_not():
    results = kept("resolution")
    assert mean(results, "none", "6") < 0.5
    for variant in resolution.ENCODINGS:
        if variant != "none":
            assert mean(results, variant, "6") > 0.75
    for variant in ("learned", "normalised"):  # resized, and from -1 to 1
        assert mean(results, variant, "15") > 0.8 * mean(results, variant, "6")
    for variant in ("sinusoidal", "axial, base 100", "mixed"):
        assert mean(results, variant, "15") < 0.5 * mean(results, variant, "6")


@pytest.mark.parametrize("name", [path.stem for path in sorted(RESULTS.glob("*.json"))])
def test_torn_results_are_refused(name, tmp_path, record_property):
    """Never half read: cut anywhere, with a page of zeros, or of another shape."""
    content, torn = (RESULTS / f"{name}.json").read_bytes(), tmp_path / "torn.json"
    assert set(results_of(RESULTS / f"{name}.json")["cells"])
    end = len(content.rstrip())
    damaged = [content[:at] for at in range(0, end, max(1, end // 40))] + [content[: end - 1]]
    damaged += [content[:at] + bytes(512) + content[at + 512 :] for at in range(0, end, max(512, end // 8))]
    damaged += [
        b"[]",
        b"{}",
        b'{"cells": []}',
        b'{"cells": {"a": []}}',
        b'{"cells": {"a": {"0": {}}}}',
        *(
            json.dumps({**json.loads(content), **changed}).encode()
            for changed in (
                *({key: None} for key in ("experiment", "device", "date", "torch", "settings", "cells")),
                *({"cells": {"a": each}} for each in ([], {"0": {}}, {"0": {"seconds": 1}})),
                *({"cells": {"a": {"0": {"seconds": 1, "metrics": each}}}} for each in ({}, {"x": None}, [1])),
                {"cells": {"a": {"0": {"metrics": {"x": 1}}}}},
            )
        ),
    ]
    record_property("tried", f"{name}: {len(damaged)} damages")
    for part in damaged:
        torn.write_bytes(part)
        with pytest.raises(ValueError, match=r"torn.json has no results of an experiment: "):
            results_of(torn)
    with pytest.raises(ValueError, match=r"torn.json has no results of an experiment: "):
        run(counting([]), torn, seeds=1)
