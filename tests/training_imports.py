"""Packages that a training imports when it first uses them; a driver that forks many trainings imports them once."""

import gguf  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure
import matplotlib.ticker  # noqa: F401
import torch._dynamo  # by the first step of an optimizer
import torch.utils.tensorboard  # noqa: F401
