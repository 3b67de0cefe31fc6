"""Games as automata: their words are the sequences of legal moves."""

from __future__ import annotations

Board = tuple[int, int]
"""The discs of who is to move and of the other, a bit for each square."""


def othello(size: int) -> dict[str, dict[str, str]]:
    """Othello on ``size`` x ``size`` squares, named a1 to d4 and so on; black begins.

    A move takes every straight run of the other's discs between it and one's own, and must take one. Who has
    no move has to "pass"; when neither has one the game is over, and "end" is legal for ever. A state is a
    position with who is to move, so that games with colours exchanged meet. 4 x 4 has 58,533 positions.
    """
    names = [f"{'abcdef'[column]}{row + 1}" for row in range(size) for column in range(size)]
    rays = [_rays(square, size) for square in range(size * size)]
    low, high = (size // 2 - 1) * (size + 1), (size // 2) * (size + 1)
    start = (1 << (low + 1) | 1 << (high - 1), 1 << low | 1 << high)
    label: dict[Board, str] = {start: "0"}
    table: dict[str, dict[str, str]] = {}
    queue = [start]
    for board in queue:
        ways = {names[square]: after for square, after in _moves(board, rays)}
        if not ways:
            passed = board[1], board[0]
            ways = {"pass": passed} if _moves(passed, rays) else {"end": board}
        for after in ways.values():
            if after not in label:
                label[after] = str(len(label))
                queue.append(after)
        table[label[board]] = {token: label[after] for token, after in ways.items()}
    return table


def _moves(board: Board, rays: list[list[list[int]]]) -> list[tuple[int, Board]]:
    """Every legal square, and the board after it as the other sees it."""
    mine, theirs = board
    found = []
    for square, around in enumerate(rays):
        if (mine | theirs) >> square & 1:
            continue
        taken = 0
        for ray in around:
            run = 0
            for bit in ray:
                if theirs & bit:
                    run |= bit
                    continue
                taken |= run if mine & bit else 0
                break
        if taken:
            found.append((square, (theirs & ~taken, mine | taken | 1 << square)))
    return found


def _rays(square: int, size: int) -> list[list[int]]:
    """The bits of the squares in each direction, from the nearest to the edge."""
    row, column = divmod(square, size)
    found = []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            steps = range(1, size) if down or right else ()
            ray = [(row + down * k, column + right * k) for k in steps]
            found.append([1 << (r * size + c) for r, c in ray if 0 <= r < size and 0 <= c < size])
    return found
