"""--debug_shapes and --dump_prompt say what the run at hand does, and change nothing of it."""

from __future__ import annotations

import re

from utils.training.run_folder import LOG_FILE

BOTH = {"use_tapr": True, "use_gram": True, "dropout": 0.3}


def test_the_run_says_its_shapes_and_its_first_prompts(start_run):
    result = start_run(debug_shapes=True, dump_prompt=True, **BOTH)
    log = (result.run_dir / LOG_FILE).read_text(encoding="utf-8")
    table, rest = log.split("x_enc: [4, 32, 2]", 1)
    assert re.search(r"^Input +\[4, 32, 2\]", table, re.M) and re.search(r"^LLM Input +\[8, ", table, re.M)
    assert rest.count("prompt of ") == 2 and "prompt of OT: " in rest
    assert "Goal: continue a column by 8 rows after 32 known ones." in rest


def test_without_the_flags_nothing_is_said(start_run):
    log = (start_run(**BOTH).run_dir / LOG_FILE).read_text(encoding="utf-8")
    assert "LLM Input" not in log and "prompt of" not in log
