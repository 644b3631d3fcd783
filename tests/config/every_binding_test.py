"""Every binding of the suite's gin files and of its pages is read by a run."""

import functools
import inspect
import pathlib
import re
import tempfile

import gin
import pytest
import seqio

from selective_t5x import tasks  # noqa: F401, registers
from selective_t5x.bindings import reads
from selective_t5x.config import apply, files, reader
from selective_t5x.config.session import Session
from t5x import utils
from tests.tasks import saved_tables

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATHS = [str(files.search_path())]
GIN = files.gin_dir()
# Those of gin/t5x/ act on T5X's model files: tests/t5x_package/.
FILES = sorted(
  f'gin/{p.relative_to(GIN)}'
  for p in GIN.rglob('*.gin')
  if p.parent.name != 't5x'
)
LM = 'gin/experiments/wikipedia_sample_lm.gin'
T5 = 'gin/experiments/t5_span_corruption_baseline.gin'
T5_DECODER = 'gin/models/t5_decoder_only/base.gin'
SELECTIVE = 'gin/attention/selective.gin'
# What comes before a file, and after it, for it to act.
BEFORE = {
  'gin/attention/memory_loss.gin': (LM, SELECTIVE),
  'gin/attention/fade_in.gin': (LM, SELECTIVE),
  'gin/attention/distil_gates.gin': (
    *(LM, 'gin/runs/finetune.gin', 'gin/attention/retention.gin'),
  ),
  'gin/attention/ssa_finetune.gin': (
    *(LM, 'gin/runs/finetune.gin', 'gin/attention/ssa.gin'),
  ),
  'gin/optimizers/adafactor.gin': (T5,),
  'gin/architectures/t5.gin': (T5,),
  'gin/architectures/t5_1_0.gin': (T5,),
  'gin/architectures/t5_1_1.gin': (T5,),
  'gin/test/t5_tiny.gin': (T5,),
  'gin/runs/trackers.gin': (LM, 'gin/runs/finetune.gin'),
  'gin/runs/trackers_eval.gin': (LM, 'gin/runs/eval.gin'),
  'gin/pruning/share.gin': (LM, 'gin/pruning/window.gin'),
  'gin/runs/search.gin': (LM, SELECTIVE, 'gin/pruning/selective.gin'),
}
AFTER = {'gin/runs/pretrain.gin': (LM,)}
# Bindings that some configurations alone read, and those.
ALSO = [
  (T5, SELECTIVE, 'gin/attention/memory_loss.gin'),
  (T5, 'gin/attention/twice_the_heads.gin'),
  (LM, T5_DECODER, 'gin/attention/twice_the_heads.gin'),
  (T5, 'gin/attention/differential.gin'),
  (LM, T5_DECODER, 'gin/attention/differential.gin'),
]
REQUIRED = {
  'MODEL_DIR': "'x'",
  'CHECKPOINT_PATH': "'x'",
  'EVAL_OUTPUT_DIR': "'x'",
  'INFER_OUTPUT_DIR': "'x'",
  'INPUT_FILE': "'x'",
  'INITIAL_CHECKPOINT_PATH': "'x'",
  'FADE_START': '0',
  'CACHE_BUDGETS': '2',
  'CACHE_SHARE': '0.5',
}
# Macros that no file of the suite reads, and why they are there.
UNREAD: dict[str, str] = {}
# What pages show that is no setting: mistakes on purpose, and placeholders.
NO_SETTINGS = {
  'BATCH_SZE': 'a mistake that is refused',
  'trainer.Trainer.num_microbatch': 'a mistake that is refused',
  'KEY': 'a placeholder',
  'NAME': 'a placeholder',
  'my_network.Config.attention_fn': "a network of one's own",
  'my_models.MyModel.module': "a model of one's own",
  **{
    f't5_network.from_t5x.{argument}': "of T5X's model files: t5x_package/"
    for argument in ('module', 'attention_fn', 'pruning', 'attention_extension')
  },
}


def configurations(folder):
  """Yields files to load together; one of a page is written to the folder."""
  for file in FILES:
    before = () if file.startswith('gin/experiments/') else (LM,)
    before = BEFORE.get(file, before)
    yield (*before, file, *AFTER.get(file, ()))
  yield from ALSO
  page = (ROOT / 'docs/t5x_idioms.md').read_text()
  decoding = pathlib.Path(folder) / 'decoding.gin'
  decoding.write_text(re.search(r'```gin\n(.*?)```', page, re.DOTALL)[1])
  yield T5, 'gin/runs/infer.gin', str(decoding)


def session(loaded, more=()):
  """Returns a session of files with what they require, and more bindings."""
  config = reader.load(loaded, [], PATHS)
  wanted = {
    leaf.name
    for binding in config.bindings
    for leaf in reader.leaves(binding.value)
    if isinstance(leaf, reader.Macro)
  }
  needed = wanted | {b.name for b in config.bindings if not b.selector}
  if 'gin/pruning/share.gin' in loaded:  # It gives what another requires.
    needed -= {'CACHE_BUDGETS'}
  bindings = [f'{k} = {v}' for k, v in REQUIRED.items() if k in needed]
  bindings += more
  return Session(loaded, bindings)


@functools.cache
def survey():
  """What the configurations bind, read and call.

  Returns:
    ({place of a binding: its key}, the places of those that are read, names of
    macros that are read, full names of all that can be called).
  """
  bound, read, macros, called = {}, set(), set(), set()
  with tempfile.TemporaryDirectory() as folder:
    for loaded in configurations(folder):
      with session(loaded) as here:
        keys = apply.keys(here.config)
        roots = [*reads.entries(), *reads.called_by_python()]
        reachable = reads.reachable(roots)
        for binding in here.config.bindings:
          if not binding.on_command_line:
            bound[binding.where] = binding.key
            if keys[id(binding)] in reachable:
              read.add(binding.where)
        macros |= {key[0] for key in reachable if key[1] == reads.MACRO}
        for name, _ in reads.reachable_calls(roots):
          called |= {name, reads._base(name)} - {None}
  return bound, read, macros, called


def test_every_binding_of_a_gin_file_is_read_by_a_run():
  bound, read, _, _ = survey()
  assert {where.rpartition(':')[0] for where in bound} >= {
    file
    for file in FILES
    if re.search(r'^\w[\w./]* = |^  \w+ = ', (ROOT / file).read_text(), re.M)
  }
  unread = {w: key for w, key in bound.items() if w not in read}
  assert not {w: k for w, k in unread.items() if k not in UNREAD}


TASKS = [
  ('gin/experiments/copy.gin', [], 'copy_task.Difficulty.length'),
  ('gin/experiments/parity.gin', [], 'parity.Difficulty.scratchpad'),
  (
    'gin/experiments/needle_retrieval.gin',
    [],
    'needle_retrieval.Difficulty.num_needles',
  ),
  (
    'gin/experiments/token_counting.gin',
    [],
    'token_counting.Difficulty.max_count',
  ),
  ('gin/experiments/multi_key.gin', [], 'multi_key.Difficulty.num_needles'),
  (
    'gin/experiments/variable_tracking.gin',
    [],
    'variable_tracking.Difficulty.num_hops',
  ),
  (
    'gin/experiments/frequent_words.gin',
    [],
    'frequent_words.Difficulty.rare',
  ),
  (
    'gin/experiments/variable_assignment.gin',
    [],
    'variable_assignment.Difficulty.num_values',
  ),
  (
    'gin/experiments/wikipedia_sample_span_corruption.gin',
    ["vocabularies.Choice.kind = 'bytes'"],
    'span_corruption.Corruption.noise_density',
  ),
  (LM, ["vocabularies.Choice.kind = 'bytes'"], 'vocabularies.Choice.kind'),
  (
    'gin/experiments/wikitext_103_lm.gin',
    ["vocabularies.Choice.kind = 'bytes'", "DATA_DIR = '{folder}'"],
    'data_dir.root.path',
  ),
  (
    'gin/experiments/c4_lm.gin',
    ["vocabularies.Choice.kind = 'bytes'", "c4_json.Files.folder = '{folder}'"]
    + ["MIXTURE_OR_TASK_NAME = 'c4_json_lm'"],
    'c4_json.Files.folder',
  ),
  (
    LM,
    [
      "vocabularies.Choice.kind = 'bytes'",
      "MIXTURE_OR_TASK_NAME = 'text_files_lm'",
    ]
    + ["text_files.Files.train = '{folder}/*.txt'"],
    'text_files.Files.train',
  ),
  (
    LM,
    [
      "vocabularies.Choice.kind = 'bytes'",
      "MIXTURE_OR_TASK_NAME = 'table_files_lm'",
    ]
    + ["table_files.Files.train = '{folder}/*.parquet'"],
    'table_files.Files.train',
  ),
]


@pytest.mark.parametrize('experiment, bindings, setting', TASKS)
def test_settings_that_code_calls_are_read_by_the_data(
  experiment, bindings, setting, tmp_path
):
  text = 'One of some paragraphs.\n\n' * 50
  (tmp_path / 'wikitext-103').mkdir()
  (tmp_path / 'wikitext-103/wiki.train.tokens').write_text(' = A = \n' + text)
  (tmp_path / 'text.txt').write_text(text)
  saved_tables.parquet(tmp_path / 'text.parquet', [{'text': text}] * 50)
  (tmp_path / 'c4-train.00000-of-00001.json').write_text(
    '{"text": "a b"}\n' * 50
  )
  quick = ['BATCH_SIZE = 1', 'SHUFFLE_TRAIN_EXAMPLES = False', 'PACK = False']
  bindings = (binding.format(folder=tmp_path) for binding in bindings)
  with session([experiment], [*quick, *bindings]) as here:
    cfg = here.bound('train_dataset_cfg')
    converter = seqio.DecoderFeatureConverter
    dataset = utils.get_dataset(cfg, 0, 1, converter, num_epochs=1)
    next(dataset.as_numpy_iterator())
    assert setting in {reads.short(key) for key in reads.read()}
  # There is no other such setting.
  shown = {reads.matching(task[2].rpartition('.')[0]) for task in TASKS}
  assert set(reads.called_by_python()) <= shown


def documented():
  """Yields (page, key) of what pages bind: flags, gin code, inline code."""
  pages = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
  for page in pages:
    text = page.read_text()
    keys = re.findall(r'--gin\.([A-Za-z_][\w./]*)=', text)
    keys += re.findall(r'`([\w./]+) = [^`]+`', text)
    for block in re.findall(r'```gin\n(.*?)```', text, re.DOTALL):
      name = f'{page.name}, gin'
      config = reader.read(re.sub('include .*', '', block), name)
      keys += [binding.key for binding in config.bindings]
    for key in keys:
      is_macro = re.fullmatch(r'[A-Z][A-Z0-9_]+', key)
      if is_macro or re.fullmatch(r'[\w/]*[a-z_0-9]+(\.\w+)+', key):
        yield str(page.relative_to(ROOT)), key


@pytest.mark.parametrize('page, key', sorted(set(documented())))
def test_every_binding_of_a_page_is_read_by_a_run(page, key):
  if key in NO_SETTINGS:
    return
  _, _, macros, called = survey()
  if '.' not in key:
    assert key in macros or f'%{key}' in (ROOT / page).read_text()
    return
  function, _, parameter = key.rpartition('/')[2].rpartition('.')
  names = [n for n in called if f'.{n}'.endswith(f'.{function}')]
  if not names:
    # What Python calls by itself has settings without any file.
    names = [reads.matching(function)]
  takes = set()
  for name in filter(None, names):
    wrapped = gin.config._REGISTRY[name].wrapped
    takes |= set(inspect.signature(wrapped).parameters)
  assert parameter in takes
