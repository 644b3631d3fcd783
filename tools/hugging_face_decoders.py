"""Makes small random decoders with transformers, and what they compute.

  .venv-hf/bin/python -m tools.hugging_face_decoders tests/convert/golden

It needs PyTorch (make install-hf). Each model is a folder that save_pretrained
wrote, beside outputs.npz:
  inputs: i32[B, N], the first of each row the id that sequences begin with.
  logits: f32[B, N, V].
  generated: i32[B, NEW_TOKENS], the greedy continuation of the first
    PROMPT_LENGTH inputs, 0 after the end of a sequence.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

# 26 pieces of seqio's test vocabulary, and ids without a token.
VOCAB_SIZE = 32
LENGTH, PROMPT_LENGTH, NEW_TOKENS = 8, 3, 8
END, BEGIN = 1, 2
# H * D is not M, and no two sizes are equal, or a mistake could go unseen.
SIZES = dict(
  vocab_size=VOCAB_SIZE,
  hidden_size=12,
  intermediate_size=10,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  max_position_embeddings=32,
  pad_token_id=0,
  eos_token_id=END,
)
# {name: (class of the model, of its configuration, settings)}
MODELS = {
  'llama': (
    transformers.LlamaForCausalLM,
    transformers.LlamaConfig,
    dict(
      bos_token_id=BEGIN,
      attention_bias=True,
      mlp_bias=True,
      rms_norm_eps=1e-5,
      rope_parameters=dict(
        rope_type='llama3',
        rope_theta=50.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=24,
      ),
    ),
  ),
  'qwen3': (
    transformers.Qwen3ForCausalLM,
    transformers.Qwen3Config,
    dict(rope_parameters=dict(rope_type='default', rope_theta=1e6)),
  ),
  'gemma': (
    transformers.GemmaForCausalLM,
    transformers.GemmaConfig,
    dict(bos_token_id=BEGIN, num_key_value_heads=1),
  ),
  # These are compared live alone.
  'qwen2': (
    transformers.Qwen2ForCausalLM,
    transformers.Qwen2Config,
    dict(bos_token_id=None, num_attention_heads=2, tie_word_embeddings=True),
  ),
  'mistral': (
    transformers.MistralForCausalLM,
    transformers.MistralConfig,
    dict(bos_token_id=BEGIN, sliding_window=None),
  ),
  'llama_linear': (
    transformers.LlamaForCausalLM,
    transformers.LlamaConfig,
    dict(
      bos_token_id=BEGIN,
      num_key_value_heads=4,
      hidden_act='gelu_new',
      tie_word_embeddings=True,
      rope_parameters=dict(rope_type='linear', rope_theta=90.0, factor=3.0),
    ),
  ),
}
GOLDEN = ('llama', 'qwen3', 'gemma')


def build(name: str, seed: int = 0) -> transformers.PreTrainedModel:
  """Returns a random model, whose parameters are all of unit scale."""
  model_class, config_class, settings = MODELS[name]
  model = model_class(config_class(**(SIZES | settings)))
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
      values = scale * torch.randn(parameter.shape, generator=generator)
      # Norms begin as ones, or Gemma's as zeros; biases as zeros.
      parameter.copy_(values + (parameter.ndim == 1) * parameter)
  return model.eval()


def batch(model: transformers.PreTrainedModel, seed: int = 0) -> np.ndarray:
  """Returns two rows of inputs."""
  rng = np.random.default_rng(seed)
  inputs = rng.integers(3, VOCAB_SIZE, (2, LENGTH)).astype(np.int32)
  begin = model.config.bos_token_id
  inputs[:, 0] = END if begin is None else begin
  return inputs


def outputs(model: transformers.PreTrainedModel, inputs: np.ndarray) -> dict:
  """Returns what the model computes, by the names of the module's docstring."""
  ids = torch.tensor(inputs).long()
  with torch.no_grad():
    logits = model(input_ids=ids).logits
    generated = model.generate(
      input_ids=ids[:, :PROMPT_LENGTH],
      attention_mask=torch.ones_like(ids[:, :PROMPT_LENGTH]),
      max_new_tokens=NEW_TOKENS,
      do_sample=False,
      num_beams=1,
    )[:, PROMPT_LENGTH:]
  generated = generated.numpy().astype(np.int32)
  return {
    'inputs': inputs,
    'logits': logits.numpy(),
    'generated': np.pad(
      generated, ((0, 0), (0, NEW_TOKENS - generated.shape[1]))
    ),
  }


def main(folder: str) -> None:
  """Writes the golden models into a folder."""
  for number, name in enumerate(GOLDEN):
    model = build(name, number)
    target = pathlib.Path(folder) / name
    model.save_pretrained(target)
    np.savez_compressed(
      target / 'outputs.npz', **outputs(model, batch(model, number))
    )


if __name__ == '__main__':
  main(*sys.argv[1:])
