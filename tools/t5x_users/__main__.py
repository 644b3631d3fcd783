"""Runs the repositories of T5X's users on the embedded engine.

  make t5x-users T5X_USERS=<folder of their checkouts>

The folder holds checkouts of google-research/prompt-tuning, google/flaxformer,
google-research/t5x_retrieval and magenta/mt3 by these names. A missing one is
skipped by name. Nothing of them is changed; environment.py says what is added.
The last line is JSON: {repository: [passed, total]}. The exit code is 1 if
something fails that is not in KNOWN.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tools.t5x_users import checks, environment

# Packages of mt3 for audio: neither parsing nor importing computes with them.
AUDIO = ('note_seq', 'pretty_midi', 'ddsp', 'librosa', 'mir_eval')
REPOSITORIES = ('prompt-tuning', 'flaxformer', 't5x_retrieval', 'mt3')
# {a part of an error: why it comes up, whatever the engine does}
KNOWN = {
  "'t5x.contrib.calm'": 'it needs t5x.contrib.calm, which is T5X alone',
  "'t5x.contrib.moe'": 'it needs t5x.contrib.moe, which is T5X alone',
}


def main() -> None:
  """Runs all repositories, or one of them in this process."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('checkouts', type=pathlib.Path)
  parser.add_argument('--only', nargs='+', choices=REPOSITORIES)
  parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if not args.checkouts.is_dir():
    parser.error(f'{args.checkouts}: no such folder; expected the checkouts')
  checkouts = args.checkouts.resolve()
  if args.one:
    name, result = args.one
    environment.prepare(AUDIO if name == 'mt3' else ())
    results = list(_results(name, checkouts))
    pathlib.Path(result).write_text(json.dumps(results))
    return
  counts, failed = {}, False
  for name in args.only or REPOSITORIES:
    print(f'\n{name}', flush=True)
    if not (checkouts / name).is_dir():
      print(f'  skipped: no {checkouts / name}')
      continue
    results = _in_a_process(name, checkouts)
    counts[name] = [sum(passed for _, passed, _ in results), len(results)]
    failed |= _show(results)
  print(f'\n{json.dumps(counts)}')
  sys.exit(failed)


def _show(results: list[checks.Result]) -> bool:
  """Prints the results; returns whether one fails that is not known."""
  failed = not results
  for what, passed, why in results:
    known = [reason for part, reason in KNOWN.items() if part in why]
    if passed:
      print(f'  pass {what}')
    else:
      print(f'  FAIL {what}: {known[0] if known else why}')
      failed |= not known
  return failed


def _in_a_process(name: str, checkouts: pathlib.Path) -> list[checks.Result]:
  """Runs the checks of one repository in a new process."""
  paths = [str(checkouts / repository) for repository in REPOSITORIES]
  paths += [os.environ.get('PYTHONPATH', '')]
  with tempfile.TemporaryDirectory() as folder:
    result = pathlib.Path(folder, 'result.json')
    subprocess.run(
      [
        sys.executable,
        '-m',
        'tools.t5x_users',
        checkouts,
        '--one',
        name,
        result,
      ],
      env=os.environ
      | {
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'SELECTIVE_T5X_ENGINE': 'embedded',
        'PYTHONDONTWRITEBYTECODE': '1',  # into the checkouts
        'TF_CPP_MIN_LOG_LEVEL': '2',
      },
      check=False,
    )
    if result.exists():
      return [tuple(row) for row in json.loads(result.read_text())]
  return [(name, False, 'the process ended without a result')]


def _results(name: str, checkouts: pathlib.Path) -> Iterator[checks.Result]:
  """Yields the results of one repository."""
  checkout = checkouts / name
  if name == 'prompt-tuning':
    yield from checks.tests(
      checkout,
      (
        'prompt_tuning/prompts_test.py',
        'prompt_tuning/train/*_test.py',
        'prompt_tuning/extended/train/*_test.py',
      ),
      data='prompt_tuning/test_data',
    )
    with tempfile.TemporaryDirectory() as folder:
      search_paths = [checkout, checkouts / 'flaxformer']
      yield from checks.prompt_trained(search_paths, pathlib.Path(folder))
  elif name == 'flaxformer':
    yield from checks.tests(
      checkout,
      (
        'flaxformer/t5x/**/*_test.py',
        'flaxformer/architectures/perceiver_ar/t5_models_test.py',
      ),
    )
    yield from checks.imported(['flaxformer.t5x.checkpointing_util'])
  elif name == 't5x_retrieval':
    yield from checks.imported(['t5x_retrieval'])
  elif name == 'mt3':
    files = sorted((checkout / 'mt3/gin').rglob('*.gin'))
    yield from checks.parsed(
      checkout, [str(file.relative_to(checkout)) for file in files]
    )


if __name__ == '__main__':
  main()
