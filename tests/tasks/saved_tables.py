"""Writes tables as pyarrow and the library `datasets` do."""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet


def parquet(path, rows, **options) -> pathlib.Path:
  """Writes rows, dictionaries, to a parquet file."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  pa.parquet.write_table(pa.Table.from_pylist(rows), path, **options)
  return path


def saved(folder, rows, shards=1) -> pathlib.Path:
  """Writes a folder as Dataset.save_to_disk does."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  table = pa.Table.from_pylist(rows)
  size = -(-len(rows) // shards)
  names = []
  for shard in range(shards):
    names.append(f'data-{shard:05d}-of-{shards:05d}.arrow')
    part = table.slice(shard * size, size)
    with pa.ipc.new_stream(str(folder / names[-1]), part.schema) as stream:
      stream.write_table(part, max_chunksize=3)
  state = {
    '_data_files': [{'filename': name} for name in names],
    '_fingerprint': '0123456789abcdef',
    '_format_columns': None,
    '_format_kwargs': {},
    '_format_type': None,
    '_output_all_columns': False,
    '_split': None,
  }
  (folder / 'state.json').write_text(json.dumps(state))
  (folder / 'dataset_info.json').write_text('{}')
  return folder


def saved_splits(folder, splits, shards=1) -> pathlib.Path:
  """Writes a folder as DatasetDict.save_to_disk does."""
  for split, rows in splits.items():
    saved(pathlib.Path(folder) / split, rows, shards)
  text = json.dumps({'splits': list(splits)})
  (pathlib.Path(folder) / 'dataset_dict.json').write_text(text)
  return pathlib.Path(folder)
