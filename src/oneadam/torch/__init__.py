"""The door for PyTorch: a `torch.optim.Optimizer` for training loops, trainers and sharded jobs.

Example:
    >>> import torch
    >>> from oneadam.torch import Adam
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = Adam(model.named_parameters(), lr=0.01, global_clipnorm=1.0)
    >>> model(torch.ones(4, 3)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.updates
    1
"""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ModuleNotFoundError(
        "oneadam.torch needs PyTorch, which is not installed; install it with"
        " pip install 'oneadam[torch]'",
        name="torch",
    )

from oneadam.torch._adam import Adam
from oneadam.torch._loss_scale import LossScaleOptimizer

__all__ = ["Adam", "LossScaleOptimizer"]
