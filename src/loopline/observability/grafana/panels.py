"""What our dashboards are made of: kinds of panels, each with a title, a sentence on what it shows, a unit and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from grafana_foundation_sdk.builders import barchart, common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    AnnotationTarget,
    Dashboard,
    DashboardLink,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TableCellHeight,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from loopline.observability.grafana import SOURCE, TAG

PROMETHEUS = DataSourceRef("prometheus", SOURCE)
ASKED = 'route=~"infer|predict"'
MANY = 'model=~"$model"'  # what a dashboard's reader chose: of several models,
THESE = f'{MANY},version=~"$version"'  # and of several versions
Steps: TypeAlias = Mapping[float, str]  # from this value on, this colour
Panel: TypeAlias = timeseries.Panel | stat.Panel | table.Panel | barchart.Panel | heatmap.Panel


def dashboard(name: str, text: str, variables: Sequence[QueryVariable], *panels: Panel | str) -> Dashboard:
    """Panels from left to right; a word begins a row of that title. Linked with the others, marked with our annotations."""
    made = Dashboard(f"Loopline / {name.capitalize()}").uid(f"loopline-{name}").description(text).tags([TAG])
    made.refresh("30s").time("now-6h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    for variable in variables:
        made.with_variable(variable)
    links = DashboardLink("Loopline").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(False)
    made.link(links.include_vars(True).keep_time(True))
    events = AnnotationQuery().name("Deployments, retrainings, rollbacks").enable(True).icon_color("purple")
    events.datasource(DataSourceRef("grafana", "-- Grafana --"))
    made.annotation(events.target(AnnotationTarget().type("tags").tags([TAG]).match_any(True).limit(100)))
    for panel in panels:
        if isinstance(panel, str):
            made.with_row(Row(panel))
        else:
            made.with_panel(panel)
    return made


def choice(name: str, query: str) -> QueryVariable:
    """A variable with one value."""
    found = QueryVariable(name).query(query).datasource(PROMETHEUS).sort(VariableSort.ALPHABETICAL_ASC)
    return found.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def choices(name: str, query: str) -> QueryVariable:
    """A variable with several values, at first all."""
    # All is `.*`, no list of names: that also takes series without such a label, as of requests for unknown models.
    found = choice(name, query).multi(True).include_all(True).all_value(".*")
    return found.current(VariableOption(True, "All", "$__all"))


MODELS = [choices("model", "label_values(loopline_model_info, model)")]
VERSIONS = [choices("version", f"label_values(loopline_model_info{{{MANY}}}, version)")]


def thresholds(steps: Steps) -> ThresholdsConfig:
    """Green, and from each of these values on another colour."""
    found = [Threshold(None, "green"), *(Threshold(value, colour) for value, colour in steps.items())]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def series(
    title: str,
    text: str,
    unit: str,
    queries: Mapping[str, str],
    *,
    limit: float | None = None,
    zero: bool = True,
    span: int = 12,
) -> timeseries.Panel:
    """Lines over time. queries: legend -> PromQL. limit: a dashed line, red above. zero: show it, even if all is far above."""
    dashes = [
        DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]}),
        DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "text"}),
    ]
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(PROMETHEUS)
        .unit(unit)
        .span(span)
        .height(8)
        .legend(legend.show_legend(True).calcs(["lastNotNull", "max"]))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .override_by_regexp("/^(reference|least|best)/", dashes)  # what the others are held against
    )
    for ref, (name, expr) in zip("ABCDEFGH", queries.items(), strict=False):
        panel.with_target(_query(ref, expr).range().legend_format(name))
    if zero:
        panel.axis_soft_min(0)
    if limit is not None:
        panel.thresholds(thresholds({limit: "red"}))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return panel


def figure(title: str, text: str, unit: str, expr: str, steps: Steps, name: str = "", span: int = 4) -> stat.Panel:
    """One large figure, or one for each series, of now."""
    return (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(PROMETHEUS)
        .unit(unit)
        .span(span)
        .height(4)
        .no_value("-")
        .thresholds(thresholds(steps))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query("A", expr).instant().legend_format(name))
    )


def rows(title: str, text: str, columns: Mapping[str, str], *hide: str, first: str = "", span: int = 12) -> table.Panel:
    """A table of now. columns: head -> PromQL, joined by their labels, which are columns too unless in `hide`.

    A head of "" shows no value. first: the column to sort by, the largest on top.
    """
    panel = table.Panel().title(title).description(text).datasource(PROMETHEUS).span(span).height(8)
    panel.cell_height(TableCellHeight.SM).filterable(True).transformations(_join(columns, hide))
    if first:
        panel.with_transformation(
            DataTransformerConfig(id_val="sortBy", options={"fields": {}, "sort": [{"field": first, "desc": True}]})
        )
    for ref, expr in zip("ABCDEFGH", columns.values(), strict=False):
        panel.with_target(_query(ref, expr).instant().format(PromQueryFormat.TABLE))
    return panel


def bars(title: str, text: str, unit: str, by: str, columns: Mapping[str, str], span: int = 12) -> barchart.Panel:
    """A group of bars of now for each value of the label `by`. columns: legend -> PromQL."""
    panel = barchart.Panel().title(title).description(text).datasource(PROMETHEUS).unit(unit).span(span).height(8)
    panel.x_field(by).show_value(VisibilityMode.NEVER).transformations(_join(columns, ()))
    panel.legend(common.VizLegendOptions().placement(LegendPlacement.BOTTOM).show_legend(True).calcs([]))
    for ref, expr in zip("ABCDEFGH", columns.values(), strict=False):
        panel.with_target(_query(ref, expr).instant().format(PromQueryFormat.TABLE))
    return panel


def density(title: str, text: str, unit: str, expr: str, span: int = 12) -> heatmap.Panel:
    """How many fell in each bucket of a histogram, over time."""
    return (
        heatmap.Panel()
        .title(title)
        .description(text)
        .datasource(PROMETHEUS)
        .span(span)
        .height(8)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .mode(TooltipDisplayMode.SINGLE)
        .with_target(_query("A", expr).range().format(PromQueryFormat.HEATMAP).legend_format("{{le}}"))
    )


def _query(ref: str, expr: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(ref).expr(expr).datasource(PROMETHEUS)


def _join(columns: Mapping[str, str], hide: Sequence[str]) -> list[DataTransformerConfig]:
    """One table of the queries' answers. Grafana calls a value `Value #A` where there are several, `Value` where there is one."""
    values = ["Value"] if len(columns) == 1 else [f"Value #{ref}" for ref in "ABCDEFGH"[: len(columns)]]
    heads = {value: head for value, head in zip(values, columns, strict=True) if head}
    hidden = dict.fromkeys(("Time", "__name__", *hide, *(value for value in values if value not in heads)), True)
    return [
        DataTransformerConfig(id_val="merge", options={}),
        DataTransformerConfig(
            id_val="organize", options={"excludeByName": hidden, "indexByName": {}, "renameByName": heads}
        ),
    ]
