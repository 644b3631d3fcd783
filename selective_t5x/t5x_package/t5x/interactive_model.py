"""A model to train, query and evaluate step by step, as in a notebook."""

import enum
import functools
import inspect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import seqio
import tensorflow as tf
from clu.data import dataset_iterator

from selective_t5x.errors import UserError
from t5x import inference, models, partitioning, trainer, utils

# T5X exports these from this module.
from t5x.interactive_examples import (  # noqa: F401
  Examples,
  Preprocessors,
  get_batches_from_seqio,
  get_dataset_from_natural_text_examples,
  get_seqio_task_from_examples,
)
from t5x.interactive_gin import (  # noqa: F401
  T5XScriptType,
  get_gin_config_from_interactive_model,
)

BatchesType = Sequence[Examples] | Examples
# The pairs (features of an example, its prediction or score), auxiliary values
Inferences = tuple[Sequence[tuple[Any, Any]], Mapping[str, Any]]
_TOKENIZE = (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos)


class InferenceType(enum.Enum):
  """What to compute of examples."""

  PREDICT_WITH_AUX = 1
  SCORE = 2


class InteractiveModel:
  """A model with its train state, for examples given as texts.

  Attributes:
    batch_size: examples of a batch.
    features: the seqio.Features of 'inputs' and 'targets'.
    output_dir: folder of checkpoints and metrics.
    restore_cfg: the checkpoint to restore; None: the latest of output_dir.
    save_cfg: how checkpoints are saved.
    task_feature_lengths: tokens of each feature.
    train_state_axes: the train state with PartitionSpec or None as leaves.
  """

  def __init__(
    self,
    batch_size: int,
    task_feature_lengths: Mapping[str, int],
    output_dir: str,
    partitioner: partitioning.BasePartitioner,
    model: models.BaseTransformerModel,
    dtype: str | None,
    restore_mode: str,
    checkpoint_path: str,
    input_shapes: Mapping[str, Sequence[int]],
    input_types: Mapping[str, Any] | None = None,
    init_random_seed: int = 42,
    add_eos: bool = True,
    eval_names: Sequence[str] | None = None,
  ):
    """Restores a checkpoint, or else the latest of the output folder.

    Args:
      batch_size: examples of a batch.
      task_feature_lengths: tokens of each feature.
      output_dir: folder of checkpoints and metrics.
      partitioner: shards the work.
      model: the model.
      dtype: dtype of saved and restored parameters; None: their own.
      restore_mode: see RestoreCheckpointConfig.mode.
      checkpoint_path: see RestoreCheckpointConfig.path; empty: none.
      input_shapes: shape of each feature of the batch.
      input_types: dtype of each feature; float32 if it is missing.
      init_random_seed: seed of the initial values and of dropout.
      add_eos: whether inputs and targets end with the end of sequence.
      eval_names: names of the trainer's evaluations.
    """
    self.batch_size, self.output_dir = batch_size, output_dir
    self.task_feature_lengths = task_feature_lengths
    self._partitioner, self._model = partitioner, model
    self._infer_fns: dict[Any, Callable] = {}
    os.makedirs(output_dir, exist_ok=True)
    vocabularies = {
      'inputs': model.input_vocabulary,
      'targets': model.output_vocabulary,
    }
    self.features = {
      name: seqio.Feature(vocabulary, add_eos=add_eos)
      for name, vocabulary in vocabularies.items()
    }
    self.save_cfg = utils.SaveCheckpointConfig(dtype=dtype, keep=5, period=1000)
    self.restore_cfg = None
    cfg = utils.RestoreCheckpointConfig(output_dir, dtype=dtype)
    if checkpoint_path:
      cfg = self.restore_cfg = utils.RestoreCheckpointConfig(
        checkpoint_path, mode=restore_mode, dtype=dtype
      )
    initializer = utils.TrainStateInitializer(
      optimizer_def=model.optimizer_def,
      init_fn=model.get_initial_variables,
      input_shapes=input_shapes,
      input_types=input_types,
      partitioner=partitioner,
    )
    init_rng, trainer_rng = jax.random.split(
      jax.random.PRNGKey(init_random_seed)
    )
    state = initializer.from_checkpoint_or_scratch([cfg], init_rng=init_rng)
    self.train_state_axes = initializer.train_state_axes
    self._manager = utils.LegacyCheckpointManager(
      save_cfg=self.save_cfg,
      restore_cfg=None,
      train_state_shape=initializer.global_train_state_shape,
      partitioner=partitioner,
      model_dir=output_dir,
    )
    utils.log_model_info(
      os.path.join(output_dir, 'model-info.txt'),
      initializer.global_train_state_shape,
      partitioner,
    )
    self._trainer = trainer.Trainer(
      model=model,
      train_state=state,
      partitioner=partitioner,
      eval_names=eval_names or [],
      summary_dir=output_dir,
      train_state_axes=self.train_state_axes,
      rng=trainer_rng,
      learning_rate_fn=utils.create_learning_rate_scheduler(),
      num_microbatches=None,
    )
    self._summary = None

  @property
  def trainer(self):
    """The trainer."""
    return self._trainer

  @property
  def partitioner(self):
    """The partitioner."""
    return self._partitioner

  @property
  def model(self):
    """The model."""
    return self._model

  @property
  def train_state(self):
    """The present train state."""
    return self._trainer.train_state

  @property
  def step(self) -> int:
    """The number of steps taken."""
    return int(utils.get_local_data(self.train_state.step))

  @property
  def train_summary(self) -> Mapping[str, Any]:
    """The metrics of the last step."""
    return self._summary.result()

  def train_step(self, examples: Examples) -> None:
    """Takes one step on tokenised examples and saves a checkpoint."""
    self.train_step_with_preprocessors(examples, _TOKENIZE)

  def train_step_with_preprocessors(
    self, examples: Examples, preprocessors: Preprocessors
  ) -> None:
    """Takes one step and saves a checkpoint.

    Args:
      examples: at least one batch.
      preprocessors: seqio's functions of datasets, which make the features.

    Raises:
      UserError: there are fewer examples than a batch has.
    """
    if len(examples) < self.batch_size:
      raise UserError(
        f'{len(examples)} examples are less than a batch, '
        f'{self.batch_size}: decrease the batch_size or provide more examples'
      )
    batches = self._model_features(
      self._dataset(examples, preprocessors)
    ).padded_batch(self.batch_size, drop_remainder=True)
    self.train_step_from_batch_iterator(
      dataset_iterator.TfDatasetIterator(batches, checkpoint=True)
    )
    self.save_checkpoint()

  def train_step_from_batch_iterator(self, iterator) -> None:
    """Takes one step on the next batch of an iterator."""
    self._summary = self._trainer.train(iterator, 1, start_step=self.step)

  def save_checkpoint(self) -> None:
    """Saves a checkpoint into the output folder."""
    self._manager.save(self.train_state, self.save_cfg.state_transformation_fns)

  def _dataset(self, examples, preprocessors) -> tf.data.Dataset:
    return get_dataset_from_natural_text_examples(
      examples, preprocessors, self.task_feature_lengths, self.features
    )

  def _model_features(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    converter = self._model.FEATURE_CONVERTER_CLS(pack=False)
    return converter(dataset, self.task_feature_lengths)

  def infer_with_preprocessors(
    self,
    mode: InferenceType,
    examples: Examples,
    preprocessors: Preprocessors,
    **inference_kwargs,
  ) -> Inferences:
    """Predicts or scores examples.

    Args:
      mode: what to compute.
      examples: the examples.
      preprocessors: seqio's functions of datasets, which make the features.
      **inference_kwargs: further arguments of the model's step.

    Returns:
      ([(features of an example, its prediction or score)], auxiliary values).
    """
    predicts = mode is InferenceType.PREDICT_WITH_AUX
    step = (
      self._model.predict_batch_with_aux
      if predicts
      else self._model.score_batch
    )
    key = (mode, repr(sorted(inference_kwargs.items())))
    if key not in self._infer_fns:
      self._infer_fns[key] = inference.get_infer_fn(
        functools.partial(step, **inference_kwargs),
        self.batch_size,
        self.train_state_axes,
        self._partitioner,
      )
    dataset = self._dataset(examples, preprocessors)
    rows = self._model_features(dataset).enumerate()
    outputs = self._infer_fns[key](
      rows, self.train_state, rng=jax.random.PRNGKey(0)
    )
    pairs, aux = outputs if isinstance(outputs, tuple) else (outputs, {})
    values = [value for _, value in pairs]
    if predicts:
      decode = self.features['targets'].vocabulary.decode
      values = [decode(list(value)).encode() for value in values]
    return list(zip(dataset.as_numpy_iterator(), values, strict=True)), aux

  def predict_with_aux(self, examples: Examples) -> Inferences:
    """Decodes tokenised examples."""
    return self.infer_with_preprocessors(
      InferenceType.PREDICT_WITH_AUX, examples, _TOKENIZE
    )

  def score(self, examples: Examples) -> Sequence[Any]:
    """Returns the pairs (features, log-likelihood of the targets)."""
    scores, _ = self.infer_with_preprocessors(
      InferenceType.SCORE, examples, _TOKENIZE
    )
    return scores

  def evaluate(
    self, examples: Examples, metric_fns: Sequence[Callable]
  ) -> Mapping[str, Any]:
    """Returns the metrics of tokenised examples."""
    return self.evaluate_with_preprocessors(examples, _TOKENIZE, metric_fns)

  def evaluate_with_preprocessors(
    self,
    examples: Examples,
    preprocessors: Preprocessors,
    metric_fns: Sequence[Callable],
    postprocessor: Callable[..., Any] | None = None,
  ) -> Mapping[str, Any]:
    """Returns {name: value} of some metrics.

    Args:
      examples: the examples, with targets.
      preprocessors: seqio's functions of datasets, which make the features.
      metric_fns: functions of (targets, predictions), (targets, predictions,
        aux_values) or (targets, scores), by these names.
      postprocessor: changes the text of a target; called with it, `example` and
        `is_target`.

    Raises:
      UserError: a function has other arguments, or a name comes twice.
    """
    arguments = [tuple(inspect.signature(fn).parameters) for fn in metric_fns]
    known = (
      ('targets', 'predictions'),
      ('targets', 'predictions', 'aux_values'),
      ('targets', 'scores'),
    )
    for names in arguments:
      if names not in known:
        raise UserError(f'a metric has the arguments {names}: expected {known}')
    values: dict[str, Any] = {'targets': []}
    for example in self._dataset(examples, preprocessors).as_numpy_iterator():
      target = example['targets_pretokenized'].decode()
      if postprocessor:
        target = postprocessor(target, example=example, is_target=True)
      values['targets'].append(target)
    if any('predictions' in names for names in arguments):
      pairs, values['aux_values'] = self.infer_with_preprocessors(
        InferenceType.PREDICT_WITH_AUX, examples, preprocessors
      )
      values['predictions'] = [text.decode() for _, text in pairs]
    if any('scores' in names for names in arguments):
      pairs, _ = self.infer_with_preprocessors(
        InferenceType.SCORE, examples, preprocessors
      )
      values['scores'] = [score for _, score in pairs]
    metrics: dict[str, Any] = {}
    for fn, names in zip(metric_fns, arguments, strict=True):
      for name, value in fn(*(values[argument] for argument in names)).items():
        if name in metrics:
          raise UserError(f'two metrics give {name!r}')
        metrics[name] = value
    return metrics

  def train_loop(
    self,
    num_steps: int,
    eval_period: int | None = 1,
    train_batches: Sequence[Any] | None = None,
    predict_batches: Sequence[Examples] | None = None,
    score_batches: Sequence[Examples] | None = None,
    eval_batches: Sequence[Examples] | None = None,
    metrics_fns: Sequence[Callable] | None = None,
  ) -> tuple[Any, Any, Any]:
    """Trains, and predicts, scores and evaluates now and then.

    Args:
      num_steps: number of steps.
      eval_period: steps between the rest.
      train_batches: a batch, or several that are repeated; None: no training.
      predict_batches: batches to predict.
      score_batches: batches to score.
      eval_batches: batches to evaluate.
      metrics_fns: metrics, see `evaluate_with_preprocessors`.

    Returns:
      the last predictions, scores and metrics; None: there were none.
    """
    batches = train_batches or [None]
    if isinstance(batches[0], str | Mapping):
      batches = [batches]
    predictions = scores = metrics = None
    stretch = itertools.islice(itertools.cycle(batches), num_steps)
    for number, batch in enumerate(stretch):
      if batch:
        self.train_step(batch)
      if number % eval_period:
        continue
      for examples in predict_batches or ():
        predictions, _ = self.predict_with_aux(examples)
      for examples in score_batches or ():
        scores = self.score(examples)
      for examples in eval_batches or ():
        metrics = self.evaluate(examples, metrics_fns or ())
    return predictions, scores, metrics
