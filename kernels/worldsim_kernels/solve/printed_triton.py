"""A program of scalars and an explicit Runge-Kutta method as a Triton kernel: a program of it solves a block
of rows in a loop of its own, and asks nothing of the host until they have ended."""

from __future__ import annotations

from collections.abc import Sequence

from worldsim_kernels.solve.scalars import Program
from worldsim_kernels.solve.tableaus import Number, Tableau
from worldsim_kernels.solve.triton_text import Text

_HEAD = ["import triton", "import triton.language as tl", "", "from worldsim_kernels.gpu import ode", "", ""]
POINTERS = (
    *("numbers", "tables", "t0_", "t1_", "rtol_", "atol_", "first_", "wanted_", "y0_", "arguments_", "data"),
    *("t_", "y_", "status_", "accepted_", "rejected_", "saved_", "step_t", "step_y"),
)
SIZES = ("rows", "times", "max_steps", "capacity")
CHOICES = ("EXACT", "ESTIMATE", "BLOCK")


def source(program: Program, method: Tableau, adaptive: bool) -> str:
    """The whole of a Python module with the kernel ``solve``."""
    text = _Kernel(program, method, adaptive)
    return "\n".join([*_HEAD, *text.field(), "", "", *text.kernel(), ""])


class _Kernel(Text):
    """The loop."""

    def kernel(self) -> list[str]:
        given = ", ".join([*POINTERS, *SIZES, *(f"{name}: tl.constexpr" for name in CHOICES)])
        return [
            "@triton.jit",
            f"def solve({given}):",
            *_indented([*self.start(), "going = tl.max(running.to(tl.int32), axis=0)", "while going > 0:"]),
            *_indented([*self.attempt(), *self.judge(), *self.save(), *self.advance()], 2),
            *_indented(self.end()),
        ]

    def start(self) -> list[str]:
        lines = [
            "row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
            "inside = row < rows",
            "t = tl.load(t0_ + row, mask=inside, other=0)",
            "t1 = tl.load(t1_ + row, mask=inside, other=0)",
            f"sign = tl.where(t1 >= t, {self.double(1)}, {self.double(-1)})",
            "first = tl.load(first_ + row, mask=inside, other=1)",
            *self.each(f"y_{{j}} = tl.load(y0_ + row * {self.size} + {{j}}, mask=inside, other=0)"),
        ]
        count = len(self.program.arguments)
        lines += [
            f"argument_{k} = tl.load(arguments_ + row * {count} + {k}, mask=inside, other=0)"
            for k in range(count)
        ]
        if self.adaptive or self.method.reuse:
            lines.append(self.call("k0", "t", "y"))
        lines += [
            f"good = {self.finite('y', *(['k0'] if self.method.reuse else []))}",
            "status = tl.where(good, tl.where(t == t1, 0, -1), 4)",
            "running = inside & (status == -1)",
            "accepted = tl.zeros([BLOCK], tl.int64)",
            "rejected = tl.zeros([BLOCK], tl.int64)",
            "wanted = tl.zeros([BLOCK], tl.int64)",
            *self.next_time(),
            "due = inside & (time == t)",
            "pending = tl.max(due.to(tl.int32), axis=0)",
            "while pending > 0:",
            *_indented(
                [
                    *self.each(f"tl.store({self.saved_place()} + {{j}}, y_{{j}}, mask=due)"),
                    "wanted += due.to(tl.int64)",
                    *self.next_time(),
                    "due = inside & (time == t)",
                    "pending = tl.max(due.to(tl.int32), axis=0)",
                ]
            ),
            *self.keep("inside"),
            "target = t1",
            *self.aim("inside"),
        ]
        return lines + (self.first_step() if self.adaptive else [])

    def saved_place(self) -> str:
        return f"saved_ + (row * times + wanted) * {self.size}"

    def next_time(self) -> list[str]:
        return [
            "later = wanted_ + row * times + wanted",
            "time = tl.load(later, mask=inside & (wanted < times), other=float('nan'))",
        ]

    def keep(self, mask: str) -> list[str]:
        return [
            "if capacity > 0:",
            "    place = row * capacity + accepted",
            f"    fits = {mask} & (accepted < capacity)",
            "    tl.store(step_t + place, t, mask=fits)",
            *_indented(self.each(f"tl.store(step_y + place * {self.size} + {{j}}, y_{{j}}, mask=fits)")),
        ]

    def aim(self, mask: str) -> list[str]:
        """The next target of some rows, and the number of constant steps to it."""
        if self.adaptive:
            return ["if EXACT:", f"    target = tl.where({mask}, tl.where(time == time, time, t1), target)"]
        lines = [f"target = tl.where({mask}, tl.where(time == time, time, t1), target)"]
        # The slack keeps 0.3 - 0.2, which is above 0.1, one step of 0.1.
        steps = f"tl.ceil(tl.abs(target - t) / first * {self.double(1 - 1e-9)})"
        lines.append(f"steps = {steps}")
        old = "left" if mask != "inside" else "steps"
        return [*lines, f"left = tl.where({mask}, tl.where(steps < 1, 1, steps), {old})"]

    def first_step(self) -> list[str]:
        """Hairer, Norsett, Wanner 1993, II.4, "starting step size"."""
        one, tiny = self.double(1), self.double(1e-5)
        return [
            f"rtol = tl.load(rtol_ + row, mask=inside, other=1).to({self.real})",
            f"atol = tl.load(atol_ + row, mask=inside, other=1).to({self.real})",
            "size = first",
            "whole = tl.abs(t1 - t)",
            "if ESTIMATE:",
            *_indented(
                [
                    *self.scale("y"),
                    *self.norm("d0", "y"),
                    *self.norm("d1", "k0"),
                    f"small = (d0 < {tiny}) | (d1 < {tiny})",
                    f"h0 = {self.double(0.01)} * d0 / tl.where(small, {one}, d1)",
                    f"h0 = tl.where(small, {self.double(1e-6)}, h0)",
                    "h0 = tl.where(whole < h0, whole, h0)",
                    "h = sign * h0",
                    *self.each(f"at_{{j}} = y_{{j}} + h.to({self.real}) * k0_{{j}}"),
                    self.call("k1", "t + h", "at"),
                    *self.each("k1_{j} = k1_{j} - k0_{j}"),
                    *self.norm("d2", "k1"),
                    f"d2 = d2 / tl.where(h0 > 0, h0, {one})",
                    "steepest = tl.where(d2 == d2, tl.where(d1 >= d2, d1, d2), d1)",
                    f"steep = (steepest > {self.double(1e-15)}) & (steepest < float('inf'))",
                    f"ratio = ode.bounded(numbers, {self.double(0.01)} / tl.where(steep, steepest, {one}))",
                    "h1 = ode.power(tables, ode.level(tables, ratio) / tl.load(numbers))",
                    f"slow = h0 * {self.double(1e-3)}",
                    f"slow = tl.where(slow > {self.double(1e-6)}, slow, {self.double(1e-6)})",
                    "h1 = tl.where(steep, h1, slow)",
                    f"size = {self.double(100)} * h0",
                    "size = tl.where((h1 < size) | (size <= 0), h1, size)",
                ]
            ),
            "size = tl.where(whole < size, whole, size)",
            "smallest = tl.load(numbers + 7)",
            "largest = tl.load(numbers + 8)",
            "size = tl.where(size < smallest, smallest, size)",
            "size = tl.where(size > largest, largest, size)",
            "before = tl.zeros([BLOCK], tl.float64)",
            "last = tl.zeros([BLOCK], tl.float64)",
            "slowed = tl.zeros([BLOCK], tl.int32)",
        ]

    def attempt(self) -> list[str]:
        method = self.method
        lines = ["gap = tl.abs(target - t)"]
        if self.adaptive:
            lines += [f"short = size * {self.double(1 + 1e-9)} >= gap", "length = size"]
        else:
            lines += ["short = left <= 1", "length = gap / tl.where(left < 1, 1, left)"]
        lines += [
            "ahead = tl.where(short, target, t + sign * length)",
            "ahead = tl.where(running, ahead, t)",
            "h = ahead - t",
            f"step = h.to({self.real})",
        ]
        if not method.reuse:
            lines.append(self.call("k0", "t", "y"))
        for i in range(1, self.stages):
            to = "end" if method.reuse and i == self.stages - 1 else "at"
            lines += self.stage(i, method.a[i], method.c[i], to)
        if not method.reuse:
            lines += self.each(f"end_{{j}} = y_{{j}} + step * ({self.total(method.b)})")
        return lines

    def stage(self, i: int, weights: Sequence[Number], node: Number, to: str) -> list[str]:
        return [
            *self.each(f"{to}_{{j}} = y_{{j}} + step * ({self.total(weights)})"),
            self.call(f"k{i}", f"t + {self.double(float(node))} * h", to),
        ]

    def judge(self) -> list[str]:
        ends = ["end", *([f"k{self.stages - 1}"] if self.method.reuse else [])]
        lines = [f"fine = {self.finite(*ends)}"]
        if not self.adaptive:
            return [*lines, "accept = running & fine", "missed = running & (accept == 0)", "stuck = missed"]
        assert self.method.error is not None
        return [
            *lines,
            *self.each(f"error_{{j}} = step * ({self.total(self.method.error)})"),
            *self.scale("end"),
            *self.norm("found", "error"),
            "said = ode.controlled(numbers, tables, found, fine, size, gap, before, last, slowed)",
            "accept, after, now = said",
            "accept = accept & running",
            "missed = running & (accept == 0)",
            "size = tl.where(running, after, size)",
            "slowed = tl.where(accept, 0, 1)",
            "last = tl.where(accept, before, last)",
            "before = tl.where(accept, now, before)",
            "stuck = missed & ((t + sign * size == t) | (size < tl.load(numbers + 7)))",
        ]

    def save(self) -> list[str]:
        """The saved times that lie in accepted steps."""
        method = self.method
        inner = [f"theta = (time - t) / tl.where(due, h, {self.double(1)})"]
        for i, (weights, node) in enumerate(zip(method.more, method.more_c), self.stages):
            inner += self.stage(i, weights, node, "at")
        used = [i for i, polynomial in enumerate(method.dense) if any(polynomial)]
        for i in used:
            *lower, highest = (self.double(float(each)) for each in method.dense[i])
            value = f"{highest} * theta"
            for coefficient in reversed(lower):
                value = f"({value} + {coefficient}) * theta"
            inner.append(f"w{i} = ({value}).to({self.real})")
        total = " + ".join(f"w{i} * k{i}_{{j}}" for i in used)
        inner += [
            *self.each(f"at_{{j}} = y_{{j}} + step * ({total})"),
            *self.each("at_{j} = tl.where((time == ahead) | (theta == 1), end_{j}, at_{j})"),
            *self.each(f"tl.store({self.saved_place()} + {{j}}, at_{{j}}, mask=due)"),
            "wanted += due.to(tl.int64)",
            *self.next_time(),
            "due = accept & (sign * (time - ahead) <= 0)",
            "pending = tl.max(due.to(tl.int32), axis=0)",
        ]
        return [
            "due = accept & (sign * (time - ahead) <= 0)",
            "pending = tl.max(due.to(tl.int32), axis=0)",
            "while pending > 0:",
            *_indented(inner),
        ]

    def advance(self) -> list[str]:
        lines = [
            "accepted += accept.to(tl.int64)",
            "rejected += missed.to(tl.int64)",
            "t = tl.where(accept, ahead, t)",
            *self.each("y_{j} = tl.where(accept, end_{j}, y_{j})"),
        ]
        if self.method.reuse:
            lines += self.each(f"k0_{{j}} = tl.where(accept, k{self.stages - 1}_{{j}}, k0_{{j}})")
        lines += self.keep("accept")
        if not self.adaptive:
            lines.append("left = left - accept.to(tl.float64)")
        return [
            *lines,
            "done = accept & (t == t1)",
            "over = running & (accepted + rejected >= max_steps)",
            "reason = tl.where(done, 0, tl.where(over, 2, tl.where(fine, 3, 4)))",
            "status = tl.where(done | over | stuck, reason, status)",
            "running = inside & (status == -1)",
            "arrived = accept & (t == target)",
            *self.aim("arrived"),
            "going = tl.max(running.to(tl.int32), axis=0)",
        ]

    def end(self) -> list[str]:
        return [
            "tl.store(t_ + row, t, mask=inside)",
            *self.each(f"tl.store(y_ + row * {self.size} + {{j}}, y_{{j}}, mask=inside)"),
            "tl.store(status_ + row, status.to(tl.int8), mask=inside)",
            "tl.store(accepted_ + row, accepted, mask=inside)",
            "tl.store(rejected_ + row, rejected, mask=inside)",
        ]


def _indented(lines: Sequence[str], depth: int = 1) -> list[str]:
    return ["    " * depth + line for line in lines]
