"""The run at a glance: planned stages, progress, resumes, faults."""

from __future__ import annotations

from markupsafe import Markup, escape

from ppar_dist.config.schema import Config
from ppar_dist.ppar.alignment import next_stage, stage_at
from ppar_dist.report.charts import Span, number, ticks
from ppar_dist.report.records import RunRecords

STAGES = ("warm-up", "text", "visual text", "pixel")
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 1040, 12, 12, 6, 34
_LETTER = 6.6  # pixels
_NO_FAULTS = ("resumed", "started from", "ended early")  # events


def planned_stages(config: Config) -> list[tuple[int, Span]]:
    """Number and steps of each stage that the run comes through; one for all of the baseline."""
    total = config.train.steps
    if not config.ppar.enabled:
        return [(0, Span("plain fine-tuning", 0, total))]
    boundaries = config.ppar.alignment.boundaries
    starts, stage, first = [], stage_at(0.0, boundaries), 0
    while True:
        starts.append((int(stage), first))
        following = next_stage(first, total, boundaries)
        if following is None:
            break
        stage, first = following
    ends = [start for _, start in starts[1:]] + [total]
    return [(n, Span(STAGES[n], start, end)) for (n, start), end in zip(starts, ends, strict=True)]


def stage_list(records: RunRecords) -> list[dict[str, str]]:
    """Every stage with its number and steps, also those into which no step of so short a run falls."""
    if not records.config.ppar.enabled:
        return []
    spans = dict(planned_stages(records.config))
    reached = records.last("step") or 0
    found = []
    for stage, name in enumerate(STAGES):
        span = spans.get(stage)
        if span is None:
            steps = "skipped: no step falls into it"
        else:
            done = "done" if reached >= span.end else "not reached" if reached <= span.start else "under way"
            steps = f"steps {span.start + 1:.0f} to {span.end:.0f}, {done}"
        found.append({"number": str(stage + 1), "name": name, "steps": steps})
    return found


def timeline(records: RunRecords) -> Markup:
    """Stages as blocks, the part that is done filled; resumes and faults as marks below."""
    total, reached = records.config.train.steps, records.last("step") or 0
    scale = (_WIDTH - _LEFT - _RIGHT) / max(total, 1)
    parts, spoken = [], []
    for stage, span in planned_stages(records.config):
        done = min(max(reached, span.start), span.end)
        parts += _block(_LEFT + span.start * scale, (span.end - span.start) * scale, "planned", stage)
        parts += _block(_LEFT + span.start * scale, (done - span.start) * scale, "done", stage)
        parts.append(_name(stage, span, scale))
        spoken.append(f"{span.label} from {number(span.start)} to {number(span.end)}")
    for value in ticks(0, total, 10):
        place = f'x="{_LEFT + value * scale:.1f}" y="{_TOP + _ROW + 14}"'
        parts.append(f'<text class="tick middle" {place}>{number(value)}</text>')
    marks = _marks(records, scale)
    height = _TOP + _ROW + 20 + (32 if marks else 0)
    label = escape(f"Stages by step: {', '.join(spoken)}; {number(reached)} of {number(total)} steps done")
    box = f'viewBox="0 0 {_WIDTH} {height}" style="width:100%" role="img" aria-label="{label}"'
    return Markup(f"<svg {box}>{''.join(parts + marks)}</svg>")


def _block(x: float, width: float, css: str, stage: int) -> list[str]:
    if width <= 0:
        return []
    box = f'x="{x:.1f}" y="{_TOP}" width="{max(0.5, width - 1.5):.1f}" height="{_ROW}" rx="4"'
    return [f'<rect class="stage {css} stage-{stage}" {box}/>']


def _name(stage: int, span: Span, scale: float) -> str:
    width = (span.end - span.start) * scale
    steps = f"{number(span.start)} to {number(span.end)}"
    fitting = [
        text
        for text in (f"{span.label} · {steps}", span.label, str(stage + 1))
        if _LETTER * len(text) < width
    ]
    place = f'x="{_LEFT + (span.start + span.end) / 2 * scale:.1f}" y="{_TOP + _ROW / 2 + 4}"'
    return f'<text class="middle stage-name" {place}>{fitting[0]}</text>' if fitting else ""


def _marks(records: RunRecords, scale: float) -> list[str]:
    """At most one of a kind on a pixel: a run may have had any number of faults."""
    found: dict[tuple[str, int], dict[str, object]] = {}
    for event in records.events:
        kind = "resume" if event["kind"] in _NO_FAULTS else "fault"
        place = min(_WIDTH - _RIGHT, _LEFT + round(event["step"] * scale))
        found.setdefault((kind, place), event)
    return [_mark(kind, place, event) for (kind, place), event in found.items()]


def _mark(kind: str, x: int, event: dict[str, object]) -> str:
    y = _TOP + _ROW + (30 if kind == "fault" else 44)
    shapes = {
        "resume": f"M{x - 5},{y + 5} L{x + 5},{y + 5} L{x},{y - 5} Z",
        "fault": f"M{x - 4},{y - 4} L{x + 4},{y + 4} M{x + 4},{y - 4} L{x - 4},{y + 4}",
    }
    title = escape(f"step {event['step']}: {event['kind']}")
    return f'<path class="mark {kind}" d="{shapes[kind]}"><title>{title}</title></path>'
