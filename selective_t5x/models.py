"""T5X models of the suite."""

from t5x import models


class LanguageModel(models.DecoderOnlyModel):
  """T5X's decoder-only model."""
