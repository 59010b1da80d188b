"""One training run: objective, loop, scores, checkpoints, and how it stops and goes on."""
