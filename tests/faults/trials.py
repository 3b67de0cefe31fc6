"""The twenty-five trials: what may go wrong in a batch of runs, and what may not come of it.

Each test that belongs to a trial has the mark ``trial(n)``. A trial is passed when at least one of its tests
was run and none has failed.
"""

TRIALS = {
    1: "SIGKILL of the whole process group at random points, then resumed",
    2: "each n-th call to the file system fails once: EIO, ENOSPC, EINTR",
    3: "the disk fills up in the middle of a suite",
    4: "a plugin raises in each hook in turn",
    5: "a plugin hangs: busy, asleep, in C with the interpreter's lock",
    6: "a plugin ends its process: segfault, abort, _exit(0), sys.exit(0)",
    7: "a plugin gives NaN or infinity from some step on",
    8: "a plugin gives a wrong shape, dtype or device, or changes its input",
    9: "a plugin cannot be loaded, or has another's name",
    10: "two and three runs at once into one folder",
    11: "a kept file is damaged: flipped, cut, empty, swapped",
    12: "the index of what is kept is gone, damaged or locked",
    13: "YAML bombs: aliases, merges, nesting, size, recursion",
    14: "keys of a scenario unknown, misspelt, twice, missing or of a wrong type",
    15: "numbers and words of YAML that other loaders misread",
    16: "encodings, characters and names that collide",
    17: "names and files that lead out of a folder",
    18: "code in YAML",
    19: "checkpoints and results of a stranger",
    20: "HTML and scripts in names, attributes, errors and labels",
    21: "an output folder that cannot be written or has gone",
    22: "SIGINT, SIGTERM and SIGUSR1, once and twice",
    23: "the clock jumps: back an hour, to 1970, ten years ahead",
    24: "out of memory",
    25: "a worker, nanny, scheduler or client of Dask is lost",
}
