"""T5X models: a Flax module with vocabularies, loss, scores, predictions."""

import jax
import numpy as np
import seqio

from t5x.base_models import (  # noqa: F401
  BaseModel,
  BaseTransformerModel,
  DecodeFnCallable,
  PyTree,
  TokensIdsToLogitsCallable,
)
from t5x.decoder_only import DecoderOnlyModel, remove_prefix  # noqa: F401
from t5x.encoder_decoder import (  # noqa: F401
  DecoderParams,
  EncoderDecoderModel,
)
from t5x.metrics import MetricsMap  # noqa: F401
from t5x.model_metrics import (  # noqa: F401
  compute_base_metrics,
  compute_metrics,
  compute_weighted_accuracy,
  count_packed_examples,
)

Array = np.ndarray | jax.Array
PyTreeDef = jax.tree_util.PyTreeDef


def get_input_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
  """Returns the vocabulary of the inputs."""
  return model.input_vocabulary


def get_output_vocabulary(model: BaseTransformerModel) -> seqio.Vocabulary:
  """Returns the vocabulary of the targets."""
  return model.output_vocabulary


# Saved gin configurations and pickles name these as T5X's do.
for _cls in (EncoderDecoderModel, DecoderOnlyModel):
  _cls.__module__ = _cls.predict_batch_with_aux.__module__ = __name__
