"""What all studies found, in short, for ``docs/results.md``; from their folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from scripts.ablating.document import Page, Paragraph, Points, Table
from scripts.ablating.findings import Findings
from scripts.ablating.planned import PLAN
from scripts.ablating.report import MARKDOWN
from scripts.ablating.sections import score_row, sentence
from scripts.benching.table import place

BEGIN, END = "<!-- studies: begin -->", "<!-- studies: end -->"


def write_overview(results: Path, document: Path, *, studies: Iterable[Path]) -> Path:
    """Write what each study in ``results`` found between the markers of ``document``, which is returned.

    Args:
        results: folder of the studies' folders.
        document: a Markdown file with the lines `BEGIN` and `END`.
        studies: study files; those without a result are named as not run.

    Raises:
        ValueError: the document has no markers.
    """
    page, there = Page(), set()
    for folder in sorted(plan.parent for plan in results.glob(f"*/{PLAN}")):
        findings = Findings(folder)
        if findings.results:
            there.add(folder.name)
            _add(page, findings, os.path.relpath(folder / MARKDOWN, document.parent))
    lacking = sorted(path.stem for path in studies if path.stem not in there)
    if lacking:
        page.add(Paragraph(f"Not run: {', '.join(f'`{name}`' for name in lacking)}."))
    place(page.markdown(), document, markers=(BEGIN, END))
    return document


def _add(page: Page, findings: Findings, link: str) -> None:
    """A study's scores at the first place that has any, and what its comparisons say so far."""
    plan = findings.plan
    where = next(p for p in findings.places if any(findings.at(name, p) for name in findings.configurations))
    run = len(plan["cells"]) - len(findings.missing)
    rows = [score_row(findings, n, where) for n in findings.configurations if (n, where) in findings.planned]
    title = f"[{plan['title']}]({link}), {where}; {run} of {len(plan['cells'])} planned cells run"
    setting = f" ({plan['setting']})" if plan["setting"] else ""
    header = ("configuration", "seeds", "test MSE", "test MAE")
    page.add(Table(title + setting, header, tuple(row[:4] for row in rows)))
    said = [*findings.differences("primary"), *findings.differences("secondary")]
    if said:
        page.add(Points(tuple(sentence(findings, d) for d in said)))
