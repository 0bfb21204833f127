"""The experiments of docs/results.md: what is run, what is read off the rows, and that the page says what they say."""

import math
import re
import shutil
import sys
from dataclasses import replace

import pytest
import sweep
import torch
from penalties import RegionPenalty, SlopePenalty
from sweep import EXPERIMENTS, RESULTS, Experiment, read_results
from sweeps import columns, runs
from sweeps.mnist import DEFINED
from torch import nn
from train import Classifier

from lc_callback.functional import local_complexity

PAGE = RESULTS.with_suffix(".md")
ROWS = sorted(RESULTS.glob("*.csv"))
QUICK = ("causal", "deep_grokking", "modular", "resnet", "robustness_real")  # tables of every form


# The page


def test_every_experiment_has_its_rows_its_picture_and_its_place_on_the_page():
    text = PAGE.read_text()
    reported = {*EXPERIMENTS} - {*DEFINED}
    for name in reported:
        assert (RESULTS / f"{name}.csv").exists(), name
        assert f"(results/{name}.png)" in text, name
        assert f"<!-- {name} -->" in text, name
    assert {path.stem for path in ROWS} == reported
    assert {path.stem for path in RESULTS.glob("*.png")} == reported
    assert all(f"`{name}`" in text for name in DEFINED)  # and these it says to be missing
    assert sum(path.stat().st_size for path in ROWS) < 1e6


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_rows_are_those_of_all_runs(path):
    experiment, results = EXPERIMENTS[path.stem], read_results(path)
    expected = {(variant, seed) for variant, seed, _ in experiment.runs()}
    assert {(variant, seed) for variant, seeds in results.items() for seed in seeds} == expected
    for seeds in results.values():
        assert len(seeds) >= 1
        for rows in seeds.values():
            assert rows[0]["step"] == 0
            assert rows[-1]["step"] == experiment.steps
            assert rows[0]["seconds"] > 10


def where_it_takes_seconds(path):
    """Phases of many long curves are looked for."""
    return path if path.stem in QUICK else pytest.param(path, marks=pytest.mark.slow)


@pytest.mark.parametrize("path", map(where_it_takes_seconds, ROWS), ids=[path.stem for path in ROWS])
def test_the_page_has_the_table_of_the_rows(path):
    results = read_results(path)
    text = sweep.said(path.stem, results)
    assert sweep.placed(PAGE.read_text(), path.stem, text) == PAGE.read_text()


def test_every_section_has_a_verdict():
    sections = re.split(r"\n## ", PAGE.read_text())
    experiments = [section for section in sections if re.match(r"M?\d+\. ", section)]
    numbers = [section.split(".")[0] for section in experiments]
    assert numbers == [*(f"M{n}" for n in range(1, 17)), *(str(n) for n in range(1, 11))]
    for section in experiments:
        verdict = re.search(r"\*\*(Reproduced|Partly|Not reproduced|Cannot tell|Open in the paper)", section)
        assert verdict, section.splitlines()[0]
        assert "python examples/sweep.py" in section


def test_the_page_is_written_between_its_marks():
    page = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n<!-- y -->\nkept\n<!-- end of y -->\n"
    assert sweep.placed(page, "x", r"new \1") == page.replace("old", r"new \1")
    for name in ("z", "y"):  # no place, or one that does not end
        with pytest.raises(ValueError, match=f"0 places for {name}"):
            sweep.placed(page.replace("<!-- end of y -->", ""), name, "new")


# What is read off the rows


def rows_of(key, values):
    return [{"step": step, key: value} for step, value in zip(STEPS, values, strict=True)]


STEPS = [0, *sorted({round(10 ** (k / 10)) for k in range(41)})]


def test_half_rise_is_where_an_accuracy_has_made_half_of_its_rise():
    late = [0.1 if step < 1000 else 0.9 for step in STEPS]
    assert columns.half_rise("clean_acc/test")(rows_of("clean_acc/test", late)) == 1000
    assert columns.half_rise("clean_acc/test")(rows_of("clean_acc/test", [0.1] * len(STEPS))) is None


def test_a_level_is_reached_by_two_rows_in_succession():
    rows = rows_of("a", [0.5 if step in (10, 100, 126) else 0.1 for step in STEPS])
    assert columns.reaches("a", 0.5)(rows) == 100
    assert columns.reaches("a", 0.6)(rows) is None


def test_values_at_half_rise_are_those_of_its_row():
    rows = [{"step": step, "clean_acc/test": 0.1 if step < 1000 else 0.9, "norm": 10.0 - step / 1000} for step in STEPS]
    assert columns.at_half_rise("norm")(rows) == pytest.approx(9)
    assert columns.at_half_rise("norm", relative=True)(rows) == pytest.approx(0.9)
    assert columns.at_half_rise("norm")(rows[:20]) is None
    assert columns.at_half_rise("other")(rows) is None


def test_the_highest_and_the_lowest_of_a_part_of_the_run():
    rows = [{"step": step, "a": value} for step, value in ((0, 9.0), (10, 2.0), (100, 5.0), (1000, 1.0))]
    assert columns.at_start("a")(rows) == columns.highest("a")(rows) == 9
    assert columns.highest("a", since=1)(rows) == 5
    assert columns.step_of_highest("a", since=1)(rows) == 100
    assert columns.lowest("a", until=100)(rows) == 2
    assert columns.lowest("b", until=100)(rows) is columns.highest("b")(rows) is columns.at_start("b")(rows) is None


def test_a_fall_counts_from_two_rows_in_succession_on():
    rows = rows_of("nc", [0.05 if step in (10, 100) or step >= 1000 else 0.5 for step in STEPS])
    assert columns.falls_to("nc", 0.1)(rows) == 1000
    assert columns.falls_to("nc", 0.01)(rows) is None


def test_two_curves_are_compared_row_by_row():
    rows = [{"step": s, "a": a, "b": b} for s, a, b in ((0, 9, 1), (1, 1, 2), (2, 2, 4), (3, 3, 5), (4, 4, 32))]
    rows.append({"step": 5, "a": 100.0})
    assert columns.largest_ratio("a", "b")(rows) == 9
    assert columns.same_order("a", "b", since=1)(rows) == 1
    assert columns.same_order("a", "b")(rows) == 0
    assert columns.same_order("a", "c")(rows) is columns.largest_ratio("a", "c")(rows) is None


def test_values_are_listed_at_the_steps_of_a_curve():
    rows = [{"step": 0, "a": 0.5}, {"step": 1000, "a": 0.25, "b": 0.126}, {"step": 2000, "a": 1 / 3, "b": 1.0}]
    assert columns.by_step({"A": "a", "B": "b"}, "b")({"x": {0: rows}}).splitlines() == [
        "| step | A | B |",
        "|---:|---:|---:|",
        "| 1,000 | 0.25 | 0.126 |",
        "| 2,000 | 0.333 | 1 |",
    ]


@pytest.mark.slow
def test_steps_of_two_kinds_are_compared_over_the_runs():
    def runs_of(*pairs):
        return {"x": {i: [{"step": 0, "a": a, "b": b}] for i, (a, b) in enumerate(pairs)}}

    def value(key):
        return lambda rows: rows[0][key]

    text = columns.agreement(value("a"), value("b"), ("A", "B"))
    ordered = text(runs_of((1, 10), (2, 20), (3, 30), (40, 39), (5, None), (None, 5), (None, 6), (None, None)))
    assert ordered.startswith("Of 8 runs 4 have both; in 3 of these A is first. 1 have only A, 2 only B.")
    assert "over the runs: 1.00 (95 % interval 1.00 to 1.00" in ordered
    assert "over the runs: -1.00 " in text(runs_of((1, 30), (2, 20), (3, 10)))


def test_a_milestone_is_that_of_the_last_curve_named():
    late = [0.1 if step < 5000 else 0.9 for step in STEPS]
    early = [0.1 if step < 10 else 0.9 for step in STEPS]
    rows = [
        a | b | c
        for a, b, c in zip(
            *(
                rows_of(key, values)
                for key, values in (("clean_acc/train", early), ("clean_acc/test", early), (columns.PGD, late))
            ),
            strict=True,
        )
    ]
    delayed = columns.milestone("delayed_robustness", "clean_acc/train", "clean_acc/test", columns.PGD)
    assert delayed(rows) == 5012
    assert columns.milestone("delayed_robustness", "clean_acc/train", columns.PGD, "clean_acc/test")(rows) is None


def test_rows_without_the_key_and_what_is_not_finite_are_left_out():
    rows = [
        *({"step": step, "a": float(step)} for step in (1, 2, 3, 4)),
        {"step": 5, "a": 1000.0},
        {"step": 6, "b": 1.0},
        {"step": 7, "a": math.nan},
    ]
    assert columns.last("a")(rows) == 4  # of 3, 4 and 1000
    assert columns.at_end("a")(rows) == 1000
    assert columns.highest("a")(rows) == 1000
    assert columns.step_of_highest("a")(rows) == 5
    assert columns.last("b")(rows) == columns.at_end("b")(rows) == 1
    assert columns.last("c")(rows) is columns.at_end("c")(rows) is None


def test_a_cell_has_median_and_range_and_none_is_later_than_all():
    assert sweep._cell([3.0, 1.0, 2.0]) == "2 [1, 3]"
    assert sweep._cell([None, 1234.0, 2000.0]) == "2,000 [1,234, none]"
    assert sweep._cell([None, 0.12345, None]) == "none [0.123, none]"
    assert sweep._cell([None, None]) == "none"
    assert sweep._cell([0.0, 0.0, 0.0]) == "0"
    assert sweep._cell([999.7, 999.4, 12345.0]) == "1,000 [999, 12,345]"


def test_rows_come_back_from_their_file(tmp_path):
    first = {0: [{"step": 0.0, "x": 1.0, "seconds": 3.0}, {"step": 1234567.0, "y": 0.25}]}
    results = {"a": first, "b": {2: [{"step": 1.0}]}}
    sweep.write_rows(tmp_path / "rows.csv", results)
    assert read_results(tmp_path / "rows.csv") == results


def test_of_the_layers_the_last_is_kept():
    row = {"rank/net.2": 5.0, "rank/net.10": 3.0, "rank/seconds": 0.1, "effective_rank/net.2": 2.0}
    assert runs.chosen(row, [r"rank/.*\d=last"]) == {"rank/last": 3.0}
    assert runs.chosen(row, [r"rank/.*\d"]) == {"rank/net.2": 5.0, "rank/net.10": 3.0}


# Runs


def test_folders_tell_runs_apart():
    every = {(run.folder, run.config, run.arguments, run.seed) for e in EXPERIMENTS.values() for _, _, run in e.runs()}
    assert len({folder for folder, *_ in every}) == len(every)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A command for an experiment of 2 x 2 runs of 10 steps, which are taken in this process; and what was taken."""
    small = "--lc.n_probes 3 --robustness.n_probes 3 --robustness.steps 2 --rank.n_probes 12"
    variants = {f"width {n}": f"{small} --model.network.width {n}" for n in (5, 6)}
    taken = []

    def take_all(missing, jobs):
        for run in missing:
            taken.append(run)
            run.take()

    monkeypatch.setattr(sweep, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "train_all", take_all)  # another process would not know of the experiment
    monkeypatch.setitem(EXPERIMENTS, "tiny", Experiment("digits_mlp", variants, steps=10, seeds=2))
    (tmp_path / "results.md").write_text("<!-- tiny -->\n<!-- end of tiny -->\n")

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "tiny", *arguments])
        sweep.main()
        return (tmp_path / "results.md").read_text()

    return command, taken


@pytest.mark.slow
def test_a_sweep_trains_what_is_missing_and_makes_rows_table_and_picture(tiny, tmp_path, monkeypatch):
    command, taken = tiny
    page = command()
    assert len(taken) == 4
    assert "| width 5 | 2 | " in page
    assert (tmp_path / "results" / "tiny.png").read_bytes()[1:4] == b"PNG"
    results = read_results(tmp_path / "results" / "tiny.csv")
    assert [[*seeds] for seeds in results.values()] == [[0, 1], [0, 1]]
    assert [row["step"] for row in results["width 6"][1]] == [0, 1, 2, 3, 4, 5, 6, 8, 10]
    assert "rank/last" in results["width 6"][1][0]
    assert results["width 5"][0] != results["width 5"][1]
    (tmp_path / "results.md").write_text("<!-- tiny -->\n<!-- end of tiny -->\n")
    assert command() == command("--from-rows") == page  # all is there
    monkeypatch.setitem(EXPERIMENTS, "tiny", replace(EXPERIMENTS["tiny"], steps=5))
    command()  # a longer run has it all
    assert len(taken) == 4
    assert read_results(tmp_path / "results" / "tiny.csv")["width 5"][0][-1]["step"] == 5


@pytest.mark.slow
def test_a_smoke_run_takes_a_few_steps_of_each_variant_and_changes_no_page(tiny, tmp_path, monkeypatch, capsys):
    command, taken = tiny
    monkeypatch.setattr(sweep, "SMOKE", tmp_path / "smoke")
    monkeypatch.setattr(sweep, "SMOKE_STEPS", 8)
    page = command("--smoke")
    assert [(run.steps, run.seed) for run in taken] == [(8, 0), (8, 0)]
    assert all(run.folder.is_relative_to(tmp_path / "smoke") for run in taken)
    assert page == "<!-- tiny -->\n<!-- end of tiny -->\n"
    assert not (tmp_path / "results").exists()
    assert "| width 6 | 1 | " in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_other_settings_is_missing(tiny, tmp_path, monkeypatch):
    command, taken = tiny
    command()
    run = taken[0]
    assert run.seconds is not None
    assert replace(run, steps=11).seconds is None
    monkeypatch.setattr(runs, "EXAMPLES", tmp_path)  # where the YAML file says something else
    (tmp_path / "digits_mlp.yaml").write_text("seed_everything: 1\n")
    assert run.seconds is None


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("stopped_at", [3, 7, 9])
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(stopped_at, monkeypatch):
    run = next(iter(EXPERIMENTS["tiny"].runs()))[2]
    step, seen = Classifier.training_step, []

    def stopping(module, batch, batch_idx):
        seen.append(module.global_step)
        if len(seen) == stopped_at + 1:
            raise KeyboardInterrupt
        return step(module, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", stopping)
    monkeypatch.setattr(runs, "STEPS_BETWEEN_CHECKPOINTS", 3)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run.take()
    assert run.seconds is None
    run.take()
    kept = stopped_at - stopped_at % 3
    assert seen == [*range(stopped_at + 1), *range(kept, 10)]
    rows = run.rows({"lc": ["lc/train"], "robust_acc": ["clean_acc/test"], "rank": ["weight_norm/total"]})
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 8, 10]
    assert all({"lc/train", "clean_acc/test", "weight_norm/total"} <= {*row} for row in rows)
    assert run.seconds > 0
    assert not list(run.folder.glob("**/*.ckpt"))
    replace(run, seed=9).unfinished.mkdir()  # empty, as after a stop before the first checkpoint
    replace(run, seed=9).take()
    assert replace(run, seed=9).seconds is not None


@pytest.mark.usefixtures("tiny")
def test_a_run_that_fails_is_missing_and_says_why():
    failing = replace(next(iter(EXPERIMENTS["tiny"].runs()))[2], arguments="--data.n_train 5000")
    with pytest.raises(ValueError, match="n_train"):
        failing.take()
    assert failing.seconds is None
    assert not failing.folder.exists()
    (left,) = failing.folder.parent.iterdir()
    assert "`n_train` must be from 1 to 1097" in (left / "output.txt").read_text()


@pytest.mark.slow
def test_a_failing_run_ends_the_sweep():
    failing = runs.Run("digits_mlp", "--data.n_train 5000", 0, 3, runs.RUNS)
    with pytest.raises(RuntimeError, match=r"n_train 5000.* failed"):
        runs.train_all([failing], jobs=1)
    shutil.rmtree(failing.folder.parent)  # in a process of its own it is beside the other runs


@pytest.mark.parametrize("arguments", [(), ("depths",), ("depth", "x")])
def test_an_unknown_name_is_told_with_those_there_are(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    with pytest.raises(SystemExit):
        sweep.main()
    error = capsys.readouterr().err.splitlines()[-1]
    assert (arguments[-1] if arguments else "named") in error
    assert "there are digits, mnist, scale, depth, width" in error


# The penalty


def test_the_smooth_complexity_is_below_the_count_and_above_nothing():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))
    x = torch.randn(40, 6)
    smooth = RegionPenalty(radius=0.5, n_directions=6).complexity(network, x).item()
    counted = local_complexity(network, x, radius=0.5, n_directions=6).counts.sum(1).float().mean().item()
    assert 0.2 * counted < smooth < counted  # with all six directions both frames see nearly the same units


def test_one_unit_by_hand():
    unit = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        unit[0].weight.fill_(2.0)
        unit[0].bias.fill_(-1.0)  # its kink is at 0.5
    penalty = RegionPenalty(radius=0.1, n_directions=1)
    for x, expected in ((0.5, 1.0), (0.475, 0.75), (0.55, 0.5), (0.6, 0.0), (0.9, 0.0)):
        assert penalty.complexity(unit, torch.tensor([[x]])).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("arguments", "pushed"), [({"target": 0.0}, -1), ({"target": 30.0, "hold": True}, 1)])
def test_its_gradient_moves_regions_to_the_target(arguments, pushed):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3))
    x = torch.randn(50, 6)
    penalty = RegionPenalty(weight=1.0, radius=0.3, **arguments)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    before = local_complexity(network, x, radius=0.15, n_directions=6).counts.sum(1).float().mean()
    for _ in range(100):
        optimizer.zero_grad()
        penalty(network, x).backward()
        optimizer.step()
    after = local_complexity(network, x, radius=0.15, n_directions=6).counts.sum(1).float().mean()
    assert pushed * (after - before) > 0.2 * before


def test_holding_costs_nothing_above_the_target_and_a_weight_of_zero_nothing_at_all():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3)), torch.randn(50, 6)
    assert RegionPenalty(target=0.1, hold=True, radius=1.0)(network, x) == 0
    assert RegionPenalty(target=0.0, weight=0.0, radius=1.0)(network, x) == 0
    assert RegionPenalty(target=0.0, radius=1.0)(network, x) > 0


def test_a_network_without_such_units_is_refused():
    with pytest.raises(ValueError, match=r"nn\.ReLU modules, but the network has none"):
        RegionPenalty()(nn.Sequential(nn.Linear(6, 3), nn.GELU()), torch.randn(5, 6))


def test_it_leaves_no_hooks_and_draws_from_a_generator_of_its_own():
    network, x = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3)), torch.randn(50, 6)
    before = torch.get_rng_state()
    first, second = (RegionPenalty(radius=1.0, seed=seed)(network, x) for seed in (0, 0))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network[1]._forward_pre_hooks


def test_the_control_sees_slopes_and_no_regions():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 3)), torch.randn(50, 6)
    here, away = (SlopePenalty(radius=1e-3, n_directions=6).complexity(network, at) for at in (x, x + 10))
    assert here.item() == pytest.approx(away.item(), rel=1e-2)  # the slopes of the first layer are everywhere the same
    steepest = network[0].weight.norm(dim=1).sum().item()
    assert 0.4 * steepest < here.item() < steepest
    with torch.no_grad():
        network[0].bias.fill_(100.0)  # no unit switches anywhere near
    assert SlopePenalty(radius=1e-3, n_directions=6).complexity(network, x).item() == pytest.approx(here.item(), 1e-2)
    assert RegionPenalty(radius=1e-3, n_directions=6).complexity(network, x).item() == 0


# SAM


def test_sam_gets_the_gradients_it_perturbs_by():
    """Two steps of Lightning are two steps of a plain loop."""
    from lightning.pytorch import Trainer
    from pytorch_optimizer import SAM
    from torch.utils.data import DataLoader, TensorDataset

    x, y = torch.randn(20, 4), torch.arange(20) % 3

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def sam(parameters):
        return SAM(parameters, torch.optim.SGD, rho=0.5, lr=0.1)

    plain = network()
    optimizer = sam(plain.parameters())
    for batch, labels in ((x[:10], y[:10]), (x[10:], y[10:])):

        def closure(batch=batch, labels=labels):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(batch), labels)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)

    module = Classifier(network(), sam, loss="cross_entropy")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, enable_model_summary=False, **quiet)
    trainer.fit(module, DataLoader(TensorDataset(x, y), 10))
    assert trainer.global_step == 2
    assert all(torch.equal(a, b) for a, b in zip(module.network.parameters(), plain.parameters(), strict=True))
