"""Every file and folder of a run, by name.

::

    <run>/
      config.yaml                   the resolved configuration
      classes.json                  its class set (class_sets.py)
      run.lock                      the job that works here (run/lock.py)
      checkpoints/                  drawn in checkpoint/__init__.py
      metrics/NAME.jsonl            train, samples and eval by step; events: faults and resumes; time: goodput
      quarantine/rank-00000.jsonl   the bad samples that each rank met
      ledger/attempt-00001/         the samples that each rank trained on (run/ledger.py)
      logs/                         what the watchdog saw of a rank that it ended
      profile/                      traces of steps (training/profile.py)
      predictions/                  examples for the report (evaluation/prediction_examples.py)
      audit/                        the most distrusted regions of the sources (evaluation/audit.py)
      tensorboard/  metrics.csv     the figures once more, for other readers (trackers/)
      trackers/NAME.json            what each tracker was sent
      results.json  results.csv     the scores on the targets
      report.html
"""

from __future__ import annotations

from pathlib import Path

from ppar_dist.class_sets import RECORD

LOCK = "run.lock"
REPORT = "report.html"
RESULTS = "results.json"
EXAMPLES = "examples.json"  # in predictions
REGIONS = "regions.json"  # in audit
ATTEMPT = "attempt-"  # and a number: the folder of an attempt
RANK_FILES = "rank-*.jsonl"


def config_file(run: Path) -> Path:
    """The resolved configuration: a folder that has it is a run."""
    return run / "config.yaml"


def classes_file(run: Path) -> Path:
    """The run's class set."""
    return run / RECORD


def metrics_file(run: Path, name: str) -> Path:
    """The records of one kind: ``train``, ``samples``, ``eval`` or ``events``."""
    return run / "metrics" / f"{name}.jsonl"


def metrics_files(run: Path) -> list[Path]:
    """The files of records that are there."""
    return sorted((run / "metrics").glob("*.jsonl"))


def quarantine(run: Path) -> Path:
    """The folder of bad samples."""
    return run / "quarantine"


def quarantine_files(run: Path) -> list[Path]:
    """The files of bad samples that are there."""
    return sorted(quarantine(run).glob("*.jsonl"))


def rank_file(folder: Path, rank: int) -> Path:
    """The file of JSON lines that a rank writes in a folder; ``RANK_FILES`` finds those of all ranks."""
    return folder / f"rank-{rank:05d}.jsonl"


def attempt(run: Path, number: int) -> Path:
    """The folder of one attempt's ledger."""
    return ledger(run) / f"{ATTEMPT}{number:05d}"


def ledger(run: Path) -> Path:
    """The folder of the ledger."""
    return run / "ledger"


def logs(run: Path) -> Path:
    """The folder of what the watchdog saw."""
    return run / "logs"


def profile(run: Path) -> Path:
    """The folder of traces."""
    return run / "profile"


def predictions(run: Path) -> Path:
    """The folder of examples for the report."""
    return run / "predictions"


def audit(run: Path) -> Path:
    """The folder of distrusted regions."""
    return run / "audit"


def tensorboard(run: Path) -> Path:
    """The folder of event files."""
    return run / "tensorboard"


def metrics_table(run: Path) -> Path:
    """The figures as CSV."""
    return run / "metrics.csv"


def tracker_note(run: Path, name: str) -> Path:
    """What a tracker was sent."""
    return run / "trackers" / f"{name}.json"
