"""Our plugins pass the kit that strangers are given."""

from importlib.metadata import entry_points

import pytest

from worldsim.testing import conformance

LATTICE = {"name": "automaton", "preset": "lattice"}
N_BODY = {"name": "n_body", "softening": 1.0}
ARGUMENTS = {
    "action_reaction": {"system": N_BODY},
    "automaton": {"params": {"automaton": {"preset": "lattice"}}},
    "believed_automaton": {"system": LATTICE},
    "boundary": {"system": "billiards"},
    "causality": {"system": "driven_mass_spring"},
    "causality_constraint": {"system": "driven_mass_spring"},
    # Short walks, for speed.
    "chaos": {"params": {"chaos": {"walkers": 2, "steps": 10, "transient": 0}}},
    "consistency_3d": {"system": "tracked_points"},
    "consistency_3d_constraint": {"system": "tracked_points"},
    "divergence_free": {"system": "incompressible_flow"},
    "film": {"system": "pendulum_frames"},
    "generative_hamiltonian": {
        "system": "pendulum_frames",
        "params": {"generative_hamiltonian": {"context": 1}},  # the kit also rolls out from one frame
    },
    "mass": {"system": "heat"},
    "momentum": {"system": N_BODY},
    # Soft encounters, for speed: every history is integrated to rounding.
    "n_body": {"params": {"n_body": {"softening": 1.0}}},
    "observables": {"params": {"observables": {"of": ["energy"]}}},
    "order_of_events": {"params": {"order_of_events": {"of": ["q"]}}},
    "positivity": {"system": "geometric_brownian"},
    "sampled_coherence": {"system": LATTICE, "params": {"sampled_coherence": {"pairs": 20}}},
    "spring_graph": {"system": N_BODY},
    "two_body": {"system": {"name": "ephemeris", "planets": ["earth", "mars"]}, "step": 5.0},
    "unseen_start": {"params": {"unseen_start": {"system": "pendulum"}}},
}
"""Entry point -> what the kit cannot know: keys without defaults, and the world a model was made for."""

OURS = sorted(
    point.name
    for point in entry_points(group="worldsim.plugins")
    if point.dist and point.dist.name == "worldsim"
)


NEEDS = {"topology": "gudhi"}
"""Entry point -> the optional library without which it measures nothing."""


@pytest.mark.parametrize("plugin", OURS)
def test_conformance(plugin, capsys):
    if plugin in NEEDS:
        pytest.importorskip(NEEDS[plugin], reason=f"NOT RUN: needs the extra [{plugin}]")
    conformance(plugin, **ARGUMENTS.get(plugin, {}))()
    said = capsys.readouterr().out
    assert said.startswith(f"{plugin}: ")
    assert int(said.split()[1]) > 5
