"""A job on many machines, on paper and by simulation: docs/scale.md. No figure of it was measured on GPUs.

::

    __main__.py     tables of the model for the GPU recipes, and of the simulations beside it
    jobs.py         the recipes, and the machines that are assumed
    ring.py         a ring all-reduce, message by message
    failing_run.py  a run with failures, event by event
    gloo.py         the all-reduce of real ranks beside the model
    start.py        what a restart takes, measured
"""
