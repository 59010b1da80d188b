"""What all studies found, in short, for ``docs/results.md`` and ``claude3.md``; from their folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from scripts.lib.ablation.cells import queue_of
from scripts.lib.ablation.document import Page, Points, Table
from scripts.lib.ablation.findings import Findings, Place
from scripts.lib.ablation.plan import estimate
from scripts.lib.ablation.plan_file import PLAN
from scripts.lib.ablation.precision import kept_precision
from scripts.lib.ablation.report import MARKDOWN
from scripts.lib.ablation.sections import score_row, sentence
from scripts.lib.ablation.store import kept_elsewhere
from scripts.lib.ablation.study import read_study
from scripts.lib.benchmark.table import place
from utils.training.time_estimate import clock_text

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"
EARLIER = "earlier"
"""Folder of results that were made before today's start and modules; no cell of today's is taken from it."""
LEFT_HEADER = ("study", "cells", "about", "command")
HEADER = ("configuration", "seeds", "test MSE", "test MAE", "kept step 0")
SCORES_BEGIN, SCORES_END = "<!-- scores: begin -->", "<!-- scores: end -->"


def write_overview(results: Path, document: Path, *, studies: Iterable[Path]) -> Path:
    """Write what each study in ``results`` found between the markers of ``document``, which is returned.

    Args:
        results: folder of the studies' folders.
        document: a Markdown file with the lines `BEGIN` and `END`.
        studies: study files; of those with cells that no study has run, it says how many and how long.

    Raises:
        ValueError: the document has no markers.
    """
    page = Page()
    for folder, findings in _studies_with_results(results):
        _add(page, findings, os.path.relpath(folder / MARKDOWN, document.parent))
    if rows := tuple(_left_to_run(sorted(studies), results)):
        page.add(Table("Left to run; the time is one core's, by the cells that have run", LEFT_HEADER, rows))
    place(page.markdown(), document, markers=(BEGIN, END))
    return document


def write_scores(results: Path, document: Path) -> Path:
    """Write the scores of all studies in ``results`` as one table between the markers of ``document``.

    Args:
        results: folder of the studies' folders.
        document: a Markdown file with the lines `SCORES_BEGIN` and `SCORES_END`; it is returned.

    Raises:
        ValueError: the document has no markers.
    """
    rows = [
        (f"[{folder.name}]({os.path.relpath(folder / MARKDOWN, document.parent)}), {where}", *row)
        for folder, findings in _studies_with_results(results)
        for where in [_first_place(findings)]
        for row in _score_rows(findings, where)
    ]
    page = Page([Table("Test scores; mean ± deviation over seeds", ("study", *HEADER), tuple(rows))])
    place(page.markdown(), document, markers=(SCORES_BEGIN, SCORES_END))
    return document


def _studies_with_results(results: Path) -> Iterator[tuple[Path, Findings]]:
    """The folder of each study that has any result, and what is in it; those of earlier code last."""
    for folder in (*_folders(results), *_folders(results / EARLIER)):
        findings = Findings(folder)
        if findings.results:
            yield folder, findings


def _folders(results: Path) -> list[Path]:
    return sorted(plan.parent for plan in results.glob(f"*/{PLAN}"))


def _left_to_run(studies: Iterable[Path], results: Path) -> Iterator[tuple[str, ...]]:
    """Study, cells without a result in any study, their time, and the command, where there are some."""
    for path in studies:
        study = read_study(path)
        queue = queue_of([study], {study.name: kept_precision(study, results)})
        left = [item for item in queue if kept_elsewhere(results, item[0]) is None]
        if left:
            seconds = estimate([study], left, results).total(left)
            command = f"`python scripts/ablation.py scripts/studies/{path.name}`"
            yield study.title, f"{len(left)} of {len(queue)}", clock_text(seconds), command


def _first_place(findings: Findings) -> Place:
    """The first data set and horizon that has any result."""
    return next(p for p in findings.places if any(findings.at(name, p) for name in findings.configurations))


def _score_rows(findings: Findings, where: Place) -> tuple[tuple[str, ...], ...]:
    """Configuration, seeds, MSE and MAE of each configuration that is planned there."""
    planned = [name for name in findings.configurations if (name, where) in findings.planned]
    rows = (score_row(findings, name, where) for name in planned)
    return tuple((*row[: len(HEADER) - 1], row[-1]) for row in rows)


def _add(page: Page, findings: Findings, link: str) -> None:
    """A study's scores at the first place that has any, and what its comparisons say so far."""
    plan = findings.plan
    where = _first_place(findings)
    run = len(plan["cells"]) - len(findings.missing)
    earlier = ", with earlier code" if EARLIER in Path(link).parts else ""
    title = f"[{plan['title']}]({link}), {where}{earlier}; {run} of {len(plan['cells'])} planned cells run"
    setting = f" ({plan['setting']})" if plan["setting"] else ""
    page.add(Table(title + setting, HEADER, _score_rows(findings, where)))
    said = [*findings.differences("primary"), *findings.differences("secondary")]
    if said:
        page.add(Points(tuple(sentence(findings, d) for d in said)))
