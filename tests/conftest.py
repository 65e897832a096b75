"""What all tests share."""

import torch

# One thread, as the study computes: two would wait for each other on a busy machine, at every small operation.
torch.set_num_threads(1)
