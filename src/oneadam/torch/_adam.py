"""The optimizer for PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oneadam import _configuration
from oneadam._engines.torch import tensors
from oneadam._exclusions import Exclusions
from oneadam._hyperparameters import Hyperparameters
from oneadam._plan import Counters
from oneadam._saved_state import Axes
from oneadam.torch import _averages, _native, _saved, _spelling
from oneadam.torch._compiler import uncompiled
from oneadam.torch._run import Run

Number = Any
"""A Python number, or a 0-d array or tensor."""


class Adam(torch.optim.Optimizer):
    """Adam with all that the documentation of `keras.optimizers.Adam` promises, for PyTorch.

    It takes the place of `torch.optim.AdamW`, `clip_grad_norm_`, an average of the weights and
    accumulation of gradients. float32 and float64 parameters are computed in their own dtype,
    float16 and bfloat16 in float32, in which their state is kept. What a call does, step by
    step, is in `docs/definition.md`.

    Args:
        params: tensors, pairs of a name and a tensor as `named_parameters()` gives them, or
            groups: dicts with `params` and, where they differ, `lr`, `betas`, `eps`,
            `weight_decay`, `amsgrad`, `maximize`, `clipnorm`, `clipvalue`.
        learning_rate: number >= 0, a schedule (see `oneadam.schedules`), a function of the
            number of finished calls, or a function without arguments, called once every call.
        beta_1: number in [0, 1), or a function without arguments; of the first moment.
        beta_2: number in [0, 1), or a function without arguments; of the second moment.
        epsilon: number > 0, added to the root of the second moment.
        amsgrad: bool, divide by the largest second moment so far.
        weight_decay: None or number >= 0; decoupled, times the learning rate.
        clipnorm: None or number > 0, the largest norm of each parameter's gradient.
        clipvalue: None or number > 0, the largest magnitude of a gradient's element.
        global_clipnorm: None or number > 0, the largest norm of all gradients together.
        use_ema: bool, keep an exponential moving average of the parameters.
        ema_momentum: number in [0, 1], the weight of the average so far.
        ema_overwrite_frequency: None or int >= 1; every so many updates the parameters become
            their averages.
        loss_scale_factor: None or number > 0, what `scale_loss` multiplies the loss by and
            what the gradients are divided by.
        gradient_accumulation_steps: None or int >= 1, the number of calls of `step` whose mean
            gradient makes one update.
        name: non-empty str, the prefix of the optimizer's own state in portable checkpoints.
        epsilon_hat: bool; False corrects epsilon for the bias, as `torch.optim.Adam` does.
        on_nonfinite: "propagate", "skip" or "raise": what an inf or NaN in a gradient does.
        lr: torch's name for `learning_rate`; a tensor stays where it is.
        betas: torch's way to give `beta_1` and `beta_2`.
        eps: torch's name for `epsilon`.
        maximize: bool, ascend in place of descending.
        process_group: the processes over which parameters are spread that are no DTensors, each
            in one of them, as `ZeroRedundancyOptimizer` does; norms and infinities count over
            all of them.
        capturable: False; a step cannot be captured in a CUDA graph yet.
        differentiable: False; no gradient flows through a step yet.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range, two spellings
            of one are given, or a parameter cannot be updated in place.

    Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.

    Example:
        >>> import torch
        >>> from oneadam.torch import Adam
        >>> weights = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Adam([weights], lr=0.1)
        >>> for _ in range(200):
        ...     optimizer.zero_grad()
        ...     weights.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weights.abs().max() < 0.01)
        True
    """

    _step_supports_amp_scaling = True
    """That `torch.amp.GradScaler` leaves unscaling, and what to do about an inf, to `step`."""

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 0.001,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Number = 1e-7,
        amsgrad: bool = False,
        weight_decay: Number | None = None,
        clipnorm: Number | None = None,
        clipvalue: Number | None = None,
        global_clipnorm: Number | None = None,
        use_ema: bool = False,
        ema_momentum: Number = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: Number | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str = "adam",
        *,
        epsilon_hat: bool = True,
        on_nonfinite: str = "propagate",
        lr: Any = _spelling.NOT_GIVEN,
        betas: Any = _spelling.NOT_GIVEN,
        eps: Any = _spelling.NOT_GIVEN,
        maximize: bool = False,
        process_group: Any = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__", "params")}
        arguments = _spelling.arguments_of(given, Adam.__init__)
        defaults = _spelling.defaults(arguments, maximize)
        self._run = Run(self, Hyperparameters(**arguments), Exclusions(), process_group)
        super().__init__(_spelling.listed_parameters(params), defaults)
        self._run.check_separate()
        self._run.is_made = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with hyperparameters of their own, at any time.

        Args:
            param_group: a dict with `params`, and what of the optimizer's arguments differs.

        Raises:
            TypeError, ValueError: something does not fit; nothing has changed.
        """
        counters = self._run.counters if self.param_groups else Counters()
        group = _spelling.spelled(param_group, self.defaults)
        super().add_param_group(group)
        try:
            self._run.check_group(group)
        except BaseException:
            self.param_groups.pop()
            raise
        group.update(counters._asdict())

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one call: update the parameters with their gradients, or accumulate these.

        Args:
            closure: evaluates the model again and returns the loss; optional.

        Returns:
            What the closure returned.

        Raises:
            TypeError, ValueError: something does not fit; nothing has changed.
            FloatingPointError: a gradient is not finite, under `on_nonfinite="raise"`; nothing
                has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            h = self._run.hyperparameters
            self._run.take(h.loss_scale_factor, h.on_nonfinite)
            return loss
        try:
            self._obey_scaler(found_inf)
        except BaseException:
            # The scaler takes back what it has said only where a step succeeds.
            for said in ("grad_scale", "found_inf"):
                vars(self).pop(said, None)
            raise
        return loss

    def _obey_scaler(self, found_inf: Tensor) -> None:
        h = self._run.hyperparameters
        if h.loss_scale_factor is not None:
            raise ValueError(
                "loss_scale_factor must be None where a GradScaler scales the loss, received"
                f" {h.loss_scale_factor!r}; leave one of them out"
            )
        # Where the gradients were unscaled before, the scaler gives no scale.
        scale = getattr(self, "grad_scale", None)
        if scale is not None and tensors.is_host(scale.device):
            scale = float(scale)
        self._run.take(scale, h.on_nonfinite, found_inf)

    @uncompiled
    def flush(self) -> None:
        """Close an incomplete accumulation window with the mean over the calls that it has.

        It counts as an update, not as a call. Where no window is open nothing happens.
        """
        self._run.flush()

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[Any] | None = None
    ) -> None:
        """Exempt parameters from weight decay; to be called before the first step.

        Args:
            var_list: parameters, or their exact names.
            var_names: parts of names, or compiled regular expressions that names are searched
                for.

        Raises:
            RuntimeError: a step was taken already.
            TypeError, ValueError: an entry is of another kind, or would exclude everything.
        """
        self._run.exclude_from_weight_decay(var_list, var_names)

    @property
    def calls(self) -> int:
        """The number of finished calls."""
        return self._run.counters.calls

    @property
    def updates(self) -> int:
        """The number of finished updates."""
        return self._run.counters.updates

    @property
    def iterations(self) -> int:
        """The number of finished updates, under Keras's name."""
        return self._run.counters.updates

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first group that the next call will use.

        Assign a number, schedule or callable to give it to all groups.
        """
        return self._run.learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._run.groups.assign_learning_rate(self.param_groups, value)
        self.defaults["lr"] = value  # of groups that are added later

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times `loss_scale_factor`, to take the gradients of."""
        factor = self._run.hyperparameters.loss_scale_factor
        return loss if factor is None else loss * factor

    @uncompiled
    def finalize_variable_values(self, variables: Any = None) -> None:
        """Set parameters to their moving averages, for good.

        Without averages, or before the first update, nothing changes.

        Args:
            variables: parameters or their names, matched by identity or name; default: all.

        Raises:
            ValueError: one of them is not a parameter of this optimizer.
        """
        _averages.finalize(self._run, variables)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters hold their moving averages inside a `with` block, to evaluate.

        At its end they are what they were before, to the last bit. It keeps a copy of them.
        Without averages, or before the first update, nothing changes.

        Raises:
            RuntimeError: the block is inside another one.
        """
        with _averages.averaged(self._run):
            yield

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log; nothing is computed for it.

        Returns:
            `learning_rate` of the last call, `calls`, `updates`, `skipped_calls`; of the last
            update, where its clipping needed them, `gradient_norm` (over all parameters, before
            clipping) and `clip_scale` (the smallest factor); `loss_scale` where there is one.
        """
        return self._run.metrics(self._run.hyperparameters.loss_scale_factor)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON.

        Raises:
            ValueError: an argument is a function, which cannot be written down.
        """
        config = _configuration.to_config(self._run.hyperparameters, self._run.exclusions)
        return config | {"maximize": True} if self.defaults["maximize"] else config

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        params: Any,
        custom_objects: Mapping[str, Any] | None = None,
        *,
        process_group: Any = None,
    ) -> Adam:
        """Return an optimizer with the configuration of another, of any door or of Keras.

        Args:
            config: what `get_config` of this class or of `keras.optimizers.Adam` returned; it
                is left as it is.
            params: as in making an optimizer.
            custom_objects: classes of learning-rate schedules by name.
            process_group: as in making an optimizer.

        Raises:
            TypeError, ValueError: the configuration has unknown keys or values out of range.
        """
        rest = dict(config) if isinstance(config, Mapping) else config
        maximize = rest.pop("maximize", False) if isinstance(rest, dict) else False
        hyperparameters, exclusions = _configuration.from_config(rest, custom_objects)
        arguments = _spelling.as_arguments(hyperparameters)
        optimizer = cls(params, **arguments, maximize=maximize, process_group=process_group)
        optimizer._run.adopt_exclusions(exclusions)
        return optimizer

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the groups in torch's form and under torch's names.

        `torch.optim.Adam` and `AdamW` load it; averages and a half-full accumulation window,
        which they do not have, they leave alone.
        """
        self._run.check_settled()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state and the groups that `state_dict` of this class or torch's returned.

        Tensors are copied, in the dtype that the state has here. Parts that only one side has
        are started afresh or left out, with a warning that names them.

        Args:
            state_dict: of `Adam`, or of `torch.optim.Adam` or `AdamW`.

        Raises:
            ValueError: the groups or a tensor are of another size; nothing has changed.
        """
        _native.load(self, self._run, state_dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one safetensors file, atomically.

        All processes that hold a part of the parameters must call it; the first writes.

        Args:
            path: where to. A crash leaves the old file or the new one.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        _saved.write(self._run, path, {})

    def load(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | Callable[[str], str] | None = None,
        *,
        keep_learning_rate: bool = False,
        transposed: Axes | None = None,
    ) -> None:
        """Take over the state that `save` of any door has written, by name.

        Args:
            path: the file.
            names: the name here for a parameter's name in the file, as a mapping (others stay)
                or a function.
            keep_learning_rate: bool, keep the configured learning rate, not the saved one.
            transposed: the order in which a parameter, by its name here, takes the axes of its
                arrays in the file, as `numpy.transpose` takes it; a mapping (others stay) or a
                function (None stays). A kernel of Keras becomes a weight of PyTorch, and back,
                by (1, 0).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, foreign or newer, or does not fit; nothing has
                changed.
        """
        saved = _saved.read(self._run, path, names, transposed)
        _saved.restore(self._run, _saved.restoring(self._run, saved, keep_learning_rate))

    def __getstate__(self) -> dict[str, Any]:
        self._run.check_settled()
        return super().__getstate__() | {"_run": self._run}
