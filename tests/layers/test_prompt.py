"""Properties of `layers.prompt`: statistics of windows, their wording and their tokens."""

import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from layers.llm.load import load_llm
from layers.normalization import InstanceNorm
from layers.prompt import (
    NO_TOKEN,
    PromptBuilder,
    PromptStatistics,
    WindowPrompts,
    normalised,
    window_statistics,
)
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
    x = windows().double()
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
    ids, mask = builder.tokens(windows(40))
    assert ids.shape == mask.shape == (40, builder.width)
    assert ids.dtype == mask.dtype == torch.int64
    assert (mask[:, -1] == 1).all()
    # BERT's kind frames a text, so its prompts are tokenised whole
    assert (builder.n_constant > 0) == (builder.tokenizer.cls_token_id is None)
    assert mask[:, : builder.n_constant].all()
    assert (ids[:, : builder.n_constant] == ids[:1, : builder.n_constant]).all()
    assert (mask[:, builder.n_constant :].diff(dim=-1) >= 0).all()
    assert mask.min() == 0  # the lengths differ, so something is padded


def test_prompt_does_not_depend_on_neighbours(builder: PromptBuilder) -> None:
    """A window's forecast depended on the batch that it came in: by the length of the padding as well."""
    x = windows(12)
    ids, mask = builder.tokens(x)
    for row, row_mask, window in zip(ids, mask, x, strict=True):
        alone, alone_mask = builder.tokens(window[None])
        assert torch.equal(row, alone[0]) and torch.equal(row_mask, alone_mask[0])


def test_tokens_are_the_tokenizers_own(builder: PromptBuilder) -> None:
    """Text tokenised in parts must give the tokens of the whole, special tokens included."""
    x = windows(80)
    ids, mask = builder.tokens(x)
    texts = builder.texts(window_statistics(normalised(x)))
    for text, row, row_mask, unpadded in zip(texts, ids, mask, builder.ids(x), strict=True):
        wanted = builder.tokenizer(text)["input_ids"]
        assert row[row_mask.bool()].tolist() == wanted
        assert unpadded[: len(wanted)].tolist() == wanted and (unpadded[len(wanted) :] == NO_TOKEN).all()


def hard_windows(count: int, length: int) -> Tensor:
    """Windows of many kinds: walks, noise, seasons, on and off, single peaks, constants; float32."""
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(count, length, generator=draw)
    season = torch.sin(torch.arange(length) * 2 * torch.pi / 24) + 0.1 * noise
    peak = torch.zeros(count, length).scatter(1, torch.randint(length, (count, 1), generator=draw), 1.0)
    level = torch.randn(count, 1, generator=draw).expand(-1, length)
    kinds = [noise.cumsum(-1), noise, season, (noise > 1).float(), peak, level, 1e6 + noise, noise.round()]
    return torch.cat(kinds)


def test_a_windows_text_is_its_own_to_the_bit() -> None:
    """1 or 2 of 11,200 prompts changed with the batch: float32 transforms of several rows at once."""
    x = hard_windows(60, 96)
    together = window_statistics(normalised(x))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = window_statistics(normalised(x[order]))
    alone = [window_statistics(normalised(row[None])) for row in x]
    for name in PromptStatistics._fields:
        whole = getattr(together, name)
        assert torch.equal(getattr(shuffled, name), whole[order]), name
        assert torch.equal(torch.cat([getattr(one, name) for one in alone]), whole), name


def test_prompts_normalise_as_the_model_does() -> None:
    """Statistics of other numbers than those that the patches are made of would mislead the LLM."""
    x = hard_windows(20, 96)[..., None]
    observed = torch.ones_like(x)
    observed[::3, :40] = 0
    for seen in (None, observed):
        wanted, _ = InstanceNorm()(x.double(), None if seen is None else seen.double())
        found = normalised(x[..., 0], None if seen is None else seen[..., 0])
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, wanted[..., 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("digits", [0, 1, 3])
@pytest.mark.parametrize("length", [1, 3, 96, 331])
def test_no_prompt_is_longer_than_the_width(builder: PromptBuilder, digits: int, length: int) -> None:
    """A longer one would move the padding of all the others in its batch."""
    one = PromptBuilder(builder.tokenizer, "x", seq_len=length, pred_len=24, digits=digits)
    found = one.ids(hard_windows(40, length))
    assert found.shape[1] <= one.width <= found.shape[1] + 14
    assert one.tokens(hard_windows(1, length))[0].shape[1] == one.width


def test_a_prompt_beyond_the_width_is_whole(builder: PromptBuilder) -> None:
    """Where a tokenizer breaks the bound, nothing may be cut: the batch is as wide as that prompt."""
    x = windows(20)
    wanted = [row[row != NO_TOKEN].tolist() for row in builder.ids(x)]
    builder.__dict__["width"] = builder.n_constant + 1
    ids, mask = builder.tokens(x)
    assert ids.shape[1] == max(map(len, wanted))
    assert [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)] == wanted


def test_prompts_of_a_batch_are_those_of_its_forecast_variables(builder: PromptBuilder) -> None:
    """With --features MS the last variable alone is told of; M4's windows are counted where they exist."""
    x = windows(6).view(2, 3, L).transpose(1, 2)  # [B, L, N]
    whole = WindowPrompts(builder, targets=None, masked=False)(x)
    last = pickle.loads(pickle.dumps(WindowPrompts(builder, targets=1, masked=False)))(x)
    assert whole.shape[:2] == (2, 3) and last.shape[:2] == (2, 1)
    assert torch.equal(last[:, 0, : builder.n_constant], whole[:, 2, : builder.n_constant])
    assert torch.equal(builder.padded(last[:, 0])[0], builder.padded(whole[:, 2])[0])
    mask = torch.ones(2, L, 1)
    mask[0, :50] = 0
    masked = WindowPrompts(builder, targets=None, masked=True)(x[..., :1], mask)
    wanted = builder.ids(x[..., 0], mask[..., 0])
    assert torch.equal(masked[:, 0], wanted) and not torch.equal(builder.ids(x[..., 0]), wanted)


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
    texts = builder.texts(window_statistics(normalised(x)))
    for text, row, row_mask in zip(texts, ids, mask, strict=True):
        assert row[row_mask.bool()].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.gpu
def test_same_prompt_on_a_gpu(tiny_llama: Path) -> None:
    """The FFT's rounding differs between devices; the prompt must not."""
    x, builder = windows(64, L), builder_for(tiny_llama)
    for found, wanted in zip(builder.tokens(x.cuda()), builder.tokens(x), strict=True):
        assert torch.equal(found.cpu(), wanted)
