"""What a layer costs: counted operations, state, memory and their growth; ``worldsim profile`` shows them."""

import json
import math

import pytest
import torch

from worldsim.cli import exit_code
from worldsim.costs import LAYERS, growth, layer, profile
from worldsim.errors import ComponentNotFound, PluginError

torch.set_num_threads(1)


def test_growth_is_the_exponent_of_a_power():
    lengths = (100, 200, 400, 800)
    assert growth(lengths, [3 * n**1.5 for n in lengths]).exponent == pytest.approx(1.5)
    noisy = growth(lengths, [n * factor for n, factor in zip(lengths, (1, 1.1, 0.9, 1), strict=True)])
    assert abs(noisy.exponent - 1) < noisy.margin
    assert math.isnan(growth(lengths, [0, 0, 0, 0]).exponent)
    two = growth((1, 2), (1, 4))
    assert two.exponent == pytest.approx(2)
    assert math.isnan(two.margin)


def test_the_counted_costs_are_those_of_the_formulas():
    n, h, d = (64, 128), 2, 16
    softmax, linear = profile(["softmax_attention", "linear_attention"], n, heads=h, width=d, rounds=1)
    assert softmax.values["operations"] == tuple(4 * t * t * h * d for t in n)
    assert softmax.values["state_bytes"] == tuple(2 * 4 * t * h * d for t in n)
    assert softmax.growth("operations").exponent == pytest.approx(2)
    assert linear.growth("operations").exponent == pytest.approx(1)
    assert linear.growth("state_bytes").exponent == pytest.approx(0)
    assert all(cost.values["kept_bytes"][0] >= 3 * 4 * n[0] * h * d for cost in (softmax, linear))


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_ours_can_be_measured(name):
    (cost,) = profile([name], (32, 64), heads=2, width=16, rounds=1)
    for measure, values in cost.values.items():
        assert all(value > 0 for value in values), measure


def test_a_layer_of_yours_is_found_by_its_path(monkeypatch, tmp_path):
    (tmp_path / "my_layers.py").write_text("def mixer(q, k, v):\n    return q * k.exp()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (cost,) = profile(["my_layers:mixer"], (8, 16), heads=1, width=16, rounds=1)
    assert math.isnan(cost.values["state_bytes"][0])
    assert cost.values["kept_bytes"] == (2 * 8 * 16 * 4, 2 * 16 * 16 * 4)


def test_a_layer_that_is_not_there_is_refused_in_words(monkeypatch, tmp_path):
    with pytest.raises(ComponentNotFound, match="did you mean 'retention'"):
        layer("retentoin")
    with pytest.raises(PluginError, match="could not be loaded: No module named 'nowhere'"):
        layer("nowhere:mixer")
    (tmp_path / "bad_layers.py").write_text("def mixer(q, k, v):\n    raise RuntimeError('no such thing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"failed on q, k, v of shape .*: no such thing"):
        profile(["bad_layers:mixer"], (8, 16))


def test_profile_prints_a_table_and_json(capsys):
    small = ["--lengths", "16,32,64", "--heads", "2", "--width", "16"]
    assert exit_code(["profile", "linear_attention", "softmax_attention", *small]) == 0
    shown = capsys.readouterr().out
    assert "2.00 ± 0.00" in shown
    assert "2 heads of width 16, float32, 1 thread" in shown
    assert exit_code(["profile", "linear_attention", "--json", *small]) == 0
    (data,) = json.loads(capsys.readouterr().out)
    assert data["growth"]["operations"]["exponent"] == pytest.approx(1)
    assert data["lengths"] == [16, 32, 64]


@pytest.mark.parametrize("lengths", ["", "16", "32,16", "a,b", "0,4"])
def test_odd_lengths_are_refused(lengths, capsys):
    assert exit_code(["profile", "--lengths", lengths]) == 2
    assert "--lengths" in capsys.readouterr().err
