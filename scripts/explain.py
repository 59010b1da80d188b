"""Why a run forecasts a window as it does: ``python scripts/explain.py RUN --window 2017-11-03T00:00``.

Which past windows GRA-M retrieved (when, how near, what came after, what the gate decided, how far they move
the forecast), the trend that TAPR saw, the texts that were seen and the forecast without them, the weights of
the scales, and the words that the source prototypes lean on: in short on screen, whole as JSON, and as a
picture. ``--dump_prompt`` and ``--debug_shapes`` print, and write nothing. Exit status 2 where a user can
mend what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from models.inspection import prompt_lines, watched
from scripts.lib.inspect.explanation import explain
from scripts.lib.inspect.options import LoadedRun, first_row, inspected_run, parser_for
from scripts.lib.inspect.texts import text_lines
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import UserError
from utils.file_names import safe_names
from utils.log import setup_logging
from utils.reporting.window_plot import NEIGHBOURS_SHOWN, plain_word, plot_window
from utils.training.forward import stacked
from utils.training.run_folder import write_json


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Explain one window; the exit status."""
    arguments = _parser().parse_args(argv)
    setup_logging(main_process=True)
    with inspected_run(arguments) as run:
        start = first_row(run, arguments.window)
        if arguments.dump_prompt or arguments.debug_shapes:
            lines = _look_inside(run, start, shapes=arguments.debug_shapes, prompt=arguments.dump_prompt)
        else:
            out = Path(arguments.out) if arguments.out else run.folder / "explain"
            lines = _explained(run, start, arguments.variable or run.forecaster.targets[-1], out)
        for line in lines:
            print(line, flush=True)
    return 0


def _look_inside(run: LoadedRun, start: int, *, shapes: bool, prompt: bool) -> Iterator[str]:
    """The shapes of a pass over the window, and its prompts."""
    f = run.forecaster
    windows = f.windows(run.series, first=start, texts=run.texts)
    if shapes:
        with watched(f.model) as record:
            list(f.states(windows))
        yield from record.lines()
    if prompt:
        yield from prompt_lines(f.model, stacked([windows[0]], f.device), list(f.targets))


def _explained(run: LoadedRun, start: int, variable: str, out: Path) -> Iterator[str]:
    """In short, then where the whole lies."""
    targets = run.forecaster.targets
    if variable not in targets:
        raise UserError(f"--variable: expected one of {', '.join(targets)}, found {variable}")
    found = explain(run, start)
    window = found["window"]
    known, ahead = window["lookback"][1], window["forecast"]
    yield f"{found['data']}, {window['part']}: known until {known}, forecast {ahead[0]} to {ahead[-1]}"
    own = next(v for v in found["variables"] if v["name"] == variable)
    yield from in_short(found, own)
    name = window["forecast"][0].replace(":", "")
    path = out / f"{name}.json"
    write_json(path, found)
    yield f"all {len(targets)} variables: {path}"
    picture = out / f"{name}_{safe_names(targets)[variable]}.png"
    yield f"picture: {plot_window(found, variable, picture)}"


def in_short(found: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """What there is to say about one variable of an explained window."""
    if own["mse"] is not None:
        yield f"{own['name']}: MSE {own['mse']:.4f}, MAE {own['mae']:.4f} (standardised units)"
    yield _trend_line(own["trend"], found["scale_weights"])
    yield from _retrieval_lines(own["retrieval"])
    yield from text_lines(own["texts"])
    arguments = own["words"]
    if arguments is not None:
        chance = found["random_words_cosine"]
        yield f"words: cosine to the nearest; that of a random mixture of words is {chance:.2f}"
        for p in arguments["prototypes"]:
            near = ", ".join(f"{plain_word(lean['word'])} {lean['value']:.2f}" for lean in p["nearest"])
            yield f"  prototype {p['index']} ({p['attention']:.2%} of the attention): {near}"


def _trend_line(trend: Mapping[str, Any] | None, scale_weights: Sequence[float] | None) -> str:
    if trend is None or scale_weights is None:
        return "trend: TAPR is off"
    seen = [
        f"{name} ({share:.0%})"
        for name, share in (
            max(trend[level].items(), key=lambda item: item[1]) for level in ("direction", "magnitude")
        )
    ]
    true = f"true: {trend['true_direction']}, {trend['true_magnitude']}"
    scales = ", ".join(f"{4**i}x {weight:.2f}" for i, weight in enumerate(scale_weights))
    return f"trend: {', '.join(seen)}; {true}; gate {trend['gate']:.2f}; scales {scales}"


def _retrieval_lines(retrieval: Mapping[str, Any] | None) -> Iterator[str]:
    if retrieval is None:
        yield "retrieval: GRA-M is off"
    elif not retrieval["matched"]:
        yield "retrieval: no admissible window in the memory; the gate is 1 by rule"
    else:
        yield (
            f"retrieval: confidence {retrieval['confidence']:.2f}, gate {retrieval['gate']:.3f}; history "
            f"moves the forecast by {retrieval['moved']:.4g} on average, {retrieval['share']:.1%} of its way"
        )
        yield "  (gate 1: the window alone, 0: history alone; distance 1: two random rows of the memory)"
        for n in retrieval["neighbours"][:NEIGHBOURS_SHOWN]:
            how_near = f"distance {n['distance']:.4f}, weight {n['weight']:.3f}"
            yield f"  {n['variable']} until {n['lookback'][1]}: {how_near}, then to {n['future'][1]}"
        more = len(retrieval["neighbours"]) - NEIGHBOURS_SHOWN
        if more > 0:
            yield f"  and {more} more"


def _parser() -> argparse.ArgumentParser:
    parser = parser_for(__doc__)
    add = parser.add_argument
    add("--window", metavar="TIME", help="first step forecast, or number of a test window [the first]")
    add("--variable", help="which one is drawn and told in short [the last]")
    add("--out", action=PathFlag, help="folder of the JSON file and the picture [RUN/explain]")
    add("--dump_prompt", action="store_true", help="print the window's exact prompts and their token counts")
    add("--debug_shapes", action="store_true", help="print the shapes of a pass over the window")
    return parser


if __name__ == "__main__":
    sys.exit(main())
