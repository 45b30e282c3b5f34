"""Where the figures of a run go besides its own files: TensorBoard, CSV, MLflow, W&B.

A tracker follows ``RUN/metrics/*.jsonl`` by a thread of rank 0. Training does not know of it: what fails or
hangs there costs no step.
"""
