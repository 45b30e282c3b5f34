"""What the Grafana dashboard shows: rows of panels, each with its expressions and what good looks like."""

from __future__ import annotations

from dataclasses import dataclass

RUN = '{run="$run"}'


@dataclass(frozen=True)
class Query:
    """One expression of a panel; ``legend`` may name labels, as ``{{domain}}``."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel.

    ``kind`` is stat, lines or stages; ``width`` counts Grafana's 24 columns; ``unit`` is a name of Grafana's.
    """

    title: str
    good: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "lines"
    width: int = 8
    low: float | None = None
    high: float | None = None
    warn_above: float | None = None
    warn_below: float | None = None


def stat(title: str, good: str, expr: str, unit: str, **more: float) -> Panel:
    """A single figure."""
    return Panel(title, good, (Query(expr, title),), unit, "stat", 4, **more)


NOW = (
    stat("Progress", "climbs", f"max by (run) (ppar_progress_ratio{RUN})", "percentunit"),
    stat("Steps per second", "steady", f"1 / run:ppar_step_seconds:rate5m{RUN}", "short"),
    stat("Time left", "falls", f"run:ppar_remaining_seconds{RUN}", "s"),
    stat(
        "Effective sample size",
        "above 50 %",
        f"max by (run) (ppar_effective_sample_size_ratio{RUN})",
        "percentunit",
        warn_below=0.3,
    ),
    stat(
        "mIoU, mean of targets",
        "rises",
        f"avg by (run) (max by (run, target) (ppar_miou{RUN}))",
        "percentunit",
    ),
    stat(
        "Waiting for data",
        "below 5 %",
        f"run:ppar_data_wait:ratio_rate5m{RUN}",
        "percentunit",
        warn_above=0.3,
    ),
    stat("Checkpoint age", "below the planned interval", f"run:ppar_checkpoint_age_seconds{RUN}", "s"),
    stat("Images per second", "steady", f"max by (run) (ppar_images_per_second{RUN})", "short"),
    stat(
        "MFU",
        "steady; nothing is shown where the peak of the devices is unknown",
        f"max by (run) (ppar_mfu_ratio{RUN})",
        "percentunit",
    ),
    stat(
        "Goodput",
        "above 80 %, once a run is hours old",
        f"max by (run) (ppar_goodput_ratio{RUN})",
        "percentunit",
        warn_below=0.5,
    ),
    stat(
        "GPU memory, fullest rank",
        "below 95 %",
        f"max by (run) (ppar_device_memory_peak_bytes{RUN} / ppar_device_memory_total_bytes{RUN})",
        "percentunit",
        warn_above=0.95,
    ),
    stat("Ranks that answer", "all of them", f"run:ppar_ranks_up:sum{RUN}", "short"),
)
METHOD = (
    Panel(
        "Alignment stage",
        "each stage begins where it is planned",
        (
            Query(f"max by (run) (ppar_alignment_stage{RUN})", "observed"),
            Query(
                f"run:ppar_alignment_stage:planned{RUN} or 0 * max by (run) (ppar_alignment_stage{RUN})",
                "planned",
            ),
        ),
        kind="stages",
        low=0,
        high=3,
    ),
    Panel(
        "Sample weights: median by domain",
        "near 1, no domain flat at the bottom",
        (Query('max by (domain) (ppar_sample_weight_quantile{run="$run",quantile="0.5"})', "{{domain}}"),),
        low=0,
    ),
    Panel(
        "Sample weights: 5 % quantile by domain",
        "low for a few samples, not for a whole domain",
        (Query('max by (domain) (ppar_sample_weight_quantile{run="$run",quantile="0.05"})', "{{domain}}"),),
        low=0,
    ),
    Panel(
        "Batch in use",
        "sample size above 50 %; admitted cells climb to 100 % in the pixel stage",
        (
            Query(f"run:ppar_effective_sample_size:ratio_avg10m{RUN}", "effective sample size, 10 min"),
            Query(f"max by (run) (ppar_alignment_admitted_ratio{RUN})", "cells admitted"),
        ),
        "percentunit",
        low=0,
        high=1,
    ),
    Panel(
        "Samples at the floor of the weights",
        "below 10 % in every domain",
        (Query(f"run_domain:ppar_sample_weight_floor:ratio_rate10m{RUN}", "{{domain}}"),),
        "percentunit",
        low=0,
        high=1,
    ),
    Panel(
        "Reliability by domain",
        "rises towards 0, domains close together (nats)",
        (Query(f"max by (domain) (ppar_reliability{RUN})", "{{domain}}"),),
    ),
    Panel(
        "Trust in labels, lowest class by domain",
        "above 50 %; a low one names a source whose labels the others contradict",
        (Query(f"min by (domain) (ppar_trust{RUN})", "{{domain}}"),),
        "percentunit",
        low=0,
        high=1,
    ),
)
LEARNING = (
    Panel("Loss by term", "falls", (Query(f"max by (term) (ppar_loss{RUN})", "{{term}}"),), low=0),
    Panel(
        "Source risk by domain",
        "falls in all domains alike",
        (Query(f"max by (domain) (ppar_source_risk{RUN})", "{{domain}}"),),
        low=0,
    ),
    Panel(
        "mIoU by target",
        "rises; unseen targets follow the held-out sources",
        (Query(f"max by (target) (ppar_miou{RUN})", "{{target}}"),),
        "percentunit",
        low=0,
    ),
    Panel(
        "IoU by class, mean of targets",
        "no class stays at 0",
        (Query(f"avg by (class) (ppar_iou{RUN})", "{{class}}"),),
        "percentunit",
        low=0,
    ),
    Panel(
        "Prototype and text, by class",
        "settles well above 0 (cosine)",
        (Query(f"max by (class) (ppar_prototype_text_similarity{RUN})", "{{class}}"),),
    ),
    Panel(
        "Prototype drift, by class",
        "fades",
        (Query(f"max by (class) (ppar_prototype_drift{RUN})", "{{class}}"),),
        low=0,
    ),
    Panel(
        "Domains apart",
        "falls or holds",
        (Query(f"max by (run) (ppar_domain_discrepancy{RUN})", "largest distance, mean of classes"),),
        low=0,
    ),
    Panel(
        "Cells taken into the prototypes",
        "every class of every domain grows",
        (
            Query(
                f"sum by (domain, class) (rate(ppar_prototype_cells_total{RUN}[5m]))", "{{domain}} {{class}}"
            ),
        ),
        "cps",
        low=0,
    ),
    Panel(
        "Learning rate and gradient",
        "no jumps of the norm",
        (
            Query(f"max by (group) (ppar_learning_rate{RUN})", "learning rate, {{group}}"),
            Query(f"max by (run) (ppar_grad_norm{RUN})", "norm of the gradient"),
        ),
    ),
)
MACHINE = (
    Panel(
        "Step time",
        "flat, waiting at the bottom",
        (
            Query(f"run:ppar_step_seconds:rate5m{RUN}", "a step"),
            Query(
                f"histogram_quantile(0.95, sum by (le) (rate(ppar_step_duration_seconds_bucket{RUN}[5m])))",
                "95 % of steps below",
            ),
            Query(
                f"run:ppar_step_seconds:rate5m{RUN} * run:ppar_data_wait:ratio_rate5m",
                "of it waiting for data",
            ),
        ),
        "s",
        low=0,
    ),
    Panel(
        "Samples per second by domain",
        "steady",
        (Query(f"sum by (domain) (rate(ppar_samples_total{RUN}[5m]))", "{{domain}}"),),
        low=0,
    ),
    Panel(
        "Use of the devices",
        "MFU flat; goodput climbs, and falls where a crash lost steps or nothing runs",
        (
            Query(f"max by (run) (ppar_mfu_ratio{RUN})", "MFU"),
            Query(f"max by (run) (ppar_goodput_ratio{RUN})", "goodput"),
        ),
        "percentunit",
        low=0,
        high=1,
    ),
    Panel(
        "Most GPU memory so far, by rank",
        "flat, below the memory of the GPU",
        (
            Query(f"ppar_device_memory_peak_bytes{RUN}", "rank {{rank}}"),
            Query(f"min by (run) (ppar_device_memory_total_bytes{RUN})", "smallest GPU"),
        ),
        "bytes",
        low=0,
    ),
    Panel(
        "Time since the last step, by rank",
        "below the step time",
        (Query(f"time() - (ppar_last_step_timestamp_seconds{RUN} > 0)", "rank {{rank}}"),),
        "s",
        low=0,
    ),
    Panel(
        "Checkpoints",
        "age below the planned interval, no failures",
        (
            Query(f"run:ppar_checkpoint_age_seconds{RUN}", "age"),
            Query(f"run:ppar_checkpoint_interval_seconds{RUN}", "planned interval"),
            Query(f"max by (run) (ppar_checkpoint_stall_seconds{RUN})", "training blocked"),
        ),
        "s",
        low=0,
    ),
    Panel(
        "Faults in this process",
        "all 0",
        (
            Query(f"sum by (run) (ppar_skipped_steps_total{RUN})", "skipped steps"),
            Query(f"sum by (run) (ppar_rollbacks_total{RUN})", "rollbacks"),
            Query(f"sum by (run) (ppar_checkpoint_failures_total{RUN})", "failed checkpoints"),
            Query(
                f"sum by (run) (ppar_prototype_checksum_mismatches_total{RUN})", "prototypes that differed"
            ),
            Query(f"sum by (run) (ppar_resumes_total{RUN})", "resumes"),
        ),
        low=0,
    ),
    Panel(
        "Bad samples, share by domain",
        "0; at data.max_bad_ratio the run ends",
        (
            Query(
                f"run_domain:ppar_bad_samples:ratio_rate15m{RUN}",
                "{{domain}}",
            ),
        ),
        "percentunit",
        low=0,
    ),
    Panel(
        "Memory by rank",
        "flat",
        (Query(f"process_resident_memory_bytes{RUN}", "rank {{rank}}"),),
        "bytes",
        low=0,
    ),
)
ROWS = (("Now", NOW), ("Method", METHOD), ("Learning", LEARNING), ("Machine", MACHINE))
