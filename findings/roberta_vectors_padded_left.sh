#!/usr/bin/env bash
# transformers 5.23.0: RoBERTa, fed its own word vectors with padding on the left, gives another result.
#
# Expected: model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask) equals model(ids, mask).
#   Without padding it does, and with padding on the right too.
# Happens: from ids RoBERTa numbers the words alone, from its padding index + 1. From vectors it cannot see the padding
#   and does not look at the mask, so that masked padding on the left moves every word's position. The word vectors are
#   the same to the last bit, the hidden states are not. The whole family shares it (XLM-R, CamemBERT, ...).
# Seen:
#   ids, padded on the left, against ids alone: 0.00
#   vectors alone, and padded on the right: 0.00 0.00
#   vectors, padded on the left: 11.58 (the hidden states' own spread is 5.01)
# Why it matters: models that forecast through a language model feed vectors (patches, soft prompts) and batch windows
#   with prompts of unlike lengths: a window's forecast then depends on its neighbours in the batch. Pass position_ids.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3.11}"
"$python" -m venv --without-pip "$work/venv"
install() { "$python" -m pip --python "$work/venv/bin/python" install --disable-pip-version-check --no-compile -q "$@"; }
install torch==2.13.0
install numpy==2.3.5 transformers==5.23.0

"$work/venv/bin/python" - 2> "$work/errors" <<'PY' || { tail -n 3 "$work/errors"; exit 1; }
import torch
from transformers import RobertaConfig, RobertaModel

torch.manual_seed(0)
shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
config = RobertaConfig(vocab_size=99, max_position_embeddings=40, pad_token_id=1, **shape)
model = RobertaModel(config, add_pooling_layer=False).eval()
for weight in model.parameters():
    weight.data.mul_(5)  # random weights of the size that training gives
words, padding = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.ones(1, 4, dtype=torch.long)
left, right = torch.cat([padding, words], 1), torch.cat([words, padding], 1)


@torch.no_grad()
def hidden(ids: torch.Tensor, as_vectors: bool, **extra: torch.Tensor) -> torch.Tensor:
    """The states of the words, (6, 32)."""
    mask = ids != 1
    given = {"inputs_embeds": model.get_input_embeddings()(ids)} if as_vectors else {"input_ids": ids}
    return model(**given, attention_mask=mask.long(), **extra).last_hidden_state[mask]


def gap(other: torch.Tensor) -> float:
    return float((other - hidden(words, as_vectors=False)).abs().max())


by_ids = gap(hidden(left, as_vectors=False))
alone, on_right = gap(hidden(words, as_vectors=True)), gap(hidden(right, as_vectors=True))
on_left = gap(hidden(left, as_vectors=True))
positions = torch.tensor([[1, 1, 1, 1, 2, 3, 4, 5, 6, 7]])
mended = gap(hidden(left, as_vectors=True, position_ids=positions))
spread = float(hidden(words, as_vectors=False).std())
print(f"ids, padded on the left, against ids alone: {by_ids:.2f}")
print(f"vectors alone, and padded on the right: {alone:.2f} {on_right:.2f}")
print(f"vectors, padded on the left: {on_left:.2f} (the hidden states' own spread is {spread:.2f})")
assert max(by_ids, alone, on_right, mended) < 1e-3, "the references changed"
assert on_left > 0.1, "CHANGED: vectors padded on the left are right now"
PY
