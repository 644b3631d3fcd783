"""Compiles what a test calls as one program.

An operation at a time, each for itself, takes several times as long.
"""

import functools

import jax


def initial_params(model, shapes, seed=0):
  """Returns the initial parameters of one of T5X's models."""
  return jax.jit(
    lambda key: model.get_initial_variables(key, shapes)['params']
  )(jax.random.key(seed))


def call(function, *arrays, **settings):
  """Returns function(*arrays, **settings); settings are constants."""
  return jax.jit(functools.partial(function, **settings))(*arrays)
