"""Pre-flight checks of a configuration on this machine, and health checks of a run folder.

::

    findings.py       findings, checks, how they are printed
    job.py            all checks of a configuration
    case.py           what the checks of a configuration share
    configuration.py  model, weights, text embeddings
    data.py           domains, shards
    overlap.py        samples in common
    classes.py        classes in the labels
    budget.py         batch, epochs, stages
    storage.py        run.dir: writing, space, time of a save
    probes.py         measurements of storage
    resume.py         the checkpoint that a job would resume from
    machine.py        devices, memory, limits
    ports.py          ports to listen on
    device.py         what the job needs of its GPUs, told without one
    device_cost.py    the figures of it
    device_probe.py   counts operations and bytes of tensors without values
    cluster.py        what a user says of many machines
    many_machines.py  what the job reaches on them, told without them
    outlook.py        the figures for it: measured, counted, assumed
    scale.py          a model of a step on many machines: pure, without torch
    failure_cost.py   what failures cost, and the best interval between checkpoints: pure, without torch
    runs.py           a run's folder
    describe.py       contents of a path (`ppar-dist inspect`); not a check

A check is a function in the file of its subject, listed in that file's ``CHECKS``.
"""
