"""``report.md``, its pictures and ``report.html`` of a study, from the files in its folder alone."""

from __future__ import annotations

from pathlib import Path

from scripts.lib.ablation import pictures, sections
from scripts.lib.ablation.document import Code, Heading, Page, Paragraph, Picture, Points, Table
from scripts.lib.ablation.findings import Findings
from utils.atomic_files import whole_file

MARKDOWN = "report.md"
HTML = "report.html"


def write_report(folder: Path) -> Path:
    """Write the report of the study whose results lie in ``folder``; the Markdown file.

    Raises:
        FileNotFoundError: there is no plan.
    """
    findings = Findings(folder)
    page = _page(findings, folder)
    for name, text in ((MARKDOWN, page.markdown()), (HTML, page.html(folder))):
        with whole_file(folder / name) as file:
            file.write(text.encode())
    return folder / MARKDOWN


def _page(findings: Findings, folder: Path) -> Page:
    plan, page = findings.plan, Page()
    command = f"python scripts/ablation.py scripts/studies/{plan['name']}.toml"
    page.add(Heading(plan["title"], 1), Paragraph(plan["question"]))
    if plan["setting"]:
        page.add(Paragraph(f"**{plan['setting'][0].upper()}{plan['setting'][1:]}.**"))
    page.add(Code(f"{command}\n{command} --report_only    # this page, from the files beside it"))
    page.add(Heading("What came out"), *sections.conclusions(findings))
    if plan["notes"]:
        page.add(Points(tuple(plan["notes"])))
    page.add(Heading("Scores"), *sections.score_tables(findings))
    page.add(Heading("Differences"), *sections.difference_tables(findings))
    _add_picture(page, folder, "differences.png", "Differences with their intervals", pictures.forest(
        findings, folder / "differences.png"))  # fmt: skip
    _add_pictures(page, findings, folder)
    page.add(Heading("Cost"), *sections.cost_table(findings))
    page.add(Heading("Not run"), *sections.missing_part(findings, command))
    page.add(Heading("Method"), *sections.method_part(findings))
    page.add(_configurations(findings))
    return page


def _add_pictures(page: Page, findings: Findings, folder: Path) -> None:
    """Curves, errors by step, and what the modules did, at every place that has results."""
    there = [p for p in findings.places if any(findings.at(name, p) for name in findings.compared())]
    if not there:
        return
    page.add(Heading("Along the horizon"))
    text = "Test MSE by step of the horizon; thin lines are single seeds"
    file = "error_by_step.png"
    _add_picture(page, folder, file, text, pictures.error_by_step(findings, there, folder / file))
    for place in there:
        page.add(Heading(f"Training and modules: {place}"))
        name = f"{place.data}_{place.horizon}"
        file = f"training_{name}.png"
        text = "Training loss and validation error; thin lines are single seeds"
        _add_picture(page, folder, file, text, pictures.training_curves(findings, place, folder / file))
        page.add(*sections.class_table(findings, place), *sections.gate_table(findings, place))
        file = f"gates_{name}.png"
        text = "Gate and neighbour weights on the test windows"
        _add_picture(page, folder, file, text, pictures.histograms(findings, place, folder / file))
        page.add(*sections.auxiliary_table(findings, place))


def _add_picture(page: Page, folder: Path, file: str, text: str, drawn: Path | None) -> None:
    """A picture, where there was anything to draw; one of an earlier report goes where there was not."""
    if drawn is None:
        (folder / file).unlink(missing_ok=True)
    else:
        page.add(Picture(file, text))


def _configurations(findings: Findings) -> Table:
    common = " ".join(findings.plan["flags"])
    rows = tuple(
        (c["label"], f"`{' '.join(c['flags'])}`" if c["flags"] else "")
        for c in findings.configurations.values()
    )
    return Table(f"Flags of each configuration, after `{common}`", ("configuration", "flags"), rows)
