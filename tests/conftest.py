"""One intra-op thread: a sum's bits depend on how many share it."""

import torch

torch.set_num_threads(1)
