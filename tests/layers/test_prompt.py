"""Properties of `layers.prompt`: statistics of windows, their wording and their tokens."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from layers.llm import load_llm
from layers.prompt import PromptBuilder, PromptStatistics, window_statistics
from utils.config import LLMConfig
from utils.prompt_bank import describe

L = 96
TINY = ("tiny_gpt2", "tiny_llama", "tiny_bert")


def windows(count: int = 6, length: int = L, seed: int = 0) -> Tensor:
    """Random walks, standardised, [count, length]."""
    x = torch.randn(count, length, generator=torch.Generator().manual_seed(seed)).cumsum(dim=-1)
    return (x - x.mean(dim=-1, keepdim=True)) / x.std(dim=-1, keepdim=True)


def builder_for(folder: Path, *, digits: int = 3, length: int = L) -> PromptBuilder:
    tokenizer = load_llm(LLMConfig(llm_model_path=str(folder), llm_layers=1)).tokenizer
    return PromptBuilder(tokenizer, "some  readings\n", seq_len=length, pred_len=24, digits=digits)


@pytest.fixture(params=TINY)
def builder(request: pytest.FixtureRequest) -> PromptBuilder:
    return builder_for(request.getfixturevalue(request.param))


def autocorrelation(x: Tensor) -> Tensor:
    """Plain circular autocorrelation of one window, lags 0 .. L-1, float64, 1 at lag 0."""
    x = x.double() - x.double().mean()
    return torch.stack([(x * x.roll(-lag)).sum() for lag in range(len(x))]) / (x * x).sum()


@pytest.mark.parametrize("length", [480, 512])
def test_period_is_among_the_lags(length: int) -> None:
    """The top-5 lags were {0, 1, 2, 510, 511} in nine windows of ten."""
    x = torch.sin(2 * math.pi * torch.arange(length) / 24)[None]
    assert 24 in window_statistics(x).lags[0]


def test_pure_season_gives_its_multiples_shortest_first() -> None:
    """Equal lags came in an order that rounding noise chose, another one on a GPU."""
    phase = torch.linspace(0, 3, 50)[:, None]
    x = 7 + 0.3 * torch.sin(2 * math.pi * torch.arange(480) / 24 + phase)
    assert window_statistics(x).lags.tolist() == [[24, 48, 72, 96, 120]] * 50


@pytest.mark.parametrize("length", [1, 2, 3, 8, 11, 95, 96, 512])
def test_lags_exclude_zero_and_mirrors(length: int) -> None:
    """Lag 0 always wins and lag L - k says what lag k says."""
    lags = window_statistics(windows(20, max(length, 2))[:, :length]).lags
    assert lags.shape == (20, min(5, length // 2))
    assert lags.dtype == torch.int64
    assert ((lags >= 1) & (lags <= length // 2)).all()
    assert all(len(set(row)) == len(row) for row in lags.tolist())


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_lags_equal_brute_force(offset: float) -> None:
    """Float32 FFT of a series far from zero loses the differences between lags."""
    x = windows(30, 97) + offset
    for row, lags in zip(x, window_statistics(x).lags, strict=True):
        reference = autocorrelation(row).round(decimals=5)  # lag 48 and its mirror 49 are equal
        is_peak = (reference > reference.roll(1)) & (reference >= reference.roll(-1))
        rank = reference + 4 * is_peak  # local maxima come first
        best = rank[1 : 97 // 2 + 1].topk(5).values
        torch.testing.assert_close(rank[lags], best, rtol=0, atol=5e-5)


def test_lags_of_a_smooth_series_are_not_those_next_to_zero() -> None:
    """On real data a third of all windows had the lags 1 2 3 4 5, which only say "smooth"."""
    wander = torch.randn(20, 512, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    daily = 2 * torch.sin(torch.arange(512) * 2 * torch.pi / 24)
    assert (window_statistics(wander + daily).lags[:, 0] > 5).all()


def test_plain_statistics_match_their_definitions() -> None:
    """Trend as a difference of end points must be the sum of first differences."""
    x = windows()
    found = window_statistics(x)
    assert torch.equal(found.minimum, x.amin(dim=-1))
    assert torch.equal(found.maximum, x.amax(dim=-1))
    assert torch.equal(found.median, x.median(dim=-1).values)
    torch.testing.assert_close(found.trend, x.diff(dim=-1).sum(dim=-1))


def test_statistics_have_no_gradient_and_ignore_autocast() -> None:
    """In mixed precision the statistics, and so the prompt, were those of rounded values."""
    x = windows().requires_grad_()
    plain = window_statistics(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = window_statistics(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))
    assert not any(t.requires_grad for t in plain)


@pytest.mark.parametrize("value", [0.0, 0.1, -7e5, 1e-30])
def test_constant_window_is_finite_and_deterministic(value: float, tiny_llama: Path) -> None:
    """A sensor that stands still gave NaN, or lags made of rounding noise."""
    for length in (L, 97, 331, 512):
        found = window_statistics(torch.full((2, length), value))
        assert found.lags.tolist() == [[1, 2, 3, 4, 5]] * 2
        assert all(t.isfinite().all() for t in found)
        assert "level" in builder_for(tiny_llama).texts(found)[0]


@pytest.mark.parametrize("digits", [0, 2, 3])
def test_text_has_fixed_precision(digits: int, tiny_llama: Path) -> None:
    """Full-precision floats cost 40 tokens a prompt; -0.00 and 0.00 are one value."""
    builder = builder_for(tiny_llama, digits=digits)
    third = torch.tensor([1 / 3])
    text = builder.texts(PromptStatistics(-third * 1e-6, third, -third, -third, torch.tensor([[7, 3]])))[0]
    zero, number = f"{0:.{digits}f}", f"{1 / 3:.{digits}f}"
    middle = number if digits == 0 else f"-{number}"
    assert text.endswith(f"Range {zero} to {number}, median {middle}, falling, strongest lags 7 3.")


def test_text_begins_with_data_and_task(builder: PromptBuilder) -> None:
    """The prompt's content was set after the model was built, so it was not in it."""
    for text in builder.texts(window_statistics(windows())):
        assert text.startswith(builder.constant_text)
    for part in ("some readings\n", " 24 rows", " 96 known"):
        assert part in builder.constant_text


def test_padding_is_masked_and_never_beside_the_patches(builder: PromptBuilder) -> None:
    """Padding stood, attended to, between prompt and patches. It stands behind what all prompts share."""
    x = torch.cat([windows(), 1000 * windows()])
    ids, mask = builder.tokens(x)
    assert ids.shape == mask.shape
    assert ids.dtype == mask.dtype == torch.int64
    assert (mask[:, -1] == 1).all()
    # BERT's kind frames a text, so its prompts are tokenised whole
    assert (builder.n_constant > 0) == (builder.tokenizer.cls_token_id is None)
    assert mask[:, : builder.n_constant].all()
    assert (ids[:, : builder.n_constant] == ids[:1, : builder.n_constant]).all()
    assert (mask[:, builder.n_constant :].diff(dim=-1) >= 0).all()
    assert mask.min() == 0  # the lengths differ, so something is padded
    assert mask.sum(dim=-1).max() == mask.shape[1]


def test_prompt_does_not_depend_on_neighbours(builder: PromptBuilder) -> None:
    """A window's forecast depended on the batch that it came in."""
    x = torch.cat([windows(), 1000 * windows()])
    ids, mask = builder.tokens(x)
    for row, row_mask, window in zip(ids, mask, x, strict=True):
        alone, alone_mask = builder.tokens(window[None])
        assert alone_mask.all()
        assert torch.equal(row[row_mask.bool()], alone[0])


def test_tokens_are_the_tokenizers_own(builder: PromptBuilder) -> None:
    """Text tokenised in parts must give the tokens of the whole, special tokens included."""
    x = torch.cat([windows(40), 1000 * windows(40, seed=1)])
    ids, mask = builder.tokens(x)
    for text, row, row_mask in zip(builder.texts(window_statistics(x)), ids, mask, strict=True):
        assert row[row_mask.bool()].tolist() == builder.tokenizer(text)["input_ids"]


def test_special_tokens(tiny_gpt2: Path, tiny_llama: Path, tiny_bert: Path) -> None:
    """A begin token is kept where the tokenizer adds one; only BERT's kind ends its text."""
    first = {}
    for folder in (tiny_gpt2, tiny_llama, tiny_bert):
        builder = builder_for(folder)
        ids = builder.tokens(windows(1))[0][0].tolist()
        special = builder.tokenizer.all_special_ids
        first[folder.name] = [i for i in (0, -1) if ids[i] in special]
    assert first == {"tiny-gpt2": [], "tiny-llama": [0], "tiny-bert": [0, -1]}


def test_closing_token_of_a_decoder_is_left_out(tiny_bert: Path) -> None:
    """An end-of-text between prompt and patches tells a decoder to forget the prompt."""
    tokenizer = load_llm(LLMConfig(llm_model_path=str(tiny_bert), llm_layers=1)).tokenizer
    tokenizer.cls_token = None  # frames each text, yet is not BERT's kind
    builder = PromptBuilder(tokenizer, "x", seq_len=L, pred_len=24, digits=2)
    ids = builder.tokens(windows(1))[0][0]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] != tokenizer.eos_token_id


@pytest.mark.parametrize("shape", [(2, 95), (0, L), (L,)])
def test_wrong_shape_names_both(shape: tuple[int, ...], builder: PromptBuilder) -> None:
    """The text would state a lookback that is not the window's."""
    with pytest.raises(ValueError) as caught:
        builder.tokens(torch.zeros(shape))
    assert f"expected [S, 96], S > 0, found {list(shape)}" in str(caught.value)


def test_smollm2_prompt_is_short_and_split_at_the_constant(smollm2: str) -> None:
    """At full precision the prompt took 164 of SmolLM2's tokens, each read by every layer."""
    tokenizer = load_llm(LLMConfig(llm_model=smollm2, llm_layers=1)).tokenizer
    builder = PromptBuilder(tokenizer, describe("ETTh1"), seq_len=512, pred_len=96, digits=3)
    x = windows(8, 512)
    ids, mask = builder.tokens(x)
    assert ids.shape[1] <= 150
    assert builder._constant_ids is not None
    for text, row, row_mask in zip(builder.texts(window_statistics(x)), ids, mask, strict=True):
        assert row[row_mask.bool()].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.gpu
def test_same_prompt_on_a_gpu() -> None:
    """The FFT's rounding differs between devices; the prompt must not."""
    x = windows(64, 512)
    found, reference = window_statistics(x.cuda()), window_statistics(x)
    for a, b in zip(found[:4], reference[:4], strict=True):
        assert torch.equal(a.cpu(), b)
    assert (found.lags.cpu() == reference.lags).all(dim=-1).float().mean() > 0.95
