"""What must be so before anything is imported: see each line's reason."""

import os
import signal

# Triton's kernels run in its interpreter here, which is asked for before torch imports Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

# One intra-op thread: a sum's bits depend on how many share it.
torch.set_num_threads(1)

# A runner that was started in the background ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
