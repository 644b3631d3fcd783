"""Tests of what is launched. Nothing is submitted anywhere."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jsonschema
import pytest

from selective_t5x.cli import flags
from selective_t5x.costs import topologies
from selective_t5x.errors import UserError
from xm_launch import jobset, launch, vertex

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).parent
# What a shell, or Kubernetes, would read if somebody forgot to quote.
HOSTILE = (
  'two words',
  'a \'single\' and a "double" quote',
  '$(touch pwned) `id` ${HOME} $HOME $$',
  'a; b && c | d > e # f',
  'line\nline\ttab \\ back * ? [x] {a,b} ~ !1',
)
COMMAND = ('python', '-m', 'selective_t5x.main', *HOSTILE)


def valid(document, name):
  schema = json.loads((HERE / f'{name}_schema.json').read_text())
  jsonschema.Draft202012Validator(schema).validate(document)


def expanded(text):
  """Returns what Kubernetes makes of a word where no variable is set."""
  out, rest = '', text
  while '$' in rest:
    before, _, rest = rest.partition('$')
    out += before
    if rest.startswith('('):  # Would be a reference to a variable.
      return None
    out += '$'
    rest = rest.removeprefix('$')
  return out + rest


@pytest.mark.parametrize('tpu', topologies.slices())
def test_manifests_are_valid_for_every_slice(tpu):
  part = topologies.find(tpu, '--tpu')
  example = jobset.manifest('sel', COMMAND, part, 'registry/image')
  valid(example, 'jobset')
  (job,) = example['spec']['replicatedJobs']
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == part.hosts
  pod = spec['template']['spec']
  (container,) = pod['containers']
  limit = int(container['resources']['limits']['google.com/tpu'])
  assert limit * part.hosts == part.chips
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': part.chip.accelerator,
    'cloud.google.com/gke-tpu-topology': part.shape,
  }
  custom = vertex.custom_job('sel', COMMAND, part, 'registry/image')
  valid(custom, 'custom_job')
  (pool,) = custom['jobSpec']['workerPoolSpecs']
  assert pool['replicaCount'] == part.hosts
  assert pool['machineSpec']['tpuTopology'] == part.shape


def test_the_schemas_are_strict():
  part = topologies.find('v4-8', '--tpu')
  example = jobset.manifest('sel', COMMAND, part, 'image')
  example['spec']['replicatedJob'] = []
  with pytest.raises(jsonschema.ValidationError):
    valid(example, 'jobset')


def test_words_reach_a_pod_as_they_are():
  part = topologies.find('v4-128', '--tpu')
  example = jobset.manifest('sel', COMMAND, part, 'image')
  (job,) = example['spec']['replicatedJobs']
  (container,) = job['template']['spec']['template']['spec']['containers']
  assert [expanded(word) for word in container['command']] == list(COMMAND)
  (variable,) = container['env']
  assert variable['value'] == 'sel-workers-0-0.sel:8476'
  custom = vertex.custom_job('sel', COMMAND, part, 'image')
  (pool,) = custom['jobSpec']['workerPoolSpecs']
  assert pool['containerSpec']['command'] == list(COMMAND)


@pytest.mark.parametrize('name', ['', 'Sel', '1a', 'a-', 'a b', 'a' * 41])
def test_names_that_kubernetes_refuses(name):
  with pytest.raises(UserError, match='--name'):
    jobset.check_name(name)


def test_a_sweep_is_all_combinations_each_in_its_folder():
  grid = flags.swept(["KIND=['a b', 'c']", 'RATE=[1e-3, 3e-3]'])
  result = launch.runs('train', ['f.gin'], ["MODEL_DIR = 'out/'"], grid)
  assert [run.suffix for run in result] == [
    'KIND=a_b,RATE=0.001',
    'KIND=a_b,RATE=0.003',
    'KIND=c,RATE=0.001',
    'KIND=c,RATE=0.003',
  ]
  assert result[0].args == (
    '--run_mode=train',
    '--gin_file=f.gin',
    "--gin.MODEL_DIR='out/KIND=a_b,RATE=0.001'",
    "--gin.KIND='a b'",
    '--gin.RATE=0.001',
  )
  (alone,) = launch.runs('train', [], ["MODEL_DIR = 'out'"], {})
  assert alone.args == ('--run_mode=train', "--gin.MODEL_DIR='out'")


@pytest.mark.parametrize(
  'texts, bindings, message',
  [
    (['RATE'], [], '--sweep=RATE: expected KEY='),
    (['RATE=1'], [], 'expected KEY='),
    (['RATE=[]'], [], 'expected KEY='),
    (['RATE=[__import__("os")]'], [], 'expected KEY='),
    (['A=[1]', 'A=[2]'], [], 'swept twice'),
    (['A=[1]'], [], 'needs a folder'),
    (['A=[1]'], ['A = 2'], '--gin.A binds it too'),
    (["A=['a b', 'a_b']"], ["MODEL_DIR = 'x'"], 'two runs'),
  ],
)
def test_sweeps_that_cannot_be(texts, bindings, message):
  with pytest.raises(UserError, match=message):
    launch.runs('train', [], bindings, flags.swept(texts))


def dry_run(*args):
  return subprocess.run(
    [sys.executable, 'xm_launch/train.py', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


GKE = ('--executor=gke', '--image=registry/image', '--name=sel')


def test_a_dry_run_prints_manifests_and_commands():
  run = dry_run(
    *('--gin_file=a.gin', "--gin.MODEL_DIR='gs://b/s'", '--sweep=A=[1, 2]'),
    *(*GKE, '--tpu=v5litepod-256', '--dry_run'),
  )
  assert run.returncode == 0, run.stderr
  assert run.stdout.count('"google.com/tpu": "4"') == 4
  assert run.stdout.count('kubectl apply --namespace=default') == 2
  assert "--gin.MODEL_DIR='gs://b/s/A=2'" in run.stdout


def test_a_dry_run_of_a_local_run_prints_a_line_for_a_shell():
  run = dry_run(
    *('--gin_file=a.gin', '--python=/usr/bin/python 3', '--dry_run'),
    *(f'--gin.V{i}={value}' for i, value in enumerate(HOSTILE)),
  )
  assert shlex.split(run.stdout) == [
    *('/usr/bin/python 3', '-m', 'selective_t5x.main', '--run_mode=train'),
    '--gin_file=a.gin',
    *(f'--gin.V{i}={value}' for i, value in enumerate(HOSTILE)),
  ]


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'executor': 'gke'}, '--executor=gke needs --tpu'),
    ({'executor': 'vertx'}, 'one of local, gke, vertex; nearest: vertex'),
    ({'tpu': 'v4-8'}, '--executor=local runs on this machine'),
    (
      {'executor': 'vertex', 'tpu': 'v4-8', 'image': 'i'},
      '--executor=vertex needs --project',
    ),
  ],
)
def test_flags_that_cannot_be(changes, message):
  given = {'executor': 'local', 'tpu': None, 'image': None, **changes}
  with pytest.raises(UserError, match=message):
    launch.launches([], given.pop('executor'), python='p', name='n', **given)


def test_a_wrong_flag_is_one_line():
  run = dry_run('--gin_file=a.gin', '--dry_run', *GKE, '--tpu=v4-127')
  assert run.returncode == 2
  (line,) = run.stderr.splitlines()
  assert re.search('--tpu=v4-127: no such TPU slice.*nearest.*v4-128', line)


def fake(folder, name, script):
  path = folder / name
  path.write_text(f'#!/usr/bin/env bash\n{script}\n')
  path.chmod(0o755)


@pytest.fixture
def tools(tmp_path):
  """A folder of programs that note what they are given."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  file = f'open({str(tmp_path / "said")!r}, "a")'
  note = f'import json, sys; print(json.dumps(sys.argv[1:]), file={file})'
  fake(folder, 'note', f'{shlex.join([sys.executable, "-c", note])} "$@"')
  return folder


def said(tools):
  lines = (tools.parent / 'said').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_tpu_vm_script_quotes_for_the_hosts(tools, tmp_path):
  # The hosts' shell reads --command; their python notes its words.
  host = tmp_path / 'home/suite/.venv/bin'
  host.mkdir(parents=True)
  fake(host, 'python', f'exec {tools}/note "$@"')
  fake(
    tools,
    'gcloud',
    f"""for word in "$@"; do
      case $word in --command=*selective_t5x.main*)
        cd {tmp_path}/home && bash -c "${{word#--command=}}"
      esac
    done""",
  )
  script = [ROOT / 'xm_launch/tpu_vm.sh', 'sel', 'zone', 'v4-8', 'rt', '--']
  subprocess.run(
    [*script, *HOSTILE],
    env=os.environ | {'PATH': f'{tools}:{os.environ["PATH"]}'},
    check=True,
  )
  assert said(tools) == [['-m', 'selective_t5x.main', *HOSTILE]]
  assert not list(tmp_path.rglob('pwned'))


def xmanager():
  """Returns the launcher's program, of this environment or of .venv-xm."""
  for folder in (pathlib.Path(sys.executable).parent, ROOT / '.venv-xm/bin'):
    if (folder / 'xmanager').exists():
      return folder / 'xmanager'
  return pytest.skip('XManager is not installed: make install-xm')


@pytest.mark.slow
@pytest.mark.parametrize('executor', ['local', 'gke'])
def test_xmanager_launches(tools, executor):
  program = xmanager()
  fake(tools, 'kubectl', 'exec note "$@"')
  cloud = ('--tpu=v4-128', '--image=i') if executor == 'gke' else ()
  run = subprocess.run(
    [program, 'launch', 'xm_launch/train.py', '--', '--gin_file=a.gin']
    + [f'--gin.V{i}={value}' for i, value in enumerate(HOSTILE)]
    + ["--gin.MODEL_DIR='out'", '--sweep=RATE=[1, 2]']
    + [f'--python={tools}/note', f'--executor={executor}', *cloud],
    cwd=ROOT,
    env=os.environ
    | {
      'PATH': f'{tools}:{os.environ["PATH"]}',
      'HOME': str(tools.parent),  # XManager keeps a database there.
    },
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  words = said(tools)
  assert len(words) == 2
  if executor == 'local':
    for number, line in enumerate(words, 1):
      assert line[4 : 4 + len(HOSTILE)] == [
        f'--gin.V{i}={value}' for i, value in enumerate(HOSTILE)
      ]
      assert line[-2:] == [
        f"--gin.MODEL_DIR='out/RATE={number}'",
        f'--gin.RATE={number}',
      ]
  else:
    assert words[0][:2] == ['apply', '--namespace=default']


@pytest.mark.parametrize(
  ('tpu', 'several'), [('v4-128', True), ('v4-8', False)]
)
def test_the_processes_of_several_hosts_look_for_each_other(tpu, several):
  runs = launch.runs('train', ['a.gin'], [], {})
  (result,) = launch.launches(
    runs, 'gke', python='python', tpu=tpu, image='image', name='one'
  )
  assert ('--multiprocess' in result.text()) == several
