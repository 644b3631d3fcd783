"""Makes small random T5s with transformers, and what they compute.

  .venv-hf/bin/python -m tools.hugging_face_models tests/convert/golden

It needs PyTorch (make install-hf). Each model is a folder that save_pretrained
wrote, beside outputs.npz:
  inputs: i32[B, K], padded with 0.
  targets: i32[B, N], padded with 0.
  encoded: f32[B, K / 10, M], every tenth position of the encoder's output;
    meaningless where inputs are 0.
  logits: f32[B, N, V], with teacher forcing; meaningless where targets are 0.
  generated: i32[B, NEW_TOKENS], greedy, 0 after the end of a sequence.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

# 26 pieces of seqio's test vocabulary, 100 sentinels, two ids without a token.
VOCAB_SIZE = 128
NEW_TOKENS = 12
# Distances of 128 and more share a bias.
INPUT_LENGTH, TARGET_LENGTH = 140, 9
# H * D is not M, and no two sizes are equal, or a mistake could go unseen.
SIZES = dict(
  vocab_size=VOCAB_SIZE,
  d_model=16,
  d_kv=4,
  num_heads=3,
  d_ff=20,
  num_layers=2,
  num_decoder_layers=1,
  decoder_start_token_id=0,
)
# {name: (class of the model, of its configuration, settings, own head)}
MODELS = {
  't5_1_0': (
    transformers.T5ForConditionalGeneration,
    transformers.T5Config,
    dict(feed_forward_proj='relu'),
    False,
  ),
  't5_1_1': (
    transformers.T5ForConditionalGeneration,
    transformers.T5Config,
    dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    True,
  ),
  'ul2': (
    transformers.T5ForConditionalGeneration,
    transformers.T5Config,
    dict(feed_forward_proj='gated-silu', tie_word_embeddings=False),
    True,
  ),
  'mt5': (
    transformers.MT5ForConditionalGeneration,
    transformers.MT5Config,
    dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    True,
  ),
}


def build(name: str, seed: int = 0) -> transformers.PreTrainedModel:
  """Returns a random model, whose parameters are all of unit scale."""
  model_class, config_class, settings, own_head = MODELS[name]
  config = config_class(**SIZES, **settings)
  model = model_class(config)
  if own_head:  # transformers 5 ties all of them until told otherwise.
    head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
    model.set_output_embeddings(head)
    assert model.lm_head.weight is not model.shared.weight
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
      if 'relative_attention_bias' in key:
        scale = 1.0
      if key == 'shared.weight':
        # With larger entries a tied model predicts what it reads.
        scale = 1.0 if own_head else 0.2
      values = scale * torch.randn(parameter.shape, generator=generator)
      parameter.copy_(values + (parameter.ndim == 1))
  return model.eval()


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Returns (inputs, targets) of three rows of different lengths."""
  rng = np.random.default_rng(seed)
  inputs = rng.integers(3, VOCAB_SIZE, (3, INPUT_LENGTH))
  targets = rng.integers(3, VOCAB_SIZE, (3, TARGET_LENGTH))
  for row, (inputs_end, targets_end) in enumerate(((140, 9), (5, 7), (61, 4))):
    inputs[row, inputs_end:] = 0
    targets[row, targets_end:] = 0
  return inputs.astype(np.int32), targets.astype(np.int32)


def outputs(model, inputs: np.ndarray, targets: np.ndarray) -> dict:
  """Returns what the model computes, by the names of the module's docstring."""
  ids, labels = torch.tensor(inputs).long(), torch.tensor(targets).long()
  mask = (ids > 0).long()
  shifted = torch.nn.functional.pad(labels[:, :-1], (1, 0))
  with torch.no_grad():
    result = model(
      input_ids=ids, attention_mask=mask, decoder_input_ids=shifted
    )
    generated = model.generate(
      input_ids=ids,
      attention_mask=mask,
      max_new_tokens=NEW_TOKENS,
      do_sample=False,
      num_beams=1,
    )[:, 1:]
  generated = generated.numpy().astype(np.int32)
  return {
    'inputs': inputs,
    'targets': targets,
    'encoded': result.encoder_last_hidden_state[:, ::10].numpy(),
    'logits': result.logits.numpy(),
    'generated': np.pad(
      generated, ((0, 0), (0, NEW_TOKENS - generated.shape[1]))
    ),
  }


def main(folder: str) -> None:
  """Writes all models into a folder."""
  for number, name in enumerate(MODELS):
    model = build(name, number)
    # One of them in several files.
    size = '20KB' if name == 't5_1_1' else '5GB'
    target = pathlib.Path(folder) / name
    model.save_pretrained(target, max_shard_size=size)
    np.savez_compressed(
      target / 'outputs.npz', **outputs(model, *batch(number))
    )


if __name__ == '__main__':
  main(*sys.argv[1:])
