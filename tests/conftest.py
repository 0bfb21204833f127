import torch

# The networks are tiny, and pytest-xdist runs several processes.
torch.set_num_threads(1)
