"""Tables as seqio sources: formats, types, splits, shards, identities."""

import json
import pathlib
import random
import shlex

import gin
import pyarrow as pa
import pytest
import seqio
import tensorflow as tf

from selective_t5x.errors import RunError, UserError
from selective_t5x.tasks import table_files, tables
from t5x import data_identity, data_reading
from tests.tasks import saved_tables

ROWS = [
  {'text': f'document {i}é', 'label': i % 3, 'score': i / 4, 'ok': i % 2 == 0}
  for i in range(50)
]
ALL = {'text': 'text', 'label': 'label', 'score': 'score', 'ok': 'ok'}


def read(source, split='train', **options):
  dataset = source.get_dataset(split, **({'shuffle': False} | options))
  return [
    {
      k: v.decode() if isinstance(v, bytes) else v.item()
      for k, v in row.items()
    }
    for row in dataset.as_numpy_iterator()
  ]


def texts(rows):
  return [row['text'] for row in rows]


@pytest.fixture
def folder(tmp_path):
  saved_tables.parquet(tmp_path / 'a.parquet', ROWS, row_group_size=7)
  saved_tables.saved(tmp_path / 'saved', ROWS)
  return tmp_path


@pytest.mark.parametrize('pattern', ['a.parquet', '*.parquet', 'saved'])
def test_both_formats_give_every_row_in_order_with_its_types(folder, pattern):
  source = tables.TableSource({'train': str(folder / pattern)}, ALL)
  assert read(source) == ROWS
  spec = source.get_dataset('train').element_spec
  assert {name: tensor.dtype for name, tensor in spec.items()} == {
    'text': tf.string,
    'label': tf.int64,
    'score': tf.float64,
    'ok': tf.bool,
  }


@pytest.mark.parametrize(
  'type_',
  [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_every_kind_of_text_is_read(tmp_path, type_):
  values = ['a', 'é', '', 'a']
  table = pa.table({'t': pa.array(values).cast(type_)})
  with pa.ipc.new_stream(str(tmp_path / 'a.arrow'), table.schema) as stream:
    stream.write_table(table)
  source = tables.TableSource(
    {'train': str(tmp_path / 'a.arrow')}, {'text': 't'}
  )
  assert texts(read(source)) == values


def test_a_column_may_give_two_features(folder):
  source = tables.TableSource(
    {'train': str(folder / 'saved')}, {'inputs': 'text', 'targets': 'text'}
  )
  assert read(source)[3] == {'inputs': 'document 3é', 'targets': 'document 3é'}


@pytest.mark.parametrize('hosts', [2, 3, 5])
def test_hosts_share_the_rows(tmp_path, hosts):
  saved_tables.saved(tmp_path / 'saved', ROWS, shards=3)
  source = tables.TableSource({'train': str(tmp_path / 'saved')}, ALL)
  assert len(source.list_shards('train')) == 3
  name = f'tables_test_{hosts}_{tmp_path.name}'
  task = seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[],
    output_features={
      'text': seqio.Feature(
        seqio.PassThroughVocabulary(1), dtype=tf.string, rank=0, add_eos=False
      )
    },
  )
  try:
    parts = [
      [
        row['text'].decode()
        for row in task.get_dataset(
          None,
          'train',
          shuffle=False,
          shard_info=seqio.ShardInfo(index, hosts),
        ).as_numpy_iterator()
      ]
      for index in range(hosts)
    ]
  finally:
    seqio.TaskRegistry.remove(name)
  assert all(parts)
  assert sorted(sum(parts, [])) == sorted(texts(ROWS))


def test_shuffling_is_of_files_and_depends_on_the_seed_alone(tmp_path):
  for i in range(8):
    saved_tables.parquet(tmp_path / f'{i}.parquet', ROWS[i * 5 : i * 5 + 5])
  source = tables.TableSource({'train': str(tmp_path / '*.parquet')}, ALL)
  one, again, other = (
    texts(read(source, shuffle=True, seed=seed)) for seed in (0, 0, 1)
  )
  assert one == again != other
  assert sorted(one) == sorted(other) == sorted(texts(ROWS[:40]))


def test_the_identity_has_columns_files_and_contents(folder):
  def identity(source):
    return data_identity._of_source(source, 'train')

  source = tables.TableSource({'train': str(folder / 'a.parquet')}, ALL)
  before = identity(source)
  assert 'a.parquet' in str(before) and 'label' in before['columns']
  elsewhere = folder / 'elsewhere'
  elsewhere.mkdir()
  (elsewhere / 'a.parquet').write_bytes((folder / 'a.parquet').read_bytes())
  moved = tables.TableSource({'train': str(elsewhere / 'a.parquet')}, ALL)
  assert identity(moved) == before
  saved_tables.parquet(elsewhere / 'a.parquet', ROWS[:-1])
  assert identity(moved) != before
  fewer = tables.TableSource(
    {'train': str(folder / 'a.parquet')}, {'text': 'text'}
  )
  assert identity(fewer) != before


@pytest.mark.parametrize(
  ('pattern', 'columns', 'message'),
  [
    (
      'a.parquet',
      {'text': 'txet'},
      "no column 'txet' for 'text': it has text, .*, ok; nearest: text",
    ),
    ('none*', ALL, "the split 'train': no file or folder matches"),
    ('', ALL, 'is a folder without state.json: expected one that save_to_disk'),
    ('broken', ALL, 'neither a parquet file nor an Arrow stream'),
    ('cut.parquet', ALL, 'neither a parquet file nor an Arrow stream'),
    ('lists', {'text': 'text'}, "the column 'text' is of type list<.*>: expe"),
    ('splits', ALL, 'has the splits train, test; expected the folder of one,'),
    (
      'selection',
      ALL,
      'was saved with a selection of rows that is not applied',
    ),
    ('gone', ALL, 'lists a file that is missing'),
    ('[al]*', {'text': 'text'}, 'its columns are text: int64, but those of'),
  ],
)
def test_mistakes_are_one_line(folder, pattern, columns, message):
  (folder / 'broken').write_text('text\n')
  (folder / 'cut.parquet').write_bytes((folder / 'a.parquet').read_bytes()[:99])
  saved_tables.parquet(folder / 'lists', [{'text': ['a']}])
  saved_tables.saved_splits(folder / 'splits', {'train': ROWS, 'test': ROWS})
  for name in ('selection', 'gone'):
    saved_tables.saved(folder / name, ROWS)
  state = folder / 'selection/state.json'
  state.write_text(
    json.dumps(
      json.loads(state.read_text())
      | {'_indices_data_files': [{'filename': 'indices.arrow'}]}
    )
  )
  (folder / 'gone/data-00000-of-00001.arrow').unlink()
  if pattern == '[al]*':
    saved_tables.parquet(folder / 'lists', [{'text': 1}])
  source = tables.TableSource({'train': str(folder / pattern)}, columns)
  with pytest.raises(UserError, match=message) as error:
    source.get_dataset('train')
  assert '\n' not in str(error.value)


def test_a_missing_value_is_one_line_with_its_row(tmp_path):
  rows = [*ROWS[:5], {**ROWS[5], 'text': None}]
  saved_tables.parquet(tmp_path / 'a.parquet', rows, row_group_size=2)
  source = tables.TableSource({'train': str(tmp_path / 'a.parquet')}, ALL)
  with (
    pytest.raises(RunError, match="row 6 has no value in the column 'text'"),
    data_reading.reading('the training data'),
  ):
    read(source)


@pytest.mark.parametrize(
  'name', ['a.parquet', 'saved/data-00000-of-00001.arrow']
)
def test_a_file_with_other_bytes_is_read_or_refused_in_one_line(folder, name):
  data, rng = (folder / name).read_bytes(), random.Random(0)
  broken, columns = folder / 'broken', {'text': 'text', 'label': 'label'}
  refused = 0
  for _ in range(100):
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 10])):
      changed[rng.randrange(len(data))] = rng.randrange(256)
    broken.write_bytes(changed[: rng.choice([None, rng.randrange(len(data))])])
    try:
      types = tables._types(str(broken), columns)
      part = tables.Part((str(broken),))
      for batch in tables._batches(
        str(broken).encode(), part=part, columns=columns, types=types
      ):
        assert set(batch) == set(columns)
    except UserError as error:
      refused += 1
      assert '\n' not in str(error)
  assert refused > 20


def test_an_unknown_split_is_refused(folder):
  source = tables.TableSource({'train': str(folder / 'a.parquet')}, ALL)
  with pytest.raises(
    UserError, match="'trian': there is train; nearest: train"
  ):
    source.get_dataset('trian')


def bind(**settings):
  gin.parse_config(
    [f'table_files.Files.{key} = {value!r}' for key, value in settings.items()]
  )


def test_held_out_rows_are_a_share_by_their_content(tmp_path):
  rows = [{'text': f'document {i}'} for i in range(400)]
  saved_tables.parquet(tmp_path / 'a.parquet', rows)
  bind(train=str(tmp_path / 'a.parquet'), held_out=0.2)
  train, held_out = (
    texts(read(table_files.TEXTS, split)) for split in ('train', 'validation')
  )
  assert 40 < len(held_out) < 120
  assert sorted(train + held_out) == sorted(texts(rows))
  identities = [
    data_identity._of_source(table_files.TEXTS, split)
    for split in ('train', 'validation')
  ]
  assert identities[0] != identities[1]
  # The same document in another place is on the same side.
  saved_tables.parquet(tmp_path / 'a.parquet', rows[::-1] + rows)
  assert set(texts(read(table_files.TEXTS, 'validation'))) == set(held_out)


def test_a_saved_folder_brings_its_splits(tmp_path):
  splits = {'train': ROWS[:30], 'validation': ROWS[30:40], 'test': ROWS[40:]}
  folder = saved_tables.saved_splits(tmp_path / 'saved', splits, shards=2)
  bind(train=str(folder))
  assert table_files.TEXTS.splits == ('train', 'validation', 'test')
  for split, rows in splits.items():
    # seqio interleaves files.
    assert sorted(texts(read(table_files.TEXTS, split))) == sorted(texts(rows))
  bind(validation=str(folder / 'test'))
  there = texts(read(table_files.TEXTS, 'validation'))
  assert sorted(there) == sorted(texts(ROWS[40:]))


def test_without_a_binding_the_error_says_what_to_bind():
  with pytest.raises(UserError, match='bind table_files.Files.train to a patt'):
    table_files.TEXTS.get_dataset('train')
  assert table_files.TEXTS.splits == ('train', 'validation')


def test_the_tasks_give_text_and_pairs(tmp_path):
  rows = [{'question': f'{i}?', 'answer': f'{i}!'} for i in range(40)]
  saved_tables.parquet(tmp_path / 'a.parquet', rows)
  gin.parse_config("vocabularies.Choice.kind = 'bytes'")
  bind(
    train=str(tmp_path / 'a.parquet'),
    text='answer',
    inputs='question',
    targets='answer',
  )
  lengths = {'inputs': 8, 'targets': 8}
  vocabulary = seqio.ByteVocabulary()
  pairs = seqio.get_mixture_or_task('table_files_seq2seq').get_dataset(
    lengths, 'train', shuffle=False
  )
  first = next(pairs.as_numpy_iterator())
  assert vocabulary.decode(first['inputs']).endswith('?')
  assert first['inputs'][-1] == first['targets'][-1] == vocabulary.eos_id
  chunks = seqio.get_mixture_or_task('table_files_lm').get_dataset(
    lengths, 'train', shuffle=False
  )
  assert vocabulary.decode(
    next(chunks.as_numpy_iterator())['targets']
  ).endswith('!')


def test_the_library_datasets_writes_what_is_read(tmp_path):
  datasets = pytest.importorskip('datasets')
  whole = datasets.Dataset.from_list(ROWS)
  whole.save_to_disk(tmp_path / 'one', num_shards=3)
  whole.train_test_split(0.2, seed=0).save_to_disk(tmp_path / 'two')
  whole.select([4, 2]).save_to_disk(tmp_path / 'selection')

  def source(name):
    return tables.TableSource({'train': str(tmp_path / name)}, ALL)

  assert sorted(texts(read(source('one')))) == sorted(texts(ROWS))
  assert read(source('selection')) == [ROWS[4], ROWS[2]]
  assert tables.splits_of(str(tmp_path / 'two')) == ['train', 'test']
  assert len(read(source('two/test'))) == 10


@pytest.mark.slow
def test_the_page_s_command_trains_on_parquet(commands, tmp_path):
  page = pathlib.Path(__file__).resolve().parents[2] / 'docs/tasks/tables.md'
  text = page.read_text().split('```sh\n')[1].split('```')[0]
  _, dash_m, module, *words = shlex.split(text.replace('\\\n', ''))
  assert dash_m == '-m'
  rows = [{'text': f'row {i} of some words. ' * 9} for i in range(60)]
  for shard in range(2):
    saved_tables.parquet(tmp_path / f'data/train-{shard}.parquet', rows)
  run = commands.run(
    module,
    [
      *words,
      '--gin_file=gin/test/tiny.gin',
      '--gin.TRAIN_STEPS=2',
      "--gin.vocabularies.Choice.kind='bytes'",
    ],
    tmp_path,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  assert 'nothing in this run' not in run.stderr
