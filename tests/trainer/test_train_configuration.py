"""Promises of configurations: the network's default, then the file, then the flags; and the learning rate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainer import networks
from trainer.configuration import ConfigurationError, as_begun, difference, from_dict, read, resolve
from trainer.optimisation import Optimisation, learning_rate
from trainer.weights.formats import hara


def test_i3d_is_set_as_published_by_default():
    settings = resolve(None, {})
    assert settings.network.name == "i3d"
    assert settings.network.options == {"dropout": 0.5, "bn_momentum": 0.001}
    assert (settings.input.frames, settings.input.short_side, settings.input.crop) == (64, 256, 224)
    assert settings.input.stream == "both"
    assert settings.model_streams == ("rgb", "flow")
    rate = [learning_rate(s, 115_000, settings.optimisation) for s in (0, 96_999, 97_000, 108_000, 114_999)]
    assert rate == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert (settings.optimisation.momentum, settings.optimisation.weight_decay) == (0.9, 1e-7)


def test_a_flag_wins_over_the_file_which_wins_over_the_default(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[input]\nframes = 32\ncrop = 112\n[run]\nepochs = 3\n")
    settings = resolve(str(file), {"input": {"frames": 16, "crop": None}, "run": {"seed": 7}})
    assert (settings.input.frames, settings.input.crop, settings.input.short_side) == (16, 112, 256)
    assert (settings.run.epochs, settings.run.steps, settings.run.seed) == (3, None, 7)


def test_a_whole_number_is_a_number_and_no_number_of_epochs_is_none(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[optimisation]\nlr = 1\n[run]\nepochs = 3\n")
    settings = resolve(str(file), {})
    assert settings.optimisation.lr == 1
    assert from_dict(settings.as_dict()) == settings


@pytest.mark.parametrize("given", [{"steps": 5}, {"epochs": 5}])
def test_a_length_given_replaces_the_other_kind_of_length(given):
    for file in ("quick", "i3d"):
        run = resolve(file, {"run": given}).run
        assert {k: getattr(run, k) for k in ("steps", "epochs") if getattr(run, k) is not None} == given


def test_what_is_recorded_makes_the_same_configuration_again():
    for file in ("quick", "i3d"):
        settings = resolve(file, {})
        assert from_dict(settings.as_dict()) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[inputs]\nframes = 3\n", "no section"),
        ("[input]\nframe = 3\n", "no setting 'frame'"),
        ("[input]\ncrop = 512\n", "does not fit"),
        ("[input]\nframes = 16\nsegments = 3\n", "give --frames a multiple of 3"),
        ("[input]\ntest_views = [10, 2]\n", r"such as \[10, 3\]"),
        ("[optimisation]\nlr = -1\n", "learning rate"),
        ("[optimisation]\nschedule = 'linear'\n", "choose one of"),
        ("[run]\nprecision = 'int8'\n", "no precision"),
        ("[run]\nbatch_size = 0\n", "--batch-size is 0"),
        ("[run]\nepochs = 1\nsteps = 1\n", "one length"),
        ("[network]\nname = 'i4d'\n", "no network 'i4d'; there are: "),
        ("[run\n", "no TOML file"),
        ("[input]\nflip = 'false'\n", "input.flip is 'false': give true or false"),
        ("[input]\nflip = 1\n", "input.flip is 1: give true or false"),
        ("[input]\nscales = 0.5\n", "input.scales is 0.5: give a list in brackets, each a number"),
        ("[input]\nmean = [0.5, '0.5', 0.5]\n", "input.mean is .*: give a list"),
        ("[input]\nstream = 3\n", "input.stream is 3: give a text in quotes"),
        ("[input]\nflow_bound = 0.0\n", "flow_bound 0.0: give all above 0"),
        ("[run]\nbatch_size = 8.0\n", "run.batch_size is 8.0: give a whole number"),
        ("[run]\nworkers = true\n", "run.workers is True: give a whole number"),
        ("[run]\nsteps = 1.5\n", "run.steps is 1.5: give a whole number"),
        ("[run]\nmax_failures = nan\n", "run.max_failures is nan: give a number"),
        ("[run]\nmax_failures = 5\n", "at most 1"),
        ("[optimisation]\nfreeze = 'no'\n", "optimisation.freeze is 'no': give true or false"),
        ("[optimisation]\nmilestones = [1.5]\n", "optimisation.milestones is .*each a whole number"),
        ("[optimisation]\nmomentum = -3\n", "momentum is -3"),
        ("[optimisation]\nfactor = -1\n", "factor -1"),
        ("[optimisation]\nweight_decay = -1e-4\n", "weight_decay is -0.0001: give 0 or more"),
        ("[optimisation]\nclip_gradient = -1\n", "clip_gradient is -1: give a norm"),
        ("[network]\nname = ['i3d']\n", "network.name is .*: give a text"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, text, said):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        resolve(str(file), {})


def test_a_quick_run_is_quick_for_every_network():
    """Of a network's own training only how its pixels are fed is left, and the rate is reached."""
    expected = resolve("quick", {}).as_dict()
    own = {"name", "stream", "mean", "std"}
    for name in networks.names():
        for stream in networks.entry(name).streams:
            settings = resolve("quick", {"network": {"name": name}, "input": {"stream": stream}})
            found = settings.as_dict()
            for section, values in expected.items():
                kept = {k: v for k, v in found[section].items() if k not in own}
                assert kept == {k: v for k, v in values.items() if k not in own}, name
            rates = [learning_rate(step, 240, settings.optimisation) for step in range(240)]
            assert max(rates) == pytest.approx(settings.optimisation.lr)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("ir-csn-152", {77_999: 0.04, 155_999: 0.08, 429_500: 0.04}),  # of 703,000 steps
        ("r3d-18", {155_999: 1e-2, 156_000: 1e-3, 312_000: 1e-4, 468_000: 1e-5, 625_000: 1e-6}),
        ("tsm-r50", {74_999: 1e-2, 75_000: 1e-3, 150_000: 1e-4}),
    ],
)
def test_a_networks_rate_is_the_published_one(name, rates):
    settings = resolve(None, {"network": {"name": name}})
    steps = settings.run.steps
    found = {step: learning_rate(step, steps, settings.optimisation) for step in rates}
    assert found == pytest.approx(rates)


def test_a_hara_network_is_trained_as_published():
    settings = resolve(None, {"network": {"name": "hara-r3d-34"}})
    assert (settings.input.mean, settings.input.std) == (hara.OLD["mean"], hara.OLD["std"])
    own, steps = settings.optimisation, 200 * 240_000 // 128
    assert (settings.run.batch_size, settings.run.steps) == (128, steps)
    assert [learning_rate(s, steps, own) for s in (0, steps // 2, steps - 1)] == pytest.approx(
        [0.01, 0.001, 1e-4]
    )
    own = replace(own, schedule="plateau")
    assert [learning_rate(0, 1, own, [1.0] * n) for n in (11, 12)] == pytest.approx([0.01, 0.001])


def test_a_rank_on_its_own_never_takes_a_large_batch_at_once():
    for name in networks.names():
        run = resolve(None, {"network": {"name": name}}).run
        assert name == "small" or 0 < run.micro_batch <= 128
        assert run.batch_size % (run.micro_batch or 1) == 0, name


def test_a_file_that_is_not_there_is_refused_in_a_sentence():
    with pytest.raises(ConfigurationError, match=r"none\.toml cannot be read"):
        read("none.toml")


def before(network: str, *unknown: str) -> dict:
    """Record of a default run, kept by a version that did not know these settings."""
    sections = resolve(None, {"network": {"name": network}}).as_dict()
    for section, name in (setting.split(".") for setting in unknown):
        del sections[section][name]
    return sections


def test_a_setting_that_came_after_the_run_is_at_its_default_there_unless_the_call_names_it(tmp_path):
    old = before("i3d", "input.colour_jitter", "run.micro_batch", "network.bn_momentum")
    for call in (resolve(None, {}), resolve("i3d", {})):
        found = as_begun(call, old)
        assert difference(found, old) is None
        assert found.input.colour_jitter == (0, 0, 0, 0)
        assert found.run.micro_batch == call.run.micro_batch  # free
        assert "bn_momentum" not in found.network.options
        assert "colour_jitter" not in found.as_dict()["input"]  # still unknown, as the next call will find
        assert as_begun(call, found.as_dict()) == found
    file = tmp_path / "mine.toml"
    file.write_text("[input]\ncolour_jitter = [0.1, 0, 0, 0]\n")
    assert difference(as_begun(resolve(str(file), {}), old), old).phrase.startswith(
        "input.colour_jitter is [0.1"
    )
    file.write_text("[input]\ncolour_jitter = [0, 0, 0, 0]\n")
    assert difference(as_begun(resolve(str(file), {}), old), old) is None


def test_views_may_be_others_but_where_the_rate_follows_the_evaluations():
    name = "slowfast-4x16-r50"
    for old in (before(name, "input.test_views"), before(name)):
        call = resolve(None, {"network": {"name": name}})
        assert call.input.test_views == (10, 3)
        assert as_begun(call, old).input.test_views == (10, 3)
        old["input"]["test_views"] = [5, 1]
        assert difference(as_begun(call, old), old) is None
    flags = {"optimisation": {"schedule": "plateau"}, "run": {"evaluate_every": 1}}
    call = resolve(None, {"network": {"name": name}, **flags})
    old = {**before(name, "input.test_views"), **{s: call.as_dict()[s] for s in flags}}
    assert as_begun(call, old).input.test_views == ()
    old["input"]["test_views"] = [5, 1]
    assert difference(as_begun(call, old), old).phrase.startswith("input.test_views is [10, 3]")


def test_a_setting_of_the_run_that_a_file_can_give_is_told_as_one_to_paste(tmp_path):
    old = before("i3d")
    old["input"]["colour_jitter"], old["run"]["seed"] = [0.0, 0.0, 0.0, 0.0], 3
    found = difference(as_begun(resolve(None, {"run": {"seed": 5}}), old), old)
    line = "input.colour_jitter = [0.0, 0.0, 0.0, 0.0]"
    assert found.remedy.startswith(f"set {line} in a --config file")
    file = tmp_path / "mine.toml"
    file.write_text(line)
    found = difference(as_begun(resolve(str(file), {"run": {"seed": 5}}), old), old)
    assert (found.phrase, found.remedy) == ("run.seed is 5, the run's is 3", None)  # a flag wins over a file
    old["optimisation"]["lr"] = 0.5
    found = difference(as_begun(resolve(None, {}), old), old)
    assert found.remedy.startswith(f"set {line}, optimisation.lr = 0.5, run.seed = 3 in a --config file")


def test_a_run_keeps_its_micro_batch_unless_the_call_names_one():
    old = before("i3d")
    old["run"]["micro_batch"] = 0
    assert as_begun(resolve(None, {}), old).run.micro_batch == 0
    named = as_begun(resolve(None, {"run": {"micro_batch": 3}}), old)
    assert (named.run.micro_batch, difference(named, old)) == (3, None)


def test_one_cycle_is_torchs():
    settings = Optimisation(lr=0.3, schedule="one-cycle")
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.3, total_steps=50)
    for step in range(50):
        assert learning_rate(step, 50, settings) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        if step < 49:
            schedule.step()
