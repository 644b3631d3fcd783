"""A task of one's own: copy this file, change it, name it in a run."""

import functools

import seqio
from t5.data import preprocessors

from selective_t5x.tasks import metrics, sources, vocabularies

# Each line is inputs, a tab and targets.
FILES = {'train': 'train.tsv', 'validation': 'validation.tsv'}
FEATURE = seqio.Feature(vocabularies.TaskVocabulary('my_task'), add_eos=True)

seqio.TaskRegistry.add(
  'my_task',
  source=sources.TextLineSource(FILES),
  preprocessors=[
    functools.partial(
      preprocessors.parse_tsv, field_names=['inputs', 'targets']
    ),
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos_after_trim,
  ],
  output_features={'inputs': FEATURE, 'targets': FEATURE},
  metric_objs=[metrics.of_scores(metrics.exact_match)],
)
