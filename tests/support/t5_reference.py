"""T5 written out in NumPy from its paper: loops, no masks, one example a time.

Takes the parameters of T5X's examples/t5 and no code of the suite.
"""

import math

import numpy as np

from tests.attention import loops


def bucket(distance, both_ways):
  """The bucket of one distance, key minus query; arXiv 1910.10683, 2.1."""
  count = 16 if both_ways else 32
  start = count if both_ways and distance > 0 else 0
  back = abs(distance) if both_ways else max(-distance, 0)
  exact = count // 2
  if back < exact:
    return start + back
  share = math.log(back / exact) / math.log(128 / exact)
  return start + min(exact + int(share * (count - exact) + 1e-6), count - 1)


def bias(params, queries, keys, both_ways):
  """f[1, H, queries, keys]."""
  table = np.asarray(params['relpos_bias']['rel_embedding'])
  out = np.zeros((1, table.shape[0], queries, keys))
  for i, j in np.ndindex(queries, keys):
    out[0, :, i, j] = table[:, bucket(j - i, both_ways)]
  return out


def norm(params, x):
  mean_square = np.mean(x * x, axis=-1, keepdims=True)
  return x / np.sqrt(mean_square + 1e-6) * np.asarray(params['scale'])


def heads(params, name, x, count):
  return (x @ np.asarray(params[name]['kernel'])).reshape(len(x), count, -1)


def attention(params, x, y, count, biases):
  """Every token of x sees every token of y; [N, M]."""
  query, key, value = (
    heads(params, name, of, count)
    for name, of in (('query', x), ('key', y), ('value', y))
  )
  out = np.zeros(query.shape)
  for h, i in np.ndindex(count, len(x)):
    logits = key[:, h] @ query[i, h]
    if biases is not None:
      logits = logits + biases[0, h, i]
    weights = np.exp(logits - np.max(logits))
    out[i, h] = weights / np.sum(weights) @ value[:, h]
  return out.reshape(len(x), -1) @ np.asarray(params['out']['kernel'])


def causal(params, x, count, biases, selection_head):
  """Self-attention, selective where there is a selection head."""
  query, key, value = (
    heads(params, name, x, count)[None] for name in ('query', 'key', 'value')
  )
  out, _ = loops.attention_loop(
    query, key, value, 1.0, biases, None, selection_head
  )
  return out[0].reshape(len(x), -1) @ np.asarray(params['out']['kernel'])


def feed_forward(params, x):
  def product(name):
    return x @ np.asarray(params[name]['kernel'])

  if 'wi' in params:
    hidden = np.maximum(product('wi'), 0)
  else:
    gate = product('wi_0')
    cubic = gate + 0.044715 * gate**3
    gelu = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * cubic))
    hidden = gelu * product('wi_1')
  return hidden @ np.asarray(params['wo']['kernel'])


def t5(params, inputs, decoder_inputs, count, selection_head=None):
  """The logits of one example, f[N, V]; ids are lists without padding."""
  table = np.asarray(params['token_embedder']['embedding'], np.float64)
  encoder, decoder = params['encoder'], params['decoder']
  x = table[inputs]
  biases = bias(encoder, len(x), len(x), both_ways=True)
  for i in range(sum(name.startswith('layers_') for name in encoder)):
    layer = encoder[f'layers_{i}']
    y = norm(layer['pre_attention_layer_norm'], x)
    x = x + attention(layer['attention'], y, y, count, biases)
    y = norm(layer['pre_mlp_layer_norm'], x)
    x = x + feed_forward(layer['mlp'], y)
  encoded = norm(encoder['encoder_norm'], x)

  return stack(decoder, table, decoder_inputs, count, selection_head, encoded)


def decoder_only(params, inputs, count, selection_head=None):
  """As t5, of T5X's examples/decoder_only."""
  decoder = params['decoder']
  table = np.asarray(decoder['token_embedder']['embedding'], np.float64)
  return stack(decoder, table, inputs, count, selection_head)


def stack(decoder, table, inputs, count, selection_head, encoded=None):
  """The layers of a decoder, to the logits."""
  x = table[inputs]
  biases = bias(decoder, len(x), len(x), both_ways=False)
  for i in range(sum(name.startswith('layers_') for name in decoder)):
    layer = decoder[f'layers_{i}']
    y = norm(layer['pre_self_attention_layer_norm'], x)
    x = x + causal(layer['self_attention'], y, count, biases, selection_head)
    if encoded is not None:
      y = norm(layer['pre_cross_attention_layer_norm'], x)
      x = x + attention(
        layer['encoder_decoder_attention'], y, encoded, count, None
      )
    y = norm(layer['pre_mlp_layer_norm'], x)
    x = x + feed_forward(layer['mlp'], y)
  x = norm(decoder['decoder_norm'], x)
  if 'logits_dense' in decoder:
    return x @ np.asarray(decoder['logits_dense']['kernel'])
  return x @ table.T / math.sqrt(table.shape[1])
