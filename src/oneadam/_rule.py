"""The definition: one update of Adam for one element.

Every engine compiles these very functions. NumPy, PyTorch and JAX call them on whole arrays,
Numba for one element at a time. They use arithmetic, branches on `is None` and the primitives
that are handed in, nothing else: whatever is None is absent from the compiled code.

`s` carries the scalars of the call (`oneadam._plan.Scalars`), in the compute dtype. The steps
are numbered in `docs/definition.md`, section 2.

Source: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015
(section 2 for the form with epsilon-hat); AMSGrad: S. J. Reddi, S. Kale, S. Kumar, "On the
Convergence of Adam and Beyond", ICLR 2018; decoupled decay: I. Loshchilov, F. Hutter,
"Decoupled Weight Decay Regularization", ICLR 2019.
"""

# mypy: disable-error-code="no-untyped-def"


def accumulate(accumulator, grad, loss_scale):
    """Unscale a gradient and add it to those before it (steps 2 and 3)."""
    if grad is None:
        total = accumulator
    else:
        if loss_scale is not None:
            grad = grad / loss_scale
        if accumulator is None:
            total = grad
        else:
            total = accumulator + grad
    return total


def clip(grad, limit, s, maximum, minimum):
    """Average a window's sum and clip it, by its norm or to plus and minus `limit` (step 4)."""
    # Two factors, because one alone may be too small for float32 where the product is not.
    grad = grad * s.grad_scale_power * s.grad_scale
    if limit is not None:
        grad = minimum(maximum(grad, -limit), limit)
    return grad


def adam(param, grad, momentum, velocity, velocity_max, decay, s, sqrt, maximum):
    """Decay the parameter and take Adam's step (steps 5 and 6)."""
    # For betas from one half on, `kept` and `compared` are 1. Below, they are beta and 0: there the
    # difference to a much larger moment would lose the gradient, and the plain weights are exact.
    momentum = momentum * s.kept_1 + (grad - momentum * s.compared_1) * s.one_minus_beta_1
    velocity = velocity * s.kept_2 + (grad * grad - velocity * s.compared_2) * s.one_minus_beta_2
    if velocity_max is None:
        largest = velocity
    else:
        velocity_max = maximum(velocity_max, velocity)
        largest = velocity_max
    step = s.step_size * momentum / (sqrt(largest) + s.epsilon)
    if decay is not None:
        # Taken off together, so that the parameter is rounded once.
        step = param * decay + step
    param = param - step
    return param, momentum, velocity, velocity_max


def moving_average(average, param, s):
    """Take the parameter into its exponential moving average (step 8)."""
    # Two weights would each be rounded, and then not add up to one.
    return average + (param - average) * s.one_minus_ema_momentum
