"""Callbacks for trainers: `lightning.AdamCallback` and `transformers.AdamCallback`.

Each evaluates with the moving averages of the parameters, ends training with them, closes a
last incomplete accumulation window and logs `metrics()`. Hugging Face Accelerate needs nothing
of the kind: the optimizer that was given to `accelerator.prepare` is the one that steps, so its
`averaged()`, `flush()`, `finalize_variable_values()` and `metrics()` can be called as ever.
"""

__all__: list[str] = []
