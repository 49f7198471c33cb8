"""A Hugging Face model, a small GPT-2 that reads letters (needs transformers)."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import batchlab as bl

torch.manual_seed(0)
shape = {"vocab_size": 96, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4}
model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
x, _ = bl.data.documentation_text(32, tokens=65_536, val=2048, test=2048).train
data = {"input_ids": x, "labels": x}  # (2048, 32) letters
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
batch_size = 32


def loss(model, batch):
    return model(**batch).loss
