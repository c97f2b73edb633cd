"""Fit a cubic to noisy points, then look at the averaged weights.

python examples/fit_a_curve.py
"""

import numpy as np

from oneadam.numpy import Adam
from oneadam.schedules import CosineDecay

STEPS = 1500

generator = np.random.default_rng(0)
x = generator.uniform(-1, 1, 200)
y = 0.5 - x + 2 * x**3 + generator.normal(0, 0.05, x.shape)
powers = x[:, None] ** np.arange(4)

weights = {"cubic": np.zeros(4)}
optimizer = Adam(
    CosineDecay(0.0, decay_steps=STEPS - 100, warmup_target=0.1, warmup_steps=100),
    global_clipnorm=1.0,
    use_ema=True,
)
optimizer.build(weights)

for step in range(1, STEPS + 1):
    error = powers @ weights["cubic"] - y
    optimizer.apply({"cubic": 2 / len(x) * powers.T @ error})
    if step % 300 == 0:
        rate = optimizer.metrics()["learning_rate"]
        print(f"step {step:4}  loss {np.mean(error**2):.5f}  learning rate {rate:.4f}")

print("trained  ", weights["cubic"].round(3))
with optimizer.averaged():
    print("averaged ", weights["cubic"].round(3))
print("true      [ 0.5 -1.   0.   2. ]")
