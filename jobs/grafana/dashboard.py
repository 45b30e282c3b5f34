"""Write the Grafana dashboard from ``panels.py``; its JSON is checked in, so that using it needs no Python.

python jobs/grafana/dashboard.py > jobs/grafana/dashboards/ppar.json
"""

from __future__ import annotations

import sys
from typing import TypeAlias

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model
from panels import ROWS, Panel

_HEIGHT = {"stat": 4, "lines": 8, "stages": 8}  # of a grid row of 30 pixels
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_STAGES = {"0": "warm-up", "1": "text", "2": "visual text", "3": "pixel"}

Built: TypeAlias = stat.Panel | timeseries.Panel


def build() -> str:
    """The dashboard as JSON."""
    page = (
        dashboard.Dashboard("PPAR training")
        .uid("ppar-training")
        .description("Alignment stages, sample weights, prototypes and the health of a training run.")
        .tags(["ppar", "training"])
        .refresh("10s")
        .time("now-3h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_run_variable())
        .annotation(_alerts())
    )
    number = 0
    for title, panels in ROWS:
        page = page.with_row(dashboard.Row(title))
        for panel in panels:
            number += 1
            page = page.with_panel(_built(panel).id(number))
    text: str = JSONEncoder(sort_keys=True, indent=2).encode(page.build()) + "\n"
    return text


def _run_variable() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("run")
        .label("Run")
        .datasource(_SOURCE)
        .query("label_values(ppar_alignment_stage, run)")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )


def _alerts() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(_SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertstate="firing",run="$run"}')
    )


def _built(panel: Panel) -> Built:
    made: Built = stat.Panel() if panel.kind == "stat" else _lines(panel)
    made = (
        made.title(panel.title)
        .description(f"Good: {panel.good}.")
        .datasource(_SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(_HEIGHT[panel.kind])
        .thresholds(_thresholds(panel))
    )
    if panel.low is not None:
        made = made.min(panel.low)
    if panel.high is not None:
        made = made.max(panel.high)
    for number, query in enumerate(panel.queries):
        target = (
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
        )
        made = made.with_target(target.instant() if panel.kind == "stat" else target.range())
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .line_width(2)
        .show_points(options.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
            .calcs(["lastNotNull"])
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(options.TooltipDisplayMode.MULTI)
            .sort(options.SortOrder.DESCENDING)
        )
    )
    if panel.kind == "stages":
        names = {value: model.ValueMappingResult(text=name) for value, name in _STAGES.items()}
        made = made.line_interpolation(options.LineInterpolation.STEP_AFTER).fill_opacity(20)
        made = made.mappings([model.ValueMap(options=names)]).decimals(0)
    return made


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [model.Threshold(value=None, color="text")]
    if panel.warn_above is not None:
        steps.append(model.Threshold(value=panel.warn_above, color="orange"))
    if panel.warn_below is not None:
        steps = [
            model.Threshold(value=None, color="orange"),
            model.Threshold(value=panel.warn_below, color="text"),
        ]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


if __name__ == "__main__":
    sys.stdout.write(build())
