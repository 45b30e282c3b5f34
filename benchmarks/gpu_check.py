"""Everything that only a GPU can show, in one command: `make gpu-check`, or

    python -m benchmarks.gpu_check --out docs/gpu [--device cuda] [--quick]

Renders its own data and trains models of the packaged configurations with random weights, so it needs neither
data sets nor a network. Each check is a real job; one that fails does not keep the others from running.
The report, one Markdown file named by the device, says what was run, what came out, and how long it took.

| check | what it shows |
|---|---|
| pretended | tests/gpu: mixed devices, waits for the device, FLOPs by type (needs gcc) |
| doctor | what doctor says of device and configuration |
| one rank | the demo trains, evaluates, reports; images per second, MFU, memory |
| 1 = 2 | two ranks over NCCL give the losses of one (where there are two GPUs) |
| precision, compile, checkpointing | seconds per step of each against fp32 as it is |
| stop | SIGTERM: 75, a checkpoint, and the resumed run goes on |
| kill, hang | a rank that dies or stops is named, and the job ends with 75 |
| large | ViT-B/16 on frames of 1914x1052: images per second, wait for data, save |
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.arguments import described

ROOT = Path(__file__).parents[1]
_LIMIT_S = 420.0  # of one job; nine of them end within the 20 minutes that the whole may take
_WARM_STEPS = 5  # of a job, which are not counted
_WORDS = {True: "ok", False: "**failed**", None: "not run"}


@dataclass(frozen=True)
class Outcome:
    """One check: what came out, in words and figures; ``ok`` is None where it could not be tried."""

    name: str
    ok: bool | None
    text: str
    seconds: float


class Skip(Exception):
    """Why a check cannot be tried here."""


class Jobs:
    """Starts ``ppar-dist`` on the data of this check."""

    def __init__(self, folder: Path, device: str, quick: bool) -> None:
        """``quick``: a few steps of each job, to try the check itself."""
        self.folder, self.device, self.quick = folder, device, quick
        self.steps = 12 if quick else 60

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``ppar-dist``."""
        return [sys.executable, "-m", "ppar_dist", *arguments]

    def run(self, *arguments: str) -> str:
        """Its output; RuntimeError with the last lines where it fails."""
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"`ppar-dist {arguments[0]}` ended with {done.returncode}: {last(done.stderr)}"
            )
        return done.stdout

    def training(self, name: str, *overrides: str, ranks: int = 1, steps: int | None = None) -> list[str]:
        """Arguments that train the demo's configuration as the run ``name``."""
        steps = steps or self.steps
        paths = [f"data.root={self.folder / 'shards'}", f"text.file={self.folder / 'text.npz'}"]
        paths += [f"run.dir={self.folder / name}", f"engine.device={self.device}", f"train.steps={steps}"]
        paths += ["train.log_every=1", "train.eval_every=0", f"checkpoint.every={steps}"]
        return ["train", "demo", *paths, *overrides, f"--nproc={ranks}"]

    def figures(self, name: str) -> list[dict[str, Any]]:
        """A run's records of steps."""
        lines = (self.folder / name / "metrics" / "train.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]


def last(text: str, lines: int = 3) -> str:
    """The end of an output, in one line."""
    return " / ".join(text.strip().splitlines()[-lines:])


def step_figures(records: Sequence[dict[str, Any]]) -> str:
    """Medians over the steps after the first few."""
    steady = records[_WARM_STEPS:]
    parts = [f"{1e3 * statistics.median(each['seconds'] for each in steady):.1f} ms a step"]
    parts.append(f"data wait {1e3 * statistics.median(each['data_wait'] for each in steady):.1f} ms")
    for key, text in (("images_per_second", "{:.0f} images/s"), ("mfu", "MFU {:.1%}")):
        values = [each[key] for each in steady if key in each]
        parts += [text.format(statistics.median(values))] if values else []
    memory = [each["device_memory_peak"] for each in steady if "device_memory_peak" in each]
    return ", ".join([*parts, *([f"{max(memory) / 2**30:.1f} GiB"] if memory else [])])


def make_data(jobs: Jobs) -> str:
    """Scenes of three domains, one unseen, and text embeddings."""
    from ppar_dist.cli.demo import write_stand_in_text

    jobs.run("synth", "--out", str(jobs.folder / "shards"), "--samples", "24", "--size", "180", "240")
    write_stand_in_text(jobs.folder / "text.npz", 512)
    return "three sources and an unseen night, 24 scenes each"


def pretended(jobs: Jobs) -> str:
    """The suite on a pretended device."""
    if jobs.quick:
        raise Skip("left out by --quick; `pytest tests/gpu` runs it")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(last(done.stdout))
    return "passed"


def doctor(jobs: Jobs) -> str:
    """The lines on the device."""
    said = subprocess.run(
        jobs.command("doctor", *jobs.training("doctor")[1:]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    lines = [line.strip() for line in said.splitlines() if re.search(r"GPU|bf16|core", line)]
    return "; ".join(lines) or last(said)


def one_rank(jobs: Jobs) -> str:
    """Train, evaluate the unseen night, report."""
    night = jobs.folder / "shards" / "synth_night"
    jobs.run(*jobs.training("one", f"targets.night={night}"))
    (table,) = json.loads((jobs.folder / "one" / "results.json").read_text())["targets"].values()
    return f"{step_figures(jobs.figures('one'))}; mIoU of the night {100 * table['miou']:.1f}"


def two_ranks(jobs: Jobs) -> str:
    """The largest difference of the loss, relative."""
    _need_two(jobs)
    jobs.run(*jobs.training("two", ranks=2))
    pairs = zip(jobs.figures("one"), jobs.figures("two"), strict=True)
    gap = max(abs(a["loss/total"] - b["loss/total"]) / abs(a["loss/total"]) for a, b in pairs)
    text = f"{step_figures(jobs.figures('two'))}; losses differ by {gap:.1e} at most"
    if gap > 0.02:
        raise RuntimeError(text)
    return text


def variants(jobs: Jobs) -> str:
    """Seconds per step, over those of fp32 as it is."""
    base = statistics.median(each["seconds"] for each in jobs.figures("one")[_WARM_STEPS:])
    parts = []
    for name, override in (
        ("bf16", "engine.precision=bf16"),
        ("tf32", "engine.tf32=true"),
        ("compile", "engine.compile=true"),
        ("checkpointing", "model.backbone.checkpointing=true"),
    ):
        try:
            jobs.run(*jobs.training(name, override))
            steady = jobs.figures(name)[_WARM_STEPS:]
            parts.append(f"{name} {statistics.median(each['seconds'] for each in steady) / base:.2f}")
        except RuntimeError as error:  # such as bf16 where there are no instructions for it
            parts.append(f"{name} refused or failed ({error})")
    return "seconds of a step over fp32's: " + ", ".join(parts)


def stop(jobs: Jobs) -> str:
    """SIGTERM in the middle, then the same command again."""
    arguments = jobs.training("stop", steps=5 * jobs.steps)
    code, seconds, _ = _struck(jobs, arguments, "stop", lambda ranks: None)
    if code != 75:
        raise RuntimeError(f"ended with {code}, not 75")
    jobs.run(*jobs.training("stop", steps=5 * jobs.steps))
    steps = [each["step"] for each in jobs.figures("stop")]
    if steps != list(range(1, 5 * jobs.steps + 1)):
        raise RuntimeError(f"steps are missing or were done twice: {len(steps)} records")
    return f"75 after {seconds:.1f} s; resumed, every step once"


def kill(jobs: Jobs) -> str:
    """SIGKILL to rank 1."""
    return _named(jobs, signal.SIGKILL, "rank 1 on .* has died")


def hang(jobs: Jobs) -> str:
    """SIGSTOP to rank 1."""
    return _named(jobs, signal.SIGSTOP, "rank 1 on .* is stopped")


def large(jobs: Jobs) -> str:
    """ViT-B/16 with random weights on frames as those of GTA5, and a save of all its state."""
    if jobs.quick:
        raise Skip("left out by --quick")
    shards = jobs.folder / "frames"
    jobs.run("synth", "--out", str(shards), "--samples", "16", "--size", "1052", "1914")
    model = "{kind: open_clip, name: ViT-B-16-quickgelu}"
    overrides = [f"data.root={shards}", "data.size=720", "data.crop=[512, 512]", "data.workers=4"]
    overrides += [f"model.backbone={model}", "train.global_batch=16", "train.micro_batch=16"]
    overrides += ["augment.blur=0.5", "checkpoint.every=20", "refit.linear=false"]
    if jobs.device == "cuda":
        overrides.append("engine.precision=bf16")
    jobs.run(*jobs.training("large", *overrides, steps=40 if jobs.device == "cuda" else 2))
    events = (jobs.folder / "large" / "metrics" / "events.jsonl").read_text("utf-8").splitlines()
    saves = [json.loads(line) for line in events if '"checkpoint"' in line]
    figures = jobs.figures("large")
    text = step_figures(figures) if len(figures) > _WARM_STEPS else f"{len(figures)} steps, not timed"
    return f"{text}; last save: {saves[-1].get('text', saves[-1]) if saves else 'none told'}"


def _need_two(jobs: Jobs) -> None:
    if jobs.device == "cuda" and torch.cuda.device_count() < 2:
        raise Skip("one GPU: not run")


def _named(jobs: Jobs, number: signal.Signals, says: str) -> str:
    _need_two(jobs)
    name = f"struck-{number.name}"
    arguments = jobs.training(name, "faults.peer_s=10", "faults.stall_s=60", ranks=2, steps=100_000)

    def strike(ranks: list[psutil.Process]) -> None:
        one = next(each for each in ranks if each.environ().get("RANK") == "1")
        os.kill(one.pid, number)

    code, seconds, output = _struck(jobs, arguments, name, strike)
    if code != 75 or not re.search(says, output):
        raise RuntimeError(f"ended with {code}: {last(output)}")
    return f"75 after {seconds:.1f} s, and names it"


def _struck(
    jobs: Jobs, arguments: list[str], name: str, strike: Callable[[list[psutil.Process]], None]
) -> tuple[int, float, str]:
    """Start a job, strike when it trains; one rank alone gets SIGTERM. Code, seconds to the end, output."""
    log = jobs.folder / f"{name}.log"
    with log.open("w") as out:
        job = subprocess.Popen(jobs.command(*arguments), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait_until_it_trains(jobs, name, job)
            ranks = [each for each in psutil.Process(job.pid).children(recursive=True) if _is_rank(each)]
            began = time.monotonic()
            strike(ranks)
            if not ranks or arguments[-1] == "--nproc=1":
                job.send_signal(signal.SIGTERM)
            code = job.wait(_LIMIT_S)
        finally:
            job.kill()
    return code, time.monotonic() - began, log.read_text(errors="replace")


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ() and "ppar_dist" in process.cmdline()
    except psutil.Error:
        return False


def _wait_until_it_trains(jobs: Jobs, name: str, job: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _LIMIT_S
    while time.monotonic() < until and job.poll() is None:
        try:
            if len(jobs.figures(name)) > _WARM_STEPS:
                return
        except (OSError, json.JSONDecodeError):
            pass
        time.sleep(0.2)
    log = jobs.folder / f"{name}.log"
    raise RuntimeError(f"it did not come to train: {last(log.read_text(errors='replace'))}")


CHECKS: dict[str, Callable[[Jobs], str]] = {
    "data": make_data,
    "pretended": pretended,
    "doctor": doctor,
    "one rank": one_rank,
    "1 = 2": two_ranks,
    "precision, compile, checkpointing": variants,
    "stop": stop,
    "kill": kill,
    "hang": hang,
    "large": large,
}


def check(name: str, jobs: Jobs) -> Outcome:
    """Run one check; whatever goes wrong is its outcome."""
    began = time.monotonic()
    try:
        ok, text = True, CHECKS[name](jobs)
    except Skip as reason:
        ok, text = None, str(reason)
    except Exception as error:
        ok, text = False, f"{type(error).__name__}: {error}"
    return Outcome(name, ok, " ".join(text.split()), time.monotonic() - began)


def report(outcomes: Sequence[Outcome], device: str, command: str) -> str:
    """The Markdown file."""
    rows = [
        f"| {each.name} | {_WORDS[each.ok]} | {each.text.replace('|', '/')} | {each.seconds:.0f} |"
        for each in outcomes
    ]
    facts = f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPUs"
    head = [f"# {device}", "", f"`{command}`, {time.strftime('%Y-%m-%d')}; {facts}.", ""]
    return "\n".join([*head, "| check | | what came out | seconds |", "|---|---|---|---|", *rows, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks, write the report; 1 where one failed."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/gpu"), help="folder of the report")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where torch sees one")
    parser.add_argument("--quick", action="store_true", help="a few steps each, to try the check itself")
    options = parser.parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        jobs = Jobs(Path(folder), device, options.quick)
        for each in CHECKS:
            outcomes.append(check(each, jobs))
            done = outcomes[-1]
            print(
                f"{each}: {'not run' if done.ok is None else 'ok' if done.ok else 'FAILED'}: {done.text}",
                flush=True,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(
        ["python -m benchmarks.gpu_check", *(sys.argv[1:] if arguments is None else arguments)]
    )
    file = options.out / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.md"
    file.write_text(report(outcomes, name, command), encoding="utf-8")
    print(f"report {file}")
    return 1 if any(each.ok is False for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
