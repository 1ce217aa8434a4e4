"""The gate before training: Great Expectations checks a manifest by `data.rules`, on the tables of `data.tables`.

`check` reads `data/<model>/manifest.parquet` and the counts of ingest, and returns a `Result`. It writes only Great
Expectations' own pages, and only if it gets a folder for them.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loopline import tasks
from loopline.data import manifest as manifests
from loopline.data import tables
from loopline.data.rules import BETWEEN, Rule, rules
from loopline.settings import ModelSettings

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Check:
    """One rule, whether it holds, the observed value, some rows that break it, and a remedy."""

    name: str
    sentence: str
    passed: bool
    observed: str
    examples: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """All checks of one manifest. counts: class name -> split -> samples (boxes for detection)."""

    task: str
    samples: int
    counts: dict[str, dict[str, int]]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


def check(path: Path, ingest: Mapping[str, Any], settings: ModelSettings, *, docs: Path | None = None) -> Result:
    """Check the manifest at `path` against `settings.expectations`; if its columns are wrong, check only those.

    ingest: `{"samples": kept, "set_aside": {reason: {"count": n, ...}}}` and, for detection, the same under `boxes` with
    `kept`. docs: a folder whose content Great Expectations' pages replace, None for no pages. Raises LooplineError if the
    file is missing or not a manifest.
    """
    manifests.table(path, columns=[])
    frames = {"columns": tables.columns(path, settings.task)}
    if frames["columns"]["found"].equals(frames["columns"]["wanted"]):
        frames |= tables.derive(path, tasks.find(settings.task), ingest)
    checks = _run(frames, rules(settings, manifests.labels(path)), docs)
    counts: dict[str, dict[str, int]] = {}
    if "classes" in frames:
        for row in frames["classes"].fillna(0).to_dict("records"):
            counts[str(row["row"])] = {split: int(row[split]) for split in manifests.SPLITS}
    return Result(task=settings.task, samples=len(frames.get("samples", ())), counts=counts, checks=checks)


def _run(frames: Mapping[str, pd.DataFrame], demands: list[Rule], docs: Path | None) -> tuple[Check, ...]:
    """Run the rules for the tables in `frames` through Great Expectations; the checks are in the order of the rules."""
    gx = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("manifest")
    shown = {"unexpected_index_column_names": ["row"], "partial_unexpected_count": EXAMPLES}
    if docs is not None:
        shutil.rmtree(docs, ignore_errors=True)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"store_backend": store, "site_index_builder": index, "show_how_to_buttons": False}
        context.add_data_docs_site("pages", {"class_name": "SiteBuilder", **site})
    checks: dict[str, Any] = {}
    for table, frame in frames.items():
        batch = source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        expectations = [_expectation(rule) for rule in demands if rule.table == table]
        suite = gx.ExpectationSuite(table, expectations=expectations)
        validation = gx.ValidationDefinition(name=table, data=batch, suite=context.suites.add(suite))
        validation = context.validation_definitions.add(validation)
        judged = validation.run(
            batch_parameters={"dataframe": frame}, result_format={"result_format": "SUMMARY", **shown}
        )
        checks |= {result.expectation_config.meta["rule"]: result for result in judged.results}
    if docs is not None:
        context.build_data_docs(site_names=["pages"])
    return tuple(_check(rule, checks[rule.name], frames[rule.table]) for rule in demands if rule.name in checks)


def _expectation(rule: Rule) -> Any:
    expectation = getattr(_great_expectations().expectations, f"Expect{rule.kind}")
    return expectation(**rule.options, notes=rule.sentence, meta={"rule": rule.name})


def _check(rule: Rule, judged: Any, frame: pd.DataFrame) -> Check:
    """Great Expectations' result as a `Check`."""
    result = judged.result
    if "observed_value" in result:
        observed = f"{result['observed_value']:,}"
    elif "element_count" not in result:
        raise RuntimeError(f"Great Expectations could not check {rule.name!r}: {judged.exception_info}")
    elif result["unexpected_count"]:
        observed = f"{result['unexpected_count']:,} of {result['element_count']:,} break it"
    elif rule.kind == BETWEEN and frame[rule.options["column"]].notna().any():
        values = frame[rule.options["column"]]
        observed = " to ".join(dict.fromkeys(_number(float(value)) for value in (values.min(), values.max())))
    else:
        observed = f"all {result['element_count']:,}"
    return Check(
        name=rule.name,
        sentence=rule.sentence,
        passed=bool(judged.success),
        observed=observed,
        examples=tuple(_example(index) for index in result.get("partial_unexpected_index_list") or ()),
        remedy=rule.remedy,
    )


def _example(index: Mapping[str, Any]) -> str:
    """A row that breaks an expectation, with the values of its columns."""
    cells = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in index.items() if name != "row"]
    return f"{index['row']}: {', '.join(cells)}"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


@functools.cache
def _great_expectations() -> Any:
    """The library, without telemetry and log lines."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports sre_constants
        # A third of the import time would go into grammars of international addresses, which jsonschema does not need.
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
        import great_expectations

        del sys.modules["rfc3987_syntax"]

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    return great_expectations
