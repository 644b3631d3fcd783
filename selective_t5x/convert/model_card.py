"""Writes README.md, the model card of an exported model."""

import pathlib
from collections.abc import Iterator

from selective_t5x.convert.targets import Target
from selective_t5x.runs import summary
from selective_t5x.runs.files import RUN_FILE, SUMMARY_FILE
from selective_t5x.runs.record import read_runs

FILE = 'README.md'
# Those of runs.metrics that say how good a model is.
_METRICS = {
  'loss_per_token': 'loss, nats a token',
  'accuracy': 'accuracy of the next token',
}

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {task}
tags:
- t5x
---

# {name}

{described} with {parameters:,} parameters: {kind}.
`python -m selective_t5x.convert` exported it from the T5X checkpoint
`{checkpoint}`.

```python
from transformers import {classes}

{tokenizer}model = {auto_class}.from_pretrained({arguments})
```

{figures}"""


def write(
  folder: pathlib.Path,
  *,
  target: Target,
  kind: str,
  checkpoint: pathlib.Path,
  parameter_count: int,
  tokenizer: bool,
) -> None:
  """Writes the model card, with the figures of the run if it has any.

  Args:
    folder: the exported folder.
    target: the model.
    kind: its architecture, in a few words.
    checkpoint: of the run that trained it.
    parameter_count: values of all tensors.
    tokenizer: whether the folder has a tokenizer.
  """
  run = checkpoint.parent
  classes = [target.auto_class, *(['AutoTokenizer'] if tokenizer else [])]
  arguments = "'.', trust_remote_code=True" if target.has_code else "'.'"
  text = _TEMPLATE.format(
    name=run.name,
    parameters=parameter_count,
    kind=kind,
    task=target.task,
    described=target.described,
    auto_class=target.auto_class,
    arguments=arguments,
    checkpoint=f'{run.name}/{checkpoint.name}',
    classes=', '.join(classes),
    tokenizer=(
      f'tokenizer = AutoTokenizer.from_pretrained({arguments})\n'
      if tokenizer
      else ''
    ),
    figures='\n'.join(_figures(run, checkpoint)) or 'The run has no figures.\n',
  )
  (folder / FILE).write_text(text, encoding='utf-8')


def _figures(run: pathlib.Path, checkpoint: pathlib.Path) -> Iterator[str]:
  """Yields lines of Markdown about the training run."""
  if not (run / SUMMARY_FILE).is_file():
    return
  figures = summary.read_summary(run)
  yield '## Training'
  yield ''
  yield f'- steps of the run: {figures["steps"]}, seed: {figures["seed"]}'
  yield f'- engine: {figures["engine"]}'
  if (run / RUN_FILE).is_file():
    package = read_runs(run)[-1].get('packages', {})
    versions = [f'{n} {package[n]}' for n in ('jax', 'flax') if n in package]
    yield f'- versions: {", ".join(versions)}'
  yield f'- loss: {figures["loss_definition"]}'
  yield ''
  yield '## Evaluation'
  yield ''
  step = int(checkpoint.name.rpartition('_')[2])
  rows = [
    (task, entry['last'])
    for task, entry in sorted(figures['training_eval'].items())
  ]
  for task, row in rows:
    if row['step'] != step:
      yield f'The last evaluation of `{task}` was at step {row["step"]}.'
      yield ''
    yield f'| `{task}`, step {row["step"]} | |'
    yield '|---|---|'
    for metric, title in _METRICS.items():
      if row.get(metric) is not None:
        yield f'| {title} | {row[metric]:.6g} |'
    yield ''
