"""The optimizer for NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from oneadam import checkpoint
from oneadam._hyperparameters import Hyperparameters, learning_rate_now, with_learning_rate
from oneadam._saved_state import Axes
from oneadam.numpy import _saved
from oneadam.numpy._run import Run

Array = NDArray[Any]
Number = Any
"""A Python number, or a 0-d array or tensor."""


class Adam:
    """Adam with all that the documentation of `keras.optimizers.Adam` promises, for NumPy arrays.

    Variables are updated in place. float32 and float64 are computed in their own dtype,
    float16 and bfloat16 in float32, in which their state is kept. What a call does, step by
    step, is in `docs/definition.md`.

    Args:
        learning_rate: number >= 0, a schedule (see `oneadam.schedules`), a function of the
            number of finished calls, or a function without arguments, called once every call.
        beta_1: number in [0, 1), or a function without arguments; of the first moment.
        beta_2: number in [0, 1), or a function without arguments; of the second moment.
        epsilon: number > 0, added to the root of the second moment.
        amsgrad: bool, divide by the largest second moment so far.
        weight_decay: None or number >= 0; decoupled, times the learning rate.
        clipnorm: None or number > 0, the largest norm of each variable's gradient.
        clipvalue: None or number > 0, the largest magnitude of a gradient's element.
        global_clipnorm: None or number > 0, the largest norm of all gradients together.
        use_ema: bool, keep an exponential moving average of the variables.
        ema_momentum: number in [0, 1], the weight of the average so far.
        ema_overwrite_frequency: None or int >= 1; every so many updates the variables become
            their averages.
        loss_scale_factor: None or number > 0, what `scale_loss` multiplies the loss by and
            what the gradients are divided by.
        gradient_accumulation_steps: None or int >= 1, the number of calls whose mean gradient
            makes one update.
        name: non-empty str, the prefix of the optimizer's own state.
        epsilon_hat: bool; False corrects epsilon for the bias, as PyTorch and optax do.
        on_nonfinite: "propagate", "skip" or "raise": what an inf or NaN in a gradient does.

    Raises:
        TypeError, ValueError: an argument is of another kind or outside its range.

    Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.

    Example:
        >>> import numpy as np
        >>> from oneadam.numpy import Adam
        >>> weights = [np.array([1.0, -2.0])]
        >>> optimizer = Adam(learning_rate=0.1)
        >>> for _ in range(200):
        ...     optimizer.apply([2.0 * weights[0]], weights)
        >>> bool(np.abs(weights[0]).max() < 0.01)
        True
    """

    __slots__ = ("__weakref__", "_run")

    def __init__(
        self,
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
    ) -> None:
        arguments = {key: value for key, value in locals().items() if key != "self"}
        self._run = Run(Hyperparameters(**arguments))

    @classmethod
    def _of(cls, run: Run) -> Adam:
        optimizer = cls.__new__(cls)
        optimizer._run = run
        return optimizer

    def build(self, variables: Any) -> None:
        """Make the state for variables; `apply(grads, variables)` does it at its first call.

        Args:
            variables: list, dict or nested one of arrays of float16, bfloat16, float32 or
                float64. Their names are their keys, joined by "/"; those of a list are "0",
                "1" and so on.

        Raises:
            ValueError: a variable cannot be updated in place, or the optimizer was built on
                other variables.
            TypeError: a variable is no array, or of another dtype.
        """
        self._run.build(variables)

    @property
    def variables(self) -> dict[str, Array]:
        """The variables by name: the arrays that the optimizer updates."""
        return dict(self._run.built().variables)

    def exclude_from_weight_decay(
        self, var_list: Iterable[Any] | None = None, var_names: Iterable[Any] | None = None
    ) -> None:
        """Exempt variables from weight decay; to be called before the optimizer is built.

        Args:
            var_list: variables, or their exact names.
            var_names: parts of names, or compiled regular expressions that names are searched
                for.

        Raises:
            RuntimeError: the optimizer is built already.
            TypeError, ValueError: an entry is of another kind, or would exclude everything.
        """
        self._run.exclude_from_weight_decay(var_list, var_names)

    def apply(self, grads: Any, variables: Any = None) -> None:
        """Take one call: update the variables with the gradients, or accumulate these.

        Args:
            grads: the structure of the variables with gradients in their place, or a list in
                their order. A gradient is an array of the variable's shape and any floating
                dtype, a tensor that NumPy can read, nested lists of numbers, or None.
            variables: the variables that the gradients are of; optional once built.

        Raises:
            TypeError, ValueError: something does not fit; nothing has changed.
            FloatingPointError: a gradient is not finite, under `on_nonfinite="raise"`; nothing
                has changed.
        """
        hyperparameters = self._run.hyperparameters
        self._run.take(
            grads, variables, hyperparameters.loss_scale_factor, hyperparameters.on_nonfinite
        )

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> None:
        """Take one call, given pairs of a gradient and its variable; see `apply`."""
        pairs = list(grads_and_vars)
        self.apply([grad for grad, _ in pairs], [variable for _, variable in pairs])

    def flush(self) -> None:
        """Close an incomplete accumulation window with the mean over the calls that it has.

        It counts as an update, not as a call. Where no window is open nothing happens.
        """
        self._run.flush()

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
        """The learning rate that the next call will use; assign a number, schedule or callable."""
        return learning_rate_now(self._run.hyperparameters, self._run.counters.calls)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._run.hyperparameters = with_learning_rate(self._run.hyperparameters, value)

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss times `loss_scale_factor`, to take the gradients of."""
        factor = self._run.hyperparameters.loss_scale_factor
        return loss if factor is None else loss * factor

    def finalize_variable_values(self, variables: Any = None) -> None:
        """Set variables to their moving averages, for good.

        Without averages, or before the first update, nothing changes.

        Args:
            variables: a structure of variables or their names, matched by identity or name;
                default: all.

        Raises:
            ValueError: one of them is not a variable of this optimizer.
        """
        self._run.finalize(variables)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the variables hold their moving averages inside a `with` block, to evaluate.

        At its end they are what they were before, to the last bit. It keeps a copy of them.
        Without averages, or before the first update, nothing changes.

        Raises:
            RuntimeError: the block is inside another one.
        """
        with self._run.averaged():
            yield

    def metrics(self) -> dict[str, float]:
        """Return plain numbers to log; nothing is computed for it.

        Returns:
            `learning_rate` of the last call, `calls`, `updates`, `skipped_calls`; of the last
            update, where its clipping needed them, `gradient_norm` (over all variables, before
            clipping) and `clip_scale` (the smallest factor); `loss_scale` where there is one.
        """
        return self._run.metrics(self._run.hyperparameters.loss_scale_factor)

    def get_config(self) -> dict[str, Any]:
        """Return what makes an equal optimizer through `from_config`, ready for JSON.

        Raises:
            ValueError: an argument is a function, which cannot be written down.
        """
        return self._run.config()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Adam:
        """Return an optimizer with the configuration of another, of any door or of Keras.

        Args:
            config: what `get_config` of this class or of `keras.optimizers.Adam` returned; it
                is left as it is.
            custom_objects: classes of learning-rate schedules by name.

        Raises:
            TypeError, ValueError: the configuration has unknown keys or values out of range.
        """
        return cls._of(Run.from_config(config, custom_objects))

    def state_dict(self) -> dict[str, Array]:
        """Return a copy of the whole state by name: `<variable>/momentum`, `<name>/calls`, ..."""
        return {name: array.copy() for name, array in _saved.state(self._run).items()}

    def load_state_dict(
        self, state: Mapping[str, Any], *, keep_learning_rate: bool = False
    ) -> None:
        """Take over the state of another optimizer, by name.

        Optional parts that only one side has (averages, an accumulation window, the learning
        rate) are started afresh or left out, with a warning that names them.

        Args:
            state: what `state_dict` of any door returned.
            keep_learning_rate: bool, keep the configured learning rate, not the saved one.

        Raises:
            ValueError: something is missing, unexpected, or of another shape or dtype; nothing
                has changed.
        """
        _saved.restore(self._run, _saved.restoring(self._run, state, keep_learning_rate))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state and the configuration to one safetensors file, atomically.

        Args:
            path: where to. A crash leaves the old file or the new one.

        Raises:
            OSError: the file cannot be written; the old one is untouched.
        """
        checkpoint.write(path, _saved.state(self._run), _saved.metadata(self._run))

    def load(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | Callable[[str], str] | None = None,
        *,
        keep_learning_rate: bool = False,
        transposed: Axes | None = None,
    ) -> None:
        """Take over the state that `save` of any door has written; see `load_state_dict`.

        Args:
            path: the file.
            names: the name here for a variable's name in the file, as a mapping (others stay)
                or a function.
            keep_learning_rate: bool, keep the configured learning rate, not the saved one.
            transposed: the order in which a variable, by its name here, takes the axes of its
                arrays in the file, as `numpy.transpose` takes it; a mapping (others stay) or a
                function (None stays). A kernel of Keras becomes a weight of PyTorch, and back,
                by (1, 0).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, foreign or newer, or does not fit; nothing has
                changed.
        """
        self.load_state_dict(
            _saved.read(self._run, path, names, transposed),
            keep_learning_rate=keep_learning_rate,
        )
