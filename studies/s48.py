"""A network may make legal moves only and yet have no coherent map of the maze it makes them in.

(i) A GRU of 64 is trained on random walks in a 4 x 4 maze of 16 distinguishable crossings. Scored at several
steps: the share of legal moves among its most probable ones; compression (two walks to one crossing are
continued alike, words of up to 4 moves), distinction precision and recall, on pairs of walks of one length.
Compression alone is met by who separates nothing: a constant, and the network before it has learned.

(ii) The same of a continuous world: a GRU of 32 that is told where a double integrator starts and how it is
pushed must know where it is. Histories whose pushes differ by (a, -a, -a, a) end in one state. The ratio is
of the median distances between its futures after such pairs and after pairs of two states.
"""

import torch
from torch import nn

from worldsim import Trajectory
from worldsim.baselines import Constant
from worldsim_plugins.generators.believed_automaton import BelievedAutomaton
from worldsim_plugins.generators.sequence import Sequence
from worldsim_plugins.metrics.coherence import Coherence
from worldsim_plugins.systems.automaton import Automaton
from worldsim_plugins.systems.double_integrator import DoubleIntegrator

SEEDS = (0, 1, 2, 3, 4)
CLAIM = (
    "constant recall 0; at 150 steps validity >= 0.98, compression <= 0.4, recall <= 0.7; at 600 all >= 0.8; "
    "double integrator AUC >= 0.99, ratio <= 0.05, constant AUC 0.5"
)
CHECKPOINTS = (30, 150, 600)
MOVES, BATCH, RATE = 32, 128, 1e-2
SHORT = {
    "compression_precision": "compression",
    "distinction_precision": "precision",
    "distinction_recall": "recall",
    "next_token_validity": "validity",
}


def maze():
    return Automaton(preset="grid_city", rows=4, columns=4, closed=0.3, one_way=0.0, seed=0)


def walks(system, n, seed, moves=MOVES):
    draw = torch.Generator().manual_seed(seed)
    return system.simulate(system.sample(n, draw), torch.arange(moves).double(), None, draw)


def judged(system, model, truth):
    metric = Coherence(system, horizon=4, prefix_length=16, pairs=1024, resamples=20)
    scores = metric.score(truth, truth, model)
    return {short: scores[name].value for name, short in SHORT.items()}


def trained_in_the_maze(system, seed, checkpoints):
    """The scores at each checkpoint."""
    truth, found = walks(system, 4096, seed), {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Sequence(system, truth, cell="gru", width=64)
        optimiser = torch.optim.Adam(model.parameters(), RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(checkpoints))
        for step in range(1, max(checkpoints) + 1):
            loss = model.loss(truth.rows(torch.randint(len(truth), (BATCH,))))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step in checkpoints:
                found[step] = judged(system, model, walks(system, 200, 1000 + seed))
    return found


class DeadReckoner(nn.Module):
    """Where a thing is, from where it started and how it was pushed; it never looks."""

    def __init__(self):
        super().__init__()
        self.start, self.cell = nn.Linear(2, 32), nn.GRU(1, 32, batch_first=True)
        self.read = nn.Linear(32, 2)

    def forward(self, start, pushes):
        """States ``[n, time, 2]`` after each of ``pushes [n, time, 1]``."""
        return self.read(self.cell(pushes, self.start(start)[None])[0])

    @torch.no_grad()
    def rollout(self, context, times, actions, draws, generator):
        pushes = torch.cat([context.actions[:, :-1], actions[:, :-1]], 1).float()
        states = self(context.states[:, 0, 0].float(), pushes)[:, -len(times) :]
        return Trajectory(states[:, None].double(), times)


def pushed(system, n, seed):
    draw, times = torch.Generator().manual_seed(seed), 0.25 * torch.arange(13).double()
    return system.simulate(system.sample(n, draw), times, system.sample_actions(n, times, draw), draw)


def reckoned(seed, steps):
    """AUC and ratio of a trained dead reckoner, and the AUC of a constant."""
    system = DoubleIntegrator()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DeadReckoner()
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        truth = pushed(system, 4096, seed)
        for _ in range(steps):
            some = truth.rows(torch.randint(len(truth), (128,)))
            found = model(some.states[:, 0, 0].float(), some.actions[:, :-1].float())
            loss = (found - some.states[:, 0, 1:].float()).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    test = pushed(system, 64, 1000 + seed)
    metric = Coherence(system, kinds=["moment_swap"], history=9, horizon=4, pairs=128, resamples=20)
    scores, constant = (metric.score(test, test, each) for each in (model, Constant(system, test)))
    near, far = (
        float(torch.tensor(scores[f"divergence_{w}"].value).amax(1).median())
        for w in ("equivalent", "distinct")
    )
    return {
        "AUC": scores["coherence_auc"].value,
        "ratio": near / far,
        "constant AUC": constant["coherence_auc"].value,
    }


def run(seed=0, checkpoints=CHECKPOINTS, reckoning=600):
    system = maze()
    test = walks(system, 200, 1000 + seed)
    figures = {
        f"oracle {name}": value for name, value in judged(system, BelievedAutomaton(system), test).items()
    }
    constant = judged(system, Constant(system, test), test)
    figures |= {f"constant {name}": value for name, value in constant.items()}
    for step, scores in trained_in_the_maze(system, seed, checkpoints).items():
        figures |= {f"{step}: {name}": value for name, value in scores.items()}
    return figures | {f"reckoner {name}": value for name, value in reckoned(seed, reckoning).items()}


def check(figures):
    for name in SHORT.values():
        assert figures[f"oracle {name}"] == 1.0
    assert figures["constant recall"] == 0.0
    assert figures["constant compression"] == 1.0
    assert figures["reckoner constant AUC"] == 0.5
    assert figures["reckoner AUC"] >= 0.99
    assert figures["reckoner ratio"] <= 0.05
    if "600: recall" in figures:
        assert figures["150: validity"] >= 0.98
        assert figures["150: compression"] <= 0.4
        assert figures["150: recall"] <= 0.7
        for name in SHORT.values():
            assert figures[f"600: {name}"] >= 0.8
