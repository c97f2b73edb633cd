"""Speed and memory of oneadam as ratios: run `python -m benchmarks`, read docs/benchmarks.md."""
