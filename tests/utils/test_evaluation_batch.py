"""The windows of an evaluation pass where no flag says."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import Config
from utils.evaluation_batch import CPU_TOKENS, GPU_TOKENS, PROMPT, windows_per_pass


@given(forecast=st.integers(1, 900), seq_len=st.integers(16, 4096), on_gpu=st.booleans())
@settings(deadline=None, max_examples=60)
def test_a_pass_takes_as_many_tokens_as_it_may_and_a_window_at_least(forecast, seq_len, on_gpu):
    """862 variables by a batch of training, 32, were 27,584 series at once."""
    config = Config.from_flat({"seq_len": seq_len, "label_len": 0})
    windows = windows_per_pass(config, forecast=forecast, on_gpu=on_gpu)
    a_window = forecast * (PROMPT + config.patch_count)
    most = GPU_TOKENS if on_gpu else CPU_TOKENS
    assert windows >= 1 and (windows == 1 or windows * a_window <= most) and (windows + 1) * a_window > most


def test_a_number_that_is_given_stays_and_a_model_without_tokens_keeps_its_batch():
    given_one = Config.from_flat({"eval_batch_size": 3})
    assert windows_per_pass(given_one, forecast=7, on_gpu=False) == 3
    assert windows_per_pass(Config.from_flat({"model": "DLinear"}), forecast=7, on_gpu=False) == 32
