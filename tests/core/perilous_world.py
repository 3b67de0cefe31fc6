"""A plugin that goes wrong in the way it is asked to."""

import ctypes
import os
import pathlib
import signal
import sys
import time

import torch

from worldsim import Trajectory, hookimpl


class Decay:
    """x' = -x from 1 to 2, in one dimension; ``spoilt`` has NaN from frame 2 on in its second trajectory."""

    def __init__(self, *, spoilt: bool = False):
        self.spoilt = spoilt

    def sample(self, n, generator):
        return 1 + torch.rand(n, 1, dtype=torch.float64, generator=generator)

    def restart(self, states):
        return states

    def simulate(self, start, times, actions, generator):
        states = (start * torch.exp(times[0] - times))[:, None, :, None]
        if self.spoilt:
            states[1, :, 2:] = torch.nan
        return Trajectory(states, times, axes=("component",))


class Perilous:
    """Forecasts that nothing changes, or does not come so far."""

    trainable = False

    def __init__(self, *, peril: str = "none"):
        self.peril = peril

    def loss(self, truth):
        return torch.zeros(())

    def rollout(self, context, times, actions, draws, generator):
        start = context.states[:, :, -1:].expand(-1, draws, len(times), -1).clone()
        self.drawn = float(torch.rand((), generator=generator))
        getattr(self, self.peril)(start)
        return context.replace(states=start, times=times, actions=None)

    def none(self, states):
        print("nothing happens")

    def tells_its_gpus(self, states):
        print("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"))

    def takes_a_worker_with_it(self, states):
        """Ends the process that started this one; of a Dask worker's child, the worker."""
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)

    def may_take_a_worker_with_it(self, states):
        """One of twenty, by its seed."""
        print("drawn", self.drawn)
        if self.drawn < 0.05:
            self.takes_a_worker_with_it(states)

    def blows_up(self, states):
        states[0, 0, 3:] = torch.inf
        states[2, 0, 4:] = torch.nan

    def leaves(self, states):
        print("leaving by os._exit")
        os._exit(0)

    def may_leave(self, states):
        """One of twenty, by its seed."""
        if self.drawn < 0.05:
            self.leaves(states)

    def exits(self, states):
        print("leaving by sys.exit")
        sys.exit(0)

    def raises(self, states):
        print("raising")
        raise RuntimeError("boom")

    def reads_nowhere(self, states):
        ctypes.string_at(0)

    def aborts(self, states):
        os.abort()

    def wants_memory(self, states):
        raise MemoryError

    def wants_a_tensor(self, states):
        torch.empty(2**56)

    def wants_a_tensor_of_a_gpu(self, states):
        torch.empty(2**50, device="cuda")

    def hoards(self, states):
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1)) * 2**25)
            time.sleep(0.01)

    def is_busy(self, states):
        while True:
            pass

    def sleeps_in_c(self, states):
        """Holds the interpreter's lock and never gives it back."""
        ctypes.PyDLL(None).sleep(600)

    def sleeps(self, states):
        mark = pathlib.Path(os.environ["MARK"])
        if not mark.exists():
            mark.touch()
            time.sleep(600)


@hookimpl
def worldsim_systems():
    return {"decay": Decay}


@hookimpl
def worldsim_dynamics():
    return {"perilous": Perilous}
