"""Changed copies of a model leave the model as it is."""

import dataclasses
import types

import numpy as np

from selective_t5x.nn import model_copies


@dataclasses.dataclass(frozen=True)
class Config:
  width: int = 1
  depth: int = 2


@dataclasses.dataclass
class Module:
  config: Config

  def clone(self, *, config):
    return Module(config)

  def apply(self, variables, x, *, factor=1, mutable=False):
    return variables['params'] * x * factor * self.config.width, mutable


class Model:
  """Calls its module and sums logits as T5X's models do."""

  def __init__(self):
    self.module = Module(Config())
    self.weight = 3

  def _compute_logits(self, params, batch, dropout_rng=None, mutable=False):
    del dropout_rng
    return self.module.apply({'params': params}, batch, mutable=mutable)

  def loss_fn(self, params, batch, dropout_rng):
    logits, _ = self._compute_logits(params, batch, dropout_rng)
    return self.weight * np.sum(logits)


class Doubled(Model):
  def loss_fn(self, params, batch, dropout_rng):
    logits = self._compute_logits(params, batch)
    copy = model_copies.with_logits(self, logits)
    return 2 * super(Doubled, copy).loss_fn(None, None, None)


def test_with_config_changes_some_fields_of_a_copy():
  model = Model()
  wide = model_copies.with_config(model, width=5)
  assert wide.module.config == Config(5, 2)
  assert wide.weight == 3 and type(wide) is Model
  assert wide.loss_fn(1, np.ones(2), None) == 5 * 6
  assert model.module.config == Config()


def test_with_arguments_adds_to_each_call_of_the_module():
  model = Model()
  tripled = model_copies.with_arguments(model, factor=3)
  assert tripled._compute_logits(2, 5, mutable=['a']) == (30, ['a'])
  assert model._compute_logits(2, 5) == (10, False)
  assert isinstance(model.module, Module)
  assert isinstance(tripled.module, types.SimpleNamespace)


def test_with_logits_computes_none():
  model = Doubled()
  assert model.loss_fn(2, np.ones(4), None) == 2 * 3 * 8
  copy = model_copies.with_logits(model, (np.ones(3), None))
  assert copy.loss_fn(None, None, None) == 2 * 3 * 3
  assert '_compute_logits' not in vars(model)
